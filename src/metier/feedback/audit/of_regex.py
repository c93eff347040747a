"""Cases for the verifier "regex"."""

from __future__ import annotations

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

_PATTERNS = (
    (
        {"pattern": r"\d{4}-\d{2}-\d{2}"},
        ("2024-01-31", "1999-12-01", " 2000-10-10\n"),
        ("24-01-31", "2024-01-31 or so", "2024/01/31"),
    ),
    ({"pattern": r"[A-Z]{2}\d{3}"}, ("AB123", "ZZ000", "QX987"), ("ab123", "AB12", "AB1234", "xAB123")),
    ({"pattern": r"yes|no"}, ("yes", "no", "yes "), ("yesno", "yes no", "maybe", "Yes")),
    ({"pattern": r"yes|no", "flags": "i"}, ("YES", "No", "yEs"), ("yes!", "not", "n o")),
    (
        {"pattern": r"total: \d+", "search": True},
        ("The total: 5 items", "total: 12", "a\ntotal: 3"),
        ("total 5", "total: five"),
    ),
    ({"pattern": r"^ok$", "search": True, "flags": "m"}, ("a\nok\nb", "ok", "x\nok"), ("okay", "not ok", "o k")),
    ({"pattern": r"(\w)\1"}, ("aa", "77", "bb"), ("ab", "a", "aaa")),
    ({"pattern": r"[^@\s]+@[^@\s]+\.[a-z]+"}, ("a@b.de", "x.y@z.org", "q@w.e"), ("a@b", "a b@c.de", "@b.de")),
    ({"pattern": r".*", "flags": "s"}, ("anything", "a\nb", "?"), ()),
    ({"pattern": r"\{[a-z\s]*\}"}, ("{}", "{a}", "{\n}"), ("{", "}{", "{}x")),
)


def cases() -> list[Case]:
    """All cases, always the same."""
    made = []
    for params, right, wrong in _PATTERNS:
        made += [Case(kind="gold", params=dict(params), response=text, passes=True, origin="gold") for text in right]
        made += [Case(kind="near miss", params=dict(params), response=text, passes=False) for text in wrong]
        if wrong:
            made += talk(dict(params))
    made.append(Case(kind="exploit", params={"pattern": ".*"}, response="", passes=False))
    return made
