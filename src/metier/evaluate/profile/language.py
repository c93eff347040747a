"""Language: whether it answers in the language that it is asked in, or asked for.

A language is told by its script, or, for those in Latin letters, by the share of words that are among its most
common ones (articles, prepositions, pronouns). Too few of them, or a tie, and the answer is unscored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from metier.evaluate.profile.probe import ANSWER, Asking, Measure, Probe, Score, Tried, item, rows, said, scored

__all__ = ["PROBE", "language_of"]

NAME = "language"
_SCRIPTS = (  # the first that covers a fifth of the letters; kana before han, since Japanese has both
    ("ja", r"[\u3040-\u30ff]"),
    ("zh", r"[\u4e00-\u9fff]"),
    ("ko", r"[\uac00-\ud7af\u1100-\u11ff]"),
    ("ru", r"[\u0400-\u04ff]"),
    ("ar", r"[\u0600-\u06ff]"),
    ("el", r"[\u0370-\u03ff]"),
    ("he", r"[\u0590-\u05ff]"),
    ("hi", r"[\u0900-\u097f]"),
)
_WORDS = {
    "en": "the of and to in is that it for was on are with as his they be at this have from or had by but not what "
    "all were we when your can there an which their if will how about you i a has its he she do",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
    "hat dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder aber vor zur bis mehr "
    "ich man kann wenn wir ihr",
    "fr": "le de un être et à il avoir ne je son que se qui ce dans en du elle au pour pas vous par sur faire plus "
    "dire me on mon lui nous comme mais pouvoir avec tout y aller les des est une la sont ont cette ou où l d c qu "
    "très leur",
    "es": "el la de que y a en un ser se no haber por con su para como estar tener le lo todo pero más hacer o este "
    "otro ese si me ya ver porque cuando muy sin sobre los las una es del al son está entre también",
    "it": "il di che e la un a per in una è non sono mi ho si lo ha le con ti cosa se io come da ci no questo qui ma "
    "del della nel al più gli i dei delle anche molto alla sua suo quando dal",
    "pt": "o de a e que do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
    "sua ou ser quando muito há nos já está eu também só pelo pela até isso são você",
    "nl": "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om hem dan zou of "
    "wat mijn men dit zo door over ze bij ook tot je mij uit der daar haar naar heb hoe heeft wordt deze",
}
_COMMON = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_LEAST = 0.15  # share of common words


def language_of(text: str) -> str | None:
    """The two-letter code of the text's language; None where it cannot be told."""
    letters = len(re.findall(r"[^\W\d_]", text))
    if not letters:
        return None
    for name, script in _SCRIPTS:
        if len(re.findall(script, text)) >= 0.2 * letters:
            return name
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = sorted(((sum(word in common for word in words), name) for name, common in _COMMON.items()), reverse=True)
    (most, name), (second, _) = counts[0], counts[1]
    return name if most > second and most >= _LEAST * len(words) else None


def _askings(_: Path | None) -> list[Asking]:
    sampling = replace(ANSWER, max_turn_tokens=48, max_tokens=48)
    asked = [
        item(NAME, row["prompt"], pair=row["pair"], side=row["side"], answer={"language": row["language"]})
        for row in rows(NAME)
    ]
    return [Asking(name="own", tasks=asked, sampling=sampling)]


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    for one in tried:
        for episode in one.episodes:
            text = said(episode)
            found = None if text is None else language_of(text)
            value = None if found is None else found == one.task.answer["language"]
            yield scored(one.task.meta["side"], one, value, episode, why=found or "its language cannot be told")


PROBE = Probe(
    name=NAME,
    title="Language",
    definition="Whether it answers in the language that is wanted.",
    version="1",
    measures=(
        Measure(
            name="asked",
            label="answers in the language of the question",
            definition="answers in the language that the question is in, eleven languages",
            better="more",
        ),
        Measure(
            name="switch",
            label="answers in the language asked for",
            definition="answers in another language, where the request wants that",
            better="more",
        ),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    validation="on sentences of our own, by tests; no public labels",
)
