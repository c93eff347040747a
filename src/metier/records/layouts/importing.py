"""Items of the layouts into the ledger: tasks, episodes, feedback.

One import is one run of the ledger for each `source`; ids are made of what was said, so that
importing a file again, or after it was cut short, adds what is missing and changes nothing
else. What a source says about the same thing later, with another value, supersedes what it
said. A prompt that is a task of another split of the ledger (held out, say) is kept out. An evaluation's log goes
into a split of its own and takes all: nothing is learnt from it, and what it asks stays out of later imports.

A time that lies ahead of this machine's clock is kept as evidence and orders nothing. A
person or source that was forgotten stays forgotten.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType

from metier.base.clock import now
from metier.base.config import did_you_mean
from metier.base.errors import DataError
from metier.base.ids import content_hash, derive_id
from metier.records import schema
from metier.records.forgetting import forgotten, names_of
from metier.records.layouts import argilla, crowd, inspect_ai, label_studio, lm_eval, trl
from metier.records.layouts.items import Answer, Item, Said, guarded
from metier.records.ledger import Ledger
from metier.records.traces.calls import Skipped, digests
from metier.records.traces.files import Row, readable
from metier.records.traces.importing import Imported, add_statements, held_out_tasks
from metier.records.types import Abstention, Cost, Episode, Feedback, Span, Task, Weights

__all__ = ["EVALUATION", "LAYOUTS", "LOGS", "import_layout"]

LAYOUTS: dict[str, ModuleType] = {
    "inspect": inspect_ai,
    "lm-eval": lm_eval,
    "trl": trl,
    "argilla": argilla,
    "label-studio": label_studio,
    "crowd": crowd,
}
LOGS = ("inspect", "lm-eval")  # of evaluations
EVALUATION = "evaluation"  # their split, from which nothing is learnt
_BATCH = 500  # items of one transaction
_AHEAD = 300.0  # seconds that a clock may be ahead of ours
FAMILY = "import"


def import_layout(
    ledger: Ledger,
    rows: Iterable[Row | Skipped],
    layout: str,
    *,
    source: str,
    split: str | None = None,
    on_batch: Callable[[Imported], None] = lambda _: None,
) -> Imported:
    """Take the items of these rows. What cannot be used is skipped and named in the result.

    `split` is that of the tasks: unless given, `EVALUATION` of logs and "train" of all else.
    Raises `DataError` for a layout that is none of `LAYOUTS`.
    """
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}{did_you_mean(layout, list(LAYOUTS))}")
    skipped: list[Skipped] = []
    run_id = derive_id("run", "import", source)
    done = Imported(layout, run_id, skipped=skipped)
    ledger.ensure_run(run_id, "import", {"source": source})
    split = split or (EVALUATION if layout in LOGS else "train")
    held_out = {} if split == EVALUATION else held_out_tasks(ledger, split)
    with ledger.reading() as connection:
        gone = forgotten(connection)

    items = (guarded(place, LAYOUTS[layout].item, row) for place, row in readable(rows, skipped))
    while batch := list(itertools.islice(items, _BATCH)):
        good = [item for item in batch if isinstance(item, Item)]
        skipped += [item for item in batch if isinstance(item, Skipped)]
        skipped += [part for item in good for part in item.skipped]
        _take(ledger, done, good, source, split, held_out, gone)
        on_batch(done)
    return done


def _take(
    ledger: Ledger,
    done: Imported,
    items: Sequence[Item],
    source: str,
    split: str,
    held_out: Mapping[bytes, str],
    gone: set[str],
) -> None:
    tasks: dict[str, Task] = {}
    episodes: dict[str, Episode] = {}
    statements: list[Feedback] = []
    for item in items:
        if (other := held_out.get(digests(item.prompt)[-1])) is not None:
            done.skipped.append(Skipped(item.place, f"its task is in split {other!r}, which stays apart"))
            continue
        task = Task(
            family=FAMILY,
            kind=item.kind or FAMILY,
            messages=item.prompt,
            tools=item.tools,
            answer=item.reference,
            split=split,
            source=source,
            meta={"cluster": item.cluster} if item.cluster else {},
        )
        tasks.setdefault(task.id, task)
        own = _episodes(item, task, done.run_id, split)
        for episode in own:
            episodes.setdefault(episode.id, episode)
        for said in item.said:
            if names := names_of(said.source) & gone:
                done.skipped.append(Skipped(item.place, f"{min(names)} was forgotten"))
                continue
            try:
                statements.append(_statement(said, own, done.run_id))
            except DataError as error:
                done.skipped.append(Skipped(item.place, str(error)))
    known = ledger.known(schema.tasks, list(tasks))
    ledger.add_tasks([task for task_id, task in tasks.items() if task_id not in known])
    known = ledger.known(schema.episodes, list(episodes))
    ledger.add_episodes([episode for episode_id, episode in episodes.items() if episode_id not in known])
    done.episodes += len(episodes) - len(known)
    done.episodes_known += len(known)
    add_statements(ledger, done, statements)


def _episodes(item: Item, task: Task, run_id: str, split: str) -> list[Episode]:
    """An episode for each answer; where there is none, one that only asks."""
    made = []
    for answer in item.answers or (Answer(messages=()),):
        messages = (*item.prompt, *answer.messages)
        identity = content_hash([[m.to_openai() for m in messages], answer.model])
        # An item of a labelling tool is one thing, though two may read the same; so is an attempt.
        name = str(item.meta.get("item", "")) + (f"/{answer.index}" if answer.index else "")
        past = answer.at is not None and answer.at <= now() + _AHEAD
        made.append(
            Episode(
                id=derive_id("ep", run_id, identity, name),
                task_id=task.id,
                run_id=run_id,
                stage=FAMILY,
                weights=Weights(checkpoint=answer.model or "unknown"),
                messages=messages,
                stop_reason=answer.stop,
                error=answer.error,
                index=answer.index,
                sampling=answer.sampling,
                split=split,
                cost=answer.cost,
                created_at=answer.at if past and answer.at is not None else now(),
                meta=item.meta,
            )
        )
    return made


def _statement(said: Said, episodes: Sequence[Episode], run_id: str) -> Feedback:
    about = [episodes[place] for place in said.about] or [episodes[0]]
    ahead = said.at is not None and said.at > now() + _AHEAD
    evidence = dict(said.evidence)
    if ahead:
        evidence["said_at"] = said.at
    # Which statement it is: who said what kind of thing about these, in whatever order they were shown.
    whom = [said.source.kind, said.source.name, said.source.version]
    key = [sorted(episode.id for episode in about), said.criterion, said.kind, whom, said.key]
    value, reason = said.value, said.reason if said.unscored is None else said.unscored
    better = about[int(value)].id if said.kind == "preference" and value in (0, 1) else value
    span = None
    if said.characters is not None:
        span = Span(turn=len(about[0].messages) - 1, start=said.characters[0], end=said.characters[1])
    return Feedback(
        id="",
        about=tuple(episode.id for episode in about),
        criterion=said.criterion or "feedback",
        kind=said.kind,
        source=said.source,
        value=value,
        abstention=None if said.abstention is None else Abstention(why=said.abstention),
        status="scored" if said.unscored is None else "unscored",
        span=span,
        reason=reason,
        evidence={**evidence, "key": content_hash(key), "said": content_hash([better, said.abstention, reason])},
        confidence=said.confidence,
        cost=Cost(seconds=max(0.0, said.seconds)),
        created_at=now(),
        observed_at=None if ahead else said.at,
        run_id=run_id,
    )
