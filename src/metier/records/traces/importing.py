"""Traces of other systems into the ledger: conversations as episodes, what was said about them as feedback.

One import is one run of the ledger for each `source` (a product, a project); importing a file
again, or after it was cut short, changes nothing that is there. An episode's id is made of
its source's ids and of what was said, so a conversation that has grown since is an
episode of its own. A remark that says something else than it did, later, supersedes what it said.

A task is what the model saw before its first answer. A conversation that begins with the
messages of a task which the ledger holds in another split (held out, say) is kept out, and
so is what a person or source that was forgotten says.

Left out: token ids and log-probabilities, which production does not keep, so that imported
episodes are to be learnt from as demonstrations or preferences, not by a policy gradient.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import select

from metier.base.clock import now
from metier.base.config import did_you_mean
from metier.base.errors import DataError
from metier.base.ids import canonical_json, content_hash, derive_id
from metier.records import schema
from metier.records.forgetting import forgotten, names_of, users_of
from metier.records.ledger import Ledger
from metier.records.traces import langfuse, openai, otel, phoenix
from metier.records.traces.calls import Call, Conversation, Remark, Skipped, conversations, digests
from metier.records.traces.files import Row, read_rows, readable
from metier.records.traces.scrub import Scrubber
from metier.records.types import (
    Cost,
    Episode,
    Feedback,
    Span,
    Task,
    Tool,
    Weights,
    from_plain,
    to_plain,
)

__all__ = [
    "FORMATS",
    "Imported",
    "add_statements",
    "held_out_tasks",
    "import_traces",
]

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
class _Kept:
    """What remarks need to know of an episode that is in the ledger."""

    id: str
    turns: dict[str, int]  # call -> the message that it spoke
    last_of: dict[str, int]  # trace -> the last message that it spoke
    ended: float  # when its last call began
    scrub: Scrubber | None


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A conversation as it is to be kept."""

    episode: Episode
    task: Task
    kept: _Kept
    group: str  # what remarks about a conversation name
    place: str


@dataclass(slots=True)
class _Index:
    """Episodes by what remarks name."""

    by_call: dict[str, list[_Kept]] = field(default_factory=dict)
    by_trace: dict[str, list[_Kept]] = field(default_factory=dict)
    by_group: dict[str, list[_Kept]] = field(default_factory=dict)

    def add(self, one: _Spoken) -> None:
        """Take in an episode."""
        self.by_group.setdefault(one.group, []).append(one.kept)
        for call in one.kept.turns:
            self.by_call.setdefault(call, []).append(one.kept)
        for trace in one.kept.last_of:
            self.by_trace.setdefault(trace, []).append(one.kept)

    def find(self, remark: Remark) -> list[tuple[_Kept, int | None]]:
        """The episodes that a remark is about, and the message, where it is about one of several.

        What is said of a trace is said of the conversation that ended it; of what several agents
        said in it, only that is what its user saw. What is said of a step that is no answer of a
        model is said of its trace.
        """
        if remark.about == "conversation":
            return [(kept, remark.turn) for kept in self.by_group.get(remark.of, [])]
        if remark.about == "call" and remark.of in self.by_call:
            found = self.by_call[remark.of][-1]
            turn = remark.turn
            if turn is None and len(found.turns) > 1:
                turn = found.turns[remark.of]
            return [(found, turn)]
        trace = remark.of if remark.about == "trace" else remark.trace
        among = self.by_trace.get(trace or "", [])
        if not among:
            return []
        last = max(among, key=lambda kept: kept.ended)
        return [(last, last.last_of[trace or ""] if len(last.last_of) > 1 else None)]


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
    ledger.ensure_run(run_id, "import", {"source": source})
    held_out = held_out_tasks(ledger)
    with ledger.reading() as connection:
        gone = forgotten(connection)
    index = _Index()
    loose: list[Call] = []  # whole conversations, written as they come
    held: list[Call] = []  # calls that others may continue
    remarks: list[Remark] = []

    def flush(calls: Sequence[Call]) -> None:
        found = conversations(calls)
        for start in range(0, len(found), _BATCH):
            _take(ledger, done, found[start : start + _BATCH], index, held_out, gone, source, scrub)
            on_batch(done)

    for item in FORMATS[name].read(good):
        if isinstance(item, Skipped):
            skipped.append(item)
        elif isinstance(item, Remark):
            remarks.append(item)
        elif item.output is None:
            skipped.append(Skipped(item.place, f"no answer: {item.error or 'the output is empty'}"))
        else:
            if len(loose) >= _BATCH and not held:  # with the remarks that followed them
                flush(loose)
                _take_remarks(ledger, done, index, remarks, gone)
                loose, remarks, index = [], [], _Index()
            (held if item.conversation is not None else loose).append(item)
    flush([*loose, *held])
    _take_remarks(ledger, done, index, remarks, gone)
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

    good = readable(rows, skipped)
    if given is not None:
        return good, given
    for row in good:
        for name, module in FORMATS.items():
            if module.fits(row[1]):
                return itertools.chain([row], good), name
        skipped.append(Skipped(row[0], "a row of no known format"))
    raise DataError(
        f"{', '.join(map(str, files))}: no row is of a known format; name it with --format: {', '.join(FORMATS)}"
    )


def held_out_tasks(ledger: Ledger, split: str = _SPLIT) -> dict[bytes, str]:
    """The splits other than this one, by what their tasks begin with."""
    table = schema.tasks
    with ledger.reading() as connection:
        rows = connection.execute(select(table.c.id, table.c.split).where(table.c.split != split)).all()
    split_of = {row.id: row.split for row in rows}
    found: dict[bytes, str] = {}
    ids = list(split_of)
    for start in range(0, len(ids), 1000):
        for task_id, task in ledger.tasks(ids[start : start + 1000]).items():
            if task.messages:
                found[digests(task.messages)[-1]] = split_of[task_id]
    return found


def _take(
    ledger: Ledger,
    done: Imported,
    found: Sequence[Conversation],
    index: _Index,
    held_out: Mapping[bytes, str],
    gone: set[str],
    source: str,
    scrub: bool,
) -> None:
    """Keep conversations that are not there yet, and note all for the remarks."""
    allowed: dict[str, _Spoken] = {}
    for conversation in found:
        place = conversation.calls[0][0].place
        if names := gone & users_of(conversation.calls[0][0].meta):
            done.skipped.append(Skipped(place, f"{min(names)} was forgotten"))
            continue
        try:
            one = _spoken(conversation, done.run_id, source, scrub, held_out)
        except (DataError, TypeError, ValueError) as error:
            one = Skipped(place, str(error) if isinstance(error, DataError) else f"of an unexpected form: {error}")
        if isinstance(one, Skipped):
            done.skipped.append(one)
            continue
        done.calls += len(conversation.calls)
        index.add(one)
        allowed.setdefault(one.episode.id, one)
    known = ledger.known(schema.episodes, list(allowed))
    new = [one for episode_id, one in allowed.items() if episode_id not in known]
    tasks = {one.task.id: one.task for one in new}
    there = ledger.known(schema.tasks, list(tasks))
    ledger.add_tasks([task for task_id, task in tasks.items() if task_id not in there])
    ledger.add_episodes([one.episode for one in new])
    done.episodes += len(new)
    done.episodes_known += len(allowed) - len(new)


def _spoken(
    conversation: Conversation, run_id: str, source: str, scrub: bool, held_out: Mapping[bytes, str]
) -> _Spoken | Skipped:
    messages, calls = conversation.messages, [call for call, _ in conversation.calls]
    first, last = calls[0], calls[-1]
    asked = next((n for n, m in enumerate(messages) if m.role == "user"), len(messages))
    answered = next((n for n in range(asked, len(messages)) if messages[n].role == "assistant"), None)
    if answered is None:
        return Skipped(first.place, "nobody asks: no message of a user comes before an answer")
    if (split := held_out.get(digests(messages[:answered])[-1])) is not None:
        return Skipped(first.place, f"its task is in split {split!r}, which stays apart")
    identity = content_hash([first.id, [m.to_openai() for m in messages]])  # of what was said, before scrubbing
    meta: dict[str, Any] = {"trace": first.trace, **first.meta}
    tools, scrubber = first.tools, None
    if scrub:
        scrubber = Scrubber()
        messages = tuple(scrubber.message(m) for m in messages)
        meta = scrubber.value(json.loads(canonical_json(meta)))
        tools = tuple(from_plain(Tool, scrubber.value(to_plain(tool))) for tool in tools)
    task = Task(family=_SPLIT, kind=_SPLIT, messages=messages[:answered], tools=tools, split=_SPLIT, source=source)
    episode = Episode(
        id=derive_id("ep", run_id, identity),
        task_id=task.id,
        run_id=run_id,
        stage="import",
        weights=Weights(checkpoint=last.model or "unknown"),
        messages=messages,
        stop_reason="length" if last.stop == "length" else "stop",
        sampling=first.sampling,
        split=_SPLIT,
        cost=Cost(
            prompt_tokens=sum(c.input_tokens for c in calls),
            completion_tokens=sum(c.output_tokens for c in calls),
            tool_calls=sum(len(m.tool_calls) for m in messages),
            seconds=sum(c.seconds for c in calls),
            usd=sum(c.usd for c in calls),
        ),
        created_at=first.started_at or now(),
        meta=meta,
    )
    kept = _Kept(
        id=episode.id,
        turns={call.id: turn for call, turn in conversation.calls},
        last_of={call.trace: turn for call, turn in conversation.calls},
        ended=last.started_at,
        scrub=scrubber,
    )
    return _Spoken(episode, task, kept, first.conversation or first.trace, first.place)


# --- feedback --------------------------------------------------------------------------------


def _take_remarks(ledger: Ledger, done: Imported, index: _Index, remarks: Sequence[Remark], gone: set[str]) -> None:
    for start in range(0, len(remarks), 5 * _BATCH):
        statements: list[Feedback] = []
        for remark in remarks[start : start + 5 * _BATCH]:
            targets = index.find(remark)
            if names := names_of(remark.source) & gone:
                done.skipped.append(Skipped(remark.place, f"{min(names)} was forgotten"))
                continue
            if not targets:
                about = f"it is about a {remark.about} that is not among the conversations"
                done.skipped.append(Skipped(remark.place, about))
                continue
            try:
                statements.append(_statement(remark, targets, done.run_id))
            except (DataError, TypeError, ValueError) as error:
                done.skipped.append(Skipped(remark.place, str(error)))
        add_statements(ledger, done, statements)


def _statement(remark: Remark, targets: Sequence[tuple[_Kept, int | None]], run_id: str) -> Feedback:
    """The remark as feedback: about whole episodes, or about a message of one. Its id is given by `add_statements`."""
    value, reason, criterion, source = remark.value, remark.reason, remark.criterion, remark.source
    scrubber = targets[0][0].scrub
    if scrubber is not None:
        value, reason, criterion = scrubber.value(value), scrubber.text(reason), scrubber.text(criterion)
        source = replace(source, name=scrubber.text(source.name))
    turn = targets[0][1] if len(targets) == 1 else None
    return Feedback(
        id="",
        about=tuple(kept.id for kept, _ in targets),
        criterion=criterion,
        kind=remark.kind,
        source=source,
        value=value,
        span=None if turn is None else Span(turn=turn),
        reason=reason,
        # of what was said, before scrubbing, and without saying it
        evidence={"key": content_hash(remark.key), "said": content_hash([remark.value, remark.reason, turn])},
        created_at=now(),
        observed_at=remark.at,
        run_id=run_id,
    )


def add_statements(ledger: Ledger, done: Imported, statements: Sequence[Feedback]) -> None:
    """Add what is new. A later word under a key supersedes the one before; an earlier one is known to be outdated."""
    stored = ledger.feedback(run_id=done.run_id, about={e for f in statements for e in f.about}, current=False)
    chains: dict[tuple[str, str], list[Feedback]] = {}  # oldest first
    for statement in stored:
        chains.setdefault(_place(statement), []).append(statement)
    new: list[Feedback] = []
    for statement in sorted(statements, key=lambda f: f.observed_at or 0.0):
        chain = chains.setdefault(_place(statement), [])
        if _is_known(statement, chain):
            done.feedback_known += 1
            continue
        before = chain[-1].id if chain else None
        parts = (done.run_id, *statement.about, statement.evidence["key"], statement.evidence["said"], before or "")
        statement = replace(statement, id=derive_id("fb", *parts), supersedes=before)
        chain.append(statement)
        new.append(statement)
    ledger.add_feedback(new)
    done.feedback += len(new)


def _place(statement: Feedback) -> tuple[str, str]:
    return statement.about[0], str(statement.evidence.get("key"))


def _is_known(statement: Feedback, chain: Sequence[Feedback]) -> bool:
    if not chain:
        return False
    said, at, newest = statement.evidence["said"], statement.observed_at, chain[-1]
    if at is None or newest.observed_at is None or at == newest.observed_at:  # nothing tells which came first
        return any(older.evidence.get("said") == said for older in chain)
    return newest.evidence.get("said") == said or at < newest.observed_at
