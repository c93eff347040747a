"""Does GRPO add something to SFT, and more than the same time spent otherwise?

For each seed: base model, SFT on demonstrations, and from that SFT three arms that are
given about the same wall time: GRPO, rejection sampling (SFT on the sampled episodes that
succeeded, same tasks), and continued SFT (more demonstrations of the same kind, some seen
before). All are measured on the same held-out tasks. Pooled differences are paired by task and
clustered by phrasing, across seeds too; beside them stands the interval over seeds alone,
which is wider and also covers luck in training.

    python benchmarks/desk_arms.py --seeds 1 2 3 --folder runs/arms

The main jobs come first, of all seeds, and then the two other arms of each. A run that was
stopped continues. The table is written to benchmarks/results/desk-arms.md after each of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.base.config import find_recipe, load_yaml
from metier.evaluate.samples import samples
from metier.recipes.runner import run
from metier.recipes.settings import BASE, Demonstrate, Evaluate, Recipe, Rl, Sft
from metier.records.events import read
from metier.records.ledger import Ledger
from metier.stats.intervals import mean_interval, share_interval
from metier.stats.paired import paired

ARMS = ("grpo", "rejection", "more-sft")
STAGES = ("baseline", "evaluate-sft", "evaluate-final", "evaluate-rejection", "evaluate-more-sft")
MORE_LR = 2e-4  # of continued SFT: GRPO's 3e-5 would hardly move it
MORE_STEPS = 120
REJECTION_STEPS = 16  # takes about as long as GRPO's 12: only what succeeded is trained on


def main_job(seed: int) -> Recipe:
    """The default recipe without its report."""
    desk = load_yaml(find_recipe("desk"), Recipe)
    stages = tuple(stage for stage in desk.stages if stage.kind != "report")
    return Recipe(**{**dict(desk), "name": f"desk-{seed}", "seed": seed, "stages": stages})


def other_arms(job: Recipe, sft_checkpoint: Path, more_steps: int) -> Recipe:
    """Two more arms from the SFT of a main job."""
    by_name = {stage.name: stage for stage in job.stages}
    sft, grpo, final = by_name["sft"], by_name["grpo"], by_name["evaluate-final"]
    assert isinstance(sft, Sft) and isinstance(grpo, Rl) and isinstance(final, Evaluate)
    demonstrations = by_name["demonstrations"]
    assert isinstance(demonstrations, Demonstrate)
    heldout = {"heldout": final.splits["heldout"]}
    arms = (
        grpo.model_copy(
            update={
                "name": "rejection",
                "of": BASE,
                "method": "rejection",
                "steps": REJECTION_STEPS,
                "advantage": None,
                "options": {},
            }
        ),
        final.model_copy(update={"name": "evaluate-rejection", "of": "rejection", "splits": heldout}),
        demonstrations.model_copy(
            update={"name": "more-demonstrations", "n": demonstrations.n + more_steps * sft.batch}
        ),
        sft.model_copy(
            update={
                "name": "more-sft",
                "of": BASE,
                "data": "more-demonstrations",
                "lr": MORE_LR,
                "max_steps": more_steps,
            }
        ),
        final.model_copy(update={"name": "evaluate-more-sft", "of": "more-sft", "splits": heldout}),
    )
    model = job.model.model_copy(update={"name": str(sft_checkpoint)})
    return Recipe(**{**dict(job), "name": f"arms-{job.seed}", "model": model, "stages": arms})


@dataclass
class Found:
    """What one seed has so far: where each evaluation stands, and how long each stage took."""

    seed: int
    ledger: Path
    run_of: dict[str, str] = field(default_factory=dict)  # evaluation -> run
    seconds: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Run what is not yet run, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/arms"))
    parser.add_argument("--more-steps", type=int, default=MORE_STEPS, help="of continued SFT, to match GRPO's time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/desk-arms.md"))
    options = parser.parse_args()
    found = {seed: Found(seed, options.folder / f"ledger-{seed}.sqlite") for seed in options.seeds}
    jobs = {seed: main_job(seed) for seed in options.seeds}
    for seed, job in jobs.items():
        _carry_out(job, options.folder / f"{seed}-main", found[seed])
        _write(options.out, list(found.values()))  # after each run, so that a stop loses nothing
    for seed, job in jobs.items():
        arms = other_arms(job, options.folder / f"{seed}-main" / "checkpoints" / "sft", options.more_steps)
        _carry_out(arms, options.folder / f"{seed}-arms", found[seed])
        _write(options.out, list(found.values()))
    print(options.out.read_text())


def _carry_out(recipe: Recipe, folder: Path, found: Found) -> None:
    result = run(recipe, folder=str(folder), ledger=str(found.ledger), listener=_tell)
    found.run_of.update({stage.name: result.run_id for stage in recipe.stages if stage.kind == "evaluate"})
    found.seconds.update({e["stage"]: e["seconds"] for e in read(result.folder) if e["event"] == "stage_end"})


def _tell(event: dict[str, Any]) -> None:
    if event["event"] in ("stage_end", "eval"):
        print(json.dumps({k: v for k, v in event.items() if k != "at"}), flush=True)


def _write(path: Path, found: list[Found]) -> None:
    values: dict[str, dict[str, float | None]] = {stage: {} for stage in STAGES}
    clusters: dict[str, str] = {}
    splits: dict[tuple[str, str], dict[str, float | None]] = {}
    shares: dict[int, dict[str, float]] = {}
    lines = [
        "| seed | base | SFT | GRPO | rejection | continued SFT | seconds of each arm |",
        "|---|---|---|---|---|---|---|",
    ]
    hardware: Any = {}
    done = [one for one in found if one.run_of]
    for one in done:
        with Ledger.open(one.ledger) as ledger:
            mine = shares.setdefault(one.seed, {})
            for stage, run_id in one.run_of.items():
                hardware = ledger.run(run_id).hardware
                for sample in samples(ledger, run_id, stage):
                    key = f"{one.seed}/{sample.id}"
                    splits.setdefault((stage, sample.split), {})[key] = sample.score
                    clusters[key] = sample.cluster
                    if sample.split == "heldout":
                        values[stage][key] = sample.score
                scored = [v for k, v in values[stage].items() if k.startswith(f"{one.seed}/") and v is not None]
                mine[stage] = statistics.fmean(scored)
        cells = " | ".join(f"{100 * mine[s]:.1f} %" if s in mine else "–" for s in STAGES)
        times = ", ".join(f"{arm} {one.seconds[arm]:.0f}" for arm in ARMS if arm in one.seconds)
        lines.append(f"| {one.seed} | {cells} | {times} |")
    lines += [
        "",
        "| held-out difference | pooled, paired by task | 95 % interval | n | seeds | interval over seeds |",
        "|---|---|---|---|---|---|",
    ]
    for other in ("evaluate-sft", *STAGES[3:]):
        seeds = [seed for seed, mine in shares.items() if other in mine and "evaluate-final" in mine]
        both = [key for key in values["evaluate-final"] if int(key.partition("/")[0]) in seeds]
        if not both:
            continue
        a, b = ({key: [values[stage][key]] for key in both} for stage in ("evaluate-final", other))
        p = paired(a, b, clusters=clusters)
        over = mean_interval([shares[seed]["evaluate-final"] - shares[seed][other] for seed in seeds])
        lines.append(
            f"| GRPO − {other.removeprefix('evaluate-')} | {_points(p.diff)} | {_points(p.low)} to {_points(p.high)} "
            f"| {p.n} | {len(seeds)} | {_points(over.low)} to {_points(over.high)} |"
        )
    lines += ["", "| stage | split | success, % | 95 % interval | n |", "|---|---|---|---|---|"]
    for (stage, split), won in splits.items():
        s = share_interval(list(won.values()), clusters=[clusters[key] for key in won])
        lines.append(f"| {stage} | {split} | {100 * s.mean:.1f} | {100 * s.low:.0f} to {100 * s.high:.0f} | {s.n} |")
    cpu, cores = hardware.get("cpu"), hardware.get("cores")
    lines += ["", f"Hardware: {cpu}, {cores} cores; seeds {[one.seed for one in done]}.", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


if __name__ == "__main__":
    main()
