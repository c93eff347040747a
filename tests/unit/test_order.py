"""The shuffle that keeps tasks of one system prompt, and twins, together."""

from __future__ import annotations

import random
from dataclasses import replace

from metier.recipes.learning import in_blocks
from metier.records.types import Message, Task


def made(prompt: str, n: int, pair: str | None = None) -> Task:
    """A task under that system prompt."""
    messages = (Message(role="system", content=prompt), Message(role="user", content=f"{n}"))
    meta = {} if pair is None else {"pair": pair}
    return Task(family="f", kind="k", split="s", source="here", messages=messages, meta=meta)


def ordered(tasks: list[Task], block: int, seed: int) -> list[tuple[str, int]]:
    order = in_blocks(tasks, lambda task: task, block, random.Random(seed))
    assert sorted(t.id for t in order) == sorted(t.id for t in tasks)
    return [(str(t.messages[0].content), int(str(t.messages[1].content))) for t in order]


def test_blocks_are_whole_and_shuffled() -> None:
    tasks = [made(prompt, n) for prompt in "abc" for n in range(19)]
    order = ordered(tasks, 8, 3)
    assert order != ordered(tasks, 8, 4)
    # 19 = 8 + 8 + 3 of each prompt: six whole blocks first, then what is left over
    for start in range(0, 48, 8):
        assert len({prompt for prompt, _ in order[start : start + 8]}) == 1
    assert [n for _, n in order[:8]] != sorted(n for _, n in order[:8])
    assert len({prompt for prompt, _ in order[::8][:6]}) == 3


def test_twins_stay_side_by_side_within_one_batch() -> None:
    tasks = [made("a", n, pair=f"pair-{n // 2}" if n < 10 else None) for n in range(40)]
    for seed in range(20):
        numbers = [n for _, n in ordered(tasks, 4, seed)]
        place = {n: at for at, n in enumerate(numbers)}
        assert all(abs(place[n] - place[n + 1]) == 1 for n in range(0, 10, 2))
        assert all(place[n] // 4 == place[n + 1] // 4 for n in range(0, 10, 2))
    assert numbers != sorted(numbers)


def test_twins_of_what_fills_no_block_are_in_one_even_batch() -> None:
    tasks = [made(prompt, n, pair=f"{prompt}-{n // 2}" if n < 4 else None) for prompt in "abcdef" for n in range(7)]
    for seed in range(20):
        place = {at: number for number, at in enumerate(ordered(tasks, 4, seed))}
        assert all(place[prompt, n] // 4 == place[prompt, n + 1] // 4 for prompt in "abcdef" for n in (0, 2))


def test_a_pair_may_be_called_anything() -> None:
    tasks = [replace(made("a", n), meta={"pair": 3 if n in (0, 7) else None}) for n in range(8)]
    numbers = [n for _, n in ordered(tasks, 4, 0)]
    assert abs(numbers.index(0) - numbers.index(7)) == 1
    others = [n for n in numbers if n not in (0, 7)]
    assert others != sorted(others)  # "no pair" is no name that they share


def test_a_block_of_one_is_a_full_shuffle() -> None:
    tasks = [made("same", n) for n in range(40)]
    assert [n for _, n in ordered(tasks, 1, 0)] != list(range(40))


def test_twins_are_together_also_where_a_block_has_no_room_for_both() -> None:
    tasks = [made("a", n, pair=f"pair-{n // 2}") for n in range(8)]
    numbers = [n for _, n in ordered(tasks, 1, 0)]
    assert all(numbers[at] // 2 == numbers[at + 1] // 2 for at in range(0, 8, 2))
