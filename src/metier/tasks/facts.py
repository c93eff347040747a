"""Whether a text names a fact, however it spells it.

Texts are compared without case, "$", thousands commas, am and pm or ordinal endings, on
word boundaries: "48" is in "it's $48." and not in "1482". Numbers written in words are
not understood; a list of spellings may name them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["names_fact", "normalise"]


def normalise(text: str) -> str:
    """Text as facts are compared: lower case, bare numbers, single spaces."""
    text = text.casefold().replace("’", "'")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(\d)\.00\b", r"\1", text)
    text = re.sub(r"(\d)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"(\d)\s?[ap]\.?m\b\.?", r"\1", text)
    text = re.sub(r"(?<=\d)[.:](?=\d)", ":", text)
    return " ".join(re.sub(r"[^\w:]|:(?!\d)|(?<!\d):", " ", text).split())


def names_fact(text: str, spellings: Sequence[str]) -> bool:
    """Whether the text contains one of the spellings, on word boundaries."""
    padded = f" {normalise(text)} "
    return any(normalise(str(one)) and f" {normalise(str(one))} " in padded for one in spellings)
