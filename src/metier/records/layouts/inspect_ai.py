"""Logs of Inspect, read without inspect-ai: `.eval`, a zip with a member for each sample, and the one object `.json`.

A sample becomes a task and one attempt at it: the epoch is the attempt's place, counted from 0. What was asked is
`input` with what solvers put around it, up to the first answer; tools are those of the first call of the model.
Each score is a verifier's statement on the criterion of the scorer's name; of a score that is an object or a list,
each entry, as NAME/KEY. C, P, I and N are 1, .5, 0 and 0, as Inspect has it; other words are labels. A sample that
broke, and a score that is missing or NaN, is unscored with the reason. Inspect gives scorers no version: it is that
of inspect-ai, with a hash of the scorer's options where it has some; a version in a score's metadata comes first.

Members may be packed with zstandard, which Python's zipfile reads from 3.14 on only, so pyarrow unpacks them. A
sample that cannot be read is skipped alone; one that is larger than `LARGEST` is not unpacked.

Left out: events, stores, what a model reasoned, reduced scores, and pictures, for which a sample is skipped.

https://inspect.aisi.org.uk/eval-logs.html
"""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.records.layouts.items import Answer, Item, Said, messages_of
from metier.records.traces.calls import (
    Skipped,
    call_of,
    chat_message,
    mapping,
    number,
    sampling_of,
    seconds_of,
    spoken_or_none,
    tools_of,
)
from metier.records.traces.files import Row, clean
from metier.records.types import Cost, Message, Source, StopReason, Tool

__all__ = [
    "LARGEST",
    "fits",
    "grade",
    "is_log",
    "is_packed",
    "item",
    "packed_rows",
    "read_head",
    "read_samples",
    "read_summaries",
    "rows_of",
]

LARGEST = 256 * 2**20  # bytes of a sample, unpacked
ZSTANDARD = 93  # the number of the method in a zip
HEADS = ("header.json", "_journal/start.json")  # of a run that ended, and of one that did not
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partial, incorrect, no answer
TRUTHS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}  # in small letters or not
STOPS: dict[str, StopReason] = {"max_tokens": "length", "model_length": "context"}
LIMITS: dict[str, StopReason] = {
    "context": "context",
    "time": "time",
    "working": "time",
    "token": "tokens",
    "message": "turns",
}
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, LookupError)


# --- files -------------------------------------------------------------------------------


def is_packed(path: Path) -> bool:
    """Whether a file is a zip, by its first bytes, cut off or not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def is_log(row: Mapping[str, Any]) -> bool:
    """Whether an object is a whole log in its JSON form."""
    return isinstance(row.get("eval"), Mapping) and ("status" in row or "plan" in row)


def rows_of(place: str, log: Mapping[str, Any]) -> Iterator[Row | Skipped]:
    """The samples of a log in its JSON form, each with the log's head. Raises `DataError` where it has none."""
    samples = log.get("samples")
    if not isinstance(samples, list) or not samples:
        raise DataError(f"{place} is a log of Inspect without samples; write it with `--log-samples`")
    head = _head(log, samples)
    for count, sample in enumerate(samples, 1):
        where = f"{place}, {_named(sample, count)}"
        if isinstance(sample, Mapping):
            yield where, {"log": head, "sample": sample}
        else:
            yield Skipped(where, f"a sample must be an object, not {type(sample).__name__}")


def packed_rows(path: Path) -> Iterator[Row | Skipped]:
    """The samples of an `.eval` file, each with the log's head. Raises `DataError` where it is none."""
    head = read_head(path)
    for count, sample in enumerate(read_samples(path), 1):
        if isinstance(sample, Skipped):
            yield sample
        elif isinstance(sample, Mapping):
            yield f"{path.name}, {_named(sample, count)}", {"log": head, "sample": clean(sample)}
        else:
            yield Skipped(f"{path.name}, sample {count}", f"a sample must be an object, not {type(sample).__name__}")


def read_head(path: Path) -> dict[str, Any]:
    """What an `.eval` file says of all its samples, among it the `task`. Raises `DataError` where it says nothing."""
    with _opened(path) as log:
        name = next((one for one in HEADS if one in log.namelist()), None)
        if name is None:
            raise DataError(f"{path} has neither {' nor '.join(HEADS)}, so it is no log of Inspect")
        try:
            return _head(mapping(clean(json.loads(_member(path, log, name)))), ())
        except (*_BROKEN, RecursionError) as error:
            raise DataError(f"{path} cannot be read as a log of Inspect: {name}: {error}") from error


def read_samples(path: Path) -> Iterator[Any]:
    """The samples of an `.eval` file as they stand there; `Skipped` for one that cannot be read."""
    with _opened(path) as log:
        found = [n for n in dict.fromkeys(log.namelist()) if n.startswith("samples/") and n.endswith(".json")]
        if not found:
            raise DataError(f"{path} holds no samples, so it is no log of Inspect")
        for name in found:
            try:
                sample = json.loads(_member(path, log, name))
            except (*_BROKEN, RecursionError) as error:
                sample = Skipped(f"{path.name}, {name}", f"cannot be read: {error}")
            yield sample


def read_summaries(path: Path) -> list[Any] | None:
    """The summaries of the samples of an `.eval` file, which have ids, epochs and scores; None where it has none."""
    with _opened(path) as log:
        if "summaries.json" not in log.namelist():
            return None
        try:
            found = json.loads(_member(path, log, "summaries.json"))
        except (*_BROKEN, RecursionError) as error:
            raise DataError(f"{path} cannot be read as a log of Inspect: summaries.json: {error}") from error
    return found if isinstance(found, list) else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        log = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise DataError(f"{path} is a zip that is cut off or damaged ({error}); copy it again") from error
    with log:
        if sum(info.compress_size for info in log.infolist()) > path.stat().st_size:
            raise DataError(f"{path} is a zip whose members lie upon each other, so it is no log of Inspect")
        yield log


def _member(path: Path, log: zipfile.ZipFile, name: str) -> bytes:
    """What a member holds, unpacked. Raises `DataError`, which is a `ValueError`, where it is too large."""
    info = log.getinfo(name)
    if info.file_size > LARGEST:
        raise DataError(f"it has {info.file_size:,} bytes unpacked, and {LARGEST:,} are read at most")
    if info.compress_type != ZSTANDARD:
        return log.read(info)
    import pyarrow

    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
        file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        packed = file.read(info.compress_size)
    unpacked: bytes = pyarrow.Codec("zstd").decompress(packed, info.file_size, asbytes=True)
    return unpacked


def _named(sample: Any, count: int) -> str:
    if not isinstance(sample, Mapping) or "id" not in sample:
        return f"sample {count}"
    return f"sample {sample['id']}, epoch {sample.get('epoch', 1)}"


def _head(log: Mapping[str, Any], samples: Sequence[Any]) -> dict[str, Any]:
    """What a sample needs to know of its log; `scorers` are their options by name."""
    about, results = mapping(log.get("eval")), mapping(log.get("results"))
    declared = {_bare(one.get("name")): one.get("options") or {} for one in _objects(about.get("scorers"))}
    ran = [_bare(one.get("scorer") or one.get("name")) for one in _objects(results.get("scores"))]
    seen = [str(name) for one in samples if isinstance(one, Mapping) for name in _scores(one)]
    names = dict.fromkeys(seen or ran or declared)
    return {
        "id": str(about.get("eval_id") or about.get("run_id") or about.get("created") or ""),
        "task": str(about.get("task") or ""),
        "model": str(about.get("model") or ""),
        "at": about.get("created"),
        "version": str(mapping(about.get("packages")).get("inspect_ai") or ""),
        "sampling": {
            **mapping(about.get("model_generate_config")),
            **mapping(mapping(log.get("plan")).get("config")),
        },
        "scorers": {name: declared.get(name, {}) for name in names},
    }


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _bare(name: Any) -> str:
    return str(name).rpartition("/")[2]


def _scores(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(sample.get("scores"))


# --- samples -----------------------------------------------------------------------------


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row is a sample with the head of its log."""
    return isinstance(row.get("log"), Mapping) and isinstance(row.get("sample"), Mapping)


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one sample holds. Raises `DataError`; see `guarded`."""
    if not fits(row):
        raise DataError("no sample of a log of Inspect")
    log, raw = row["log"], row["sample"]
    if raw.get("id") is None:
        raise DataError("a sample without an id")
    # The texts of messages may lie among the attachments.
    held = mapping(raw.get("attachments"))
    sample = _resolved({name: raw.get(name) for name in ("input", "messages", "output", "scores")}, held)
    messages, asked = _spoken(sample)
    if not asked:
        raise DataError("nobody asks: its first message is an answer")
    output, epoch = mapping(sample["output"]), int(number(raw.get("epoch")) or 1)
    broke = str(mapping(raw["error"]).get("message") or "no reason given") if raw.get("error") else None
    metadata, limit = mapping(raw.get("metadata")), str(mapping(raw.get("limit")).get("type") or "")
    choice = next(iter(_objects(output.get("choices"))), {})
    stop: StopReason = LIMITS.get(limit) or STOPS.get(str(choice.get("stop_reason")), "stop")
    ended = seconds_of(raw.get("completed_at"))
    answer = Answer(
        messages=messages[asked:],
        model=log["model"] or str(output.get("model") or ""),
        stop=stop if broke is None else "error",
        error=broke,
        index=epoch - 1,
        sampling=sampling_of(log["sampling"]),
        cost=_cost(raw, log["model"], output, messages[asked:]),
        at=seconds_of(raw.get("started_at")) or ended or seconds_of(log["at"]),
    )
    target = raw.get("target")
    meta = {
        "item": str(raw.get("uuid") or f"{log['id']}/{raw['id']}/{epoch}"),
        "log": log["id"],
        "task": log["task"],
        "sample": str(raw["id"]),
        "epoch": epoch,
        "metadata": metadata,
        **({"limit": limit} if limit else {}),
    }
    return Item(
        place=place,
        prompt=messages[:asked],
        answers=(answer,),
        said=tuple(_statements(_scores(sample), log, broke, ended)),
        meta=meta,
        kind=log["task"],
        tools=_tools(raw, held),
        reference={"answer": target} if target else {},
        cluster=str(metadata.get("cluster") or ""),
    )


def _resolved(value: Any, held: Mapping[str, Any]) -> Any:
    if not held:
        return value
    if isinstance(value, str) and value.startswith("attachment://"):
        return held.get(value.removeprefix("attachment://"), value)
    if isinstance(value, Mapping):
        return {name: _resolved(one, held) for name, one in value.items()}
    return [_resolved(one, held) for one in value] if isinstance(value, list) else value


def _spoken(sample: Mapping[str, Any]) -> tuple[tuple[Message, ...], int]:
    """The conversation, and how many of its messages were there before the model answered.

    An example that `input` shows is no answer, so all of `input` comes before.
    """
    given = sample["input"]
    first = tuple(_message(one) for one in given) if isinstance(given, list) else messages_of(given, "user", "`input`")
    spoken = tuple(_message(one) for one in sample["messages"] or ()) or first
    start = next((n for n in range(len(spoken)) if spoken[n : n + len(first)] == first), None)
    start = 0 if start is None else start + len(first)
    asked = next((n for n in range(start, len(spoken)) if spoken[n].role == "assistant"), len(spoken))
    choice = next(iter(_objects(mapping(sample["output"]).get("choices"))), {})
    if asked == len(spoken) and isinstance(choice.get("message"), Mapping):  # a solver that only gives an output
        said = spoken_or_none(_message(choice["message"]))
        spoken = spoken if said is None else (*spoken, said)
    return spoken, asked


def _message(raw: Any) -> Message:
    if not isinstance(raw, Mapping):
        return chat_message(raw)
    content, failed = raw.get("content"), mapping(raw.get("error"))
    if isinstance(content, list):  # what a model thought is not what it said
        content = [part for part in content if mapping(part).get("type") != "reasoning"]
    made: dict[str, Any] = {"role": raw.get("role"), "content": content or str(failed.get("message") or "")}
    if raw.get("tool_calls"):
        calls = [call_of(one["function"], one.get("arguments"), one.get("id")) for one in raw["tool_calls"]]
        made["tool_calls"] = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in calls]
    if raw.get("role") == "tool":
        made |= {"tool_call_id": raw.get("tool_call_id"), "name": raw.get("function")}
    return chat_message(made)


def _tools(sample: Mapping[str, Any], held: Mapping[str, Any]) -> tuple[Tool, ...]:
    calls = (one for one in _objects(sample.get("events")) if one.get("event") == "model")
    return tools_of(_resolved(next(calls, {}).get("tools"), held))


def _cost(sample: Mapping[str, Any], model: str, output: Mapping[str, Any], answer: Sequence[Message]) -> Cost:
    """What the attempt cost: of the model that is measured, not of one that grades it."""
    usage = mapping(mapping(sample.get("model_usage")).get(model)) or mapping(output.get("usage"))
    read = ("input_tokens", "input_tokens_cache_read", "input_tokens_cache_write")
    return Cost(
        prompt_tokens=sum(int(number(usage.get(name)) or 0) for name in read),
        completion_tokens=int(number(usage.get("output_tokens")) or 0),
        tool_calls=sum(len(one.tool_calls) for one in answer),
        seconds=max(0.0, number(sample.get("total_time")) or 0.0),
        usd=max(0.0, number(usage.get("total_cost")) or 0.0),
    )


# --- scores ------------------------------------------------------------------------------


def grade(value: Any) -> float:
    """A score as Inspect makes a number of it. Raises `DataError` for any other word, and for what is no number."""
    if isinstance(value, str) and (value in GRADES or value.lower() in TRUTHS):
        return GRADES[value] if value in GRADES else TRUTHS[value.lower()]
    found = number(value)
    if found is None:
        raise DataError(f"{str(value)[:40]!r} is no number")
    return found


def _statements(
    scores: Mapping[str, Any], log: Mapping[str, Any], broke: str | None, at: float | None
) -> Iterator[Said]:
    """A statement for each score, and one of no value for each scorer of the log that said nothing."""
    for scorer in dict.fromkeys([*scores, *log["scorers"]]):
        score = mapping(scores.get(scorer))
        metadata = mapping(score.get("metadata"))
        options = log["scorers"].get(scorer)
        known = log["version"] or "unknown"
        if options:
            known = f"{known} {content_hash(options, length=8)}"
        source = Source(kind="verifier", name=scorer, version=str(metadata.get("version") or known))
        common: dict[str, Any] = {"about": (0,), "source": source, "at": at}
        if "value" not in score:
            why = broke or "the log has no score of it"
            yield Said(criterion=scorer, kind="score", value=None, unscored=why, **common)
            continue
        common["reason"] = str(score.get("explanation") or "")
        evidence = {name: found for name, found in (("answer", score.get("answer")), ("metadata", metadata)) if found}
        value = score["value"]
        entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        parts = {f"{scorer}/{name}": one for name, one in entries} or {scorer: value}
        for criterion, part in parts.items():
            yield _statement(criterion, part, {**common, "evidence": evidence})


def _statement(criterion: str, value: Any, common: Mapping[str, Any]) -> Said:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        why = f"the scorer said {'nothing' if value is None else value}"
        return Said(**{**common, "criterion": criterion, "kind": "score", "value": None, "unscored": why})
    try:
        number_of = grade(value)
    except DataError:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return Said(**{**common, "criterion": criterion, "kind": "label", "value": text})
    return Said(**{**common, "criterion": criterion, "kind": "score", "value": number_of})
