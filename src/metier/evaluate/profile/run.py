"""A model's profile made: every trait's items asked, kept in the ledger, scored, and averaged.

Episodes are drawn and kept by `evaluate()`, under a run whose id says all that they depend on (weights, template, seed)
and a stage that says the rest (trait, version, sampling). So a profile that was stopped goes on, one that is asked
for again is read, and more repeats go on from fewer. Every score is feedback on its episodes, so that a figure can be
walked back to what was said; the profile itself is a record of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metier.base.clock import monotonic, now
from metier.base.executor import LocalExecutor
from metier.base.ids import content_hash, derive_id
from metier.base.seeds import rng_for
from metier.evaluate.evaluation import Measured
from metier.evaluate.profile.figures import Profiled, figures
from metier.evaluate.profile.probe import Asking, Probe, Score, Tried, public_folder
from metier.evaluate.suites import evaluate, refuse_trained
from metier.feedback.verify import SUCCESS
from metier.records.ledger import Ledger
from metier.records.types import Feedback, Profile, Sampling, Source, Stage, Task, Trait, Weights, to_plain
from metier.records.values import last_tries, lowest_by_episode

__all__ = ["PUBLIC", "WARM", "Wanted", "make_profile"]

PUBLIC = 60  # items of each public set, unless told
WARM = 0.7  # the temperature of repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a profile is made."""

    seed: int = 0
    repeats: int = 1  # answers to each item; more than one are drawn at temperature `WARM`
    items: int | None = None  # of each set of items, at most
    data: Path | None = None  # a folder of public data
    chunk: int = 64  # episodes between two savings

    def __post_init__(self) -> None:
        """Raises `DataError` where there is no such folder."""
        public_folder(self.data)


def make_profile(
    ledger: Ledger,
    measured: Measured,
    probes: Sequence[Probe],
    wanted: Wanted | None = None,
    *,
    on_trait: Callable[[Probe, int, int, float], None] = lambda probe, done, total, seconds: None,
) -> Profiled:
    """Measure a model on traits. `on_trait(trait, done, total, seconds so far)` is told of each that is done.

    Raises `DataError` where the model was trained on one of the items.
    """
    wanted, began = wanted or Wanted(), monotonic()
    asked = [(probe, list(_askings(probe, wanted))) for probe in probes]
    if measured.checkpoint is not None:
        items = [task for _, askings in asked for asking in askings for task in asking.tasks]
        refuse_trained(ledger, measured.checkpoint, items, "the profile")
    key = {"model": dict(measured.identity), "template": measured.policy.template_hash, "seed": wanted.seed}
    run_id = derive_id("run", "profile", content_hash(key))
    stage = Stage(name="profile", kind="profile", inputs=(measured.name,), outputs=("episodes", "feedback"))
    ledger.ensure_run(run_id, "profile", {**key, "name": measured.name}, seed=wanted.seed, stages=(stage,))
    made, details, suite, tokens = [], {}, [], 0
    for number, (probe, askings) in enumerate(asked, 1):
        tried = [one for asking in askings for one in _try(ledger, measured, run_id, probe, asking, wanted)]
        scores = probe.score(tried)
        _keep(ledger, run_id, probe, scores)
        made += figures(probe, scores)
        details[probe.name] = dict(probe.details(scores))
        suite.append([probe.name, probe.version, sorted(one.task.id for one in tried)])
        tokens += sum(episode.cost.completion_tokens for one in tried for episode in one.episodes)
        on_trait(probe, number, len(probes), monotonic() - began)
    profiled = Profiled(
        model=measured.name,
        suite=f"profile/{content_hash(suite, length=12)}",
        seed=wanted.seed,
        repeats=wanted.repeats,
        figures=tuple(made),
        details={name: found for name, found in details.items() if found},
        seconds=monotonic() - began,
        tokens=tokens,
        run=run_id,
    )
    ledger.add_profile(_record(profiled, measured))
    return profiled


def _askings(probe: Probe, wanted: Wanted) -> Iterator[Asking]:
    """What is asked, with as many items and repeats as are wanted."""
    for asking in probe.askings(wanted.data):
        public = any(task.source and not task.source.startswith("profile/") for task in asking.tasks)
        most = wanted.items if wanted.items is not None else PUBLIC if public else None
        tasks = asking.tasks if most is None else _some(asking.tasks, most, wanted.seed)
        if not tasks:
            continue
        sampling = asking.sampling
        if wanted.repeats > 1 and sampling.temperature == 0:
            sampling = replace(sampling, temperature=WARM)
        yield replace(asking, tasks=tasks, sampling=sampling, draws=asking.draws * wanted.repeats)


def _some(tasks: Sequence[Task], most: int, seed: int) -> list[Task]:
    """Whole clusters in an order that the seed shuffles, until there are `most` tasks or one cluster more."""
    clusters: dict[str, list[Task]] = {}
    for task in tasks:
        clusters.setdefault(task.cluster, []).append(task)
    names = list(clusters)
    rng_for(seed, "profile", "items").shuffle(names)
    picked: list[Task] = []
    for name in names:
        if len(picked) >= most:
            break
        picked += clusters[name]
    return picked


def _try(
    ledger: Ledger, measured: Measured, run_id: str, probe: Probe, asking: Asking, wanted: Wanted
) -> Iterator[Tried]:
    stage = _stage(probe, asking.name, asking.sampling)
    tasks = list({task.id: task for task in asking.tasks}.values())
    evaluate(
        ledger,
        measured.policy,
        {"profile": tasks},
        sampling=asking.sampling,
        weights=Weights(checkpoint=measured.checkpoint or measured.name),
        run_id=run_id,
        stage=stage,
        seed=wanted.seed,
        chunk=wanted.chunk,
        executor=LocalExecutor(),
        on_chunk=lambda done, total, episodes, feedback: None,
        repeats=asking.draws,
    )
    there = last_tries(ledger.episodes(run_id=run_id, stage=stage, arrays=True))
    said: list[Feedback] = []
    if any(task.verifiers for task in tasks):
        about = [episode.id for episode in there.values()]
        said = ledger.feedback(run_id=run_id, about=about, criterion=SUCCESS)
    verdicts, reasons = lowest_by_episode(said), {f.about[0]: f.reason for f in said}
    for task in tasks:
        episodes = tuple(there[task.id, draw] for draw in range(asking.draws))
        yield Tried(
            asking=asking.name,
            task=task,
            episodes=episodes,
            verdicts={episode.id: verdicts.get(episode.id) for episode in episodes},
            reasons={episode.id: reasons.get(episode.id, "") for episode in episodes},
        )


def _stage(probe: Probe, asking: str, sampling: Sampling) -> str:
    return f"{probe.name}/{asking}/{probe.version}-{content_hash(to_plain(sampling), length=8)}"


def _keep(ledger: Ledger, run_id: str, probe: Probe, scores: Sequence[Score]) -> None:
    """Every score as feedback on the episodes that it is about."""
    source = Source(kind="execution", name=f"profile/{probe.name}", version=probe.version)
    ledger.add_feedback(
        [
            Feedback(
                id=derive_id("fb", "profile", probe.name, probe.version, one.measure, *one.about),
                about=one.about,
                criterion=f"{probe.name}.{one.measure}",
                kind="score",
                value=one.value,
                status="scored" if one.value is not None else "unscored",
                source=source,
                reason=one.why,
                evidence=one.evidence,
                created_at=now(),
                run_id=run_id,
            )
            for one in scores
        ]
    )


def _record(profiled: Profiled, measured: Measured) -> Profile:
    """The record of the ledger; measures without a figure are not in it."""
    traits = tuple(
        Trait(
            name=one.name,
            value=one.value,
            low=one.low,
            high=one.high,
            n=one.n,
            unit=one.unit,
        )
        for one in profiled.figures
        if one.value is not None
    )
    return Profile(
        id=derive_id("profile", profiled.run, profiled.suite, profiled.repeats, content_hash(to_plain(traits))),
        checkpoint=measured.checkpoint or measured.name,
        suite=profiled.suite,
        traits=traits,
        created_at=now(),
    )
