"""What the recipes `math` and `code` gain by reinforcement learning, over seeds, beside their rewards' own errors.

Each seed is one run of the recipe, with its own tasks. Before is the SFT that shows the form of an answer alone,
after is GRPO from there, both greedy on the same held-out tasks. Differences are paired by task; the same task
in several seeds is one cluster, and so are functions that do the same. The interval over seeds alone is
wider and also covers luck in training. The false-pass rate is that of the reward's audit (docs/verifiers.md).

    python benchmarks/recipe_gains.py math --seeds 1 2 3 --folder runs/gains

A run that was stopped continues; the table is written after each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from metier.base.config import find_recipe, load_yaml
from metier.evaluate.samples import samples
from metier.feedback.audit.audit import audit
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.events import read
from metier.records.ledger import Ledger
from metier.stats.intervals import mean_interval, wilson
from metier.stats.paired import paired

BASE, BEFORE, AFTER = "baseline", "evaluate-sft", "evaluate-final"  # the first where the recipe has it
Values = dict[str, dict[str, list[float | None]]]  # stage -> seed/task -> its success


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def share(values: list[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f} %" if values else "–"


def collect(ledger: Ledger, run_id: str, seed: int, won: Values, about: dict[str, dict[str, str]]) -> None:
    """The successes of one seed, and what each task is."""
    for stage in (BASE, BEFORE, AFTER):
        found = samples(ledger, run_id, stage)
        tasks = ledger.tasks([sample.id for sample in found])
        for sample in found:
            key = f"{seed}/{sample.id}"
            won[stage][key] = [sample.score]
            verifier = tasks[sample.id].verifiers[0].name
            about[key] = {"split": sample.split, "kind": sample.kind, "cluster": sample.cluster, "verifier": verifier}


def row(what: str, keys: list[str], won: Values, about: dict[str, dict[str, str]]) -> str:
    """Before, after and the difference for some of the tasks."""
    a, b = ({key: won[stage][key] for key in keys} for stage in (AFTER, BEFORE))
    p = paired(a, b, clusters={key: about[key]["cluster"] for key in keys})
    by_seed = []
    for seed in sorted({key.partition("/")[0] for key in keys}):
        mine = [key for key in keys if key.startswith(f"{seed}/")]
        p_seed = paired({key: a[key] for key in mine}, {key: b[key] for key in mine})
        by_seed.append(p_seed.diff or 0.0)
    over = mean_interval(by_seed)
    means = [100 * (mean or 0.0) for mean in (p.mean_b, p.mean_a)]
    base = share([float(v) for key in keys for v in won[BASE].get(key, ()) if v is not None])
    cells = [what, str(p.n), base, f"{means[0]:.1f} %", f"{means[1]:.1f} %", points(p.diff)]
    return (
        "| "
        + " | ".join([*cells, f"{points(p.low)} to {points(p.high)}", f"{points(over.low)} to {points(over.high)}"])
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("math", "code"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/gains"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(__file__).parent / "results" / f"{options.recipe}-gains.md"
    won: Values = {BASE: {}, BEFORE: {}, AFTER: {}}
    about: dict[str, dict[str, str]] = {}
    seconds: dict[int, float] = {}
    hardware: Any = {}
    for seed in options.seeds:
        given = load_yaml(find_recipe(options.recipe), Recipe)
        recipe = Recipe(**{**dict(given), "name": f"{options.recipe}-{seed}", "seed": seed})
        where = options.folder / f"{options.recipe}-{seed}.sqlite"
        result = run(recipe, folder=str(options.folder / recipe.name), ledger=str(where), listener=tell)
        seconds[seed] = sum(e["seconds"] for e in read(result.folder) if e["event"] == "stage_end")
        with Ledger.open(where) as ledger:
            hardware = ledger.run(result.run_id).hardware
            collect(ledger, result.run_id, seed, won, about)
        write(out, options.recipe, won, about, seconds, hardware)
    print(out.read_text())


def tell(event: dict[str, Any]) -> None:
    if event["event"] in ("stage_end", "eval"):
        print(json.dumps({key: value for key, value in event.items() if key != "at"}), flush=True)


def write(
    out: Path, recipe: str, won: Values, about: dict[str, dict[str, str]], seconds: dict[int, float], hardware: Any
) -> None:
    head = "| tasks | n | base | format SFT | with GRPO | difference | 95 % | over seeds |"
    lines = [
        f"# What the recipe {recipe!r} gains\n",
        (__doc__ or "").strip(),
        "",
        head,
        "|---|---|---|---|---|---|---|",
    ]
    both = [key for key in won[AFTER] if key in won[BEFORE]]
    for split in sorted({about[key]["split"] for key in both}):
        mine = [key for key in both if about[key]["split"] == split]
        lines.append(row(f"**{split}**", mine, won, about))
        for kind in sorted({about[key]["kind"] for key in mine}):
            lines.append(row(f"{split}: {kind}", [key for key in mine if about[key]["kind"] == kind], won, about))
    lines += ["", "| seed | held out, before | after | unseen, before | after | seconds |", "|---|---|---|---|---|---|"]
    for seed, spent in seconds.items():
        cells = []
        for split in ("heldout", "unseen"):
            for stage in (BEFORE, AFTER):
                keys = [key for key in both if key.startswith(f"{seed}/") and about[key]["split"] == split]
                cells.append(share([float(v) for key in keys for v in won[stage][key] if v is not None]))
        lines.append(f"| {seed} | {' | '.join(cells)} | {spent:.0f} |")
    for name in sorted({one["verifier"] for one in about.values()}):
        done = audit(name, jobs=2)
        wrong, n = done.counts(False)
        low, high = wilson(wrong, n)
        told = f"{100 * wrong / n:.1f} % ({100 * low:.1f} to {100 * high:.1f}), {wrong} of {n} cases that must fail"
        lines += ["", f"The reward is the verifier `{name}`; false passes in its audit: {told}."]
    lines += ["", f"{hardware.get('cpu')}, {hardware.get('cores')} cores; seeds {list(seconds)}.", ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
