"""What texts mean, by the model at hand: the mean of its hidden states, and from where on two texts mean the same.

A causal model's hidden states share most of their direction, and a few of their coordinates are far larger than the
rest; so every coordinate is brought to mean 0 and spread 1 over a fixed set of ordinary requests, and the first token,
which attention uses as a sink, is not read. `paraphrases.jsonl` (ours) has 48 requests, each written again in other
words, and a near miss that shares words and asks for something else. The threshold is the cosine that all but a stated
share of unrelated pairs stay below.

What it cannot do: a small model sees the topic more than the request. SmolLM2-135M at one unrelated pair in a thousand
finds two thirds of the paraphrases, and takes nine near misses in ten for the same. So the calibration says how often
near misses pass, and a model that lets too many pass is refused unless you insist.

Legend: N texts, T tokens, E hidden size.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from metier.feedback.data.dedup import Embed

__all__ = ["Calibration", "calibrate", "embedder", "known_paraphrases"]

LONGEST = 512  # tokens of a text that are read
DEPTH = 0.93  # of the layers, from the bottom, whose output is read; found on the paraphrases
BATCH = 32  # texts at once

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """From where on two texts mean the same, for one model."""

    model: str
    threshold: float  # cosine
    recall: float  # of paraphrases that pass
    near_misses: float  # share of near misses that pass
    false_share: float  # share of unrelated pairs that pass
    n: int  # paraphrases, and as many near misses


def embedder(model: str) -> Embed:
    """Texts to unit vectors [N, E] of that model's hidden states."""
    import torch

    from metier.models.hub import load_model, load_tokenizer

    tokenizer = load_tokenizer(model)
    weights = load_model(model, dtype=torch.bfloat16)
    layer = max(1, round(DEPTH * weights.config.num_hidden_layers))
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id or 0

    def means(texts: Sequence[str]) -> Floats:
        out = np.zeros((len(texts), weights.config.hidden_size), np.float32)
        ids = [tokenizer(text or " ", add_special_tokens=False).input_ids[:LONGEST] or [first] for text in texts]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))  # alike in length, so that little is padding
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            longest = max(len(ids[n]) for n in some)
            tokens_NT = torch.tensor([[first, *ids[n], *[first] * (longest - len(ids[n]))] for n in some])
            mask_NT = torch.tensor([[1] * (1 + len(ids[n])) + [0] * (longest - len(ids[n])) for n in some])
            with torch.inference_mode():
                states = weights.get_decoder()(tokens_NT, attention_mask=mask_NT, output_hidden_states=True)
            read_NT = mask_NT.float()
            read_NT[:, 0] = 0
            states_NTE = states.hidden_states[layer].float()
            mean_NE = torch.einsum("nt,nte->ne", read_NT, states_NTE) / read_NT.sum(dim=1, keepdim=True)
            out[some] = mean_NE.numpy()
        return out

    known = means([text for triple in known_paraphrases() for text in triple])
    centre_E, spread_E = known.mean(axis=0), known.std(axis=0) + 1e-6

    def embed(texts: Sequence[str]) -> Floats:
        vectors_NE = (means(texts) - centre_E) / spread_E
        sizes_N1: Floats = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
        return np.asarray(vectors_NE / np.maximum(sizes_N1, 1e-12), np.float32)

    return embed


def calibrate(embed: Embed, model: str, false_share: float) -> Calibration:
    """The threshold that `false_share` of unrelated pairs reach, and what it then finds."""
    triples = known_paraphrases()
    vectors_NE = embed([text for triple in triples for text in triple])
    one, same, other = vectors_NE[0::3], vectors_NE[1::3], vectors_NE[2::3]
    of_triple = np.arange(len(vectors_NE)) // 3
    unrelated = (vectors_NE @ vectors_NE.T)[of_triple[:, None] < of_triple[None, :]]
    threshold = float(np.quantile(unrelated, 1 - false_share))
    alike, apart = (one * same).sum(axis=1), (one * other).sum(axis=1)
    return Calibration(
        model=model,
        threshold=threshold,
        recall=float((alike >= threshold).mean()),
        near_misses=float((apart >= threshold).mean()),
        false_share=float((unrelated >= threshold).mean()),
        n=len(triples),
    )


@functools.cache
def known_paraphrases() -> tuple[tuple[str, str, str], ...]:
    """A request, the same in other words, and a near miss."""
    text = files("metier.feedback.data").joinpath("paraphrases.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return tuple((row["text"], row["same"], row["other"]) for row in rows)
