"""The procedural tasks of the reasoning-gym package, by the names of its datasets.

Without options every dataset is a split of its own, for measuring:
`splits: {reasoning_gym.chain_sum: 64}`. With options the family has the splits `demo`,
`train` and `heldout`, an equal mix of the datasets named, each with its own configuration; `unseen`, the same
of other datasets, which training has nothing of; and `format`, small questions of common knowledge that
are answered in the same form and teach nothing else:

    tasks:
      family: reasoning_gym
      options: {datasets: {chain_sum: {max_terms: 3}, leg_counting: {}}, unseen: {gcd: {}}}

A question's hash decides its split, so none is in two, however few a dataset has. A task
names its dataset, configuration, seed and place and not the package's own entry, which may
hold what JSON cannot; the verifier makes the entry again and lets the dataset score the
answer. Needs the extra `reasoning-gym`.

Left out: curricula.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from metier.base.config import did_you_mean
from metier.base.errors import ConfigError, DataError
from metier.base.seeds import derive_seed, rng_for
from metier.records.types import Message, Task, VerifierSpec
from metier.tasks.foreign import in_share
from metier.tasks.protocol import Environment, NoEnvironment

__all__ = ["OPEN", "SHUT", "ReasoningGymFamily", "entry_of", "score"]

OPEN, SHUT = "<answer>", "</answer>"
_ASK = f"Write the answer alone between {OPEN} and {SHUT}."
_SPLITS = ("demo", "train", "heldout")
# What people know, for the form of an answer: none of it is asked by a dataset.
_FACTS = (
    *(
        ("What colour is fresh grass?", "green"),
        ("What colour is snow?", "white"),
        ("What colour is a ripe banana?", "yellow"),
    ),
    *(("What is the capital of France?", "Paris"), ("What is the capital of Italy?", "Rome")),
    *(("What is the capital of Japan?", "Tokyo"), ("What is the capital of Egypt?", "Cairo")),
    *(
        ("Which animal barks?", "a dog"),
        ("Which animal says meow?", "a cat"),
        ("Which animal gives milk on a farm?", "a cow"),
    ),
    *(("What do bees make?", "honey"), ("What do hens lay?", "eggs"), ("What do fish breathe with?", "gills")),
    *(("Which day comes after Monday?", "Tuesday"), ("Which day comes before Sunday?", "Saturday")),
    *(("Which month comes after March?", "April"), ("Which month is the last of the year?", "December")),
    *(("How many days has a week?", "7"), ("How many months has a year?", "12"), ("How many hours has a day?", "24")),
    *(
        ("How many wheels has a bicycle?", "2"),
        ("How many fingers has a hand?", "5"),
        ("How many minutes has an hour?", "60"),
    ),
    *(
        ("What is the opposite of hot?", "cold"),
        ("What is the opposite of up?", "down"),
        ("What is the opposite of day?", "night"),
    ),
    *(
        ("What is the opposite of big?", "small"),
        ("What is the opposite of open?", "closed"),
        ("What is frozen water called?", "ice"),
    ),
    *(
        ("What is the largest ocean?", "the Pacific"),
        ("Which planet do we live on?", "Earth"),
        ("What shines at night?", "the moon"),
    ),
    *(
        ("What do we call a baby dog?", "a puppy"),
        ("What do we call a baby cat?", "a kitten"),
        ("What is a shape with three sides?", "a triangle"),
    ),
    *(("What language is spoken in Spain?", "Spanish"), ("What language is spoken in Germany?", "German")),
    *(
        ("Who wrote Hamlet?", "Shakespeare"),
        ("What do we read in a library?", "books"),
        ("What do we wear on our feet?", "shoes"),
    ),
    *(("What is the first letter of the alphabet?", "A"), ("What season comes after winter?", "spring")),
    *(
        ("What metal is a magnet drawn to?", "iron"),
        ("What gas do we breathe to live?", "oxygen"),
        ("What do cows eat?", "grass"),
    ),
    *(
        ("Is the sun hot?", "yes"),
        ("Is ice warm?", "no"),
        ("Can a fish fly a plane?", "no"),
        ("Do birds have wings?", "yes"),
    ),
)
_SIZE = 500  # places under one seed; some datasets make all of them at once
_TRIES = 50  # places looked at for each task wanted, before a dataset is taken to have no more
_ON_ITS_OWN = {"composite"}  # cannot be made without a configuration
_NONSENSE = "no idea"
_DOUBT = " or not"


class ReasoningGymFamily:
    """Datasets of reasoning-gym, each with its configuration; none: all of them, as splits."""

    name = "reasoning_gym"

    def __init__(
        self,
        datasets: Mapping[str, Mapping[str, Any]] | None = None,
        unseen: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Raises `ConfigError` where the package is missing or refuses a dataset or its configuration."""
        self.datasets, self.unseen = dict(datasets or {}), dict(unseen or {})
        self.version = version("reasoning-gym") if _datasets() else ""
        if both := self.datasets.keys() & self.unseen.keys():
            raise ConfigError(f"dataset {min(both)!r} of reasoning-gym cannot be trained on and unseen")
        for dataset, config in (self.datasets | self.unseen).items():
            _make(dataset, json.dumps(config), 0)

    def configured(self, options: Mapping[str, Any]) -> ReasoningGymFamily:
        """The family of these datasets. Raises `ConfigError` for unknown options."""
        given = [options.get("datasets"), options.get("unseen", {})]
        if (
            options.keys() - {"datasets", "unseen"}
            or not all(isinstance(one, Mapping) for one in given)
            or not given[0]
        ):
            raise ConfigError(
                "reasoning_gym has the options `datasets` and `unseen`: names, each with its configuration or {}"
            )
        return ReasoningGymFamily(*({name: config or {} for name, config in (one or {}).items()} for one in given))

    def splits(self) -> Sequence[str]:
        """`demo`, `train`, `heldout`, `unseen` and `format`; without options, the names of the datasets."""
        if self.datasets:
            return (*_SPLITS, *(["unseen"] if self.unseen else []), "format")
        return tuple(sorted(_datasets().keys() - _ON_ITS_OWN))

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """`n` different tasks of a split, or as many as there are. Raises `DataError` where it is unknown."""
        if split not in self.splits():
            near = did_you_mean(split, list(self.splits()))
            raise DataError(f"reasoning_gym has no split {split!r}{near}")
        if split == "format" and self.datasets:
            return _formats(n, seed)
        datasets = self.unseen if split == "unseen" else self.datasets or {split: {}}
        streams = [self._stream(split, name, config, seed, n) for name, config in datasets.items()]
        found: dict[str, Task] = {}
        while streams and len(found) < n:
            for stream in list(streams):
                task = next(stream, None)
                if task is None:
                    streams.remove(stream)
                elif len(found) < n:
                    found.setdefault(task.messages[0].content, task)
        return list(found.values())

    def _stream(self, split: str, dataset: str, config: Mapping[str, Any], seed: int, n: int) -> Iterator[Task]:
        for number in range(_TRIES * n):
            place = number % _SIZE
            made_with = derive_seed(seed, "reasoning_gym", split, dataset, number // _SIZE) % 2**31
            entry = entry_of(dataset, json.dumps(config), made_with, place)
            messages = (Message(role="user", content=f"{entry['question']}\n\n{_ASK}"),)
            if self.datasets and split in _SPLITS and not in_share(messages, split):
                continue
            where = {"dataset": dataset, "config": dict(config), "seed": made_with, "place": place}
            yield Task(
                family=self.name,
                kind=dataset,
                split=split if self.datasets else f"{self.name}.{split}",
                source=f"reasoning-gym/{self.version}",
                licence="Apache-2.0",
                messages=messages,
                answer={"say": None if entry["answer"] is None else str(entry["answer"])},
                verifiers=(VerifierSpec(name=self.name, params={**where, "version": self.version}),),
            )

    def environment(self, task: Task) -> Environment:
        """Nothing to act on."""
        return NoEnvironment()

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The question with the dataset's answer. Raises `DataError` where it tells none."""
        if task.answer["say"] is None:
            raise DataError(f"dataset {task.kind!r} of reasoning-gym has questions without an answer of its own")
        return (*task.messages, Message(role="assistant", content=f"{OPEN}{task.answer['say']}{SHUT}"))


def _formats(n: int, seed: int) -> list[Task]:
    """Questions of common knowledge, asked for in the same form."""
    facts = list(_FACTS)
    rng_for(seed, "reasoning_gym", "format").shuffle(facts)
    return [
        Task(
            family="reasoning_gym",
            kind="format",
            split="format",
            source="metier",
            licence="Apache-2.0",
            messages=(Message(role="user", content=f"{asked}\n\n{_ASK}"),),
            answer={"say": say},
            verifiers=(VerifierSpec(name="exact", params={"answer": f"{OPEN}{say}{SHUT}"}),),
        )
        for asked, say in facts[:n]
    ]


@functools.lru_cache(maxsize=4096)
def entry_of(dataset: str, config: str, seed: int, place: int) -> Mapping[str, Any]:
    """The package's own entry: `question`, `answer` and `metadata`. `config` is JSON."""
    entry: Mapping[str, Any] = _make(dataset, config, seed)[place]
    return entry


# Datasets whose scorer runs the answer as Python or hands it to sympy, which does the same: only what cannot do
# harm reaches them. Lists of words and numbers without a call or product; sums; and formulas of small powers.
_LISTS = re.compile(r"[\[\]'\",\w\s.-]*")
_SUMS = re.compile(r"[0-9+\-*/().=\s]*")
_FORMULAS = re.compile(r"(?:[0-9+\-*/^().\s]|(?<![A-Za-z])(?:[A-Za-z]|sin|cos|tan|exp|log|ln|sqrt|pi)(?![A-Za-z]))*")
# A power of a small number, a small fraction or one letter, and no power of that.
_POWER = re.compile(
    r"\s*(?:-?\s*[0-9]{1,2}(?![0-9.])|[A-Za-z](?![A-Za-z0-9])|\(\s*-?\s*[0-9]{1,2}\s*(?:/\s*[0-9]{1,2}\s*)?\))(?!\s*\*\*)"
)
_RUNS_ANSWERS = {
    "binary_matrix": _LISTS, "n_queens": _LISTS, "spiral_matrix": _LISTS, "string_insertion": _LISTS,
    "countdown": _SUMS, "puzzle24": _SUMS,
    "intermediate_integration": _FORMULAS, "polynomial_multiplication": _FORMULAS, "simple_integration": _FORMULAS,
}  # fmt: skip
_LONGEST = 2000  # characters of such an answer


def harmless(dataset: str, answer: str) -> bool:
    """Whether an answer may be shown to the dataset's own scorer."""
    form = _RUNS_ANSWERS.get(dataset)
    if form is None:
        return True
    if len(answer) > _LONGEST or "__" in answer or form.fullmatch(answer) is None:
        return False
    powers = [found.end() for found in re.finditer(r"\*\*", answer)]
    if form is _SUMS:
        return not powers
    of_brackets = len(re.findall(r"\)\s*\*\*", answer))
    return of_brackets <= 1 and all(_POWER.match(answer, end) for end in powers)


def score(dataset: str, config: str, seed: int, place: int, answer: str) -> float:
    """What the dataset gives for an answer, 0 to 1; 0 where it fails to read it, or must not be shown it.

    Some give full marks to anything that they cannot read, or that has the answer in it. Where a dataset
    gives them to nonsense, or to its own answer with a doubt behind it, it is not asked: the answer must be
    its own.
    """
    if not harmless(dataset, answer):
        return 0.0
    if _takes_nonsense(dataset, config, seed, place):
        own = str(entry_of(dataset, config, seed, place)["answer"])
        return float(answer.strip().casefold() == own.strip().casefold())
    return _given(dataset, config, seed, place, answer)


@functools.lru_cache(maxsize=4096)
def _takes_nonsense(dataset: str, config: str, seed: int, place: int) -> bool:
    own = str(entry_of(dataset, config, seed, place)["answer"])
    return any(_given(dataset, config, seed, place, odd) > 1 - 1e-9 for odd in (_NONSENSE, own + _DOUBT))


def _given(dataset: str, config: str, seed: int, place: int, answer: str) -> float:
    try:
        return float(_make(dataset, config, seed).score_answer(answer, entry_of(dataset, config, seed, place)))
    except Exception:  # whatever a dataset's reading of odd text may raise
        return 0.0


def _datasets() -> Mapping[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError("reasoning_gym needs its package: pip install 'metier[reasoning-gym]'") from error
    import reasoning_gym  # noqa: F401  # fills the table

    known: Mapping[str, Any] = DATASETS
    return known


@functools.lru_cache(maxsize=256)
def _make(dataset: str, config: str, seed: int) -> Any:
    known = _datasets()
    if dataset not in known:
        raise ConfigError(f"reasoning-gym has no dataset {dataset!r}{did_you_mean(dataset, list(known))}")
    from reasoning_gym import create_dataset

    try:
        return create_dataset(dataset, seed=seed, size=_SIZE, **json.loads(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"dataset {dataset!r} of reasoning-gym refuses {config}: {error}") from error
