"""Gold for the audit of judges: items with what people said of them, kept apart from all training.

    a pair      {"prompt", "responses": [A, B], "better": 0, 1 or "tie"}, or {"prompt", "chosen", "rejected"}
    a response  {"prompt", "response", "passes": true or false}

Besides: "id"; "cluster", for items that may err together; "models": [who wrote A, who wrote B], for self-preference.
A pair in which the better one always stands first would be judged well by whoever likes what stands first; so
`chosen` and `rejected` are put in an order drawn from the item's content.

`Told` is what a judge said of one item in both orders. It is made by asking (`ask_pairs`), or out of verdicts that
somebody else has collected, which are audited the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.feedback.judges.judge import Item, Judge, Judgement, Mode
from metier.feedback.judges.lines import item_of
from metier.feedback.judges.prompts import shown
from metier.feedback.lines import parsed_line
from metier.records.types import Cost, Message

__all__ = ["Gold", "Told", "ask_gold", "item_hash", "read_gold", "talking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """An item and the truth about it."""

    item: Item
    truth: float  # of a pair: 1 where the first is better, 0 where the second is, .5 for a tie; of a response: 1 passes
    cluster: str
    models: tuple[str, str] | None = None  # who wrote the responses

    @property
    def worse(self) -> int | None:
        """Which response should not win: the worse one of a pair, or one that fails; None where there is none."""
        if len(self.item.responses) == 1:
            return 0 if self.truth == 0.0 else None
        return None if self.truth == 0.5 else int(self.truth == 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a judge said of one item; `value` is None where it said nothing."""

    truth: float  # as in `Gold`
    value: float | None  # likewise: 1 where the judge prefers the first, .5 for a tie; of a response, the score
    cluster: str
    pair: bool = True
    orders: tuple[float, float] | None = None  # how far each order preferred what it showed first
    lengths: tuple[int, ...] = ()  # characters of the responses
    own: tuple[bool, bool] | None = None  # which of them the judge's own model wrote
    cost: Cost = field(default_factory=Cost)
    reason: str = ""  # why it is unscored


def item_hash(item: Item) -> str:
    """Names an item, whatever the order of its responses."""
    return content_hash([shown(item.prompt), sorted(shown(response) for response in item.responses)])


def talking(one: Gold, number: int, text: str) -> Gold:
    """The same item, in which one of the responses goes on to talk to whoever judges it."""
    responses = list(one.item.responses)
    *before, last = responses[number]
    if last.role == "assistant":
        responses[number] = (*before, replace(last, content=f"{last.content}\n\n{text}".strip()))
    else:
        responses[number] = (*before, last, Message(role="assistant", content=text))
    return replace(one, item=Item(prompt=one.item.prompt, responses=tuple(responses)))


def read_gold(path: Path, mode: Mode) -> list[Gold]:
    """The items of a file. Raises `DataError` naming the line that cannot be used."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    found = []
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                try:
                    found.append(_gold(parsed_line(raw, number), mode))
                except DataError as error:
                    raise DataError(f"{path}, line {number}: {error}") from error
    if not found:
        raise DataError(f"{path} holds no items")
    return found


def _gold(given: Mapping[str, Any], mode: Mode) -> Gold:
    item = item_of(given, mode)
    name = item_hash(item)
    models = given.get("models")
    if models is not None and not (isinstance(models, list) and len(models) == 2):
        raise DataError('"models" is a list of two names')
    if mode == "score":
        if not isinstance(given.get("passes"), bool):
            raise DataError('"passes" is true or false: whether people pass the response')
        truth = float(given["passes"])
    elif "chosen" in given:
        truth = 1.0
        if int(name, 16) % 2:
            item, truth = Item(prompt=item.prompt, responses=item.responses[::-1]), 0.0
            models = models[::-1] if models else None
    elif given.get("better") == "tie":
        truth = 0.5
    elif given.get("better") in (0, 1) and not isinstance(given.get("better"), bool):
        truth = 1.0 - given["better"]
    else:
        raise DataError('"better" is 0, 1 or "tie": which response people prefer')
    return Gold(
        item=item,
        truth=truth,
        cluster=str(given.get("cluster", name)),
        models=None if models is None else (str(models[0]), str(models[1])),
    )


def ask_gold(
    judge: Judge, mode: Mode, gold: Sequence[Gold], *, jobs: int = 1, on_item: Callable[[], object] | None = None
) -> list[Told]:
    """What the judge says of each item, in their order."""
    own = judge.name.rpartition("/")[0]

    def one(given: Gold) -> Told:
        judgement = judge.score(given.item) if mode == "score" else judge.compare(given.item)
        if on_item is not None:
            on_item()
        return _told(given, judgement, own)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, gold))


def _told(gold: Gold, judgement: Judgement, own: str) -> Told:
    value = judgement.value
    if value is not None and judgement.kind == "preference":
        value = 1.0 - value  # from the better one's index to how far the first is preferred
    orders = judgement.evidence.get("orders")
    return Told(
        truth=gold.truth,
        value=value,
        cluster=gold.cluster,
        pair=judgement.kind == "preference",
        orders=None if orders is None else (orders[0], orders[1]),
        lengths=tuple(len(shown(response)) for response in gold.item.responses),
        own=None if gold.models is None else (gold.models[0] == own, gold.models[1] == own),
        cost=judgement.cost,
        reason=judgement.reason if value is None else "",
    )
