"""The task family "functions": small Python functions, each with cases that code must pass.

What a function does is put together of parts (a condition, a step, a sum), so that there are many; a
reference implementation, which is never run on anything but our own arguments, gives the cases. The
prompt shows two examples; the others are hidden in the verifier `code`.

    demo      functions that give back one of their arguments: they show the form of an answer and
              nothing of how to write one
    train, heldout   different functions of the kinds arithmetic, predicate, each, total and text
    unseen    kinds that training has nothing of: kept (which of a list) and words (lists of texts)

With the option `tries: 3` the environment runs what was written on the two examples of the prompt, and says
what came of it; the policy may answer again until they pass or its tries are used up. Nothing of the hidden
cases is ever told. Needs a sandbox (docs/verifiers.md); without one an episode is unscored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from metier.base.errors import ConfigError, DataError
from metier.base.seeds import rng_for
from metier.records.types import EnvironmentSpec, Message, Task, VerifierSpec
from metier.sandbox.choose import shared_sandbox
from metier.sandbox.plain import decode, from_json, same
from metier.sandbox.programs import code_of
from metier.sandbox.protocol import Limits, SandboxUnavailableError
from metier.tasks.foreign import in_share
from metier.tasks.protocol import Environment, EnvironmentFailure, NoEnvironment

__all__ = ["FunctionsFamily"]

VERSION = "1"
EXAMPLES, HIDDEN = 2, 6
_TRIES = 400  # functions drawn for each that is wanted, before a split is taken to have no more
_NAMES = ("work", "solve", "compute", "make", "get", "apply", "find", "run")
_WORDS = ("tea", "apple", "moon", "river", "a", "stone", "Bird", "green", "kite", "Oslo", "snow", "eel", "level")

# What it does in words, its reference as source, and arguments. The names of parameters are n, xs, text and words.
Made = tuple[str, str, str, Sequence[Any]]


class FunctionsFamily:
    """Functions put together of parts."""

    name = "functions"
    version = VERSION

    def __init__(self, tries: int = 1) -> None:
        self.tries = tries

    def configured(self, options: Mapping[str, Any]) -> FunctionsFamily:
        """The family with so many tries. Raises `ConfigError` for other options."""
        tries = options.get("tries", 1)
        if options.keys() - {"tries"} or not isinstance(tries, int) or isinstance(tries, bool) or not 1 <= tries <= 8:
            raise ConfigError("functions has one option, `tries`: a whole number from 1 to 8")
        return FunctionsFamily(tries)

    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return ("demo", "train", "heldout", "unseen")

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """`n` different tasks of a split, or as many as there are. Raises `DataError` where it is unknown."""
        if split not in self.splits():
            raise DataError(f"functions has no split {split!r}; it has {', '.join(self.splits())}")
        kinds = _DEMO if split == "demo" else _UNSEEN if split == "unseen" else _TRAINED
        rng = rng_for(seed, "functions", split)
        found: dict[str, Task] = {}
        for number in range(_TRIES * n):
            if len(found) == n:
                break
            kind = list(kinds)[number % len(kinds)]
            task = _task(split, kind, kinds[kind](rng), rng)
            if split != "demo" and not _tells(task):
                continue
            # Which split a function is in depends on what it does, not on its name or its examples.
            if split in ("train", "heldout") and not in_share(
                (Message(role="user", content=task.meta["does"]),), split
            ):
                continue
            found.setdefault(task.messages[0].content, task)
        return [self._with_tries(task) for task in found.values()]

    def _with_tries(self, task: Task) -> Task:
        """The task with what its environment starts from, where there are tries."""
        if self.tries == 1:
            return task
        state = {"tries": self.tries, "name": task.meta["name"], "examples": task.meta["examples"]}
        return replace(task, environment=EnvironmentSpec(name=self.name, version=self.version, state=state))

    def environment(self, task: Task) -> Environment:
        """Where there are tries: one that runs the examples."""
        return NoEnvironment() if task.environment is None else _Examples(task.environment.state)

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The question with the reference."""
        return (*task.messages, Message(role="assistant", content=f"```python\n{task.answer['code']}```"))


class _Examples(NoEnvironment):
    """Runs the prompt's examples, and says what came of it."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._name, self._examples, self._left = str(state["name"]), state["examples"], int(state["tries"]) - 1

    def reply(self, text: str) -> str | None:
        """What a user would say who tries the function; None where it works, or there are no tries left."""
        if not self._left:
            return None
        self._left -= 1
        name, examples = self._name, self._examples
        code = code_of(text, name)
        try:
            arguments = [[from_json(one) for one in example["args"]] for example in examples]
            done = shared_sandbox().calls(code, name, arguments, Limits(seconds=2.0, memory_mb=256))
        except SandboxUnavailableError as error:
            raise EnvironmentFailure(f"no sandbox: {error}") from error
        if done.kind == "unavailable":
            raise EnvironmentFailure(f"no sandbox: {done.said}")
        for example, answer in zip(examples, done.answers, strict=False):
            if answer.failed:
                return f"{_call(name, example['args'])} fails: {answer.raised}. Write the whole function again."
            if not same(answer.value, from_json(example["expected"])):
                got = _spelled(answer.value)
                wanted = repr(example["expected"])
                return f"{_call(name, example['args'])} gives {got}, not {wanted}. Write the whole function again."
        if len(done.answers) < len(examples):
            return f"It does not run: {done.said[:120]}. Write the whole function again."
        return None


def _call(name: str, arguments: Sequence[Any]) -> str:
    return f"{name}({', '.join(map(repr, arguments))})"


def _spelled(written: Any) -> str:
    try:
        return repr(decode(written))[:80]
    except (ValueError, TypeError):
        return "something odd"


def _task(split: str, kind: str, made: Made, rng: random.Random) -> Task:
    does, parameter, body, pool = made
    name = rng.choice(_NAMES)
    code = f"def {name}({parameter}):\n    return {body}\n"
    names: dict[str, Any] = {}
    exec(code, names)  # of our own making, on our own arguments
    arguments = rng.sample(list(pool), min(len(pool), 40))
    cases = _mixed([{"args": [one], "expected": names[name](one)} for one in arguments])
    shown, hidden = cases[:EXAMPLES], cases[EXAMPLES:]
    examples = "\n".join(f"{_call(name, case['args'])} is {case['expected']!r}" for case in shown)
    asked = f"Write a Python function {name}({parameter}) that returns {does}.\n{examples}"
    return Task(
        family="functions",
        kind=kind,
        split=split,
        source=f"functions/{VERSION}",
        licence="Apache-2.0",
        messages=(Message(role="user", content=asked),),
        answer={"code": code},
        verifiers=(
            VerifierSpec(name="code", params={"entry_point": name, "cases": hidden, "timeout": 2, "memory_mb": 256}),
        ),
        meta={"does": does, "name": name, "examples": shown, "phrasing": does},
    )


def _tells(task: Task) -> bool:
    """Whether neither a constant nor the argument itself passes what is hidden."""
    hidden = task.verifiers[0].params["cases"]
    results = {repr(case["expected"]) for case in hidden}
    return len(results) > 1 and any([case["expected"]] != case["args"] for case in hidden)


def _mixed(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many cases as are wanted, by turns of each sort, so that neither a constant nor the argument itself passes.

    Sorts are the arguments that come back as they are, and the others by their results, or all together
    where they have many.
    """

    def sort(case: Mapping[str, Any]) -> str:
        return "kept" if [case["expected"]] == case["args"] else repr(case["expected"])

    many = len({sort(case) for case in cases}) > 4
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        group = groups.setdefault("changed" if many and sort(case) != "kept" else sort(case), [])
        if case not in group:
            group.append(case)
    for group in groups.values():  # new results first
        first = {repr(case["expected"]): place for place, case in reversed(list(enumerate(group)))}
        old = {place for place, case in enumerate(group) if first[repr(case["expected"])] != place}
        group[:] = [case for _, case in sorted(enumerate(group), key=lambda one: one[0] in old)]
    turns = [case for turn in zip_longest(*groups.values()) for case in turn if case is not None]
    return turns[: EXAMPLES + HIDDEN]


_INTEGERS = tuple(range(-12, 31))


def _lists(rng: random.Random) -> list[list[int]]:
    return [[rng.randint(-9, 20) for _ in range(rng.randint(1, 6))] for _ in range(40)]


def _texts(rng: random.Random) -> list[str]:
    return [" ".join(rng.choices(_WORDS, k=rng.randint(1, 3))) for _ in range(60)]


def _word_lists(rng: random.Random) -> list[list[str]]:
    return [rng.choices(_WORDS, k=rng.randint(1, 5)) for _ in range(60)]


def _step(rng: random.Random, of: str) -> tuple[str, str]:
    """One thing to do with a number, in words (`{}` is the number) and as source."""
    k = rng.randint(2, 12)
    return rng.choice(
        (
            (f"{{}} plus {k}", f"{of} + {k}"),
            (f"{{}} minus {k}", f"{of} - {k}"),
            (f"{{}} times {k}", f"{of} * {k}"),
            ("the square of {}", f"{of} ** 2"),
            ("the absolute value of {}", f"abs({of})"),
            (f"the remainder of {{}} divided by {k}", f"{of} % {k}"),
            (f"{k} minus {{}}", f"{k} - {of}"),
            (f"the larger of {{}} and {k}", f"max({of}, {k})"),
            (f"the smaller of {{}} and {k}", f"min({of}, {k})"),
        )
    )


def _condition(rng: random.Random, of: str) -> tuple[str, str]:
    k, low = rng.randint(2, 12), rng.randint(-5, 5)
    return rng.choice(
        (
            (f"greater than {k}", f"{of} > {k}"),
            (f"less than {k}", f"{of} < {k}"),
            ("even", f"{of} % 2 == 0"),
            ("odd", f"{of} % 2 == 1"),
            ("negative", f"{of} < 0"),
            ("positive", f"{of} > 0"),
            (f"divisible by {k}", f"{of} % {k} == 0"),
            (f"between {low} and {low + k}", f"{low} <= {of} <= {low + k}"),
        )
    )


def _arithmetic(rng: random.Random) -> Made:
    words, source = _step(rng, "n")
    if rng.random() < 0.6:
        more, outer = _step(rng, "{}")
        return more.format(f"({words.format('n')})"), "n", outer.format(f"({source})"), _INTEGERS
    return words.format("n"), "n", source, _INTEGERS


def _predicate(rng: random.Random) -> Made:
    words, source = _condition(rng, "n")
    form = rng.random()
    if form < 0.4:
        return f"True if n is {words}, else False", "n", source, _INTEGERS
    one, other = rng.sample(("'yes'", "'no'", "1", "0", "'big'", "'small'", "None", "n"), 2)
    return f"{one} if n is {words}, else {other}", "n", f"{one} if {source} else {other}", _INTEGERS


def _each(rng: random.Random) -> Made:
    words, source = _step(rng, "x")
    return (
        f"a list with {words.format('x')} for each number x of the list xs",
        "xs",
        f"[{source} for x in xs]",
        _lists(rng),
    )


def _total(rng: random.Random) -> Made:
    of, tail = ("", "xs")
    if rng.random() < 0.5:
        words, source = _condition(rng, "x")
        of, tail = f" that are {words}", f"[x for x in xs if {source}]"
    words, source = rng.choice(
        (
            ("the sum of the numbers", "sum({})"),
            ("how many numbers", "len({})"),
            ("the largest number", "max({}, default=None)"),
            ("the smallest number", "min({}, default=None)"),
        )
    )
    if words.startswith("the ") and "sum" not in words:
        of = of.replace("that are", "that is")
        words = f"{words} of the list xs{of}" + (", or None if there is none" if of else "")
    elif words.startswith("how"):
        words = f"{words} of the list xs there are{of}" if of else "the number of elements of the list xs"
    else:
        words = f"{words} of the list xs{of}"
    return words, "xs", source.format(tail), _lists(rng)


def _text(rng: random.Random) -> Made:
    letter, k = rng.choice("aeost"), rng.randint(2, 4)
    words, source = rng.choice(
        (
            ("text in capital letters", "text.upper()"),
            ("text in small letters", "text.lower()"),
            ("text read backwards", "text[::-1]"),
            ("the number of characters of text", "len(text)"),
            (f"text written {k} times in a row", f"text * {k}"),
            (f"the first {k} characters of text", f"text[:{k}]"),
            (f"the last {k} characters of text", f"text[-{k}:]"),
            (f"how often '{letter}' stands in text", f"text.count('{letter}')"),
            (f"text without every '{letter}'", f"text.replace('{letter}', '')"),
            (f"True if text begins with '{letter}', else False", f"text.startswith('{letter}')"),
            (f"True if text contains '{letter}', else False", f"'{letter}' in text"),
            ("the words of text as a list", "text.split()"),
            ("how many words text has", "len(text.split())"),
            ("the first word of text", "text.split()[0]"),
            ("the last word of text", "text.split()[-1]"),
            (f"text with '{letter}' replaced by '*'", f"text.replace('{letter}', '*')"),
            (f"text with '!' put {k} times at its end", f"text + '!' * {k}"),
        )
    )
    return words, "text", source, _texts(rng)


def _kept(rng: random.Random) -> Made:
    words, source = _condition(rng, "x")
    return (
        f"a list of the numbers of xs that are {words}, in their order",
        "xs",
        f"[x for x in xs if {source}]",
        _lists(rng),
    )


def _words(rng: random.Random) -> Made:
    letter, k = rng.choice("aeost"), rng.randint(2, 4)
    words, source = rng.choice(
        (
            ("a list with the length of each of the words", "[len(w) for w in words]"),
            ("a list of the words in capital letters", "[w.upper() for w in words]"),
            ("the words joined with '-'", "'-'.join(words)"),
            ("the words joined with a space", "' '.join(words)"),
            ("the words in reverse order", "words[::-1]"),
            ("the words in alphabetical order, as sorted does", "sorted(words)"),
            (f"a list of the words with more than {k} letters", f"[w for w in words if len(w) > {k}]"),
            (f"a list of the words that contain '{letter}'", f"[w for w in words if '{letter}' in w]"),
            ("the sum of the lengths of the words", "sum(len(w) for w in words)"),
            ("a list with the first letter of each of the words", "[w[0] for w in words]"),
            (f"how many of the words contain '{letter}'", f"sum('{letter}' in w for w in words)"),
        )
    )
    return words, "words", source, _word_lists(rng)


def _same(rng: random.Random) -> Made:
    """Functions whose writing takes nothing but the form."""
    parameter, pool = rng.choice(
        (("n", _INTEGERS), ("xs", _lists(rng)), ("text", _texts(rng)), ("words", _word_lists(rng)))
    )
    words = rng.choice(("{} as it is", "{}", "its argument {} unchanged", "the same {} that it was given"))
    return words.format(parameter), parameter, parameter, pool


_TRAINED: Mapping[str, Callable[[random.Random], Made]] = {
    "arithmetic": _arithmetic,
    "predicate": _predicate,
    "each": _each,
    "total": _total,
    "text": _text,
}
_UNSEEN: Mapping[str, Callable[[random.Random], Made]] = {"kept": _kept, "words": _words}
_DEMO: Mapping[str, Callable[[random.Random], Made]] = {"same": _same}
