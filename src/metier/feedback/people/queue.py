"""A labelling queue: a declared, versioned file of what people are asked about which items.

A file is YAML (what is asked, and the items in it or in a file that it names), or JSON lines
whose first row is `{"queue": NAME, …}`, or rows without such a beginning, about which the
plain question of their form is asked: two responses are a pair, more are ranked, one is rated.
docs/labelling.md describes it.

What is asked has one meaning for each name and version; `identity` is its hash, and `Item.hash`
that of an item, so that a file that was changed under an old version is found out. Right
answers of gold items lie in a file of their own and never reach a page that labels.

Items that cannot be used are left out, with line and reason; a wrong question refuses the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from metier.base.config import did_you_mean, read_yaml
from metier.base.errors import ConfigError, DataError
from metier.base.ids import content_hash, derive_id
from metier.records.traces.calls import Skipped, chat_message
from metier.records.traces.files import read_rows
from metier.records.types import Message, Tool

__all__ = ["Item", "Kind", "Question", "Queue", "read_queue"]

Kind = Literal["pair", "ranking", "rating", "labels", "edit", "marks"]

_OF_KIND: dict[Kind, set[str]] = {
    "pair": {"ties"},
    "ranking": set(),
    "rating": {"scale", "ends"},
    "labels": {"labels", "multiple"},
    "edit": {"makes"},
    "marks": {"labels", "part"},
}
_ASKED: dict[Kind, str] = {
    "pair": "Which answer is better?",
    "ranking": "Order the answers, the best first.",
    "rating": "How good is the answer?",
    "labels": "Which label fits?",
    "edit": "Make the answer what it should have been.",
    "marks": "Mark what is wrong.",
}
_HEAD = {"queue", "version", "question", "instructions", "overlap", "seed", "gold", "items"}
_ITEM = {"id", "episodes", "messages", "responses", "models", "tools", "propensity", "overlap"}
_MOST_LABELS = 9  # each has a digit
_MOST_RESPONSES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person is asked about an item."""

    kind: Kind
    criterion: str  # of the feedback that comes of it
    ask: str  # the question as it stands on the page
    ties: bool = True  # pair: whether neither may be better
    scale: tuple[int, int] = (1, 5)  # rating: the worst and the best
    ends: tuple[str, str] = ("poor", "excellent")  # rating: what these are called
    labels: tuple[str, ...] = ()  # labels and marks: what may be chosen
    multiple: bool = False  # labels: whether several may
    makes: Literal["demonstration", "correction"] = "demonstration"  # edit: the kind of its feedback
    part: Literal["turn", "span"] = "turn"  # marks: whole turns, or any words of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to judge: episodes of the ledger, or messages and responses that are to become some."""

    id: str
    episodes: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    responses: tuple[tuple[Message, ...], ...] = ()
    models: tuple[str, ...] = ()  # who wrote each response; kept, never shown
    tools: tuple[Tool, ...] = ()
    propensity: float | None = None  # probability with which this item came to be asked
    overlap: int = 1  # people who are to judge it
    hash: str = ""  # of what it says

    @property
    def size(self) -> int:
        """How many responses there are."""
        return len(self.episodes or self.responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What is asked, about what, and how often."""

    name: str
    version: str
    question: Question
    items: tuple[Item, ...]
    instructions: str = ""
    seed: int = 0  # of the orders shown
    gold: Mapping[str, Any] = field(default_factory=dict)  # item -> its right answer, in the item's own order
    skipped: tuple[Skipped, ...] = ()  # rows that could not be used

    @property
    def key(self) -> str:
        """`NAME@VERSION`: how assignments and links name it."""
        return f"{self.name}@{self.version}"

    @property
    def identity(self) -> str:
        """The hash of what is asked."""
        asked = self.question
        return content_hash([[getattr(asked, name) for name in asked.__slots__], self.instructions])


def read_queue(path: Path) -> Queue:
    """Read a queue. Raises `DataError` where it asks nothing that can be asked, or no item of it can be used."""
    if path.suffix in (".yaml", ".yml"):
        head, rows = _from_yaml(path)
    else:
        head, rows = _from_rows(path)
    _known(head, _HEAD, f"{path}")
    overlap = _whole(head.get("overlap", 1), f"{path}: overlap", 1)
    question = _question(head["question"], path) if "question" in head else None
    items, skipped = _items(rows, question, overlap)
    if not items:
        first = f" ({skipped[0].place}: {skipped[0].why})" if skipped else ""
        raise DataError(f"{path} holds no item that can be labelled{first}; see docs/labelling.md")
    if question is None:
        question = _inferred(items)
        fits = [item for item in items if _misfit(item.size, question) is None]
        skipped += [Skipped(i.id, str(_misfit(i.size, question))) for i in items if i not in fits]
        items = fits
    gold, bad = _gold(path, head.get("gold"), {item.id: item for item in items}, question)
    version = head.get("version", "1")
    if isinstance(version, (dict, list)) or "@" in f"{head.get('queue', '')}{version}":
        raise DataError(f"{path}: queue and version must be plain words without @")
    return Queue(
        name=str(head.get("queue") or path.name.partition(".")[0]),
        version=str(version),
        question=question,
        items=tuple(items),
        instructions=str(head.get("instructions") or "").strip(),
        seed=_whole(head.get("seed", 0), f"{path}: seed", 0),
        gold=gold,
        skipped=(*skipped, *bad),
    )


def _from_yaml(path: Path) -> tuple[Mapping[str, Any], Iterable[tuple[str, Mapping[str, Any]] | Skipped]]:
    try:
        raw = read_yaml(path)
    except ConfigError as error:
        raise DataError(str(error)) from error
    if not isinstance(raw, dict) or "items" not in raw:
        raise DataError(f"{path} is no queue: it needs `items`, a list or the name of a file; see docs/labelling.md")
    items = raw["items"]
    if isinstance(items, str):
        return raw, read_rows(path.parent / items)
    if not isinstance(items, list):
        raise DataError(f"{path}: items must be a list, or the name of a file of rows")
    rows: list[tuple[str, Mapping[str, Any]] | Skipped] = []
    for count, row in enumerate(items, 1):
        place = f"{path.name}, item {count}"
        rows.append((place, row) if isinstance(row, dict) else Skipped(place, "an item must be a mapping"))
    return raw, rows


def _from_rows(path: Path) -> tuple[Mapping[str, Any], Iterable[tuple[str, Mapping[str, Any]] | Skipped]]:
    rows = list(read_rows(path))
    first = rows[0] if rows else None
    if isinstance(first, tuple) and "queue" in first[1]:
        return first[1], rows[1:]
    return {}, rows


def _question(raw: Any, path: Path) -> Question:
    if not isinstance(raw, Mapping):
        raise DataError(f"{path}: question must be a mapping with kind and criterion")
    named = raw.get("kind")
    if named not in get_args(Kind):
        near = did_you_mean(str(named), get_args(Kind))
        raise DataError(f"{path}: question.kind must be one of {', '.join(get_args(Kind))}, not {named!r}{near}")
    kind = cast(Kind, named)
    _known(raw, {"kind", "criterion", "ask", *_OF_KIND[kind]}, f"{path}: question of kind {kind}")
    options: dict[str, Any] = {}
    for name in ("ties", "multiple"):
        if name in raw:
            if not isinstance(raw[name], bool):
                raise DataError(f"{path}: question.{name} must be true or false, not {raw[name]!r}")
            options[name] = raw[name]
    for name, allowed in (("makes", ("demonstration", "correction")), ("part", ("turn", "span"))):
        if name in raw:
            if raw[name] not in allowed:
                raise DataError(f"{path}: question.{name} must be {' or '.join(allowed)}, not {raw[name]!r}")
            options[name] = raw[name]
    if "scale" in raw:
        options["scale"] = _scale(raw["scale"], path)
    if "ends" in raw:
        if not isinstance(raw["ends"], list) or len(raw["ends"]) != 2:
            raise DataError(f"{path}: question.ends must be two names, the worst and the best")
        options["ends"] = tuple(str(end) for end in raw["ends"])
    if "labels" in _OF_KIND[kind]:
        options["labels"] = _labels(raw.get("labels"), path)
    criterion = str(raw.get("criterion") or "").strip()
    if not criterion:
        raise DataError(f"{path}: question.criterion is missing; name what is judged, such as helpfulness")
    return Question(kind=kind, criterion=criterion, ask=str(raw.get("ask") or _ASKED[kind]).strip(), **options)


def _scale(raw: Any, path: Path) -> tuple[int, int]:
    if not isinstance(raw, list) or len(raw) != 2 or not all(type(end) is int for end in raw):
        raise DataError(f"{path}: question.scale must be two whole numbers, the worst and the best, not {raw!r}")
    low, high = raw
    if not 1 <= high - low <= 9 or low < 0 or high > 10:
        raise DataError(f"{path}: question.scale must go up, by at most nine, within 0 to 10, not from {low} to {high}")
    return low, high


def _labels(raw: Any, path: Path) -> tuple[str, ...]:
    labels = tuple(str(label).strip() for label in raw) if isinstance(raw, list) else ()
    if not labels or len(set(labels)) < len(labels) or len(labels) > _MOST_LABELS or "" in labels:
        raise DataError(f"{path}: question.labels must be 1 to {_MOST_LABELS} different names, not {raw!r}")
    if any(", " in label or label == "none" for label in labels):
        raise DataError(f"{path}: a label may not be 'none' or hold a comma and a space, which stand between labels")
    return labels


def _items(
    rows: Iterable[tuple[str, Mapping[str, Any]] | Skipped], question: Question | None, overlap: int
) -> tuple[list[Item], list[Skipped]]:
    items: dict[str, Item] = {}
    skipped: list[Skipped] = []
    for row in rows:
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        place, raw = row
        try:
            item = _item(raw, overlap)
            if question is not None and (why := _misfit(item.size, question)):
                raise DataError(why)
            if item.id in items:
                raise DataError(f"item {item.id!r} stands in the file twice; give each its own id")
        except (DataError, TypeError, ValueError) as error:
            skipped.append(Skipped(place, str(error)))
            continue
        items[item.id] = item
    return list(items.values()), skipped


def _item(raw: Mapping[str, Any], overlap: int) -> Item:
    _known(raw, _ITEM, "an item")
    episodes, responses, messages = raw.get("episodes"), raw.get("responses"), raw.get("messages")
    if (episodes is None) == (responses is None):
        raise DataError("an item needs either episodes, ids in the ledger, or messages and responses")
    if episodes is not None and not (
        isinstance(episodes, list) and episodes and all(isinstance(one, str) and one for one in episodes)
    ):
        raise DataError("episodes must be a list of ids")
    if episodes is not None and len(set(episodes)) < len(episodes):
        raise DataError("an item names an episode twice; compare different ones")
    if responses is not None and (not isinstance(responses, list) or not isinstance(messages, list) or not messages):
        raise DataError("an item without episodes needs messages, and responses to them, as lists")
    propensity = raw.get("propensity")
    if propensity is not None and not (
        isinstance(propensity, (int, float)) and not isinstance(propensity, bool) and 0 < propensity <= 1
    ):
        raise DataError(f"propensity must be above 0 and at most 1, not {propensity!r}")
    asked = tuple(chat_message(one) for one in messages or ())
    models = raw.get("models") or []
    if not isinstance(models, list) or (models and len(models) != len(responses or ())):
        raise DataError("models must be a list, with a name for each response")
    said = {name: raw[name] for name in ("episodes", "messages", "responses", "tools") if name in raw}
    return Item(
        id=str(raw["id"]) if raw.get("id") not in (None, "") else derive_id("item", content_hash(said)),
        episodes=tuple(episodes or ()),
        messages=asked,
        responses=tuple(_response(one) for one in responses or ()),
        models=tuple(str(one) for one in models),
        tools=tuple(Tool.from_openai(one) for one in raw.get("tools") or ()),
        propensity=None if propensity is None else float(propensity),
        overlap=_whole(raw.get("overlap", overlap), "overlap", 1),
        hash=content_hash(said),
    )


def _response(raw: Any) -> tuple[Message, ...]:
    """What was answered: text, a message, or messages with their tool calls."""
    if isinstance(raw, str):
        return (Message(role="assistant", content=raw),)
    found = raw if isinstance(raw, list) else [raw]
    messages = tuple(chat_message({"role": "assistant", **one} if isinstance(one, dict) else one) for one in found)
    if not any(message.role == "assistant" for message in messages):
        raise DataError("a response holds no message of an assistant")
    return messages


def _misfit(size: int, question: Question) -> str | None:
    """Why an item of so many responses cannot be asked this, or None."""
    kind = question.kind
    if kind == "pair":
        return None if size == 2 else f"a pair has two responses, not {size}"
    if kind == "ranking":
        fits = 2 <= size <= _MOST_RESPONSES
        return None if fits else f"a ranking has 2 to {_MOST_RESPONSES} responses, not {size}"
    return None if size == 1 else f"a question of kind {kind} is about one response, not {size}"


def _inferred(items: list[Item]) -> Question:
    """The plain question for items of this form."""
    size = items[0].size
    kind: Kind = "rating" if size == 1 else "pair" if size == 2 else "ranking"
    criterion = "quality" if kind == "rating" else "preference"
    return Question(kind=kind, criterion=criterion, ask=_ASKED[kind])


def _gold(path: Path, name: Any, items: Mapping[str, Item], question: Question) -> tuple[dict[str, Any], list[Skipped]]:
    """Right answers out of a file of `{"item", "answer"}`, beside the queue."""
    gold: dict[str, Any] = {}
    skipped: list[Skipped] = []
    if name is None:
        return gold, skipped
    if not isinstance(name, str):
        raise DataError(f"{path}: gold must be the name of a file beside the queue, so that answers are kept apart")
    if question.kind == "edit":
        raise DataError(f"{path}: an edit has no one right answer; leave gold out, or ask for labels")
    for row in read_rows(path.parent / name):
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        place, raw = row
        item = items.get(str(raw.get("item")))
        if item is None:
            skipped.append(Skipped(place, f"gold for {raw.get('item')!r}, which is no item of the queue"))
        elif (why := _no_answer(raw.get("answer"), item, question)) is not None:
            skipped.append(Skipped(place, f"gold for {item.id}: {why}"))
        else:
            gold[item.id] = raw["answer"]
    return gold, skipped


def _no_answer(answer: Any, item: Item, question: Question) -> str | None:
    """Why this cannot be the right answer, or None."""
    kind, places = question.kind, list(range(item.size))
    if kind == "pair":
        right = (0, 1, 0.5) if question.ties else (0, 1)
        fits = not isinstance(answer, bool) and answer in right
        return None if fits else f"the answer must be 0 or 1 (0.5 is a tie, where ties are allowed), not {answer!r}"
    if kind == "ranking":
        fits = isinstance(answer, list) and sorted(answer) == places
        return None if fits else f"the answer must be the numbers {places} in order, the best first, not {answer!r}"
    if kind == "rating":
        fits = type(answer) is int and question.scale[0] <= answer <= question.scale[1]
        return None if fits else f"the answer must be a whole number on the scale, not {answer!r}"
    chosen = answer if isinstance(answer, list) else [answer]
    if kind == "labels":
        fits = bool(chosen) and set(chosen) <= set(question.labels) and (question.multiple or len(chosen) == 1)
        return None if fits else f"the answer must be of the labels, not {answer!r}"
    fits = all(isinstance(mark, Mapping) and {"turn", "label"} <= mark.keys() for mark in chosen)
    return None if fits else f"the answer must be a list of marks with turn and label, not {answer!r}"


def _whole(value: Any, what: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise DataError(f"{what} must be a whole number, {least} or more, not {value!r}")
    return value


def _known(raw: Mapping[Any, Any], allowed: set[str], where: str) -> None:
    for name in raw:
        if name not in allowed:
            near = did_you_mean(str(name), sorted(allowed))
            raise DataError(f"{where} has no {name!r}{near or '; it has ' + ', '.join(sorted(allowed))}")
