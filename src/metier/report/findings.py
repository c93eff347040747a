"""What other commands and stages found about a run's models, read back for its page.

    profiles        `metier profile` keeps every score as feedback on its episodes, so a profile is put together
                    again from them, by the same rules; of several askings of a trait the latest counts
    transfers       the audit of each rl stage, made anew of the ledger as `metier transfer RUN` does
    reward_models   what `measure` stages wrote into the run's folder
    forecasts       the confidences in the profiles, against what became of them
    gates           the decisions of `metier gate` on the run's models

The model that a run starts from has no checkpoint; its profile is found by its name, and is shown with its hash.
Left out: what people or a judge answered to the queue of `metier transfer`, which is a file that no run knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.evaluate.gate import MetricResult
from metier.evaluate.profile.figures import Profiled, figures
from metier.evaluate.profile.probe import Probe, Score
from metier.evaluate.profile.registry import PROBES
from metier.evaluate.transfer.audit import Audit
from metier.evaluate.transfer.runs import audit_run, rl_stages
from metier.records.types import Feedback, GateDecision, Run, from_plain
from metier.records.view import LedgerView
from metier.report.data import Forecasts, GateView, ModelInfo, RewardModel
from metier.report.wording import label_of
from metier.stats.calibration import calibration
from metier.stats.intervals import share_interval

__all__ = ["forecasts", "gates", "kept_profile", "profiles", "reward_models", "transfers"]

_KEPT = "profile/"  # how the sources of profile scores begin
_GAP = "_gap"  # how the measures that hold forecasts end


# --- profiles ------------------------------------------------------------------------------


def profiles(ledger: LedgerView, models: Sequence[ModelInfo]) -> tuple[Profiled | None, Profiled | None]:
    """The profile of the last model that has one, and that of the first where it is another; None where there is none.

    They are named as the page names the models.
    """
    runs = [run for run in ledger.runs() if run.recipe == "profile"]
    found: list[tuple[ModelInfo, Run]] = []
    for model in models:
        own = [run for run in runs if _is_of(run, model.checkpoint)]
        if own:
            found.append((model, max(own, key=lambda run: run.created_at)))
    if not found:
        return None, None
    after = _named(ledger, *found[-1])
    before = _named(ledger, *found[0]) if found[0][1].id != found[-1][1].id else None
    return after, before


def kept_profile(ledger: LedgerView, run: Run) -> Profiled:
    """The profile whose scores a run of `metier profile` has kept."""
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
            details[probe.name] = {**probe.details(scores[probe.name]), "forecasts": _pairs(probe, scores[probe.name])}
    return Profiled(
        model=str(run.config.get("name", run.id)),
        suite="profile",
        seed=run.seed,
        repeats=1,
        figures=tuple(made),
        details=details,
        run=run.id,
    )


def _is_of(run: Run, checkpoint: str) -> bool:
    name = str(run.config.get("name", ""))
    model, at, _ = name.rpartition("@")
    return name == checkpoint or (bool(at) and model == Path(checkpoint).name)


def _named(ledger: LedgerView, model: ModelInfo, run: Run) -> Profiled:
    found = kept_profile(ledger, run)
    return replace(found, model=f"{model.label} ({found.model})")


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


def _pairs(probe: Probe, scores: Sequence[Score]) -> dict[str, list[tuple[float, float]]]:
    """The forecasts of a trait with what became of each, by its sort of confidence."""
    out: dict[str, list[tuple[float, float]]] = {}
    for measure in probe.measures:
        known = [one for one in scores if one.measure == measure.name and one.value is not None]
        if measure.name.endswith(_GAP) and known:
            sort = measure.label.partition(" minus ")[0]
            out[probe.title if sort == "confidence" else sort] = [
                (float(one.evidence["p"]), float(one.evidence["y"])) for one in known
            ]
    return out


def forecasts(*found: Profiled | None) -> tuple[Forecasts, ...]:
    """The calibration of every sort of confidence in these profiles, sort by sort."""
    out = []
    for profile in found:
        if profile is None:
            continue
        for details in profile.details.values():
            for label, pairs in details["forecasts"].items():
                out.append(
                    Forecasts(
                        model=profile.model,
                        label=label[:1].upper() + label[1:],
                        calibration=calibration(*zip(*pairs, strict=True)),
                    )
                )
    order = list(dict.fromkeys(one.label for one in out))
    return tuple(sorted(out, key=lambda one: order.index(one.label)))


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
    for stage in run.stages:
        path = folder / "stages" / f"{stage.name}.json"
        if stage.kind != "measure" or not path.is_file():
            continue
        pairs: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8")).get("pairs") or []
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


# --- gates ---------------------------------------------------------------------------------


def gates(ledger: LedgerView, run: Run, labels: Mapping[str, str]) -> tuple[GateView, ...]:
    """The newest decision on each of the run's checkpoints against each base; `labels` name what was measured."""
    own = {one.id: label_of(one.stage) for one in ledger.checkpoints(run.id)} | {run.id: "This run"}
    newest: dict[tuple[str, str], list[GateDecision]] = {}
    for one in sorted(ledger.gates(), key=lambda one: one.created_at):
        if one.checkpoint in own:
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
