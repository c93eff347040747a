"""Which tasks the report shows side by side, by a stated rule and not by taste.

All tasks that the first and the last model tried are put in an order drawn from the run's seed. Then
places are dealt in turns over kinds of work, and within a kind over what happened
from the first model to the last (lost, wrong, gained, right, unscored), so that failures
are always among them. Three places in five go to the first rung, the rest to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metier.base.seeds import derive_seed

__all__ = ["Candidate", "Path", "pick", "rule"]

Path = Literal["gained", "lost", "right", "wrong", "unscored"]
TURN: tuple[Path, ...] = ("wrong", "gained", "lost", "right", "unscored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task that the first and the last model tried."""

    task_id: str
    kind: str
    split: str
    path: Path


def rule(seed: int, shown: int, of: int) -> str:
    """The rule in words, for the page."""
    return (
        f"{shown} of {of} tasks that the first and the last model tried, first attempts only. Not picked by hand: a"
        " fixed rule deals the places in turns over kinds of work and over outcomes, failures included, in an order"
        f" drawn from seed {seed}."
    )


def pick(candidates: Sequence[Candidate], splits: Sequence[str], *, seed: int, places: int = 20) -> list[Candidate]:
    """At most `places` candidates, by the rule above; `splits` in the order of the ladder."""
    if not splits or not candidates:
        return []
    order = sorted(candidates, key=lambda c: derive_seed(seed, "report-cases", c.task_id))
    first = [c for c in order if c.split == splits[0]]
    rest = [c for c in order if c.split != splits[0]]
    share = places if not rest else max(-(-places * 3 // 5), places - len(rest))
    chosen = _deal(first, share)
    by_split = [_deal([c for c in rest if c.split == split], places) for split in splits[1:]]
    chosen += _round_robin(by_split)[: places - len(chosen)]
    return chosen


def _deal(ordered: Sequence[Candidate], places: int) -> list[Candidate]:
    """In turns over kinds; within a kind in turns over paths, each kind starting at another path."""
    hands = []
    for start, kind in enumerate(sorted({c.kind for c in ordered})):
        turn = [TURN[(start + offset) % len(TURN)] for offset in range(len(TURN))]
        piles = [[c for c in ordered if c.kind == kind and c.path == path] for path in turn]
        hands.append(_round_robin(piles))
    return _round_robin(hands)[:places]


def _round_robin(piles: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    longest = max((len(pile) for pile in piles), default=0)
    return [pile[place] for place in range(longest) for pile in piles if place < len(pile)]
