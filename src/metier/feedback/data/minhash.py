"""Near duplicates by MinHash: texts that share most of their five-character pieces.

    J(A, B) = |A and B| / |A or B|,     P(one hash of A and B is the same) = J

(Broder 1997). A signature is `BANDS` x `ROWS` hashes; texts that agree in all hashes of one band are looked at,
and their similarity is then computed from the pieces themselves. So no text is called alike that is not, and one
of similarity J is found with probability 1 - (1 - J^ROWS)^BANDS: .998 at J = .8, .917 at .7.

Pieces are of characters, not words, so that one changed word costs five pieces and not half of a short text, and
languages without spaces work. datasketch does the same, a text at a time; this is a page, and takes whole arrays.

Legend: P pieces, H = BANDS x ROWS hashes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANDS", "PIECE", "ROWS", "Index", "jaccard", "pieces", "signature"]

PIECE = 5  # characters
BANDS, ROWS = 21, 6
_CHUNK = 4096  # pieces hashed at once

Words = NDArray[np.uint64]

_RNG = np.random.default_rng(20)
_MIX_5 = _RNG.integers(0, 2**63, PIECE, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_TIMES_H = _RNG.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_PLUS_H = _RNG.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)


def pieces(text: str) -> Words:
    """The different pieces of a text as numbers [P], sorted; a text shorter than a piece is one."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if codes.size < PIECE:
        codes = np.pad(codes, (0, PIECE - codes.size))
    n = codes.size - PIECE + 1
    found = np.zeros(n, np.uint64)
    for place in range(PIECE):
        found ^= codes[place : place + n] * _MIX_5[place] + (found >> np.uint64(29))
    return np.unique(found)


def signature(found: Words) -> Words:
    """The least of every hash over the pieces [H]; multiply-shift hashing (Dietzfelbinger 1997)."""
    least = np.full(_TIMES_H.size, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, found.size, _CHUNK):
        mixed = found[start : start + _CHUNK, None] * _TIMES_H + _PLUS_H
        np.minimum(least, (mixed >> np.uint64(20)).min(axis=0), out=least)
    return least


def jaccard(one: Words, other: Words) -> float:
    """The similarity of two sets of pieces."""
    both = np.intersect1d(one, other, assume_unique=True).size
    return both / (one.size + other.size - both)


class Index:
    """Texts that were added, found again by likeness."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._bands: dict[bytes, list[int]] = {}
        self._pieces: list[Words] = []

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, found: Words, signed: Words) -> int:
        """Add a text by its pieces; returns its place."""
        place = len(self._pieces)
        self._pieces.append(found)
        for key in _keys(signed):
            self._bands.setdefault(key, []).append(place)
        return place

    def alike(self, found: Words, signed: Words) -> list[tuple[int, float]]:
        """Places and similarities of the texts that are alike, the most alike first."""
        places = {place for key in _keys(signed) for place in self._bands.get(key, ())}
        measured = [(place, jaccard(found, self._pieces[place])) for place in places if self._may(found, place)]
        return sorted(((p, j) for p, j in measured if j >= self._least), key=lambda one: (-one[1], one[0]))

    def _may(self, found: Words, place: int) -> bool:
        """Whether sizes alone allow it."""
        small, large = sorted((found.size, self._pieces[place].size))
        return small >= self._least * large


def _keys(signed: Words) -> Iterator[bytes]:
    for band in range(BANDS):
        yield bytes([band]) + signed[band * ROWS : (band + 1) * ROWS].tobytes()
