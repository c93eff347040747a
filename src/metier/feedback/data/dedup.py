"""Rows that are there twice: the same words, nearly the same words, the same meaning.

Rows are gone through from the best supported (weight of the sources behind it, then confidence, then the
older statement) to the least, and one goes where it is the same as one that stays. So of every set of copies the best
supported stays, and a chain of small changes does not take its far end with it.

Near copies are alike in what is asked as well as in everything they say: one long answer to two requests is not a
copy. A request of fewer than 20 words has to be the same words: in "what does rain do to wood" and "to wool" one
word is all that is asked. Near and same-meaning rows must have the same numbers, labels and hidden answers too:
"3 apples" and "4 apples" are two questions, and the same answer called good and bad is a contradiction to look at.
A pair and its reverse are one too. Rows are compared by what they say; under other system messages they are others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier.feedback.data.minhash import Index, jaccard, pieces, signature
from metier.feedback.data.rows import Row, letters, numbers

__all__ = ["Copy", "Embed", "Reps", "without_copies"]

Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # texts to unit vectors [N, E]
SHORT = 20  # words of a request below which every one of them counts
_BLOCK = 2_048  # vectors compared at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A row that went, and the row that stands for it."""

    row_id: str
    kept_id: str
    how: str  # exact, near or semantic
    similarity: float


@dataclass(frozen=True, slots=True)
class Reps:
    """How alike counts as the same; None is not looked at."""

    exact: bool = True
    near: float | None = 0.8
    semantic: tuple[Embed, float] | None = None  # a model, and the cosine from which texts mean the same


def without_copies(rows: Sequence[Row], reps: Reps) -> tuple[list[Row], list[Copy]]:
    """The rows that stay, in their order, and those that went."""
    order = sorted(range(len(rows)), key=lambda n: (-rows[n].support, -(rows[n].confidence or 0.0), rows[n].at, n))
    texts = [row.text() for row in rows]
    plain = [letters(text) for text in texts]
    twins = [_twin(row, text) for row, text in zip(rows, texts, strict=True)]
    copies: dict[int, tuple[int, str, float]] = {}
    if reps.exact:
        first: dict[tuple[str, ...], int] = {}
        for n in order:
            # Case and marks may matter where that is all there is to a text (code, say), so they count here.
            kept = first.setdefault(
                (" ".join(texts[n].split()), rows[n].label, rows[n].twin, rows[n].instructions()), n
            )
            if kept != n:
                copies[n] = kept, "exact", 1.0
    if reps.near is not None:
        # What cannot be alike, for other numbers or answers, is never compared.
        indices: dict[tuple[str, ...], tuple[Index, list[int]]] = {}
        asked, taught = [letters(row.asked()) for row in rows], [letters(row.taught()) for row in rows]
        for n in order:
            if n in copies:
                continue
            index, members = indices.setdefault(twins[n], (Index(reps.near), []))
            found = pieces(plain[n])
            signed = signature(found)
            same = ((members[place], alike) for place, alike in index.alike(found, signed))
            kept, alike = next((one for one in same if _same_request(asked[n], asked[one[0]], reps.near)
                                and _alike(taught[n], taught[one[0]], reps.near)), (n, 0.0))  # fmt: skip
            if kept != n:
                copies[n] = kept, "near", alike
            else:
                index.add(found, signed)
                members.append(n)
    if reps.semantic is not None:
        embed, least = reps.semantic
        left = [n for n in order if n not in copies]
        for n, kept, cosine in _same_meaning(embed([texts[n] for n in left]), [twins[n] for n in left], least):
            copies[left[n]] = left[kept], "semantic", cosine
    gone = [
        Copy(row_id=rows[n].id, kept_id=rows[kept].id, how=how, similarity=round(similarity, 4))
        for n, (kept, how, similarity) in sorted(copies.items())
    ]
    return [row for n, row in enumerate(rows) if n not in copies], gone


def _same_request(one: str, other: str, near: float) -> bool:
    if one == other or min(one.count(" "), other.count(" ")) + 1 < SHORT:
        return one == other
    return _alike(one, other, near)


def _alike(one: str, other: str, near: float) -> bool:
    return one == other or jaccard(pieces(one), pieces(other)) >= near


def _twin(row: Row, text: str) -> tuple[str, ...]:
    return (row.label, row.twin, row.instructions(), *numbers(text))


def _same_meaning(
    vectors_NE: NDArray[np.float32], twins: Sequence[tuple[str, ...]], least: float
) -> list[tuple[int, int, float]]:
    """Place, place of the one that stays, and cosine; earlier ones stay."""
    out: list[tuple[int, int, float]] = []
    gone = np.zeros(len(twins), bool)
    for start in range(0, len(twins), _BLOCK):
        cosine_BN = vectors_NE[start : start + _BLOCK] @ vectors_NE[: start + _BLOCK].T
        for b, n in enumerate(range(start, min(start + _BLOCK, len(twins)))):
            near = np.flatnonzero((cosine_BN[b, :n] >= least) & ~gone[:n]).tolist()
            same = [one for one in near if twins[one] == twins[n]]
            if same:
                best = max(same, key=lambda one: float(cosine_BN[b, one]))
                out.append((n, best, float(cosine_BN[b, best])))
                gone[n] = True
    return out
