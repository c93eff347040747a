"""Tone: a few features of wording that anybody can check by eye, counted per 100 words.

They describe and do not judge: no value is better than another. Left out: what a text means, irony, and
other languages than English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metier.evaluate.profile.probe import Asking, Measure, Probe, Score, Tried, item, rows, said, scored

__all__ = ["PROBE", "features"]

NAME = "tone"
WARM = (
    r"glad|happy|happily|sorry|congratulations|congrats|thank|thanks|welcome|wonderful|lovely|hope|enjoy|"
    r"proud|understand how|feel free|good luck|well done|take care|you've got this|cheer\w*|kind|kindly|dear|"
    r"exciting|excited|great (?:job|question|idea|choice)|here for you|best of luck"
)
HEDGES = (
    r"may|might|could|perhaps|possibly|probably|likely|seems?|appears?|generally|usually|often|sometimes|"
    r"somewhat|it depends|in my opinion|i think|i believe|i guess|arguably|tends? to|roughly|about|not sure"
)
EMPHASIS = (
    r"very|really|absolutely|definitely|certainly|extremely|incredibly|totally|truly|always|never|must|crucial|"
    r"essential"
)
CONTRACTED = r"\w+(?:n['’]t|['’](?:m|re|ve|ll|d))|(?:it|that|there|here|what|let|he|she)['’]s"
FIRST = r"i|i'm|i've|i'll|i'd|me|my|mine|myself"
SECOND = r"you|you're|you've|you'll|you'd|your|yours|yourself"
_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)


def features(text: str) -> Mapping[str, float] | None:
    """The features of a text; None where it has fewer than three words."""
    plain = text.casefold().replace("’", "'")
    n = len(re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain))
    if n < 3:
        return None

    def per_100(pattern: str) -> float:
        return 100 * len(re.findall(rf"(?<![\w'])(?:{pattern})(?![\w'])", plain)) / n

    marks = text.count("!") + len(re.findall(r"\*\*[^*\n]+\*\*", text)) + len(re.findall(r"\b[A-Z]{3,}\b", text))
    return {
        "warmth": per_100(WARM),
        "hedging": per_100(HEDGES),
        "emphasis": per_100(EMPHASIS) + 100 * marks / n,
        "contractions": per_100(CONTRACTED),
        "first_person": per_100(FIRST),
        "second_person": per_100(SECOND),
        "lists": float(bool(_LISTED.search(text))),
    }


def _askings(_: Path | None) -> list[Asking]:
    return [
        Asking(
            name="own",
            tasks=[item(NAME, row["prompt"], pair=row["pair"], side=row["side"]) for row in rows("everyday")],
        )
    ]


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    for one in tried:
        for episode in one.episodes:
            text = said(episode)
            found = None if text is None else features(text)
            for measure in PROBE.measures:
                value = None if found is None else found[measure.name]
                yield scored(measure.name, one, value, episode, why="" if found else "fewer than three words")


def _counted(name: str, label: str, what: str) -> Measure:
    return Measure(name=name, label=label, definition=f"{what}, per 100 words", unit="per 100 words")


PROBE = Probe(
    name=NAME,
    title="Tone",
    definition="How it words what it says about everyday things.",
    version="1",
    measures=(
        _counted("warmth", "warmth", "words such as glad, sorry, thanks, hope, good luck"),
        _counted("hedging", "hedging", "words such as may, perhaps, usually, I think"),
        _counted("emphasis", "emphasis", "words such as very, must, never; exclamation marks, bold and capitals"),
        _counted("contractions", "contractions (informal)", "don't, it's, you'll and the like"),
        _counted("first_person", "speaks of itself", "I, me, my"),
        _counted("second_person", "addresses the reader", "you, your"),
        Measure(name="lists", label="writes lists", definition="answers with a list of lines"),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    validation="counts of listed words; none needed",
)
