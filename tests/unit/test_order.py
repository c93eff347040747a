"""The shuffle that keeps episodes of one system prompt together."""

from __future__ import annotations

import random

from metier.recipes.learning import in_blocks


def test_blocks_are_whole_and_shuffled() -> None:
    items = [(prompt, n) for prompt in "abc" for n in range(19)]
    order = in_blocks(items, lambda item: item[0], 8, random.Random(3))
    assert sorted(order) == items
    assert order != in_blocks(items, lambda item: item[0], 8, random.Random(4))
    # 19 = 8 + 8 + 3 of each prompt: six whole blocks first, then what is left over
    for start in range(0, 48, 8):
        assert len({prompt for prompt, _ in order[start : start + 8]}) == 1
    assert [n for _, n in order[:8]] != sorted(n for _, n in order[:8])
    assert len({prompt for prompt, _ in order[::8][:6]}) == 3


def test_a_block_of_one_is_a_full_shuffle() -> None:
    items = list(range(40))
    assert sorted(in_blocks(items, lambda _: "same", 1, random.Random(0))) == items
