"""Feedback of many people into behaviour: sources weighted by what they are worth, against all labels alike.

    labels    pairs of episodes of the recipe `preferences`, judged anew by simulated crowds of several kinds, at
              several votes a pair; the share of pairs whose pooled label is the truth. Nothing is trained
    rewards   the recipe's two reward models, on held-out pairs of known truth: accuracy, and calibration
    policies  the recipe's two policies by DPO, on held-out tasks, greedily; and the SFT that both start from

The truth is which episode the verifiers give the higher reward. Labels are pooled by the majority or by
Dawid-Skene (`auto` beside it, which leaves the majority only on evidence). Differences are weighted less alike,
paired by pair or task, clustered by task over the seeds; over seeds is the t interval of the seeds' own differences.

    python benchmarks/preferences.py --seeds 1 2 3 --folder runs/preferences

A run that was stopped continues; the table is written after each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe_gains import points, tell

from metier.base.config import find_recipe, load_yaml
from metier.evaluate.samples import samples
from metier.feedback.data.declaration import Pool
from metier.feedback.data.pooling import Vote, pool
from metier.feedback.people.simulated import Habit, Pair, asked
from metier.recipes.comparing import pairs_of_truth
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.ledger import Ledger
from metier.stats.calibration import calibration
from metier.stats.intervals import mean_interval, share_interval
from metier.stats.paired import paired

CROWDS: dict[str, dict[Habit, int]] = {
    "the recipe's": {"careful": 2, "hasty": 3, "length": 2, "correlated": 3, "adversarial": 2},
    "all careful": {"careful": 8},
    "careful and hasty": {"careful": 2, "hasty": 10},
    "some adversarial": {"careful": 4, "hasty": 4, "adversarial": 4},
    "many of a bias to length": {"careful": 4, "length": 8},
    "a clique in the majority": {"careful": 4, "correlated": 8},
}
VOTES = (1, 3, 5, 8)
METHODS = ("majority", "dawid-skene", "auto")
ARMS = ("alike", "weighted")
Scores = dict[str, tuple[str, float]]  # seed/item -> its cluster and its score


def pooled(pairs: Sequence[Pair], people: Mapping[Habit, int], votes: int, method: Any, seed: int) -> list[float]:
    """Whether the pooled label of each pair is the truth; a half where it has none."""
    place = {frozenset(pair.episodes): n for n, pair in enumerate(pairs)}
    truth = {f"{n:05}": "first" if pair.better == 0 else "second" for n, pair in enumerate(pairs)}
    said = []
    for one in asked(pairs, people, votes=votes, criterion="better", seed=seed):
        n = place[frozenset(one.about)]
        label = "first" if one.about[int(one.value)] == pairs[n].episodes[0] else "second"
        said.append(Vote(f"{n:05}", one.source.name, label, 1.0, (one.id,)))
    verdicts, _ = pool(said, Pool(method=method))
    return [float(verdicts[item].label == best) if item in verdicts else 0.5 for item, best in truth.items()]


def label_table(by_seed: Mapping[int, Sequence[Pair]]) -> list[str]:
    lines = [
        "| crowd | votes a pair | majority | Dawid-Skene | auto | Dawid-Skene less majority |",
        "|---|---|---|---|---|---|",
    ]
    for name, people in CROWDS.items():
        for votes in VOTES:
            if votes > sum(people.values()):
                continue
            found: dict[str, dict[str, list[float | None]]] = {method: {} for method in METHODS}
            for seed, pairs in by_seed.items():
                for method in METHODS:
                    told = pooled(pairs, people, votes, method, seed)
                    found[method].update({f"{seed}/{n}": [value] for n, value in enumerate(told)})
            shares = [statistics.fmean(v[0] or 0.0 for v in found[method].values()) for method in METHODS]
            p = paired(found["dawid-skene"], found["majority"])
            cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
            lines.append(f"| {name} | {votes} | {cells} | {change(p.diff, p.low, p.high)} |")
    return lines


def change(diff: float | None, low: float | None, high: float | None) -> str:
    return f"{points(diff)} ({points(low)} to {points(high)})"


def against(alike: Scores, weighted: Scores, seeds: Sequence[int]) -> str:
    """Weighted less alike, and the same over seeds alone."""
    p = paired(
        {key: [score] for key, (_, score) in weighted.items()},
        {key: [score] for key, (_, score) in alike.items()},
        clusters={key: cluster for key, (cluster, _) in alike.items()},
    )
    own = []
    for seed in seeds:
        keys = [key for key in alike if key.startswith(f"{seed}/") and key in weighted]
        if keys:
            own.append(statistics.fmean(weighted[key][1] - alike[key][1] for key in keys))
    t = mean_interval(own)
    return f"{change(p.diff, p.low, p.high)}; over seeds {points(t.low)} to {points(t.high)}"


def level(scores: Scores) -> str:
    found = share_interval(
        [score for _, score in scores.values()], clusters=[cluster for cluster, _ in scores.values()]
    )
    return f"{100 * found.mean:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "preferences.md")
    options = parser.parse_args()
    recipe = load_yaml(find_recipe("preferences"), Recipe)
    (a_task,) = (stage.pairs for stage in recipe.stages if stage.kind == "crowd")
    pairs: dict[int, list[Pair]] = {}
    rewards: dict[str, Scores] = {arm: {} for arm in ARMS}
    chances: dict[str, tuple[list[float], list[float]]] = {arm: ([], []) for arm in ARMS}
    policies: dict[str, Scores] = {arm: {} for arm in ("sft", "policy-alike", "policy-weighted")}
    rows: list[str] = []
    for number, seed in enumerate(options.seeds, 1):
        where = options.folder / f"seed-{seed}.sqlite"
        result = run(
            recipe.model_copy(update={"seed": seed}),
            folder=str(options.folder / f"seed-{seed}"),
            ledger=str(where),
            listener=tell,
        )
        done = {path.stem: json.loads(path.read_text()) for path in (result.folder / "stages").glob("*.json")}
        with Ledger.open(where) as ledger:
            pairs[seed] = pairs_of_truth(ledger, result.run_id, "answers", a_task, seed)
            for arm in ARMS:
                for one in done[f"measure-{arm}"]["pairs"]:
                    rewards[arm][f"{seed}/{one['id']}"] = (one["cluster"], one["score"])
                    chances[arm][0].append(one["p"])
                    chances[arm][1].append(one["y"])
            for arm in policies:
                for row in samples(ledger, result.run_id, f"evaluate-{arm}"):
                    if row.score is not None:
                        policies[arm][f"{seed}/{row.id}"] = (row.cluster, row.score)
            hardware = dict(ledger.run(result.run_id).hardware)
        audit = done["judge"]["audit"]["figures"]["accuracy"]
        counts = " | ".join(str(done[arm]["rows"]) for arm in ARMS)
        judge = f"{100 * audit['value']:.0f} % of {audit['n']}, {done['judge']['fit']}"
        rows.append(f"| {seed} | {len(pairs[seed])} | {done['people']['statements']} | {judge} | {counts} |")
        lines = [
            "# Preferences of many people, pooled alike and by what they are worth",
            "",
            (__doc__ or "").strip(),
            "",
        ]
        lines += ["## Labels", "", *label_table(pairs), ""]
        lines += [
            "## What was learned from",
            "",
            "| seed | pairs | labels by people | judge in its audit | rows alike | rows weighted |",
        ]
        lines += ["|---|---|---|---|---|---|", *rows, ""]
        lines += ["## Reward models, on held-out pairs", ""]
        lines += ["| | accuracy | calibration error (null band) | Brier |", "|---|---|---|---|"]
        for arm in ARMS:
            told = calibration(*chances[arm])
            band = f"{told.ece:.3f} ({told.ece_null.low:.3f} to {told.ece_null.high:.3f})"
            lines.append(f"| {arm} | {level(rewards[arm])} | {band} | {told.brier:.3f} |")
        seen = options.seeds[:number]
        lines += ["", f"Weighted less alike: {against(rewards['alike'], rewards['weighted'], seen)}.", ""]
        lines += ["## Policies, on held-out tasks", "", "| | success |", "|---|---|"]
        lines += [f"| {arm} | {level(scores)} |" for arm, scores in policies.items()]
        for low, high in (("sft", "policy-alike"), ("sft", "policy-weighted"), ("policy-alike", "policy-weighted")):
            lines += ["", f"{high} less {low}: {against(policies[low], policies[high], seen)}."]
        lines += ["", f"{hardware.get('cpu')}, {hardware.get('cores')} cores; seeds {seen}.", ""]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines))
    print(options.out.read_text())


if __name__ == "__main__":
    main()
