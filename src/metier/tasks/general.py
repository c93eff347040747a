"""The task family "general": what a chat model could do before, to see what post-training cost it.

Three splits, none for training: sums (`arithmetic`), orders about the form of an answer
(`instructions`) and small questions of common knowledge (`chat`). One turn each, no tools;
verified by the number, the form or the fact, never by wording. Any recipe measures them
as splits of another family, `general.arithmetic` and so on. All items are our own.

Left out: anything that a model of 100M parameters never could do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from metier.base.errors import DataError
from metier.base.seeds import rng_for
from metier.records.types import Message, Task, VerifierSpec
from metier.tasks.protocol import Environment, NoEnvironment

__all__ = ["GeneralFamily"]

VERSION = "1"
Item = tuple[str, VerifierSpec, str]  # what is asked, how it is verified, a right answer


class GeneralFamily:
    """Sums, forms and facts."""

    name = "general"
    version = VERSION

    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return tuple(_MAKE)

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """`n` different tasks of a split, or as many as there are. Raises `DataError` where it is unknown."""
        if split not in _MAKE:
            raise DataError(f"general has no split {split!r}; it has {', '.join(_MAKE)}")
        rng = rng_for(seed, "general", split)
        found: dict[str, Item] = {}
        for _ in range(200 * n):  # small pools repeat themselves
            if len(found) == n:
                break
            item = _MAKE[split](rng)
            found.setdefault(item[0], item)
        return [
            Task(
                family="general",
                kind=split,
                split=f"general.{split}",
                source=f"general/{VERSION}",
                licence="Apache-2.0",
                messages=(Message(role="user", content=asked),),
                answer={"say": answer},
                verifiers=(verifier,),
            )
            for asked, verifier, answer in found.values()
        ]

    def environment(self, task: Task) -> Environment:
        """Nothing to act on."""
        return NoEnvironment()

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The question with a right answer."""
        return (*task.messages, Message(role="assistant", content=task.answer["say"]))


def _fact(*spellings: str) -> VerifierSpec:
    return VerifierSpec(name="conduct", params={"facts": [list(spellings)]})


def _form(**params: Any) -> VerifierSpec:
    return VerifierSpec(name="format", params=params)


# --- arithmetic -------------------------------------------------------------------------

_STORIES: tuple[tuple[str, Callable[[int, int], int]], ...] = (
    ("What is {a} plus {b}?", lambda a, b: a + b),
    ("What is {a} + {b}?", lambda a, b: a + b),
    ("What is {c} - {b}?", lambda a, b: a),
    ("What is {a} times {d}?", lambda a, b: a * (2 + b % 8)),
    ("I have {a} apples and buy {b} more. How many apples do I have?", lambda a, b: a + b),
    ("There are {c} birds on a roof and {b} fly away. How many are left?", lambda a, b: a),
    ("A box holds {a} pens. How many pens are in {d} boxes?", lambda a, b: a * (2 + b % 8)),
    ("A train has {c} seats and {b} are taken. How many are free?", lambda a, b: a),
)


def _arithmetic(rng: random.Random) -> Item:
    text, result = rng.choice(_STORIES)
    a, b = rng.randint(2, 30), rng.randint(2, 30)
    right = str(result(a, b))
    asked = text.format(a=a, b=b, c=a + b, d=2 + b % 8)
    return f"{asked} Answer with the number.", _fact(right), right


# --- instructions -----------------------------------------------------------------------

_WORDS = (
    "green", "river", "seven", "music", "window", "silver", "garden", "winter", "paper", "thunder", "honey", "castle",
    "orange", "shadow", "rocket", "button", "summer", "bridge", "velvet", "candle",
)  # fmt: skip
_TOPICS = (
    "dogs", "rain", "bread", "the sea", "trains", "books", "the moon", "coffee", "football", "bees", "mountains", "tea",
    "bicycles", "snow", "cats", "gardens",
)  # fmt: skip
_THINGS = {
    "fruits": "apples, pears, plums", "colours": "red, blue, green", "animals": "cat, dog, horse",
    "countries": "France, Spain, Italy", "vegetables": "carrots, peas, onions", "sports": "tennis, rugby, rowing",
    "drinks": "water, milk, tea", "tools": "hammer, saw, drill",
}  # fmt: skip


def _instructions(rng: random.Random) -> Item:
    return rng.choice(_ORDERS)(rng)


def _ends(rng: random.Random) -> Item:
    topic, word = rng.choice(_TOPICS), rng.choice(_WORDS)
    return (
        f"Write one sentence about {topic} that ends with the word {word}.",
        _form(ends=word, min_words=3),
        f"When I think of {topic} I think of {word}.",
    )


def _starts(rng: random.Random) -> Item:
    topic, word = rng.choice(_TOPICS), rng.choice(_WORDS)
    return (
        f"Write one sentence about {topic}. It must start with the word {word}.",
        _form(starts=word, min_words=3),
        f"{word.capitalize()} is what I think of with {topic}.",
    )


def _holds(rng: random.Random) -> Item:
    one, other = rng.sample(_WORDS, 2)
    return (
        f"Write a sentence that has the words {one} and {other} in it.",
        _form(holds=[one, other], min_words=4, max_words=40),
        f"I saw a {one} and a {other} today.",
    )


def _items(rng: random.Random) -> Item:
    things = rng.choice(list(_THINGS))
    return f"Name three {things}, separated by commas, and nothing else.", _form(items=3, max_words=8), _THINGS[things]


def _one_word(rng: random.Random) -> Item:
    word = rng.choice(_WORDS)
    return f"Reply with the word {word} and nothing else.", _form(words=1, holds=[word]), word


def _upper(rng: random.Random) -> Item:
    topic = rng.choice(_TOPICS)
    asked = f"Write a short sentence about {topic}. Use capital letters only."
    return asked, _form(case="upper", min_words=3), f"I LIKE {topic.upper()}."


def _lower(rng: random.Random) -> Item:
    topic = rng.choice(_TOPICS)
    asked = f"Write a short sentence about {topic}. Use small letters only, no capitals."
    return asked, _form(case="lower", min_words=3), f"we all like {topic}."


def _short(rng: random.Random) -> Item:
    topic, n = rng.choice(_TOPICS), rng.choice((5, 8, 10))
    return f"Say something about {topic} in at most {n} words.", _form(min_words=2, max_words=n), f"Many like {topic}."


def _lines(rng: random.Random) -> Item:
    topic = rng.choice(_TOPICS)
    asked = f"Write two short lines about {topic}. Start each line with a dash."
    return asked, _form(lines=2, line_start="-"), f"- I like {topic}\n- You like {topic} too"


def _question(rng: random.Random) -> Item:
    topic = rng.choice(_TOPICS)
    return f"Ask me one short question about {topic}.", _form(mark="?", max_words=25), f"Do you like {topic}?"


_ORDERS: tuple[Callable[[random.Random], Item], ...] = (
    _ends, _starts, _holds, _items, _one_word, _upper, _lower, _short, _lines, _question,
)  # fmt: skip

# --- chat -------------------------------------------------------------------------------

_FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is the capital of France?", ("Paris",)),
    ("What is the capital of Italy?", ("Rome",)),
    ("What is the capital of Japan?", ("Tokyo",)),
    ("What is the capital of Spain?", ("Madrid",)),
    ("What is the capital of Germany?", ("Berlin",)),
    ("What is the capital of Egypt?", ("Cairo",)),
    ("What is the capital of England?", ("London",)),
    ("What is the capital of Russia?", ("Moscow",)),
    ("Which planet do we live on?", ("Earth",)),
    ("Which planet is known as the red planet?", ("Mars",)),
    ("Which is the largest planet of our solar system?", ("Jupiter",)),
    ("What do we call the star at the centre of our solar system?", ("Sun",)),
    ("What turns around the Earth once a month?", ("Moon",)),
    ("How many days are in a week?", ("seven", "7")),
    ("How many months are in a year?", ("twelve", "12")),
    ("How many legs does a spider have?", ("eight", "8")),
    ("How many sides does a triangle have?", ("three", "3")),
    ("How many minutes are in an hour?", ("sixty", "60")),
    ("How many hours are in a day?", ("24", "twenty-four")),
    ("How many letters are in the English alphabet?", ("26", "twenty-six")),
    ("What colour do you get when you mix blue and yellow?", ("green",)),
    ("What colour is a ripe banana?", ("yellow",)),
    ("What colour is the sky on a clear day?", ("blue",)),
    ("What is frozen water called?", ("ice",)),
    ("What do bees make?", ("honey",)),
    ("What do cows give us to drink?", ("milk",)),
    ("What gas do we need to breathe?", ("oxygen",)),
    ("At how many degrees Celsius does water boil?", ("100", "hundred")),
    ("At how many degrees Celsius does water freeze?", ("0", "zero")),
    ("What is the chemical formula of water?", ("H2O", "H₂O")),
    ("Who wrote Romeo and Juliet?", ("Shakespeare",)),
    ("Who painted the Mona Lisa?", ("Leonardo", "da Vinci")),
    ("Which ocean lies between Europe and America?", ("Atlantic",)),
    ("On which continent is Kenya?", ("Africa",)),
    ("On which continent is China?", ("Asia",)),
    ("On which continent is Brazil?", ("South America",)),
    ("What language is spoken in Mexico?", ("Spanish",)),
    ("What language is spoken in Brazil?", ("Portuguese",)),
    ("What is the opposite of hot?", ("cold",)),
    ("What is the opposite of up?", ("down",)),
    ("What is the opposite of dark?", ("light", "bright")),
    ("What is the opposite of fast?", ("slow",)),
    ("Which season comes after winter?", ("spring",)),
    ("Which month comes after March?", ("April",)),
    ("Which day comes after Monday?", ("Tuesday",)),
    ("What is a young dog called?", ("puppy", "pup")),
    ("What is a young cat called?", ("kitten",)),
    ("Which animal is called the king of the jungle?", ("lion",)),
    ("Which animal says moo?", ("cow",)),
    ("What do caterpillars turn into?", ("butterflies", "butterfly", "moths", "moth")),
    ("What is the past tense of the verb go?", ("went",)),
    ("What is the plural of mouse, the animal?", ("mice",)),
    ("What is the plural of child?", ("children",)),
    ("What do we use to tell the time?", ("clock", "watch", "clocks", "watches")),
    ("Which organ pumps blood through the body?", ("heart",)),
    ("With which organ do we see?", ("eye", "eyes")),
    ("What is the tallest animal on land?", ("giraffe", "giraffes")),
    ("What is the largest animal in the sea?", ("whale", "blue whale", "whales")),
    ("What do plants need from the sun?", ("light", "sunlight", "energy")),
    ("What falls from the clouds when it rains?", ("water", "rain", "raindrops")),
    ("In which country are the pyramids of Giza?", ("Egypt",)),
    ("In which city is the Eiffel Tower?", ("Paris",)),
    ("What currency is used in Japan?", ("yen",)),
    ("What currency is used in the United States?", ("dollar", "dollars")),
)  # fmt: skip


def _chat(rng: random.Random) -> Item:
    asked, spellings = rng.choice(_FACTS)
    return asked, _fact(*spellings), f"It's {spellings[0]}."


_MAKE: dict[str, Callable[[random.Random], Item]] = {
    "arithmetic": _arithmetic,
    "instructions": _instructions,
    "chat": _chat,
}
