"""What choosing what to ask saves: labels on public data, against asking at random, at equal quality.

Everything is a replay: labels that people gave are hidden, and shown when they are asked for.

    preferences    a model of which answer people prefer (Bayesian logistic regression, Laplace posterior, 24 members
                   drawn from it; its prior by evidence) learns from the labels asked for so far, and says what to
                   ask next; judged by log-loss and accuracy on the items of a third of the prompts, never asked about
    crowd          items get one more label at a time; the label that most gave is compared with gold
    labels         machines label everything, people correct what is asked: how many answers of people until so much
                   of the set is right; `next` knows the machines' verdicts and nothing else
    duels          which of five models is best, one comparison after the other
    estimates      what a queue's answers say about all items: plain mean against the mean weighted by 1/propensity

Arms: `random`; `uncertainty` and `BALD` take the highest, as is usual; `ours` is what `metier ledger next` does
(its values and its draw, a tenth uniform), `ours + judges` also has machine judges' verdicts as sources, `ours / s`
divides by the seconds that an item takes to read, as the command does.

"Saved" is 1 - n / B, n labels where the arm's mean curve first is as good as random's is at B labels. Intervals are
95 % by bootstrap over seeds, the same seeds for both (paired); a seed sets test items, first items and all draws.

Two settings were changed after a first look: 16 features of the hidden states or words, because a fit to all labels did
best with them on new prompts, and the steepness of the draw, which was half as steep before (xstest and labels were
looked at). "never": within the labels asked for, half as many again as the larger B, the arm was not as good as random
at B; as a bound of an interval, in more than 2.5 % of the draws of seeds. The seconds at the end leave out the hidden
states of pandalm and llmbar, six minutes once.

    python benchmarks/selection.py --seeds 30
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import platform
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metier.base.seeds import derive_seed, rng_for
from metier.feedback.selection.design import design, draw
from metier.feedback.selection.duel import double_thompson
from metier.feedback.selection.scores import entropy, mutual_information, reading_seconds

Floats = NDArray[np.float64]
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
MEMBERS = 24
DRAWS = 2000  # of the bootstrap
HIDDEN = 16  # principal directions of hidden states or of hashed words
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 96


@dataclass
class Set:
    """One set of items with what people said."""

    name: str
    what: str
    x: Floats  # [N, D]
    y: Floats  # [N] 1: the first is better, or the label is given
    characters: Floats  # [N]
    cluster: list[str]  # [N] what is asked; items about the same are on one side of the test
    judges: Floats = field(default_factory=lambda: np.zeros((0, 0)))  # [J, N] their probabilities
    first: int = 20
    batch: int = 10
    most: int = 250


# --- public data ------------------------------------------------------------------------


def pandalm(cache: Path) -> Set:
    rows = json.loads((DATA / "pandalm" / "testset-v1.json").read_text())
    gpt = json.loads((DATA / "pandalm" / "gpt-3.5-turbo-testset-v1.json").read_text())
    own = json.loads((DATA / "pandalm" / "pandalm-7b-testset-v1.json").read_text())
    kept, y, judged = [], [], []
    for row, one, two in zip(rows, gpt, own, strict=True):
        votes = Counter(str(row[f"annotator{n}"]) for n in (1, 2, 3))
        if votes["1"] == votes["2"]:
            continue
        prompt = f"{row['instruction']} {row['input']}"
        kept.append((prompt, str(row["response1"]), str(row["response2"])))
        y.append(float(votes["1"] > votes["2"]))
        judged.append([_verdict(one["gpt_result"]), _verdict(two["pandalm_result"])])
    what = "pairs of answers, what most of 3 people prefer (ties left out)"
    return _pairs("pandalm", what, kept, y, cache, judges=np.array(judged).T, hidden=True, most=300)


def llmbar(cache: Path) -> Set:
    kept, y, judged = [], [], []
    for part in ("Natural", "Adversarial_Neighbor"):
        told = {}
        for judge in ("GPT-4", "ChatGPT", "LLaMA2", "PaLM2"):
            told[judge] = json.loads((DATA / "llmbar" / f"{part}__{judge}_Vanilla.json").read_text())
        for n, row in enumerate(json.loads((DATA / "llmbar" / f"{part}.json").read_text())):
            kept.append((row["input"], row["output_1"], row["output_2"]))
            y.append(float(row["label"] == 1))
            judged.append([_both_orders(told[judge][n]["results"]) for judge in ("ChatGPT", "LLaMA2", "PaLM2")])
    what = "pairs of answers to an instruction, gold preference"
    return _pairs("llmbar", what, kept, y, cache, np.array(judged).T, True, first=10, batch=5, most=100)


def hh(cache: Path) -> Set:
    rng = random.Random(0)
    kept, y = [], []
    for line in gzip.decompress((DATA / "hh_rlhf" / "harmless-base_test.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        (prompt, _, good), (_, _, bad) = (row[k].rpartition("\n\nAssistant:") for k in ("chosen", "rejected"))
        first = rng.random() < 0.5
        kept.append((prompt, good.strip(), bad.strip()) if first else (prompt, bad.strip(), good.strip()))
        y.append(float(first))
    what = "pairs of replies, which is less harmful, one person each"
    return _pairs("hh_rlhf", what, kept, y, cache, hidden=False, first=50, batch=25, most=700)


def xstest(_: Path) -> Set:
    texts, y, asked = [], [], []
    for name in ("gpt4", "llama2new"):
        with (DATA / "xstest" / f"{name}_gpteval.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                texts.append(row["completion"])
                asked.append(row["prompt"])
                y.append(float(row["final_label"].startswith("2")))
    x = _scaled(np.hstack([_directions(_words(texts)), [_surface("", text) for text in texts]]))
    what = "answers of two models, whether two people call them a full refusal"
    x = np.hstack([x, np.ones((len(x), 1))])
    return Set("xstest", what, x, np.array(y), np.array([float(len(t)) for t in texts]), asked)


def _verdict(said: Any) -> float:
    return {"1": 0.9, "2": 0.1}.get(str(said), 0.5)


def _both_orders(results: list[dict[str, Any]]) -> float:
    said = [results[0][f"swap = {swap}"]["winner"] for swap in ("False", "True")]
    return float(np.mean([_verdict(one) for one in said]))


def _pairs(
    name: str,
    what: str,
    rows: list[tuple[str, str, str]],
    y: list[float],
    cache: Path,
    judges: Floats | None = None,
    hidden: bool = False,
    **schedule: int,
) -> Set:
    texts = [text for row in rows for text in row[1:]]
    deep = _hidden(name, rows, cache) if hidden else _words(texts)
    deep = deep[0::2] - deep[1::2] if hidden else _directions(deep)[0::2] - _directions(deep)[1::2]
    if hidden:
        deep = _directions(deep / deep.std(axis=0))
    plain = [np.array(_surface(p, a)) - np.array(_surface(p, b)) for p, a, b in rows]
    x = _scaled(np.hstack([np.array(plain), deep]))
    long = np.array([float(sum(map(len, row))) for row in rows])
    judges = np.zeros((0, len(y))) if judges is None else judges
    return Set(name, what, x, np.array(y), long, [prompt for prompt, *_ in rows], judges, **schedule)


def _words(texts: list[str], width: int = 4096) -> Floats:
    """Hashed words and pairs of words, weighted by how rare they are."""
    table = np.zeros((len(texts), width))
    for n, text in enumerate(texts):
        words = re.findall(r"[a-z']+|\d+|[^\w\s]", text.lower())
        for one in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
            place = zlib.crc32(one.encode())
            table[n, place % width] += 1 if place >> 31 else -1
    table = np.sign(table) * np.log1p(np.abs(table)) * np.log((len(texts) + 1) / (1 + (table != 0).sum(axis=0)))
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)


def _directions(table: Floats) -> Floats:
    centred = table - table.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return table @ vectors[:, np.argsort(-values)[:HIDDEN]]


def _surface(prompt: str, text: str) -> list[float]:
    words, asked = text.lower().split(), set(prompt.lower().split())
    share = [len(set(words)) / (len(words) + 1), sum(word in asked for word in words) / (len(words) + 1)]
    marks = [math.sqrt(text.count(mark)) for mark in ("\n", "?")]
    return [math.log1p(len(text)), math.log1p(len(words)), *share, *marks, float(text.strip()[-1:] in tuple(".!?"))]


def _scaled(x: Floats) -> Floats:
    return x / np.maximum(x.std(axis=0), 1e-9)


def _hidden(name: str, rows: list[tuple[str, str, str]], cache: Path) -> Floats:
    """Mean hidden state of each response under the default model, kept in a file [2N, width]."""
    file = cache / f"{name}-hidden.npy"
    if file.exists():
        return np.asarray(np.load(file), dtype=np.float64)
    import torch

    from metier.models.hub import load_model, load_tokenizer

    tokenizer, model = load_tokenizer("smollm2"), load_model("smollm2", dtype=torch.bfloat16).eval()
    turns = []
    for prompt, *responses in rows:
        asked = tokenizer(prompt[-1500:])["input_ids"][-PROMPT_TOKENS:]
        turns += [(asked, tokenizer("\n" + one)["input_ids"][:RESPONSE_TOKENS]) for one in responses]
    found = np.zeros((len(turns), model.config.hidden_size), np.float32)
    order = sorted(range(len(turns)), key=lambda n: len(turns[n][0]) + len(turns[n][1]))
    with torch.inference_mode():
        for start in range(0, len(order), 16):
            some = order[start : start + 16]
            ids = torch.zeros(len(some), max(len(turns[n][0]) + len(turns[n][1]) for n in some), dtype=torch.long)
            here, said = torch.zeros_like(ids), torch.zeros(ids.shape)
            for row, n in enumerate(some):
                whole = turns[n][0] + turns[n][1]
                ids[row, : len(whole)], here[row, : len(whole)] = torch.tensor(whole), 1
                said[row, len(turns[n][0]) : len(whole)] = 1
            state = model.model(input_ids=ids, attention_mask=here).last_hidden_state.float()
            found[some] = ((state * said[..., None]).sum(1) / said.sum(1, keepdim=True).clamp(min=1)).numpy()
    cache.mkdir(parents=True, exist_ok=True)
    np.save(file, found)
    return found.astype(np.float64)


# --- a model that learns from labels ------------------------------------------------------


@dataclass
class Learner:
    """Bayesian logistic regression; the prior's precision is the one of most evidence."""

    starts: dict[float, Floats] = field(default_factory=dict)

    def fit(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Mode and Cholesky factor of the posterior's precision."""
        best: tuple[float, Floats, Floats] | None = None
        for precision in (3.0, 10.0, 30.0, 100.0):
            w = self.starts.get(precision, np.zeros(x.shape[1]))
            for _ in range(20):
                p = _logistic(x @ w)
                curve = (x.T * (p * (1 - p))) @ x + precision * np.eye(len(w))
                step = np.linalg.solve(curve, x.T @ (p - y) + precision * w)
                w = w - step
                if np.abs(step).max() < 1e-4:
                    break
            self.starts[precision] = w
            p = _logistic(x @ w)
            factor = np.linalg.cholesky((x.T * (p * (1 - p))) @ x + precision * np.eye(len(w)))
            fits = np.log(np.where(y == 1, p, 1 - p)).sum() - precision / 2 * w @ w
            evidence = float(fits + len(w) / 2 * math.log(precision) - np.log(np.diag(factor)).sum())
            if best is None or evidence > best[0]:
                best = evidence, w, factor
        assert best is not None
        return best[1], best[2]


def _logistic(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def curve(data: Set, arm: str, seed: int) -> Floats:
    """What came of each number of labels: [steps, (labels, seconds, log-loss, accuracy)]."""
    split = np.random.default_rng(derive_seed(seed, data.name, "split"))
    asked_about, place = np.unique(data.cluster, return_inverse=True)
    tested = split.permutation(len(asked_about))[place] < len(asked_about) // 3
    order = split.permutation(len(data.y))
    test, pool = order[tested[order]], order[~tested[order]]
    rng = np.random.default_rng(derive_seed(seed, data.name, arm))
    asked = list(pool[: data.first])
    seconds = reading_seconds(data.characters, np.zeros(0), np.zeros(0))
    learner, points = Learner(), []
    while True:
        w, factor = learner.fit(data.x[asked], data.y[asked])
        noise = np.linalg.solve(factor.T, rng.standard_normal((len(w), MEMBERS)))
        p_MN = _logistic(data.x @ (w[:, None] + noise)).T
        told = np.clip(p_MN[:, test].mean(axis=0), 1e-3, 1 - 1e-3)
        loss = -np.log(np.where(data.y[test] == 1, told, 1 - told)).mean()
        right = ((told > 0.5) == data.y[test]).mean()
        points.append([len(asked), seconds[asked].sum(), loss, right])
        if len(asked) >= data.most:
            return np.array(points)
        left = np.setdiff1d(pool, asked)
        some = p_MN[:, left]
        if arm == "random":
            new = rng.choice(left, data.batch, replace=False)
        elif arm == "uncertainty":
            new = left[np.argsort(-entropy(some.mean(axis=0)), kind="stable")[: data.batch]]
        elif arm == "BALD":
            new = left[np.argsort(-mutual_information(some), kind="stable")[: data.batch]]
        else:
            sources = some.mean(axis=0, keepdims=True)
            if "judges" in arm:
                sources = np.vstack([sources, data.judges[:, left]])
            worth = entropy(sources.mean(axis=0)) + mutual_information(sources) + mutual_information(some)
            worth = worth / seconds[left] if "/ s" in arm else worth
            arms = draw(design(worth, data.batch).chance_NA, rng_for(seed, data.name, arm, len(asked)))
            new = left[[n for n, one in enumerate(arms) if one is not None]]
        asked += new.tolist()


def saved(base: Floats, arm: Floats, budget: float, axis: int, measure: int) -> float:
    """1 - n / budget, from mean curves [steps, 4]; below 0 where the arm needs more, -inf where it never gets there."""
    sign = 1.0 if measure == 3 else -1.0
    target = np.interp(budget, base[:, axis], np.maximum.accumulate(sign * base[:, measure]))
    reached = np.maximum.accumulate(sign * arm[:, measure])
    if not (reached >= target).any():
        return -math.inf  # whatever it spent: less for less quality is no saving
    at = int(np.argmax(reached >= target))
    if at == 0:
        return float(1 - arm[0, axis] / budget)
    (x0, y0), (x1, y1) = (arm[at - 1, axis], reached[at - 1]), (arm[at, axis], reached[at])
    return float(1 - (x0 + (x1 - x0) * (target - y0) / (y1 - y0)) / budget)


def interval(count: int, figure: Callable[[NDArray[np.intp]], float]) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    draws = [figure(rng.integers(0, count, count)) for _ in range(DRAWS)]
    return figure(np.arange(count)), *map(float, np.quantile(draws, [0.025, 0.975], method="inverted_cdf"))


def percent(low_to_high: tuple[float, float, float]) -> str:
    mean, low, high = (f"{100 * one:+.0f}" if math.isfinite(one) else "never" for one in low_to_high)
    return f"{mean}{'' if mean == 'never' else ' %'} ({low} to {high})"


def preferences(data: Set, seeds: int) -> list[str]:
    arms = ["random", "uncertainty", "BALD", "ours", *(["ours + judges"] if data.judges.size else []), "ours / s"]
    curves = {arm: np.array([curve(data, arm, seed) for seed in range(seeds)]) for arm in arms}
    base = curves["random"]
    size = f"{len(data.y)} items about {len(set(data.cluster))} prompts, {data.x.shape[1]} features"
    out = [
        f"### {data.name}: {data.what}",
        "",
        f"{size}; the first {data.first} at random, then {data.batch} a turn.",
        "",
    ]
    budgets = [data.most // 3, data.most * 2 // 3]
    out += ["| arm | " + " | ".join(f"log-loss at {b}" for b in budgets) + " | "]
    out[-1] += " | ".join(f"accuracy at {b}" for b in budgets) + " | "
    out[-1] += " | ".join(f"labels saved at {b}, {of}" for of in ("accuracy", "log-loss") for b in budgets)
    out[-1] += f" | seconds saved at {budgets[1]}, accuracy |"
    out.append("|---" * (4 * len(budgets) + 2) + "|")
    for arm in arms:
        mean = curves[arm].mean(axis=0)
        cells = [f"{np.interp(b, mean[:, 0], mean[:, 2]):.4f}" for b in budgets]
        cells += [f"{100 * np.interp(b, mean[:, 0], mean[:, 3]):.1f} %" for b in budgets]
        if arm == "random":
            cells += ["–"] * (2 * len(budgets) + 1)
        else:
            wanted = [(b, 0, measure) for measure in (3, 2) for b in budgets]
            seconds = np.interp(budgets[1], base.mean(axis=0)[:, 0], base.mean(axis=0)[:, 1])
            for budget, axis, measure in [*wanted, (seconds, 1, 3)]:

                def figure(
                    rows: NDArray[np.intp], b: float = budget, a: int = axis, m: int = measure, k: str = arm
                ) -> float:
                    return saved(base[rows].mean(axis=0), curves[k][rows].mean(axis=0), b, a, m)

                cells.append(percent(interval(seeds, figure)))
        out.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*out, ""]


# --- crowd --------------------------------------------------------------------------------


def crowd(name: str, seeds: int, most: int | None = None) -> list[str]:
    votes: dict[str, list[tuple[str, str]]] = {}
    gold: dict[str, str] = {}
    with (DATA / "crowd" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        for worker, task, label, truth in csv.reader(file):
            votes.setdefault(task, []).append((worker, label))
            gold[task] = truth
    tasks = sorted(votes)
    if most is not None:
        tasks = sorted(random.Random(0).sample(tasks, most))
    total = sum(len(votes[task]) for task in tasks)
    full = [_replay(tasks, votes, gold, "all", seed) for seed in range(seeds)]
    goal = np.array([curve[-1, 1] for curve in full])
    out, base = [], np.zeros(0)
    for arm in ("random", "uncertainty", "ours", "ours + best worker"):
        curves = [_replay(tasks, votes, gold, arm, seed) for seed in range(seeds)]
        for within in (0.01, 0.0):
            reached = np.array([_reached(c, g - within) for c, g in zip(curves, goal, strict=True)])
            if arm == "random":
                base = np.append(base, reached) if within == 0.0 else reached
                cell = "–"
            else:
                than = base[:seeds] if within else base[seeds:]

                def figure(rows: NDArray[np.intp], a: Floats = reached, b: Floats = than) -> float:
                    return float(1 - a[rows].mean() / b[rows].mean())

                cell = percent(interval(seeds, figure))
            sizes = f"{len(tasks)} items, {total} labels | {100 * goal.mean():.1f} %"
            what = f"within {100 * within:.0f} point" if within else "as good"
            out.append(f"| {name} | {sizes} | {arm} | {what} | {reached.mean():.0f} | {cell} |")
    return out


def _reached(points: Floats, goal: float) -> float:
    good = points[:, 1] >= goal - 1e-9
    return float(points[np.argmax(good), 0] if good.any() else points[-1, 0])


def _replay(
    tasks: list[str], votes: dict[str, list[tuple[str, str]]], gold: dict[str, str], arm: str, seed: int
) -> Floats:
    """[steps, (labels, share right)]; of tied labels each counts its share."""
    rng = rng_for(seed, "crowd")
    waiting = [rng.sample(votes[task], len(votes[task])) for task in tasks]
    counts: list[Counter[str]] = [Counter() for _ in tasks]
    agreed: dict[str, list[float]] = {}
    places = range(len(tasks))
    batch = max(1, len(tasks) // 25)
    asked, points = 0, []
    chooser = rng_for(seed, "crowd", arm)
    turn = list(places)  # everything once
    while turn:
        for place in turn:
            pick = -1
            if arm == "ours + best worker" and counts[place]:
                pick = max(range(len(waiting[place])), key=lambda n: _skill(agreed.get(waiting[place][n][0], [])))
            worker, label = waiting[place].pop(pick)
            if counts[place]:
                top = max(counts[place].values())
                leading = [k for k, n in counts[place].items() if n == top]
                agreed.setdefault(worker, []).append((label in leading) / len(leading))
            counts[place][label] += 1
            asked += 1
        points.append([asked, sum(_right(counts[n], gold[tasks[n]]) for n in places) / len(tasks)])
        left = [n for n in places if waiting[n]]
        if arm == "all":
            turn = left
            continue
        if arm == "random" or len(left) <= batch:
            turn = chooser.sample(left, min(batch, len(left)))
            continue
        share = np.array([(max(counts[n].values()) + 0.5) / (counts[n].total() + 1) for n in left])
        worth = entropy(share)
        if arm == "uncertainty":
            tie = np.array([chooser.random() for _ in left])
            turn = [left[n] for n in np.lexsort((tie, -worth))[:batch]]
        else:
            arms = draw(design(worth, batch).chance_NA, chooser)
            turn = [left[n] for n, one in enumerate(arms) if one is not None]
    return np.array(points)


def _skill(agreed: list[float]) -> float:
    return (sum(agreed) + 2.0) / (len(agreed) + 4.0)


def _right(counts: Counter[str], truth: str) -> float:
    top = max(counts.values())
    leading = [label for label, n in counts.items() if n == top]
    return (truth in leading) / len(leading)


# --- labels: machines, and people where it is worth it -------------------------------------


def labels(data: Set, seeds: int) -> list[str]:
    """People's answers until 90 and 95 % of the set are right."""
    consensus = data.judges.mean(axis=0)
    right = np.where(consensus == 0.5, 0.5, (consensus > 0.5) == data.y)
    worth = entropy(consensus) + mutual_information(data.judges)
    grid = np.arange(0, len(data.y) + 1, max(1, len(data.y) // 40))
    out, base = [], np.zeros(0)
    for arm in ("random", "uncertainty", "ours"):
        curves = np.zeros((seeds, len(grid)))
        for seed in range(seeds):
            rng = rng_for(seed, "labels", arm)
            tie = np.array([rng.random() for _ in worth])
            for k, n in enumerate(grid):
                asked = np.zeros(len(worth), dtype=bool)
                if arm == "ours":
                    asked = np.array([one is not None for one in draw(design(worth, int(n)).chance_NA, rng)])
                else:
                    asked[np.lexsort((tie, -worth if arm == "uncertainty" else tie))[:n]] = True
                curves[seed, k] = np.where(asked, 1.0, right).mean()
        base = curves if arm == "random" else base
        for goal in (0.9, 0.95):

            def needed(table: Floats, g: float = goal) -> float:
                return float(np.interp(g, np.maximum.accumulate(table.mean(axis=0)), grid))

            def figure(rows: NDArray[np.intp], c: Floats = curves, b: Floats = base, f: Any = needed) -> float:
                return 1 - f(c[rows]) / f(b[rows])

            cell = "–" if arm == "random" else percent(interval(seeds, figure))
            head = f"| {data.name} | {len(worth)} | {100 * right.mean():.1f} % | {arm} | {100 * goal:.0f} %"
            out.append(f"{head} | {needed(curves):.0f} | {cell} |")
    return out


# --- duels --------------------------------------------------------------------------------


def duels(seeds: int) -> list[str]:
    rows = json.loads((DATA / "pandalm" / "testset-v1.json").read_text())
    said: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        first, second = row["cmp_key"].split("_")
        votes = Counter(str(row[f"annotator{n}"]) for n in (1, 2, 3))
        won = 0.5 + 0.5 * (votes["1"] > votes["2"]) - 0.5 * (votes["2"] > votes["1"])
        said.setdefault((first, second), []).append(won)
    names = sorted({name for pair in said for name in pair})
    size = len(names)
    chance = np.full((size, size), 0.5)
    for (a, b), won in said.items():
        i, j = names.index(a), names.index(b)
        chance[i, j], chance[j, i] = float(np.mean(won)), 1 - float(np.mean(won))
    best = int((chance > 0.5).sum(axis=1).argmax())
    budgets = (20, 40, 80, 160)
    right: dict[str, list[list[float]]] = {"random": [], "duel": []}
    for arm in right:
        for seed in range(seeds):
            rng = np.random.default_rng(derive_seed(seed, "duel"))
            wins, line, asked = np.zeros((size, size)), [], 0
            while asked < budgets[-1]:
                a, b = rng.choice(size, 2, replace=False) if arm == "random" else double_thompson(wins, rng)
                if a == b:  # nothing to ask: the next best question is any with the arm that leads
                    b = int(rng.choice([k for k in range(size) if k != a]))
                pair = (names[a], names[b])
                won = rng.choice(said[pair]) if pair in said else 1 - rng.choice(said[pair[::-1]])
                wins[a, b] += won
                wins[b, a] += 1 - won
                asked += 1
                if asked in budgets:
                    share = (1 + wins) / (2 + wins + wins.T)
                    np.fill_diagonal(share, 0.5)
                    lead = np.lexsort((share.sum(axis=1), (share > 0.5).sum(axis=1)))[-1]
                    line.append(float(lead == best))
            right[arm].append(line)
    out = []
    for arm, found in right.items():
        table, other = np.array(found), np.array(right["random"])
        cells = [f"{100 * share:.0f} %" for share in table.mean(axis=0)]
        for k in range(len(budgets) if arm == "duel" else 0):
            _, low, high = interval(seeds, lambda rows, gain=(table - other)[:, k]: float(gain[rows].mean()))
            cells[k] += f" ({100 * low:+.0f} to {100 * high:+.0f})"
        out.append(f"| {arm} | " + " | ".join(cells) + " |")
    shares = ", ".join(f"{names[k]} {np.delete(chance[k], k).mean():.2f}" for k in np.argsort(-chance.mean(axis=1)))
    head = "| arm | " + " | ".join(f"right after {b}" for b in budgets) + " |"
    return [f"Share of comparisons won: {shares}.", "", head, "|---" * (len(budgets) + 1) + "|", *out]


# --- estimates ----------------------------------------------------------------------------


def estimates(data: Set, n: int, draws: int) -> list[str]:
    """How often the first judge is right, estimated from n of the items, chosen for what the judges say of them."""
    right = (np.round(data.judges[0]) == data.y).astype(float) * (data.judges[0] != 0.5)
    worth = entropy(data.judges.mean(axis=0)) + mutual_information(data.judges)
    plan = design(worth, n)
    kinds: dict[str, list[float]] = {
        "plain mean of all": [],
        "mean weighted by 1/propensity": [],
        "uniform arm alone": [],
    }
    for seed in range(draws):
        arms = draw(plan.chance_NA, rng_for(seed, "estimates"))
        some = [k for k, arm in enumerate(arms) if arm is not None]
        weight = 1 / plan.propensity[some]
        kinds["plain mean of all"].append(float(right[some].mean()))
        kinds["mean weighted by 1/propensity"].append(float((weight * right[some]).sum() / weight.sum()))
        kinds["uniform arm alone"].append(float(right[[k for k, arm in enumerate(arms) if arm == 0]].mean()))
    truth = right.mean()
    out = ["| estimate | mean over draws | bias | spread of one |", "|---|---|---|---|"]
    for name, values in kinds.items():
        error = np.std(values) / math.sqrt(draws) * 1.96
        bias = 100 * (np.mean(values) - truth)
        out.append(
            f"| {name} | {100 * np.mean(values):.1f} % | {bias:+.1f} ± {100 * error:.1f} | {100 * np.std(values):.1f} |"
        )
    head = f"{data.name}: how often its first judge agrees with people, {100 * truth:.1f} % of {len(right)} items;"
    head += f" {n} asked, {draws} draws."
    return [head, "", *out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/selection"), help="hidden states are kept here")
    parser.add_argument(
        "--only", nargs="*", default=["pandalm", "llmbar", "xstest", "hh", "crowd", "labels", "duels", "estimates"]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "selection.md")
    options = parser.parse_args()
    began = time.monotonic()
    out = ["# What choosing what to ask saves", "", (__doc__ or "").strip(), ""]
    for make in (pandalm, llmbar, xstest, hh):
        if make.__name__ in options.only:
            out += preferences(make(options.folder), options.seeds)
            print("\n".join(out[-12:]), f"{time.monotonic() - began:.0f} s", flush=True)
    if "crowd" in options.only:
        head = "| set | size | full vote | arm | goal | labels | saved against random |"
        out += ["### crowd: labels until the vote is as good as with all labels", "", head, "|---" * 7 + "|"]
        for name, most in (("MS", None), ("CF", None), ("SP", 1000)):
            out += crowd(name, options.seeds, most)
            print("\n".join(out[-8:]), f"{time.monotonic() - began:.0f} s", flush=True)
        out.append("")
    if "labels" in options.only:
        head = "| set | items | machines alone | arm | goal | answers of people | saved against random |"
        out += ["### labels: machines, and people where it is worth it", "", head, "|---" * 7 + "|"]
        for make in (pandalm, llmbar):
            out += labels(make(options.folder), options.seeds)
        out.append("")
    if "duels" in options.only:
        out += ["### duels: pandalm's five models, 400 seeds, points gained in brackets", "", *duels(400), ""]
    if "estimates" in options.only:
        out += ["### estimates", "", *estimates(pandalm(options.folder), 60, 2000), ""]
    seconds = time.monotonic() - began
    machine = f"{os.cpu_count()} cores ({platform.machine()}), one thread of numpy {np.__version__}"
    out += [f"{options.seeds} seeds (0 to {options.seeds - 1}); {seconds:.0f} s on {machine}.", ""]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(out))
    print(options.out.read_text())


if __name__ == "__main__":
    main()
