"""Does GRPO add something to SFT, and more than the same time spent otherwise?

For each seed: base model, SFT on demonstrations, and from that SFT three arms that are
given about the same wall time: GRPO, rejection sampling (SFT on the sampled episodes that
succeeded, same tasks), and continued SFT (more demonstrations of the same kind). All are
measured on the same held-out tasks. Pooled differences are paired by task and clustered by
phrasing, across seeds too; beside them stands the interval over seeds alone, which is wider
and also covers luck in training.

    python benchmarks/desk_arms.py --seeds 1 2 3 --folder runs/arms

A run that was stopped continues. The table is written to benchmarks/results/desk-arms.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from metier.base.config import find_recipe, load_yaml
from metier.evaluate.suites import successes
from metier.recipes.runner import run
from metier.recipes.settings import Demonstrate, Evaluate, Recipe, Rl, Sft
from metier.records.events import read
from metier.records.ledger import Ledger
from metier.stats.intervals import mean_interval, share_interval
from metier.stats.paired import paired

ARMS = ("grpo", "rejection", "more-sft")
MORE_LR = 2e-4  # of continued SFT: GRPO's 3e-5 would hardly move it
REJECTION_STEPS = 16  # takes about as long as GRPO's 12: only what succeeded is trained on


def recipe_for(seed: int, more_steps: int) -> Recipe:
    """The main job without its report, and two more arms from the same SFT."""
    desk = load_yaml(find_recipe("desk"), Recipe)
    by_name = {stage.name: stage for stage in desk.stages}
    sft, grpo, final = by_name["sft"], by_name["grpo"], by_name["evaluate-final"]
    assert isinstance(sft, Sft) and isinstance(grpo, Rl) and isinstance(final, Evaluate)
    demonstrations = by_name["demonstrations"]
    assert isinstance(demonstrations, Demonstrate)
    heldout = {"heldout": final.splits["heldout"]}
    more = more_steps * sft.batch
    arms = (
        grpo.model_copy(
            update={
                "name": "rejection",
                "method": "rejection",
                "steps": REJECTION_STEPS,
                "advantage": None,
                "options": {},
            }
        ),
        final.model_copy(update={"name": "evaluate-rejection", "of": "rejection", "splits": heldout}),
        demonstrations.model_copy(update={"name": "more-demonstrations", "n": demonstrations.n + more}),
        sft.model_copy(
            update={
                "name": "more-sft",
                "of": "sft",
                "data": "more-demonstrations",
                "lr": MORE_LR,
                "max_steps": more_steps,
            }
        ),
        final.model_copy(update={"name": "evaluate-more-sft", "of": "more-sft", "splits": heldout}),
    )
    stages = [stage for stage in desk.stages if stage.kind != "report"]
    return Recipe(**{**dict(desk), "name": f"desk-arms-{seed}", "seed": seed, "stages": (*stages, *arms)})


def main() -> None:
    """Run what is not yet run, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/arms"))
    parser.add_argument("--more-steps", type=int, default=120, help="steps of continued SFT, to match GRPO's time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/desk-arms.md"))
    options = parser.parse_args()
    found = []
    for seed in options.seeds:
        recipe = recipe_for(seed, options.more_steps)
        ledger = options.folder / f"ledger-{seed}.sqlite"
        result = run(recipe, folder=str(options.folder / str(seed)), ledger=str(ledger), listener=_tell)
        found.append((seed, recipe, result.run_id, result.folder, ledger))
        options.out.write_text(_table(found))  # after each seed, so that a stop loses nothing
    print(options.out.read_text())


def _tell(event: dict[str, Any]) -> None:
    if event["event"] in ("stage_end", "eval"):
        print(json.dumps({k: v for k, v in event.items() if k != "at"}), flush=True)


def _table(found: list[tuple[int, Recipe, str, Path, Path]]) -> str:
    stages = ("baseline", "evaluate-sft", "evaluate-final", "evaluate-rejection", "evaluate-more-sft")
    values: dict[str, dict[str, float | None]] = {stage: {} for stage in stages}
    clusters: dict[str, str] = {}
    rungs: dict[tuple[str, str], list[float | None]] = {}
    lines = [
        "| seed | base | SFT | GRPO | rejection | continued SFT | seconds of each arm |",
        "|---|---|---|---|---|---|---|",
    ]
    by_seed: dict[str, list[float]] = {arm: [] for arm in ("evaluate-sft", *stages[3:])}
    hardware = {}
    for seed, _, run_id, folder, path in found:
        with Ledger.open(path) as ledger:
            hardware = ledger.run(run_id).hardware
            means = {}
            for stage in stages:
                won = successes(ledger, run_id, stage)
                episodes = ledger.episodes(run_id=run_id, stage=stage)
                tasks = ledger.tasks([e.task_id for e in episodes])
                for episode in episodes:
                    rungs.setdefault((stage, episode.split), []).append(won[episode.id])
                    if episode.split == "heldout":
                        key = f"{seed}/{episode.task_id}"
                        values[stage][key] = won[episode.id]
                        clusters[key] = tasks[episode.task_id].cluster
                mine = [v for k, v in values[stage].items() if k.startswith(f"{seed}/") and v is not None]
                means[stage] = statistics.fmean(mine)
        for other, differences in by_seed.items():
            differences.append(means["evaluate-final"] - means[other])
        ends = {e["stage"]: e["seconds"] for e in read(folder) if e["event"] == "stage_end"}
        cells = " | ".join(f"{100 * means[s]:.1f} %" for s in stages)
        lines.append(f"| {seed} | {cells} | {', '.join(f'{a} {ends[a]:.0f}' for a in ARMS)} |")
    lines += [
        "",
        "| held-out difference | pooled, paired by task | 95 % interval | n | interval over seeds |",
        "|---|---|---|---|---|",
    ]
    for other in by_seed:
        a = {k: [v] for k, v in values["evaluate-final"].items()}
        b = {k: [v] for k, v in values[other].items()}
        p = paired(a, b, clusters=clusters)
        over = mean_interval(by_seed[other])
        lines.append(
            f"| GRPO − {other.removeprefix('evaluate-')} | {_points(p.diff)} | {_points(p.low)} to {_points(p.high)} "
            f"| {p.n} | {_points(over.low)} to {_points(over.high)} |"
        )
    lines += ["", "| stage | split | success | 95 % interval | n |", "|---|---|---|---|---|"]
    for (stage, split), won in rungs.items():
        s = share_interval(won)
        lines.append(f"| {stage} | {split} | {_points(s.mean)} | {_points(s.low)} to {_points(s.high)} | {s.n} |")
    lines += ["", f"Hardware: {hardware.get('cpu')}, {hardware.get('cores')} cores; seeds {[f[0] for f in found]}.", ""]
    return "\n".join(lines)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


if __name__ == "__main__":
    main()
