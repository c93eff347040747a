"""A pool: several responses to each of several prompts, with their rewards and, where it is known, gold.

A file has one response a line, whoever sampled it:

    {"prompt": …, "response": … or "messages": […], "reward": {"NAME": number | null, …}, "gold": number | null}

`prompt` is text, messages, or with `task` instead any name: responses of the same prompt are compared with
each other. `reward` may be a bare number (its name is then "reward"). Also read: `id`, `cluster` (the group of
prompts that move together), `episode` (an id in the ledger). `messages` may hold the whole conversation: what stands
before the first assistant message is the prompt's.

A null reward or gold is unscored, which is not 0. A row that cannot be used is left out and named. Rows that say the
same and have no id are counted and kept: a model that samples little says the same twice, and only its owner can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash, derive_id
from metier.records.traces.calls import Skipped, chat_message
from metier.records.traces.files import read_rows
from metier.records.types import Message
from metier.stats.tables import number

__all__ = ["Pool", "Sample", "by_prompt", "read_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response."""

    id: str
    prompt: str  # what it answers; samples of one prompt are compared with each other
    cluster: str  # of its prompt
    asked: tuple[Message, ...]  # may be empty where only the prompt's name is known
    said: tuple[Message, ...]  # from the first assistant message on
    rewards: Mapping[str, float | None]
    gold: float | None
    episode: str | None = None  # its id in the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Samples in order, and what of their source could not be used."""

    name: str
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    repeated: int = 0  # samples without an id of their own that say the same as one before them

    @property
    def rewards(self) -> tuple[str, ...]:
        """The names of the rewards, in the order in which they first stand."""
        return tuple(dict.fromkeys(name for sample in self.samples for name in sample.rewards))


def read_pool(path: Path) -> Pool:
    """Read a pool file. Raises `DataError` where no row of it can be used."""
    samples: dict[str, Sample] = {}
    skipped: list[Skipped] = []
    seen: set[tuple[object, ...]] = set()
    repeated = 0
    for row in read_rows(path):
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        place, raw = row
        try:
            sample = _sample(raw, place)
            if sample.id in samples:
                raise DataError(f"id {sample.id!r} stands in the file twice; give each row its own")
        except DataError as error:
            skipped.append(Skipped(place, str(error)))
            continue
        samples[sample.id] = sample
        if raw.get("id") in (None, ""):
            same = (sample.prompt, sample.said, tuple(sample.rewards.items()), sample.gold)
            repeated += same in seen
            seen.add(same)
    if not samples:
        first = f" ({skipped[0].place}: {skipped[0].why})" if skipped else ""
        raise DataError(f"{path} has no row with a prompt, a response and a reward{first}; see docs/transfer.md")
    return Pool(name=str(path), samples=tuple(samples.values()), skipped=tuple(skipped), repeated=repeated)


def _sample(raw: Mapping[str, Any], place: str) -> Sample:
    asked, key = _asked(raw)
    before, said = _said(raw)
    asked = before or asked
    return Sample(
        id=str(raw["id"]) if raw.get("id") not in (None, "") else derive_id("sample", key, place),
        prompt=key,
        cluster=str(raw["cluster"]) if raw.get("cluster") not in (None, "") else key,
        asked=asked,
        said=said,
        rewards=_rewards(raw.get("reward", raw.get("rewards"))),
        gold=_number(raw.get("gold"), "gold"),
        episode=None if raw.get("episode") in (None, "") else str(raw["episode"]),
    )


def _asked(raw: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """The prompt's messages, and what names it."""
    prompt, task = raw.get("prompt"), raw.get("task")
    asked: tuple[Message, ...] = ()
    if isinstance(prompt, str) and prompt:
        asked = (Message(role="user", content=prompt),)
    elif isinstance(prompt, list) and prompt:
        asked = tuple(chat_message(one) for one in prompt)
    elif prompt not in (None, "", []):
        raise DataError("prompt must be text or a list of messages")
    if task not in (None, ""):
        return asked, str(task)
    if not asked:
        raise DataError("no prompt and no task, so what the response answers is not known")
    return asked, prompt if isinstance(prompt, str) else content_hash(prompt)


def _said(raw: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What stands before the first assistant message, and from it on."""
    given = raw.get("messages", raw.get("response"))
    if isinstance(given, str):
        return (), (Message(role="assistant", content=given),)
    if not isinstance(given, list):
        raise DataError("no response, which is text, and no messages, which are a list")
    messages = tuple(chat_message(one) for one in given)
    first = next((n for n, one in enumerate(messages) if one.role == "assistant"), None)
    if first is None:
        raise DataError("the messages hold none of an assistant")
    return messages[:first], messages[first:]


def _rewards(given: Any) -> dict[str, float | None]:
    if isinstance(given, (int, float)):
        given = {"reward": given}
    if not isinstance(given, Mapping) or not given:
        raise DataError('no reward, which is {"NAME": number, …}')
    return {str(name): _number(value, f"reward {name}") for name, value in given.items()}


def _number(value: Any, what: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return number(value)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def by_prompt(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each prompt, prompts in the order in which they first stand."""
    out: dict[str, list[Sample]] = {}
    for sample in samples:
        out.setdefault(sample.prompt, []).append(sample)
    return out
