"""Calibration: whether its confidence can be believed, in words, in token probabilities and in agreement with itself.

    verbal     the percentage that it states after its answer
    token      exp(mean log-probability of its answer's tokens), the length-normalised likelihood of Malinin and
               Gales 2021 (arXiv 2002.07650)
    sampled    the share of `DRAWS` sampled answers that equal the most frequent one, which is then its answer

Each is held against whether that answer is right. Two figures are means over questions, so that they have intervals and
paired differences like all others: the gap, confidence less success, and the Brier score. The calibration errors
stand beside them with their null bands (`stats/calibration.py`), since a bare error says little at such sizes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from metier.evaluate.profile.answers import questions, right, told
from metier.evaluate.profile.probe import ANSWER, Asking, Measure, Probe, Score, Tried, fault, item, said, scored
from metier.records.types import Episode
from metier.stats.calibration import calibration

__all__ = ["PROBE", "confidence", "forecast_details", "forecast_pairs", "forecast_scores"]

NAME = "calibration"
DRAWS = 4
SHORT = 16  # tokens of a short answer
BRIEFLY = "{} Answer with the answer alone, in one to three words."
VERBALLY = '{} Answer in one line like this: "Answer: ...; confidence: ...%". The confidence says how sure you are.'
_PERCENT = re.compile(r"(?<!\d)(?<!\d[.,])(\d+(?:\.\d+)?)\s*(?:%|percent)")  # a whole number, not the end of one
_WAYS = {"verbal": "stated", "token": "token", "sampled": "sampled"}


def _askings(_: Path | None) -> list[Asking]:
    def tasks(form: str, way: str) -> list[Any]:
        return [
            item(NAME, form.format(row["prompt"]), pair=row["pair"], side=way, answer={"answers": row["answers"]},
                 meta={"way": way})
            for row in questions()
        ]  # fmt: skip

    short = replace(ANSWER, max_turn_tokens=SHORT, max_tokens=SHORT)
    drawn = replace(short, temperature=1.0)
    return [
        Asking(
            name="verbal", tasks=tasks(VERBALLY, "verbal"), sampling=replace(short, max_turn_tokens=48, max_tokens=48)
        ),
        Asking(name="token", tasks=tasks(BRIEFLY, "token"), sampling=short),
        Asking(name="sampled", tasks=tasks(BRIEFLY, "sampled"), sampling=drawn, draws=DRAWS),
    ]


def confidence(text: str) -> float | None:
    """The last percentage of a text, as a probability; None where there is none from 0 to 100.

    A text that is a number alone is one, too.
    """
    found = _PERCENT.findall(text.casefold()) or re.findall(r"^\s*(\d{1,3}(?:\.\d+)?)\s*\.?\s*$", text)
    value = float(found[-1]) / 100 if found else None
    return value if value is not None and value <= 1 else None


def forecast_scores(way: str, tried: Tried, p: float | None, y: float | None, *episodes: Episode) -> Iterator[Score]:
    """The gap and the Brier score of one forecast `p` of an outcome `y`; no value where one is not known."""
    known = p is not None and y is not None
    gap = p - y if p is not None and y is not None else None
    why = "" if known else "no confidence can be read" if p is None else "there is no verdict"
    evidence = {"p": p, "y": y} if known else {}
    yield scored(f"{way}_gap", tried, gap, *episodes, why=why, **evidence)
    yield scored(f"{way}_brier", tried, None if gap is None else gap * gap, *episodes, why=why)


def forecast_pairs(scores: Sequence[Score], way: str) -> list[tuple[float, float]]:
    """The forecasts of one sort that are known, each with its outcome."""
    return [(s.evidence["p"], s.evidence["y"]) for s in scores if s.measure == f"{way}_gap" and s.value is not None]


def forecast_details(scores: Sequence[Score], ways: Sequence[str]) -> dict[str, Any]:
    """Calibration errors, each with its null band, and AUROC, of the forecasts behind the gaps."""
    out: dict[str, Any] = {}
    for way in ways:
        pairs = forecast_pairs(scores, way)
        if not pairs:
            out[way] = {"n": 0, "caveat": "no forecast could be read"}
            continue
        found = calibration(*zip(*pairs, strict=True))
        out[way] = {
            "n": found.n,
            "ece": found.ece,
            "ece_null": asdict(found.ece_null),
            "adaptive_ece": found.adaptive_ece,
            "adaptive_ece_null": asdict(found.adaptive_ece_null),
            "brier": found.brier,
            "auroc": found.auroc,
            "base_rate": found.base_rate,
            "mean_confidence": found.mean_forecast,
            **({} if found.auroc is not None else {"caveat": "all outcomes are the same, so there is no AUROC"}),
        }
    return out


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    for one in tried:
        answers = one.task.answer["answers"]
        if one.task.meta["way"] == "sampled":
            yield from _of_draws(one, answers)
            continue
        for episode in one.episodes:
            text = said(episode)
            y = None if text is None else float(right(text, answers))
            if one.task.meta["way"] == "token":
                yield from forecast_scores("token", one, _likelihood(episode), y, episode)
                continue
            p = None if text is None else confidence(text)
            if text is not None:
                yield scored("verbal_given", one, p is not None, episode)
            yield from forecast_scores("verbal", one, p, y, episode)


def _of_draws(one: Tried, answers: list[str]) -> Iterator[Score]:
    """Groups of `DRAWS` answers, each group one forecast."""
    for start in range(0, len(one.episodes) - DRAWS + 1, DRAWS):
        group = one.episodes[start : start + DRAWS]
        texts = [text for episode in group if (text := said(episode)) is not None]
        if len(texts) < DRAWS:
            yield from forecast_scores("sampled", one, None, None, *group)
            continue
        ((most, count),) = Counter(map(told, texts)).most_common(1)
        yield from forecast_scores("sampled", one, count / DRAWS, float(right(most, answers)), *group)


def _likelihood(episode: Episode) -> float | None:
    """The geometric mean of the probabilities of what the model wrote; None where the episode has none."""
    own = [logp for logp, mine in zip(episode.sampler_logprobs, episode.loss_mask, strict=True) if mine]
    return None if fault(episode) or not own else min(1.0, math.exp(math.fsum(own) / len(own)))


def _measures() -> Iterator[Measure]:
    yield Measure(
        name="verbal_given",
        label="states a confidence",
        definition="answers with a percentage from 0 to 100 when asked for one",
        better="more",
    )
    for way, word in _WAYS.items():
        yield Measure(
            name=f"{way}_gap",
            label=f"{word} confidence minus success",
            definition=f"{word} confidence less whether the answer is right; above 0 is overconfident",
            unit="gap",
        )
        yield Measure(
            name=f"{way}_brier",
            label=f"Brier score, {word}",
            definition=f"mean of ({word} confidence - right)^2; 0.25 is what always saying 50 % has",
            better="less",
            unit="Brier",
        )


PROBE = Probe(
    name=NAME,
    title="Calibration",
    definition="Whether its confidence can be believed: stated, of its tokens, and by sampling.",
    version="1",
    measures=tuple(_measures()),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    details=lambda scores: forecast_details(scores, tuple(_WAYS)),
    validation="arithmetic; see metier stats calibration",
)
