"""What other commands and stages found about a run's models, read back for its page.

    profiles        `metier profile` keeps every score as feedback on its episodes, so a profile is put together
                    again from them, by the same rules; of several askings of a trait the latest counts
    transfers       the audit of each rl stage, made anew of the ledger as `metier transfer RUN` does
    reward_models   what `measure` stages wrote into the run's folder
    judges          what the audits of `judge` stages found, from there too
    forecasts       the confidences in the profiles, against what became of them
    gates           the decisions of `metier gate` on the run's models

The model that a run starts from has no checkpoint; its profile is found by its name, and is shown with its hash.
Left out: what people or a judge answered to the queue of `metier transfer`, which is a file that no run knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.evaluate.gate import MetricResult
from metier.evaluate.profile.calibration import forecast_pairs
from metier.evaluate.profile.figures import Profiled, comparable, figures
from metier.evaluate.profile.probe import Score
from metier.evaluate.profile.registry import PROBES
from metier.evaluate.transfer.audit import Audit
from metier.evaluate.transfer.runs import audit_run, rl_stages
from metier.records.types import Feedback, GateDecision, Run, Stage, from_plain
from metier.records.view import LedgerView
from metier.report.data import Forecasts, GateView, JudgeView, ModelInfo, RewardModel
from metier.report.wording import label_of
from metier.stats.calibration import calibration
from metier.stats.intervals import share_interval

__all__ = ["gates", "judges", "kept_profile", "profiles", "reward_models", "transfers"]

_KEPT = "profile/"  # how the sources of profile scores begin
_SORTS = {  # of confidence, by the way in which it was told
    "sure": "Tool confidence",
    "verbal": "Stated confidence",
    "token": "Token confidence",
    "sampled": "Sampled confidence",
}

Pairs = Mapping[str, Sequence[tuple[float, float]]]
"""Forecasts with their outcomes, by way."""


# --- profiles ------------------------------------------------------------------------------


def profiles(
    ledger: LedgerView, models: Sequence[ModelInfo]
) -> tuple[Profiled | None, Profiled | None, tuple[Forecasts, ...]]:
    """The profile of the last model that has one, that of the first where it is another, and their forecasts.

    They are named as the page names the models. There is no first where the two share no measure.
    """
    runs = [run for run in ledger.runs() if run.recipe == "profile"]
    found: list[tuple[ModelInfo, Run]] = []
    for model in models:
        own = [run for run in runs if _is_of(run, model.checkpoint)]
        if own:
            found.append((model, max(own, key=lambda run: run.created_at)))
    if not found:
        return None, None, ()
    ends = found[-1:] if found[0][1].id == found[-1][1].id else [found[0], found[-1]]
    kept = [_named(ledger, *one) for one in ends]
    before, after = kept[0][0], kept[-1][0]
    return after, before if len(kept) > 1 and comparable(after, before) else None, _forecasts(kept)


def kept_profile(ledger: LedgerView, run: Run) -> tuple[Profiled, Pairs]:
    """The profile whose scores a run of `metier profile` has kept, and the forecasts among them."""
    said = [row for row in ledger.feedback(run_id=run.id, erased=False) if row.source.name.startswith(_KEPT)]
    by_id = {one.id: one for one in ledger.episodes(run_id=run.id)}
    tasks = ledger.tasks({one.task_id for one in by_id.values()})
    latest: dict[str, str] = {}  # an asking -> its stage, which also names version and sampling
    for row in said:
        stage = by_id[row.about[0]].stage
        latest[stage.rpartition("/")[0]] = stage
    scores: dict[str, list[Score]] = {}
    for row in said:
        episode = by_id[row.about[0]]
        if latest[episode.stage.rpartition("/")[0]] == episode.stage:
            task = tasks[episode.task_id]
            score = _score(row, task.id, task.cluster)
            scores.setdefault(row.source.name.removeprefix(_KEPT), []).append(score)
    made, details = [], {}
    for probe in PROBES:
        if probe.name in scores:
            made += figures(probe, scores[probe.name])
            details[probe.name] = dict(probe.details(scores[probe.name]))
    profile = Profiled(
        model=str(run.config.get("name", run.id)),
        suite="profile",
        seed=run.seed,
        repeats=1,
        figures=tuple(made),
        details={name: found for name, found in details.items() if found},
        run=run.id,
    )
    return profile, {way: forecast_pairs([one for told in scores.values() for one in told], way) for way in _SORTS}


def _is_of(run: Run, checkpoint: str) -> bool:
    name = str(run.config.get("name", ""))
    model, at, _ = name.rpartition("@")
    return name == checkpoint or (bool(at) and model == Path(checkpoint).name)


def _named(ledger: LedgerView, model: ModelInfo, run: Run) -> tuple[Profiled, Pairs]:
    found, pairs = kept_profile(ledger, run)
    return replace(found, model=f"{model.label} ({found.model})"), pairs


def _score(row: Feedback, item: str, cluster: str) -> Score:
    return Score(
        measure=row.criterion.partition(".")[2],
        item=item,
        cluster=cluster,
        value=None if row.value is None else float(row.value),
        about=row.about,
        why=row.reason,
        evidence=row.evidence,
    )


def _forecasts(kept: Sequence[tuple[Profiled, Pairs]]) -> tuple[Forecasts, ...]:
    """The calibration of every sort of confidence in these profiles, sort by sort."""
    return tuple(
        Forecasts(model=profile.model, label=label, calibration=calibration(*zip(*pairs[way], strict=True)))
        for way, label in _SORTS.items()
        for profile, pairs in kept
        if pairs[way]
    )


# --- rewards -------------------------------------------------------------------------------


def transfers(ledger: LedgerView, run: Run) -> tuple[Audit, ...]:
    """The audits of the rewards that the run optimised; of stages that have no episodes yet there is none."""
    out = []
    try:
        stages = rl_stages(ledger, run.id)
    except DataError:
        return ()
    for stage in stages:
        try:
            out.append(audit_run(ledger, run.id, stage))
        except DataError:
            continue
    return tuple(out)


def reward_models(run: Run, folder: Path) -> tuple[RewardModel, ...]:
    """The reward models that `measure` stages have measured, with figures made anew of their pairs."""
    out = []
    for stage, done in _done(run, folder, "measure"):
        pairs: list[Mapping[str, Any]] = done.get("pairs") or []
        if not pairs:
            continue
        out.append(
            RewardModel(
                stage=stage.name,
                label=label_of(stage.inputs[0]) if stage.inputs else label_of(stage.name),
                accuracy=share_interval([one["score"] for one in pairs], clusters=[one["cluster"] for one in pairs]),
                calibration=calibration([one["p"] for one in pairs], [one["y"] for one in pairs]),
            )
        )
    return tuple(out)


def judges(run: Run, folder: Path) -> tuple[JudgeView, ...]:
    """The judges that the run trained and audited."""
    out = []
    for stage, done in _done(run, folder, "judge"):
        accuracy = done["audit"]["figures"]["accuracy"]
        out.append(
            JudgeView(
                label=label_of(stage.name),
                fit=done["fit"],
                right=accuracy["value"],
                low=accuracy["low"],
                high=accuracy["high"],
                n=accuracy["n"],
                why=tuple(done["audit"]["why"]),
                judgements=done["statements"],
            )
        )
    return tuple(out)


def _done(run: Run, folder: Path, kind: str) -> Iterator[tuple[Stage, Mapping[str, Any]]]:
    """The finished stages of a kind, each with what it left in the run's folder."""
    for stage in run.stages:
        path = folder / "stages" / f"{stage.name}.json"
        if stage.kind == kind and path.is_file():
            yield stage, json.loads(path.read_text(encoding="utf-8"))


# --- gates ---------------------------------------------------------------------------------


def gates(ledger: LedgerView, run: Run, labels: Mapping[str, str]) -> tuple[GateView, ...]:
    """The newest decision on each of the run's checkpoints against each base; `labels` name what was measured."""
    own = {one.id: label_of(one.stage) for one in ledger.checkpoints(run.id)} | {run.id: "This run"}
    newest: dict[tuple[str, str], list[GateDecision]] = {}
    decided = [one for checkpoint in own for one in ledger.gates(checkpoint)]
    for one in sorted(decided, key=lambda one: one.created_at):
        newest.setdefault((one.checkpoint, one.baseline), []).append(one)
    found = [_gate(decisions, {**own, **labels}) for decisions in newest.values()]
    return tuple(sorted(found, key=lambda one: -one.created_at))


def _gate(decisions: Sequence[GateDecision], labels: Mapping[str, str]) -> GateView:
    last = decisions[-1]
    known = MetricResult.__dataclass_fields__
    results = last.metrics.get("results") or {}
    alpha = (last.metrics.get("settings") or {}).get("alpha")
    return GateView(
        model=labels[last.checkpoint],
        baseline=labels.get(last.baseline, last.baseline),
        verdict=last.verdict,
        created_at=last.created_at,
        alpha=alpha,
        metrics=tuple(
            from_plain(MetricResult, {k: v for k, v in row.items() if k in known}) for row in results.values()
        ),
        earlier=len(decisions) - 1,
    )
