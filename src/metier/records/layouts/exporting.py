"""Out of the ledger, in the layouts that others read; every export can be walked back and made again.

    feedback            every statement, in the layout of `arrow.py`
    prompt-completion   demonstrations and corrections
    preference          pairs: preferences, and the best and worst of rankings; ties are left out
    unpaired            scores of 0 or 1, as good or not
    stepwise            scores of parts of one answer, as its steps
    openai              conversations with what was said about them, as `metier ledger import` takes them
    crowd               labels, as task, worker, label; where there is any, `gold` is the known label of the task

An export is a declared view of the ledger: its manifest is a dataset, with the file, its
hash and the exact rows in it. So forgetting a row finds the exports that hold it, and
`rewrite` makes those anew without it; a file that was changed or moved since is named and
left alone. Erased rows are never exported.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import select

from metier.base.clock import now
from metier.base.config import did_you_mean
from metier.base.errors import DataError
from metier.base.ids import content_hash, derive_id
from metier.records import schema
from metier.records.arrow import SCHEMA, to_arrow
from metier.records.layouts.crowd import GOLD
from metier.records.ledger import Ledger
from metier.records.types import DatasetKind, DatasetManifest, Episode, Feedback
from metier.records.view import LedgerView

__all__ = ["EXPORTS", "Exported", "export", "rewrite", "rows_of"]

_BATCH = 2000  # statements whose episodes are read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    file: str
    layout: str
    rows: int
    dataset_id: str


@dataclass(frozen=True, slots=True)
class _Made:
    """One row and the records that it is made of."""

    row: Mapping[str, Any]
    feedback: tuple[str, ...] = ()
    episodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Layout:
    kind: DatasetKind
    make: Callable[[LedgerView, Mapping[str, Any]], Iterator[_Made]]
    schema: pa.Schema | None = None
    keep: list[str] = field(default_factory=list)


def export(ledger: Ledger, path: Path, layout: str, **where: str | None) -> Exported:
    """Write what fits `where` (run_id, criterion, source) to a file: .jsonl, .parquet, .arrow or .csv by its name, or a
    folder of Hugging Face `datasets` where the name has no ending. Raises `DataError` where nothing fits."""
    if layout not in EXPORTS:
        raise DataError(f"unknown layout {layout!r}{did_you_mean(layout, list(EXPORTS))}")
    query = {"export": layout, **{name: value for name, value in where.items() if value is not None}}
    run_id = derive_id("run", "export")
    ledger.ensure_run(run_id, "export", {})
    feedback: dict[str, None] = {}
    episodes: dict[str, None] = {}

    def rows() -> Iterator[Mapping[str, Any]]:
        for made in EXPORTS[layout].make(ledger, where):
            feedback.update(dict.fromkeys(made.feedback))
            episodes.update(dict.fromkeys(made.episodes))
            yield made.row

    count = _write(path, rows(), EXPORTS[layout].schema)
    if not count:
        asked = [f"{name.removesuffix('_id')} {value!r}" for name, value in where.items() if value is not None]
        of = f" with {' and '.join(asked)}" if asked else ""
        raise DataError(f"no feedback in the ledger fits the layout {layout!r}{of}; see metier ledger stats")
    digest = _digest(path)
    manifest = DatasetManifest(
        id=derive_id("export", str(path.resolve()), digest, content_hash(query), content_hash([*feedback, *episodes])),
        kind=EXPORTS[layout].kind,
        name=path.name,
        run_id=run_id,
        stage="export",
        query={**query, "file": str(path.resolve()), "sha256": digest},
        feedback_ids=tuple(feedback),
        episode_ids=tuple(episodes),
        created_at=now(),
    )
    ledger.add_dataset(manifest)
    return Exported(file=str(path), layout=layout, rows=count, dataset_id=manifest.id)


def rewrite(ledger: Ledger, dataset_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Make exports among these datasets anew from the ledger as it is; returns the files done, and those left alone.

    A file that a later export wrote is that one's: it holds none of the rows, unless it is among these too.
    """
    done: dict[str, None] = {}
    left: dict[str, None] = {}
    written = _written(ledger)
    for dataset_id in dataset_ids:
        query = ledger.dataset(dataset_id).query
        if "export" not in query or not Path(query["file"]).exists():
            continue
        path = Path(query["file"])
        if str(path) in done:
            continue
        digest = _digest(path)
        if digest != query["sha256"]:
            if (str(path), digest) not in written:
                left[str(path)] = None
            continue
        _remove(path)
        where = {name: query[name] for name in ("run_id", "criterion", "source") if name in query}
        with contextlib.suppress(DataError):  # nothing is left that fits: no file is the right file
            export(ledger, path, query["export"], **where)
        done[str(path)] = None
    return list(done), [file for file in left if file not in done]


def _written(ledger: LedgerView) -> set[tuple[str, str]]:
    """Every file that an export wrote, with its hash."""
    table = schema.datasets
    with ledger.reading() as connection:
        bodies = connection.execute(select(table.c.body).where(table.c.run_id == derive_id("run", "export"))).scalars()
        queries = [json.loads(body)["query"] for body in bodies]
    return {(query["file"], query["sha256"]) for query in queries}


def rows_of(ledger: LedgerView, layout: str, **where: str | None) -> Iterator[Mapping[str, Any]]:
    """The rows that an export would hold, for `datasets.Dataset.from_generator` and the like; nothing is written."""
    for made in EXPORTS[layout].make(ledger, where):
        yield made.row


# --- what each layout holds -------------------------------------------------------------


def _said(ledger: LedgerView, where: Mapping[str, Any], *kinds: str) -> Iterator[tuple[Feedback, list[Episode]]]:
    """Statements of these kinds that say something, each with the episodes that it is about, unless one is erased."""
    for kind in kinds:
        statements = ledger.iter_feedback(kind=kind, erased=False, **where)
        scored = (s for s in statements if s.value is not None)
        while batch := list(itertools.islice(scored, _BATCH)):
            ids = dict.fromkeys(episode_id for statement in batch for episode_id in statement.about)
            found = {episode.id: episode for episode in ledger.episodes(ids=ids)}
            for statement in batch:
                about = [found[episode_id] for episode_id in statement.about]
                if all(episode.messages for episode in about):
                    yield statement, about


def _split(episode: Episode, before: int | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was asked, and what was answered: all from the first message of an assistant on."""
    spoken = next((n for n, m in enumerate(episode.messages) if m.role == "assistant"), len(episode.messages))
    messages = [message.to_openai() for message in episode.messages]
    spoken = spoken if before is None else before
    return messages[:spoken], messages[spoken:]


def _feedback(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    for table in to_arrow(ledger.iter_feedback(current=False, erased=False, **where)):
        for row in table.to_pylist():
            yield _Made(row, (row["id"],))


def _demonstrations(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    for statement, (episode, *_) in _said(ledger, where, "demonstration", "correction"):
        prompt, _answer = _split(episode, statement.span.turn if statement.span else None)
        if prompt and isinstance(statement.value, list):
            yield _Made({"prompt": prompt, "completion": statement.value}, (statement.id,), statement.about)


def _pairs(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    for statement, about in _said(ledger, where, "preference", "ranking"):
        if statement.kind == "ranking":
            best, worst = statement.value[0], statement.value[-1]
        elif statement.value in (0, 1) and len(about) == 2:
            best, worst = int(statement.value), 1 - int(statement.value)
        else:
            continue
        prompt, chosen = _split(about[best])
        other, rejected = _split(about[worst])
        if prompt == other and chosen and rejected and chosen != rejected:
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator": statement.source.name}
            yield _Made(row, (statement.id,), statement.about)


def _unpaired(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    for statement, (episode, *_) in _said(ledger, where, "score"):
        prompt, answer = _split(episode)
        if statement.span is None and statement.value in (0, 1) and answer:
            row = {"prompt": prompt, "completion": answer, "label": bool(statement.value)}
            yield _Made({**row, "annotator": statement.source.name}, (statement.id,), statement.about)


def _steps(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    """One row for each answer and source; statements about it come together, as they were added together."""
    parts = (
        (statement, statement.span, episode)
        for statement, (episode, *_) in _said(ledger, where, "score")
        if statement.span is not None and statement.span.end is not None
    )
    for _, group in itertools.groupby(parts, key=lambda part: (part[0].about, part[0].source, part[1].turn)):
        held = sorted(group, key=lambda part: part[1].start or 0)
        _, span, episode = held[0]
        text = episode.messages[span.turn].content
        row = {
            "prompt": "\n\n".join(message.content for message in episode.messages[: span.turn]),
            "completions": [text[part.start : part.end] for _, part, _ in held],
            "labels": [bool(statement.value) for statement, _, _ in held],
        }
        yield _Made(row, tuple(statement.id for statement, _, _ in held), (episode.id,))


def _conversations(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    episodes = ledger.iter_episodes(run_id=where.get("run_id"), erased=False)
    while batch := list(itertools.islice(episodes, _BATCH)):
        about: dict[str, list[Feedback]] = {}
        for statement in ledger.feedback(about=[e.id for e in batch], erased=False, **where):
            if statement.kind in ("score", "label", "correction") and len(statement.about) == 1:
                about.setdefault(statement.about[0], []).append(statement)
        for episode in batch:
            said = [s for s in about.get(episode.id, ()) if s.value is not None]
            if not any(message.role == "assistant" for message in episode.messages):
                continue
            row = {
                "id": episode.id,
                "model": episode.weights.checkpoint,
                "created": episode.created_at,
                "messages": [message.to_openai() for message in episode.messages],
                "feedback": [_remark(statement) for statement in said],
            }
            yield _Made(row, tuple(s.id for s in said), (episode.id,))


def _remark(statement: Feedback) -> dict[str, Any]:
    """What was said, as `traces/openai.py` reads it; values that are no number or text as JSON."""
    value = statement.value if isinstance(statement.value, (str, int, float)) else json.dumps(statement.value)
    name = "correction" if statement.kind == "correction" else statement.criterion
    made = {"name": name, "value": value, "source": statement.source.name, "id": statement.id}
    if statement.reason:
        made["comment"] = statement.reason
    return made


def _labels(ledger: LedgerView, where: Mapping[str, Any]) -> Iterator[_Made]:
    """A row for each label of a worker, with the gold of its task; then the gold of tasks without one."""
    golds: dict[tuple[str, str], tuple[Feedback, Episode]] = {}
    if where.get("source") in (None, GOLD.name):
        for statement, (episode, *_) in _said(ledger, {**where, "source": GOLD.name}, "label"):
            if statement.source == GOLD:
                golds[episode.id, statement.criterion] = statement, episode

    def made(worker: str, label: str, episode: Episode, *statements: Feedback | None) -> _Made:
        task = str(episode.meta.get("item") or episode.id)
        row = {"task": task, "worker": worker, "label": label, "text": episode.messages[-1].content}
        gold = statements[-1]
        if golds:
            row["gold"] = "" if gold is None else _label(gold)
        return _Made(row, tuple(one.id for one in statements if one is not None), (episode.id,))

    labelled: set[tuple[str, str]] = set()
    for statement, (episode, *_) in _said(ledger, where, "label"):
        if statement.source == GOLD:
            continue
        place = episode.id, statement.criterion
        gold, _ = golds.get(place, (None, None))
        labelled.add(place)
        yield made(statement.source.name, _label(statement), episode, statement, gold)
    for place, (gold, episode) in golds.items():
        if place not in labelled:
            yield made("", "", episode, gold)


def _label(statement: Feedback) -> str:
    return statement.value if isinstance(statement.value, str) else json.dumps(statement.value)


EXPORTS: dict[str, _Layout] = {
    "feedback": _Layout("unpaired", _feedback, SCHEMA),
    "prompt-completion": _Layout("demonstrations", _demonstrations),
    "preference": _Layout("pairs", _pairs),
    "unpaired": _Layout("unpaired", _unpaired),
    "stepwise": _Layout("steps", _steps),
    "openai": _Layout("demonstrations", _conversations),
    "crowd": _Layout("unpaired", _labels),
}


# --- files ----------------------------------------------------------------------------


def _write(path: Path, rows: Iterator[Mapping[str, Any]], schema: pa.Schema | None) -> int:
    """Write rows under another name, and rename when whole; nothing is left where there is none."""
    kind = path.suffix
    if kind not in (".jsonl", ".parquet", ".arrow", ".csv", ""):
        raise DataError(f"cannot tell what {path.name} is to be; end it by .jsonl, .parquet, .arrow, .csv or nothing")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    writers = {".jsonl": _write_lines, ".csv": _write_csv, ".parquet": _write_parquet, ".arrow": _write_arrow}
    try:
        count = writers.get(kind, _write_folder)(temporary, rows, schema)
        if count:
            if path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
        return count
    finally:
        _remove(temporary)


def _write_lines(path: Path, rows: Iterator[Mapping[str, Any]], _: pa.Schema | None) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007
            file.write(json.dumps(row) + "\n")
    return count


def _write_csv(path: Path, rows: Iterator[Mapping[str, Any]], _: pa.Schema | None) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = None
        for count, row in enumerate(rows, 1):  # noqa: B007
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow({k: v if isinstance(v, str) or v is None else json.dumps(v) for k, v in row.items()})
    return count


def _tables(rows: Iterator[Mapping[str, Any]], schema: pa.Schema | None) -> Iterator[pa.Table]:
    while batch := list(itertools.islice(rows, 10_000)):
        table = pa.Table.from_pylist([dict(row) for row in batch], schema=schema)
        schema = table.schema
        yield table


def _write_parquet(path: Path, rows: Iterator[Mapping[str, Any]], schema: pa.Schema | None) -> int:
    import pyarrow.parquet

    return _write_tables(path, rows, schema, pyarrow.parquet.ParquetWriter)


def _write_arrow(path: Path, rows: Iterator[Mapping[str, Any]], schema: pa.Schema | None) -> int:
    return _write_tables(path, rows, schema, lambda where, schema: pa.ipc.new_file(str(where), schema))


def _write_tables(path: Path, rows: Iterator[Mapping[str, Any]], schema: pa.Schema | None, make: Any) -> int:
    count, writer = 0, None
    try:
        for table in _tables(rows, schema):
            writer = writer or make(path, table.schema)
            writer.write_table(table)
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return count


def _write_folder(path: Path, rows: Iterator[Mapping[str, Any]], schema: pa.Schema | None) -> int:
    try:
        from datasets import Dataset  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            "a folder of datasets needs Hugging Face datasets: pip install datasets; or end the name by .parquet"
        ) from error
    tables = list(_tables(rows, schema))
    if not tables:
        return 0
    Dataset(pa.concat_tables(tables)).save_to_disk(str(path))
    return sum(table.num_rows for table in tables)


def _digest(path: Path) -> str:
    files: Sequence[Path] = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
