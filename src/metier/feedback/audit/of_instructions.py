"""Cases for the verifier "instructions"; those of its checks that need no data beside the package."""

from __future__ import annotations

from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

_PARAGRAPHS = "First comes this.\n***\nThen comes that.\n***\nAnd so it ends."
# An id, its arguments, what keeps to it, and what does not.
_CONSTRAINTS: tuple[tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]], ...] = (
    ("punctuation:no_comma", {}, ("No commas here at all.", "One; two; three."), ("One, two.", "a,b")),
    (
        "keywords:existence",
        {"keywords": ["tea", "milk"]},
        ("Tea with milk please.", "milk, then tea"),
        ("Tea only.", "milk"),
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["sugar"]},
        ("Tea with milk.", "Only tea."),
        ("Tea with sugar.", "Sugar!"),
    ),
    (
        "keywords:frequency",
        {"keyword": "go", "frequency": 3, "relation": "at least"},
        ("go go go", "Go, go and go again: go."),
        ("go go", "stop"),
    ),
    (
        "length_constraints:number_words",
        {"num_words": 5, "relation": "at least"},
        ("one two three four five", "It has more than five words here."),
        ("only four words here", "none"),
    ),
    (
        "length_constraints:number_words",
        {"num_words": 5, "relation": "less than"},
        ("only four words here", "fine"),
        ("one two three four five", "a b c d e f"),
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 3},
        (_PARAGRAPHS,),
        ("One paragraph.", "One.\n***\nTwo."),
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ("* a\n* b", "Here:\n- a\n- b"),
        ("* a", "* a\n* b\n* c", "a\nb"),
    ),
    ("detectable_format:title", {}, ("<<A title>>\nText.", "<<x>> and more"), ("A title\nText.", "<A title>")),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ("*one* and *two*", "*a*, *b* and *c*"),
        ("*one*", "one and two"),
    ),
    ("detectable_format:json_format", {}, ('{"a": 1}', '```json\n{"a": [1, 2]}\n```'), ("a: 1", '{"a": 1')),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ("[name] at [place]", "[a] [b] [c]"),
        ("[name]", "name at place"),
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ("Text.\nP.S. More.", "A.\n\nP.S. b"),
        ("Text.", "PS more"),
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Good night."},
        ("Sleep well. Good night.", "GOOD NIGHT."),
        ("Good night. Bye.", "Night."),
    ),
    ("startend:quotation", {}, ('"All of it."', '"Yes"'), ("All of it.", '"Half of it')),
    ("change_case:english_capital", {}, ("ALL OF THIS IS LOUD ENGLISH TEXT.",), ("Not all of this is loud.",)),
    ("change_case:english_lowercase", {}, ("all of this is quiet english text.",), ("Not all of this is quiet.",)),
    (
        "combination:two_responses",
        {},
        ("First answer.\n******\nSecond answer.",),
        ("One answer.", "Same.\n******\nSame."),
    ),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        ("pizza", "zig zag"),
        ("zip", "none"),
    ),
)


def cases() -> list[Case]:
    """All cases, always the same."""
    made = []
    for name, arguments, right, wrong in _CONSTRAINTS:
        params = {"instruction_id_list": [name], "kwargs": [arguments]}
        made += [Case(kind="gold", params=params, response=text, passes=True, origin="gold") for text in right]
        made += [Case(kind="near miss", params=params, response=text, passes=False) for text in wrong]
        made += [Case(kind="empty", params=params, response=text, passes=False) for text in ("", " \n")]
    both = {
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{}, {"keywords": ["tea"]}],
    }
    made += [Case(kind="several", params=both, response="Tea it is.", passes=True)]
    made += [
        Case(kind="several", params=both, response=text, passes=False) for text in ("Tea, please.", "Milk it is.", "x")
    ]
    twice = {
        "instruction_id_list": ["keywords:existence"] * 2,
        "kwargs": [{"keywords": ["tea"]}, {"keywords": ["milk"]}],
    }
    made += [Case(kind="several", params=twice, response="Tea and milk.", passes=True)]
    made += [Case(kind="several", params=twice, response=text, passes=False) for text in ("Tea.", "Milk.")]
    made += [Case(kind="thinking", params=both, response="<think>Well, well, tea.</think>Tea it is.", passes=True)]
    made += [Case(kind="thinking", params=both, response="<think>Tea it is.", passes=False)]
    made += talk(both)
    return made
