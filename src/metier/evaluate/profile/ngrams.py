"""A text classifier of word sequences: multinomial logistic regression over n-grams.

    p(class | text) = softmax(W x + b),    x: 1 for each n-gram of the text, scaled to length 1
    W, b minimise  -mean ln p(class of text) + penalty * |W|^2 / 2

Words that fewer than `least` training texts have become one placeholder, so that what a text is
about counts for little and how it says it counts for much. Contractions are spelled out, and the
beginning of a text is an n-gram of its own. It learns in a second from the examples that ship,
always to the same weights, so that no weights have to ship.

Left out: words in other forms, and everything longer than `LONGEST` words. Legend: N texts, F features, C classes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metier.stats.votes import Floats

__all__ = ["NgramClassifier", "fit_softmax", "sentences", "softmax", "taught_by", "words"]

LONGEST = 3  # words of an n-gram
_SPELLED = (
    (r"\b(ca)n['’]?t\b|\bcan not\b", "cannot"),
    (r"\bwon['’]t\b", "will not"),
    (r"n['’]t\b", " not"),
    (r"['’]m\b", " am"),
    (r"['’]re\b", " are"),
    (r"['’]ve\b", " have"),
    (r"['’]ll\b", " will"),
    (r"['’]d\b", " would"),
)
_SENTENCE = re.compile(r"(?<=[.!?:;])[\"”')*]*\s+|\n+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, contractions spelled out; numbers and some marks are words, too."""
    text = text.casefold()
    for pattern, spelled in _SPELLED:
        text = re.sub(pattern, spelled, text)
    return re.findall(r"[^\W\d_]+|\d+|[?!,:\"`]", text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, and lines of lists each for itself; those without a letter or digit are left out."""
    return [part.strip() for part in _SENTENCE.split(text) if any(letter.isalnum() for letter in part)]


class NgramClassifier:
    """Learns from `texts` [N] with their `labels` [N] when it is made."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str], *, least: int = 3, penalty: float = 1e-3) -> None:
        """Raises `ValueError` where there are fewer than two classes."""
        self.classes = sorted(set(labels))
        if len(self.classes) < 2:
            raise ValueError(f"a classifier needs two classes, not {self.classes}")
        self._known = {word for word, n in Counter(w for t in texts for w in set(words(t))).items() if n >= least}
        counts = Counter(gram for text in texts for gram in set(self._grams(text)))
        self._place = {gram: place for place, gram in enumerate(sorted(g for g, n in counts.items() if n >= 2))}
        y_NC = np.array([[float(label == one) for one in self.classes] for label in labels])
        self._weights_FC = fit_softmax(self._features(texts), y_NC, penalty=penalty)

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """The probability of each class [N, C], in the order of `classes`."""
        return softmax(self._features(texts) @ self._weights_FC)

    def _features(self, texts: Sequence[str]) -> Any:
        """A sparse matrix [N, F]; its last column is 1."""
        from scipy.sparse import csr_array

        columns: list[int] = []
        values: list[float] = []
        ends = [0]
        for text in texts:
            found = sorted(place for gram in set(self._grams(text)) if (place := self._place.get(gram)) is not None)
            columns += [*found, len(self._place)]
            values += [1 / math.sqrt(len(found))] * len(found) + [1.0]
            ends.append(len(columns))
        return csr_array((values, columns, ends), shape=(len(texts), len(self._place) + 1))

    def _grams(self, text: str) -> Iterator[str]:
        known = ["^", *(word if word in self._known else "_" for word in words(text))]
        for length in range(1, LONGEST + 1):
            for start in range(len(known) - length + 1):
                yield " ".join(known[start : start + length])


def taught_by(examples: Sequence[Mapping[str, Any]]) -> NgramClassifier:
    """A classifier of sentences, taught by our own: each has its `text` and its `class`."""
    return NgramClassifier([row["text"] for row in examples], [row["class"] for row in examples], least=2, penalty=1e-3)


def fit_softmax(x_NF: Any, y_NC: Floats, *, penalty: float) -> Floats:
    """The weights [F, C] of a multinomial logistic regression; the last feature is 1, and its weights cost nothing."""
    from scipy.optimize import minimize

    n, f, c = y_NC.shape[0], x_NF.shape[1], y_NC.shape[1]
    free_F1 = np.ones((f, 1))
    free_F1[-1] = 0.0

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights_FC = flat.reshape(f, c)
        p_NC = softmax(x_NF @ weights_FC)
        value = -float(np.log(np.maximum((p_NC * y_NC).sum(axis=1), 1e-300)).mean())
        value += penalty / 2 * float((free_F1 * weights_FC**2).sum())
        slope_FC = x_NF.T @ (p_NC - y_NC) / n + penalty * free_F1 * weights_FC
        return value, slope_FC.ravel()

    found = minimize(loss, np.zeros(f * c), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return np.asarray(found.x.reshape(f, c))


def softmax(z_NC: Floats) -> Floats:
    """Rows to probabilities."""
    raised = np.exp(z_NC - z_NC.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
