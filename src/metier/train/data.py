"""Rows of a plain file to examples: TRL's dataset types and the OpenAI chat format.

    {"text": ...}                                          every token is learned
    {"prompt": ..., "completion": ...}                     the completion is learned
    {"messages": [...], "tools": [...]}                    the assistant's turns are learned
    {"prompt": ..., "chosen": ..., "rejected": ...}        pairs; without `prompt`, what both sides share is it
    {"prompt": ..., "completion": ..., "label": true}      single answers, good or bad
    {"prompt": ..., "completions": [...], "labels": [...]} an answer in steps, each right or wrong

`prompt`, `completion`, `chosen` and `rejected` are text, or lists of messages. Messages go
through the renderer, so tools, tool results and the end of a turn are treated as
everywhere else. Text is tokenised as it stands, prompt and completion apart so that no
token spans both, with the end-of-text token after it. An assistant message of `messages`
may carry a `weight`, as in OpenAI's format: 0 leaves the turn out of the loss. A row of any
type may carry one too, a factor of its whole loss.

Left out: streaming; images; choosing what to train on.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from metier.base.errors import DataError
from metier.models.renderer import Renderer
from metier.records.types import Message, Tool
from metier.train.objectives.protocol import Kind
from metier.train.packing import Example

__all__ = ["Encoder", "TooLong", "limited", "read_rows", "scored_at_end"]

TooLong = Literal["error", "drop", "truncate"]
_AFTER = 0  # a token id that stands behind the last scored token; no model reads it


def read_rows(path: str | Path) -> list[Mapping[str, Any]]:
    """The rows of a JSONL, JSON or Parquet file. Raises `DataError` naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is no Parquet file that can be read: {error}") from error
    elif path.suffix == ".json":
        rows = _read_json(_read_text(path), str(path))
        if not isinstance(rows, list):
            raise DataError(f"{path}: expected a list of rows")
    else:
        lines = _read_text(path).splitlines()
        rows = [_read_json(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number} is no object but {type(row).__name__}")
    if not rows:
        raise DataError(f"{path} has no rows; give at least one")
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from error


def _read_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def limited(
    units: Sequence[Sequence[Example]], max_length: int, too_long: TooLong, *, unread: int = 0
) -> tuple[list[list[Example]], dict[str, int]]:
    """Apply a limit of tokens by the stated policy; returns what is left, and counts of what was done.

    A unit (one example, or the two sides of a pair) is dropped whole. `truncate` cuts the
    end off, and drops units in which a side has no label left or that have become alike.
    `unread` tokens at the end of each example, which no model reads, do not count. Raises
    `DataError` under `error`, and where nothing is left.
    """
    kept: list[list[Example]] = []
    counts = {"dropped": 0, "truncated": 0, "without_labels": 0, "alike": 0}
    for unit in units:
        longest = max(unit, key=lambda e: len(e.token_ids))
        tokens = len(longest.token_ids) - unread
        if tokens > max_length:
            if too_long == "error":
                raise DataError(
                    f"{longest.key} has {tokens} tokens, more than max_length {max_length}; raise it, "
                    "or set too_long to 'drop' or 'truncate'"
                )
            if too_long == "drop":
                counts["dropped"] += 1
                continue
            unit = [_cut(example, max_length + unread) for example in unit]
        if not all(example.labels for example in unit):
            counts["without_labels"] += 1
        elif len({example.token_ids for example in unit}) < len(unit):
            counts["alike"] += 1
        else:
            kept.append(list(unit))
            counts["truncated"] += tokens > max_length
    if not kept:
        raise DataError(
            f"no row is left to train on: {counts['dropped']} too long, {counts['without_labels']} without a token "
            f"that carries loss, {counts['alike']} pairs of equal sides; check max_length, and that rows hold an "
            "assistant turn"
        )
    return kept, counts


def _cut(example: Example, length: int) -> Example:
    mask = example.loss_mask[:length]
    labels = sum(map(bool, mask))

    def cut(given: float | tuple[float, ...]) -> float | tuple[float, ...]:
        return given[:labels] if isinstance(given, tuple) else given

    return replace(
        example,
        token_ids=example.token_ids[:length],
        loss_mask=mask,
        weight=cut(example.weight),
        advantage=cut(example.advantage),
    )


@dataclass(frozen=True, slots=True)
class Encoder:
    """Rows to examples, for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer

    def unit(self, row: Mapping[str, Any], kind: Kind, number: int) -> list[Example]:
        """The examples of one row: one, or the better and the worse side of a pair.

        Raises `DataError` naming the row and what it lacks.
        """
        where = f"row {number}"
        try:
            factor = _weight(row, "row")
            return [_times(example, factor) for example in self._unit(row, kind, where)]
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _unit(self, row: Mapping[str, Any], kind: Kind, where: str) -> list[Example]:
        if kind == "pair":
            return self._pair(row, where)
        if kind == "steps":
            return [replace(self._steps(row), key=where)]
        if kind == "judged":
            label = _needed(row, "label")
            if label not in (True, False, 0, 1):
                raise DataError(f"label must be true or false, got {label!r}")
            answer = self._answer(_needed(row, "prompt"), _needed(row, "completion"), row)
            return [replace(answer, target=float(label), key=where)]
        return [replace(self._single(row), key=where)]

    def _single(self, row: Mapping[str, Any]) -> Example:
        if "messages" in row:
            return self._conversation(row["messages"], row)
        if "text" in row:
            ids = self._text(row["text"], first=True) + self._end()
            return Example(ids, (0, *(1,) * (len(ids) - 1)) if ids else ())
        if "prompt" in row and "completion" in row:
            return self._answer(row["prompt"], row["completion"], row)
        raise DataError(
            f"expected 'messages', 'text', or 'prompt' and 'completion'; it has {', '.join(row) or 'nothing'}"
        )

    def _pair(self, row: Mapping[str, Any], where: str) -> list[Example]:
        better, worse = _needed(row, "chosen"), _needed(row, "rejected")
        prompt = row.get("prompt")
        if prompt is None:
            prompt, better, worse = _shared_start(better, worse)
        if better == worse:
            raise DataError("chosen and rejected are the same; a pair needs two different answers")
        margin = row.get("margin", 0.0)
        if not _finite(margin):
            raise DataError(f"margin must be a number, got {margin!r}")
        return [
            replace(
                self._answer(prompt, side, row),
                target=target,
                margin=float(margin),
                unit=where,
                key=f"{where} ({name})",
            )
            for side, target, name in ((better, 1.0, "chosen"), (worse, 0.0, "rejected"))
        ]

    def _steps(self, row: Mapping[str, Any]) -> Example:
        """An answer in steps, each with a label after its last token."""
        steps, labels = _needed(row, "completions"), _needed(row, "labels")
        if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels) or not steps:
            raise DataError("completions and labels must be lists of the same length, one label for each step")
        ids = list(self._text(_needed(row, "prompt"), first=True))
        ends = []
        for number, step in enumerate(steps):
            ids.extend(self._text(("\n" if number else "") + step if isinstance(step, str) else step))
            ends.append(len(ids))
        mask = [0] * (len(ids) + 1)
        for end in ends:
            mask[end] = 1
        if sum(mask) != len(steps) or mask[0]:
            raise DataError("a step, or the prompt, is empty")
        return Example((*ids, _AFTER), tuple(mask), advantage=tuple(float(bool(label)) for label in labels))

    def _answer(self, prompt: Any, answer: Any, row: Mapping[str, Any]) -> Example:
        """A prompt, and an answer that is learned."""
        if isinstance(prompt, str) and isinstance(answer, str):
            head = self._text(prompt, first=True)
            ids = head + self._text(answer) + self._end()
            head = ids[: max(1, len(head))]
            return Example(ids, (0,) * len(head) + (1,) * (len(ids) - len(head)))
        before = _messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
        after = _messages([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)
        tools = _tools(row)
        rendered = self.renderer.render([*before, *after], tools)
        head_ids = self.renderer.render(before, tools, prompt=True).token_ids
        n = len(head_ids)
        if rendered.token_ids[:n] != head_ids:
            raise DataError(
                "the chat template renders the prompt differently once it is answered; use another renderer"
            )
        mask = (0,) * n + rendered.loss_mask[n:]
        return Example(rendered.token_ids, mask)

    def _conversation(self, raw: Any, row: Mapping[str, Any]) -> Example:
        messages, tools = _messages(raw), _tools(row)
        rendered = self.renderer.render(messages, tools)
        weights = [_weight(m, "message") for m in raw if m.get("role") == "assistant"]
        if all(w == 1 for w in weights):
            return Example(rendered.token_ids, rendered.loss_mask)
        turns = [len(list(run)) for own, run in itertools.groupby(rendered.loss_mask) if own]
        if len(turns) != len(weights):
            raise DataError("the chat template does not keep assistant turns apart, so they cannot be weighted")
        per_label = tuple(w for w, n in zip(weights, turns, strict=True) for _ in range(n))
        mask = list(rendered.loss_mask)
        for place, weight in zip([i for i, own in enumerate(mask) if own], per_label, strict=True):
            mask[place] = int(weight != 0)
        kept = tuple(w for w in per_label if w)
        return Example(rendered.token_ids, tuple(mask), weight=kept if kept else 1.0)

    def _text(self, text: Any, *, first: bool = False) -> tuple[int, ...]:
        if not isinstance(text, str):
            raise DataError(f"expected text, got {type(text).__name__}")
        return tuple(self.tokenizer(text, add_special_tokens=first).input_ids)

    def _end(self) -> tuple[int, ...]:
        end = self.tokenizer.eos_token_id
        return () if end is None else (int(end),)


def scored_at_end(example: Example) -> Example:
    """The same tokens with one label, behind the last of them, so that a score is read off that token."""
    n = len(example.token_ids)
    return replace(example, token_ids=(*example.token_ids, _AFTER), loss_mask=(0,) * n + (1,))


def _needed(row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise DataError(f"expected {key!r}; it has {', '.join(row) or 'nothing'}")
    return row[key]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _times(example: Example, factor: float) -> Example:
    if factor == 1:
        return example
    given = example.weight
    weight = tuple(factor * one for one in given) if isinstance(given, tuple) else factor * given
    return replace(example, weight=weight)


def _weight(holder: Mapping[str, Any], what: str) -> float:
    """The factor of the loss of a row or of a turn."""
    weight = holder.get("weight")
    weight = 1 if weight is None else weight
    if not _finite(weight) or weight < 0:
        raise DataError(f"the weight of a {what} must be a number, 0 or more, got {weight!r}")
    return float(weight)


def _messages(raw: Any) -> list[Message]:
    if not isinstance(raw, list) or not raw or not all(isinstance(m, Mapping) for m in raw):
        raise DataError("expected a list of messages with role and content")
    return [Message.from_openai(m) for m in raw]


def _tools(row: Mapping[str, Any]) -> tuple[Tool, ...]:
    return tuple(Tool.from_openai(raw) for raw in row.get("tools") or ())


def _shared_start(better: Any, worse: Any) -> tuple[Any, Any, Any]:
    """What both sides of a pair without a prompt begin with, and the rests."""
    if isinstance(better, str) and isinstance(worse, str):
        n = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(better, worse, strict=False)))
        n = better.rfind(" ", 0, n) + 1 if n < max(len(better), len(worse)) else n  # not inside a word
        return better[:n], better[n:], worse[n:]
    if not isinstance(better, list) or not isinstance(worse, list):
        raise DataError("chosen and rejected must both be text or both be lists of messages")
    n = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(better, worse, strict=False)))
    if n in (0, len(better), len(worse)):
        raise DataError("without a prompt, chosen and rejected must begin with the same messages and then differ")
    return better[:n], better[n:], worse[n:]
