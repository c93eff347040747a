"""Traces of other systems into the ledger: conversations as episodes, what was said about them as feedback.

One import is one run of the ledger for each `source` (a product, a project); importing a file
again, or after it was cut short, changes nothing that is there. An episode's id is made of
its source's ids and of what was said, so a conversation that has grown since is an
episode of its own. A remark that says something else than it did supersedes what it said.

A task is what the model saw before its first answer. A task that the ledger holds in
another split (held out, say) keeps out every episode that begins with it.

Left out: token ids and log-probabilities, which production does not keep, so that imported
episodes are to be learnt from as demonstrations or preferences, not by a policy gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import select

from metier.base.clock import now
from metier.base.config import did_you_mean
from metier.base.errors import DataError
from metier.base.ids import content_hash, derive_id
from metier.records import schema
from metier.records.ledger import Ledger
from metier.records.rows import rows_among
from metier.records.traces import langfuse, openai, otel, phoenix
from metier.records.traces.calls import Call, Conversation, Remark, Skipped, conversations, number
from metier.records.traces.files import Row, read_rows
from metier.records.traces.scrub import Scrubber
from metier.records.types import Cost, Episode, Feedback, Run, Sampling, Span, Task, Weights

__all__ = ["FORMATS", "Imported", "import_traces"]

FORMATS: dict[str, ModuleType] = {"openai": openai, "otel": otel, "langfuse": langfuse, "phoenix": phoenix}
_SPLIT = "production"
_BATCH = 200  # conversations of one transaction


@dataclass(slots=True)
class Imported:
    """What an import took, what was there already, and what it skipped."""

    format: str
    run_id: str
    episodes: int = 0
    episodes_known: int = 0
    calls: int = 0  # of a model, in the conversations of this file
    feedback: int = 0
    feedback_known: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Places by reason, the commonest reason first."""
        found: dict[str, list[str]] = {}
        for one in self.skipped:
            found.setdefault(one.why, []).append(one.place)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A conversation as it is kept: its episode, and the message that each call spoke."""

    episode: Episode
    task: Task
    turns: dict[str, int]  # call -> message
    last_of: dict[str, int]  # trace -> the last message that it spoke
    group: str  # what remarks about a conversation name
    place: str
    scrub: Scrubber | None


def import_traces(
    ledger: Ledger,
    files: Sequence[Path],
    *,
    format: str | None = None,
    source: str = "production",
    scrub: bool = False,
    on_batch: Callable[[Imported], None] = lambda _: None,
) -> Imported:
    """Take the conversations and remarks of these files, which belong together (spans and their scores, say).

    `format` is one of `FORMATS`, told from the first rows unless given. Rows that cannot be
    used are skipped and named in the result. Raises `DataError` where no row can be used.
    """
    rows = (row for file in files for row in read_rows(file))
    skipped: list[Skipped] = []
    good, name = _format(rows, format, files, skipped)
    run_id = derive_id("run", "import", source)
    done = Imported(name, run_id, skipped=skipped)
    _add_run(ledger, run_id, source)
    loose: list[Call] = []  # whole conversations, written as they come
    held: list[Call] = []  # calls that others may continue
    remarks: list[Remark] = []
    for item in FORMATS[name].read(good):
        if isinstance(item, Skipped):
            skipped.append(item)
        elif isinstance(item, Remark):
            remarks.append(item)
        elif item.output is None:
            skipped.append(Skipped(item.place, f"no answer: {item.error or 'the output is empty'}"))
        else:
            (held if item.conversation is not None else loose).append(item)
        if len(loose) >= _BATCH and not held:
            remarks = _take(ledger, done, conversations(loose), remarks, source, scrub, last=False)
            loose = []
            on_batch(done)
    left = conversations([*loose, *held])
    for start in range(0, max(len(left), 1), _BATCH):
        last = start + _BATCH >= len(left)
        remarks = _take(ledger, done, left[start : start + _BATCH], remarks, source, scrub, last=last)
        on_batch(done)
    if not (done.episodes or done.episodes_known):
        whys = "; ".join(f"{why} ({places[0]})" for why, places in list(done.reasons.items())[:3])
        raise DataError(f"{', '.join(map(str, files))}: no conversation could be taken as {name}: {whys or 'no rows'}")
    return done


def _format(
    rows: Iterable[Row | Skipped], given: str | None, files: Sequence[Path], skipped: list[Skipped]
) -> tuple[Iterable[Row], str]:
    """Rows that can be read, and their format. Unreadable ones go to `skipped` as they come."""
    if given is not None and given not in FORMATS:
        raise DataError(f"unknown format {given!r}{did_you_mean(given, list(FORMATS))}")

    def readable() -> Iterable[Row]:
        for row in rows:
            if isinstance(row, Skipped):
                skipped.append(row)
            else:
                yield row

    good = iter(readable())
    if given is not None:
        return good, given
    for row in good:
        for name, module in FORMATS.items():
            if module.fits(row[1]):
                return _chain(row, good), name
        skipped.append(Skipped(row[0], "a row of no known format"))
    raise DataError(
        f"{', '.join(map(str, files))}: no row is of a known format; name it with --format: {', '.join(FORMATS)}"
    )


def _chain(first: Row, rest: Iterable[Row]) -> Iterable[Row]:
    yield first
    yield from rest


def _add_run(ledger: Ledger, run_id: str, source: str) -> None:
    ledger.add_run(
        Run(
            id=run_id,
            recipe="import",
            config={"source": source},
            seed=0,
            folder="",
            code_version=version("metier"),
            created_at=now(),
        )
    )


def _take(
    ledger: Ledger,
    done: Imported,
    found: Sequence[Conversation],
    remarks: Sequence[Remark],
    source: str,
    scrub: bool,
    *,
    last: bool,
) -> list[Remark]:
    """Keep conversations and the remarks about them; remarks about others come back, or are skipped at the end."""
    spoken = []
    for conversation in found:
        one = _spoken(conversation, done.run_id, source, scrub)
        if isinstance(one, Skipped):
            done.skipped.append(one)
        else:
            spoken.append(one)
            done.calls += len(conversation.calls)
    splits = _splits(ledger, [one.task.id for one in spoken])
    allowed = []
    for one in spoken:
        split = splits.get(one.task.id, _SPLIT)
        if split == _SPLIT:
            allowed.append(one)
        else:
            done.skipped.append(Skipped(one.place, f"its task is in split {split!r}, which stays apart"))
    known = {episode.id for episode in ledger.episodes(ids=[one.episode.id for one in allowed])}
    new = {one.episode.id: one for one in allowed if one.episode.id not in known}
    ledger.add_tasks([one.task for one in new.values()])
    ledger.add_episodes([one.episode for one in new.values()])
    done.episodes += len(new)
    done.episodes_known += len(allowed) - len(new)
    return _take_remarks(ledger, done, allowed, remarks, last=last)


def _spoken(conversation: Conversation, run_id: str, source: str, scrub: bool) -> _Spoken | Skipped:
    messages, calls = conversation.messages, [call for call, _ in conversation.calls]
    first, place = calls[0], calls[0].place
    answered = [n for n, m in enumerate(messages) if m.role == "assistant" and n and messages[n - 1].role == "user"]
    if not answered:
        return Skipped(place, "nobody asks: no message of a user comes before an answer")
    identity = content_hash([first.id, [m.to_openai() for m in messages]])  # of what was said, before scrubbing
    scrubber = Scrubber() if scrub else None
    if scrubber is not None:
        messages = tuple(scrubber.message(m) for m in messages)
    meta: dict[str, Any] = {k: v for k, v in first.meta.items() if isinstance(v, str | int | float | bool)}
    meta = scrubber.value(meta) if scrubber is not None else meta
    task = Task(
        family=_SPLIT,
        kind=str(meta.get("name") or _SPLIT),
        messages=messages[: answered[0]],
        tools=first.tools,
        split=_SPLIT,
        source=source,
        meta=meta,
    )
    last = calls[-1]
    episode = Episode(
        id=derive_id("ep", run_id, identity),
        task_id=task.id,
        run_id=run_id,
        stage="import",
        weights=Weights(checkpoint=last.model or "unknown"),
        messages=messages,
        stop_reason="length" if last.stop == "length" else "stop",
        sampling=_sampling(first.sampling),
        split=_SPLIT,
        cost=Cost(
            prompt_tokens=sum(c.input_tokens for c in calls),
            completion_tokens=sum(c.output_tokens for c in calls),
            tool_calls=sum(len(m.tool_calls) for m in messages),
            seconds=sum(c.seconds for c in calls),
            usd=sum(c.usd for c in calls),
        ),
        created_at=first.started_at or now(),
    )
    return _Spoken(
        episode=episode,
        task=task,
        turns={call.id: turn for call, turn in conversation.calls},
        last_of={call.trace: turn for call, turn in conversation.calls},
        group=first.conversation or first.trace,
        place=place,
        scrub=scrubber,
    )


def _sampling(said: Mapping[str, Any]) -> Sampling:
    """What is known of how tokens were drawn, over the defaults."""
    known = {name: found for name in said if (found := number(said[name])) is not None}
    changes: dict[str, Any] = {name: known[name] for name in ("temperature", "top_p") if name in known}
    if "top_k" in known:
        changes["top_k"] = int(known["top_k"])
    if "max_tokens" in known:
        changes["max_turn_tokens"] = int(known["max_tokens"])
    return Sampling(**changes)


def _splits(ledger: Ledger, task_ids: Sequence[str]) -> dict[str, str]:
    table = schema.tasks
    with ledger.reading() as connection:
        rows = rows_among(connection, select(table.c.id, table.c.split), table.c.id, list(dict.fromkeys(task_ids)))
    return {row.id: row.split for row in rows}


def _take_remarks(
    ledger: Ledger, done: Imported, spoken: Sequence[_Spoken], remarks: Sequence[Remark], *, last: bool
) -> list[Remark]:
    by_call = {call: one for one in spoken for call in one.turns}
    by_trace: dict[str, list[_Spoken]] = {}
    by_group: dict[str, list[_Spoken]] = {}
    for one in spoken:
        by_group.setdefault(one.group, []).append(one)
        for trace in one.last_of:
            by_trace.setdefault(trace, []).append(one)
    statements: list[tuple[Remark, Feedback]] = []
    left = []
    for remark in remarks:
        if remark.about == "call":
            about = [by_call[remark.of]] if remark.of in by_call else []
        else:
            about = (by_trace if remark.about == "trace" else by_group).get(remark.of, [])
        statements += [(remark, _statement(remark, one, done.run_id)) for one in about]
        if not about:
            left.append(remark)
    _add_feedback(ledger, done, statements)
    if not last:
        return left
    done.skipped += [Skipped(r.place, f"it is about a {r.about} that is not among the conversations") for r in left]
    return []


def _statement(remark: Remark, one: _Spoken, run_id: str) -> Feedback:
    """The remark as feedback: about the whole episode, or about one of its messages."""
    turn = remark.turn
    if turn is None and remark.about == "call" and len(one.turns) > 1:
        turn = one.turns[remark.of]
    if turn is None and remark.about == "trace" and len(one.last_of) > 1:
        turn = one.last_of[remark.of]
    value, reason = remark.value, remark.reason
    if one.scrub is not None:
        value, reason = one.scrub.value(value), one.scrub.text(reason)
    return Feedback(
        id=derive_id("fb", run_id, one.episode.id, remark.key, content_hash([remark.value, remark.reason, turn])),
        about=(one.episode.id,),
        criterion=remark.criterion,
        kind=remark.kind,
        source=remark.source,
        value=value,
        span=None if turn is None else Span(turn=turn),
        reason=reason,
        evidence={"key": remark.key},
        created_at=now(),
        observed_at=remark.at,
        run_id=run_id,
    )


def _add_feedback(ledger: Ledger, done: Imported, statements: Sequence[tuple[Remark, Feedback]]) -> None:
    """Add what is new; the newest word under a key supersedes the one that the ledger has."""
    episodes = {f.about[0] for _, f in statements}
    stored = ledger.feedback(run_id=done.run_id, about=episodes, current=False)
    known = {f.id for f in stored}
    superseded = {f.supersedes for f in stored}
    latest = {(f.about[0], f.evidence.get("key")): f.id for f in stored if f.id not in superseded}
    new: dict[str, Feedback] = {}
    for remark, statement in sorted(statements, key=lambda pair: pair[0].at or 0.0):
        if statement.id in known or statement.id in new:
            done.feedback_known += 1
            continue
        place = (statement.about[0], remark.key)
        statement = replace(statement, supersedes=latest.get(place))
        latest[place] = statement.id
        new[statement.id] = statement
    ledger.add_feedback(list(new.values()))
    done.feedback += len(new)
