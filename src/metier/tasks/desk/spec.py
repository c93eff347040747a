"""The nouns of a desk: what one file must declare for the engine to run it.

A desk has one table of records (orders, loans …), found by a four-digit id or by the
customer's name. Acts change a record; some stand under a `Rule` of the written policy.
Tools do what they are told: keeping the policy is the assistant's task, and breaking it
shows in the state. Policy values differ by `Variant`.

Phrasing is declared in lists whose *position* decides the pool (`phrasing.pool_of`), so
append, never insert. Templates know these slots: {ref} the record as the user names it,
{value} what an act needs, {item} the record's thing. Text in [brackets] is left out
where the value is withheld.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Act",
    "Desk",
    "Fact",
    "Field",
    "Form",
    "Made",
    "Number",
    "Pick",
    "Rule",
    "Values",
    "Variant",
    "number_in",
    "shown",
]


@dataclass(frozen=True, slots=True)
class Pick:
    """A value out of a list; held-out splits use the second list."""

    train: tuple[str, ...]
    held: tuple[str, ...] = ()  # empty: a closed set such as statuses, shared by all splits

    def draw(self, rng: random.Random, held: bool) -> str:
        """One value; `held` for the held-out rungs."""
        return rng.choice(self.held if held and self.held else self.train)


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number from `low` to `high`, written as `form`."""

    low: int
    high: int
    form: str = "{}"

    def draw(self, rng: random.Random, held: bool) -> str:
        """One value; `held` for the held-out rungs."""
        return self.form.format(rng.randint(self.low, self.high))


Form = Literal["date", "weekday", "time", "address"]
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = ("March", "April", "May", "June", "July", "August", "September", "October", "November")
_STREETS = (
    "Oak Lane", "Mill Road", "Harbour Street", "Elm Close", "Church Row", "Station Road", "King Street", "Birch Avenue",
    "Park Terrace", "Bridge Street", "Hill View", "Cedar Court", "River Walk", "Market Square", "Rose Lane",
    "Victoria Road", "Chapel Hill", "Orchard Way", "Quay Street", "Willow Drive", "Meadow Lane", "North Parade",
)  # fmt: skip
_STREETS_HELD = (
    "Larch Road", "Abbey Lane", "Castle Street", "Fern Close", "Lighthouse Row", "Tanner Street", "Queen Square",
    "Linden Avenue", "Garden Terrace", "Canal Street", "Heath Drive", "Juniper Court",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """A value made by rule: a date, weekday, time or address."""

    form: Form

    def draw(self, rng: random.Random, held: bool) -> str:
        """One value; `held` for the held-out rungs."""
        if self.form == "weekday":
            return rng.choice(_WEEKDAYS)
        if self.form == "time":
            hours = (7, 11, 17, 21) if held else (8, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20)
            return f"{rng.choice(hours)}:{rng.choice(('00', '15', '30', '45'))}"
        if self.form == "date":
            days = [day for day in range(1, 29) if (day % 4 == 3) == held]
            return f"{rng.choice(days)} {rng.choice(_MONTHS)}"
        return f"{rng.randint(2, 98)} {rng.choice(_STREETS_HELD if held else _STREETS)}"


Values = Pick | Number | Made


def number_in(value: str) -> int:
    """The number in a value such as "$12" or "12"; 0 where there is none."""
    found = re.search(r"\d+", value)
    return int(found.group()) if found else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One thing that a record holds, and how users ask for it."""

    name: str
    values: Values
    only: tuple[str, tuple[str, ...]] | None = None  # held only where that field has one of those values
    asks: tuple[str, ...] = ()  # whole questions; empty: users never ask
    parts: tuple[str, ...] = ()  # embedded questions, e.g. "when {ref} arrives"
    answer: str = ""  # the oracle's; {id}, {found}


_MUST = {"in": "must be ", "max": "at most ", "below": "below ", "min": "at least "}


def shown(limit: Any) -> str:
    """A policy value in words."""
    return " or ".join(limit) if isinstance(limit, list) else str(limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When the policy allows an act: a field, or the value asked for, against a policy value."""

    field: str  # a field's name, or "value"
    test: Literal["in", "max", "below", "min"]
    policy: str  # key of the variant's value
    refusal: str  # what the oracle tells the user; {id}, {was}, {limit}

    def allows(self, was: str, policy: Mapping[str, Any]) -> bool:
        """Whether the policy allows the act for what the field (or the request) says."""
        limit = policy[self.policy]
        if self.test == "in":
            return was in limit
        bound = number_in(str(limit))
        if self.test == "max":
            return number_in(was) <= bound
        if self.test == "below":
            return number_in(was) < bound
        return number_in(was) >= bound

    def weighed(self, what: str, was: str, policy: Mapping[str, Any]) -> str:
        """What is and what must be, side by side, e.g. "days ago 10, at most 21"."""
        return f"{what} {was}, {_MUST[self.test]}{shown(policy[self.policy])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A tool that changes a record."""

    name: str
    description: str
    sets: Mapping[str, str]  # field -> a constant, "{value}" or "+1"
    parts: tuple[str, ...]  # what the user wants, after "please"
    asks: tuple[str, ...]  # whole requests
    done: str  # the oracle's closing words; {id}, {value}, {item}
    param: str = ""  # the name of the value's parameter; empty: only the id
    values: Values | None = None
    question: str = ""  # how the oracle asks for the value
    rule: Rule | None = None
    base: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what the record must be for it to make sense


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that the policy says and users ask about without a record."""

    key: str  # of the variant's value
    asks: tuple[str, ...]
    accept: tuple[str, ...]  # spellings; {key} slots of the variant
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One set of policy values."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A desk, whole."""

    name: str
    noun: str  # of the record, e.g. "order"
    plural: str
    who: str  # the first sentence of the system message
    policy: tuple[str, ...]  # lines with {slots} for the variant's values
    variants: tuple[Variant, ...]  # of demo, train and heldout
    changed: tuple[Variant, ...]  # of changed_policy
    item: str  # the field that names the record's thing
    fields: tuple[Field, ...]
    acts: tuple[Act, ...]
    extra: Act | None  # the tool of unseen_tool
    facts: tuple[Fact, ...]
    bare: tuple[str, ...]  # how users name a record without its id; {item}
    handovers: tuple[str, ...] = ()  # what goes to a person, beside the general ones
    unseen: bool = False  # never in training, so that all of its own lines are held out

    @property
    def find(self) -> str:
        """The tool that looks a record up by id."""
        return f"find_{self.noun}"

    @property
    def search(self) -> str:
        """The tool that finds a record by customer."""
        return f"search_{self.plural}"

    @property
    def key(self) -> str:
        """The parameter that holds the id."""
        return f"{self.noun}_id"

    def field(self, name: str) -> Field:
        """The field of that name."""
        return next(one for one in self.fields if one.name == name)
