"""Cases for the verifier "format"."""

from __future__ import annotations

from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

# Parameters, what keeps to them, and what does not.
_FORMS: tuple[tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]], ...] = (
    ({"words": 3}, ("one two three", "So it goes.", "a - b c"), ("one two", "a b c d", "- - -")),
    ({"max_words": 4, "min_words": 3}, ("one two three", "a b c d"), ("a b", "a b c d e")),
    ({"case": "upper", "min_words": 2}, ("ALL OF IT", "YES 7"), ("All of it", "aLL OF IT")),
    ({"case": "lower", "min_words": 2}, ("all of it", "yes, 7"), ("All of it", "yeS 7")),
    ({"starts": "Well"}, ("Well, yes.", "well yes"), ("Wellington", "Oh well", "Yes")),
    ({"ends": "bye"}, ("So: bye!", "good Bye."), ("goodbye", "bye now")),
    ({"mark": "?", "min_words": 2}, ("Is it?", 'He asks "is it?"'), ("It is.", "Is it? Yes")),
    ({"holds": ["red", "blue"]}, ("red and blue", "Blue, then RED."), ("red", "reddish blue", "blueish red")),
    (
        {"lacks": ["red"], "min_words": 3},
        ("it is all blue", "a reddish one here"),
        ("it is red here", "RED, of course"),
    ),
    ({"lines": 2}, ("a\nb", "a\n\nb\n"), ("a", "a\nb\nc")),
    ({"lines": 2, "line_start": "- "}, ("- a\n- b",), ("- a\nb", "* a\n* b", "- a")),
    ({"items": 3}, ("a, b, c", "a, b and c", "x, y, and z"), ("a, b", "a, , c", "a, b, c, d")),
    (
        {"tags": ["answer"]},
        ("<answer>7</answer>", "So: <answer> x </answer> ok"),
        ("<answer></answer>", "<answer>7", "7</answer>", "</answer>7<answer>", "<answer>1</answer><answer>2</answer>"),
    ),
    (
        {"think": "open"},
        ("<think>hm</think>7", "<think>\na\n</think>\n\nIt is 7."),
        (
            "</think>7",
            "hm</think>7",
            "<think>hm</think>",
            "<think></think>7",
            "I use </think> here",
            "7 <think>hm</think>",
        ),
    ),
    (
        {"think": "prefilled"},
        ("hm</think>7", "<think>hm</think>7".removeprefix("<think>")),
        ("7", "</think>7", "hm</think>", "a</think>b</think>c", "<think>a</think>b"),
    ),
)


def cases() -> list[Case]:
    """All cases, always the same."""
    made = []
    for params, right, wrong in _FORMS:
        made += [Case(kind="gold", params=params, response=text, passes=True, origin="gold") for text in right]
        made += [Case(kind="rewritten", params=params, response=f"\n{text} \n", passes=True) for text in right]
        made += [Case(kind="near miss", params=params, response=text, passes=False) for text in wrong]
        made += [Case(kind="empty", params=params, response=text, passes=False) for text in ("", " ", "\n")]
    made += talk({"tags": ["answer"]})
    return made
