"""Judges that others have run on public pairs, audited here: the figures that were published come out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metier.feedback.judges.audit import Audit, measure
from metier.feedback.judges.gold import Told
from metier.feedback.judges.judge import together


def llmbar(folder: Path, subset: str, judge: str) -> Audit:
    """Verdicts of both orders; `winner` names the response whatever the order."""
    told = []
    rows: list[dict[str, Any]] = json.loads((folder / f"{subset}__{judge}_Vanilla.json").read_text())
    for number, row in enumerate(rows):
        straight, swapped = (row["results"][0][f"swap = {swap}"]["winner"] for swap in (False, True))
        lengths = (len(row["output_1"]), len(row["output_2"]))
        orders = value = None
        if straight is not None and swapped is not None:
            orders = (float(straight == "1"), float(swapped == "2"))
            value = 1.0 - float(together(*orders).value or 0.0)
        told.append(
            Told(truth=float(row["label"] == 1), value=value, cluster=str(number), orders=orders, lengths=lengths)
        )
    return measure(judge, "published", "compare", told)


# The accuracy is the mean of both orders, of those pairs that have two verdicts; one less the flip rate is how
# often the orders agree. A judge that reads well can be fooled by pairs made to fool it: the gold decides.
@pytest.mark.parametrize(
    ("subset", "judge", "accuracy", "flips", "fit"),
    [
        ("Natural", "GPT-4", 0.955, 0.05, "fit"),
        ("Natural", "ChatGPT", 0.815, 0.29, "fit"),
        ("Natural", "LLaMA2", 0.805, 0.21, "unfit"),  # for liking length
        ("Natural", "PaLM2", 0.847, 0.204, "fit"),
        ("Adversarial_Neighbor", "GPT-4", 0.787, 0.067, "fit"),
        ("Adversarial_Neighbor", "ChatGPT", 0.194, 0.284, "unfit"),
        ("Adversarial_Neighbor", "LLaMA2", 0.246, 0.224, "unfit"),
        ("Adversarial_Neighbor", "PaLM2", 0.627, 0.328, "undecided"),
    ],
)
def test_four_judges_on_llmbar(
    shared_data: Path, subset: str, judge: str, accuracy: float, flips: float, fit: str
) -> None:
    done = llmbar(shared_data / "llmbar", subset, judge)
    assert done.items == (100 if subset == "Natural" else 134)
    assert done.unscored == (2 if (subset, judge) == ("Natural", "PaLM2") else 0)
    assert done.figures["accuracy"].value == pytest.approx(accuracy, abs=0.0006)
    flip = done.figures["flips"]
    assert flip.value == pytest.approx(flips, abs=0.0006)
    assert flip.low is not None and flip.high is not None and flip.low < flips < flip.high
    assert done.fit == fit, done.why
    length = done.figures["length"]
    assert length.low is not None and (length.low > 0.1) == (judge == "LLaMA2")


def pandalm(folder: Path, judge: str, field: str, sides: dict[str, float]) -> Audit:
    said = {row["idx"]: str(row[field]) for row in json.loads((folder / f"{judge}-testset-v1.json").read_text())}
    told = []
    for row in json.loads((folder / "testset-v1.json").read_text()):
        people = [str(row[f"annotator{n}"]) for n in (1, 2, 3)]
        ((most, _),) = Counter(people).most_common(1)
        lengths = (len(str(row["response1"])), len(str(row["response2"])))  # one response is a bare `false`
        told.append(
            Told(truth=SIDES[most], value=sides.get(said[row["idx"]]), cluster=str(row["idx"]), lengths=lengths)
        )
    return measure(judge, "published", "compare", told)


SIDES = {"1": 1.0, "2": 0.0, "0": 0.5, "Tie": 0.5}


def test_two_judges_and_three_people_on_pandalm(shared_data: Path) -> None:
    folder = shared_data / "pandalm"
    done = pandalm(folder, "pandalm-7b", "pandalm_result", SIDES)
    assert (done.items, done.unscored) == (999, 0)
    assert done.figures["agreement"].value == pytest.approx(0.6677, abs=0.0001)  # as published
    # The published figure of the other one reads its 25 answers without a verdict as ties, and finds 13 of them right.
    as_ties = pandalm(folder, "gpt-3.5-turbo", "gpt_result", {**SIDES, "garbage": 0.5})
    assert as_ties.figures["agreement"].value == pytest.approx(0.7107, abs=0.0001)
    done = pandalm(folder, "gpt-3.5-turbo", "gpt_result", SIDES)
    assert (done.items, done.unscored) == (999, 25)
    assert done.figures["agreement"].value == pytest.approx(697 / 974)
    assert done.figures["kappa"].value == pytest.approx(0.493, abs=0.001)
