"""One model on one suite: an evaluation with an id that says all that its results depend on.

The id is the hash of the weights' identity, the chat template, the sampling, the seed, the suite with its tasks, and
the versions of their verifiers. So the same evaluation asked for again finds its samples in the ledger, after a kill
as well as a month later, and one of other weights in the same folder does not. Repeats, budgets and chunks are not
part of it: more of an evaluation goes on from less.

What the id does not know: the version of the engine that draws (last bits may differ), the code of tools and scorers of
the user's own, the weights of a verifier that is a model (its name and version count), and what changes behind
an endpoint: its weights have no hash, so results are reused only under an identity that the user gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metier.base.clock import monotonic
from metier.base.errors import DataError
from metier.base.executor import LocalExecutor
from metier.base.ids import canonical_json, derive_id
from metier.evaluate.declared import Pinned, verifier_versions
from metier.evaluate.samples import Sample, not_run, reasons, samples
from metier.evaluate.suites import evaluate, refuse_trained
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Stage, Weights, to_plain
from metier.rollout.policy import Policy
from metier.stats.intervals import share_interval
from metier.stats.paired import average
from metier.stats.sequential import Verdict, sequential

__all__ = ["Baseline", "Evaluation", "Measured", "run_suite"]

OnChunk = Callable[[int, int, Sequence[Episode], Sequence[Feedback]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model that is measured."""

    name: str  # as people call it
    identity: Mapping[str, Any]  # what its answers depend on
    policy: Policy
    checkpoint: str | None = None  # its id in the ledger, where it has one


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What to stop against: a decision on the difference to these scores ends an evaluation."""

    scores: Mapping[str, Sequence[float | None]]  # of each task, its repeats
    margin: float | None = None  # within which the two are equivalent


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came of it."""

    id: str  # of its run in the ledger
    pinned: Pinned
    samples: tuple[Sample, ...]  # the attempts that were asked for, in their order
    fresh: int  # of them, made now; the others were there
    seconds: float  # wall time of this call
    verdict: Verdict | None = None  # against a baseline
    key: Mapping[str, Any] = field(default_factory=dict)  # what the id is made of

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        rows, suite = self.samples, self.pinned.suite
        scores = share_interval([row.score for row in rows], clusters=[row.cluster for row in rows])
        made = [row for row in rows if row.episode]
        out = {
            "suite": suite.name,
            "version": suite.version,
            "hash": suite.hash,
            "evaluation": self.id,
            "tasks": len(self.pinned.tasks),
            "samples": len(rows),
            "n": scores.n,
            "mean": scores.mean,
            "se": scores.se,
            "low": scores.low,
            "high": scores.high,
            "clusters": scores.clusters,
            "unscored": len(rows) - scores.n,
            "not_run": len(rows) - len(made),
            "reasons": dict(reasons(rows)),
            "value": average([row.value for row in rows]),
            "tokens": sum(row.tokens or 0 for row in made),
            "prompt_tokens": sum(row.prompt_tokens or 0 for row in made),
            "usd": math.fsum(row.usd or 0.0 for row in made),
            "fresh": self.fresh,
            "kept": len(made) - self.fresh,
            "seconds": self.seconds,
        }
        if self.verdict is not None:
            out["against"] = {"outcome": self.verdict.outcome, "clusters": self.verdict.n}
        return out


def run_suite(
    ledger: Ledger,
    measured: Measured,
    pinned: Pinned,
    *,
    seed: int = 0,
    chunk: int = 128,
    again: bool = False,
    workers: int = 1,
    against: Baseline | None = None,
    on_chunk: OnChunk | None = None,
) -> Evaluation:
    """Measure a model on a suite, or read what was measured. With `again`, what failed is tried once more.

    Raises `DataError` where the model was trained on one of the tasks, or the suite's version has other tasks here.
    """
    began, suite, settings = monotonic(), pinned.suite, pinned.settings
    if measured.checkpoint is not None:
        refuse_trained(ledger, measured.checkpoint, pinned.tasks, f"suite {suite.name}")
    if against is not None and settings.repeats > 1:
        raise DataError("an evaluation that stops as soon as it is decided takes one repeat of each task")
    key = {
        "model": dict(measured.identity),
        "template": measured.policy.template_hash,
        "sampling": to_plain(settings.sampling.record()),
        "seed": seed,
        "suite": [suite.name, suite.version, suite.hash],
        "verifiers": verifier_versions(pinned.tasks),
    }
    run_id = derive_id("run", "evaluate", canonical_json(key))
    _record(ledger, pinned)
    stage = Stage(name=suite.name, kind="evaluate", inputs=(measured.name,), outputs=("episodes", "feedback"))
    ledger.ensure_run(run_id, "evaluate", {**key, "name": measured.name}, seed=seed, stages=(stage,))
    fresh = 0

    def told(done: int, total: int, episodes: Sequence[Episode], feedback: Sequence[Feedback]) -> None:
        nonlocal fresh
        fresh += len(episodes)
        if on_chunk is not None:
            on_chunk(done, total, episodes, feedback)

    def decided() -> bool:
        assert against is not None
        return _verdict(pinned, samples(ledger, run_id, suite.name), against).outcome != "inconclusive"

    evaluate(
        ledger,
        measured.policy,
        {suite.name: pinned.tasks},
        sampling=settings.sampling.record(),
        weights=Weights(checkpoint=measured.checkpoint or measured.name),
        run_id=run_id,
        stage=suite.name,
        seed=seed,
        chunk=chunk,
        executor=LocalExecutor(workers),
        on_chunk=told,
        repeats=settings.repeats,
        budget=settings.budget.record(),
        again=again,
        enough=None if against is None else decided,
    )
    found = {(row.id, row.repeat): row for row in samples(ledger, run_id, suite.name)}
    verdict = None if against is None else _verdict(pinned, list(found.values()), against)
    why = "the budget was spent" if verdict is None or verdict.outcome == "inconclusive" else "it was decided before"
    rows = tuple(
        found.get((task.id, repeat))
        or not_run(task, repeat, suite=suite.name, model=measured.checkpoint or measured.name, why=why)
        for task in pinned.tasks
        for repeat in range(settings.repeats)
    )
    return Evaluation(
        id=run_id,
        pinned=pinned,
        samples=rows,
        fresh=fresh,
        seconds=monotonic() - began,
        verdict=verdict,
        key=key,
    )


def _record(ledger: Ledger, pinned: Pinned) -> None:
    """Keep the suite in the ledger, where what is trained on is checked against it."""
    suite = pinned.suite
    known = next((one for one in ledger.suites() if (one.name, one.version) == (suite.name, suite.version)), suite)
    if known.hash != suite.hash:
        raise DataError(
            f"suite {suite.name} {suite.version} has other tasks in this ledger ({known.hash[:12]} there, "
            f"{suite.hash[:12]} now): raise its version"
        )
    ledger.add_tasks(pinned.tasks)
    ledger.add_suite(suite)


def _verdict(pinned: Pinned, rows: Sequence[Sample], against: Baseline) -> Verdict:
    """Go through the differences cluster by cluster, in the order in which clusters are done; one a cluster."""
    scores = {row.id: row.score for row in rows}
    members: dict[str, list[str]] = {}
    for task in pinned.tasks:
        members[task.cluster] = [*members.pop(task.cluster, []), task.id]  # goes to the end with its last task
    differences: list[float] = []
    for ids in members.values():
        if any(task_id not in scores for task_id in ids):
            break
        pairs = [(scores[task_id], average(against.scores.get(task_id, ()))) for task_id in ids]
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if known:
            differences.append(math.fsum(known) / len(known))
    return sequential(differences, margin=against.margin)
