"""Small functions in one try, and in three that read what running the last one showed, at equal sampled tokens.

Two arms from the same SFT: GRPO with a single try (the recipe `code`), and GRPO with up to three, where the
environment runs each on the prompt's two examples and says what came of it (the recipe `code-repair`). The repair
arm is run for its steps; the single arm then has as many steps as sample the same number of tokens. Both are
then measured both ways, greedily, on held-out functions of the trained kinds and on kinds that were
never trained on: with a single try, and with three. Tokens are those that the policy wrote for an episode.
Differences are paired by task, the same task in several seeds and functions that do the same are one cluster;
over seeds is the t interval of the seeds' differences alone.

    python benchmarks/repair.py --seeds 1 2 3 --folder runs/repair

A run that was stopped continues; the table is written after each seed.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from recipe_gains import points, tell

from metier.base.config import find_recipe, load_yaml
from metier.evaluate.samples import samples
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.ledger import Ledger
from metier.stats.intervals import mean_interval
from metier.stats.paired import paired

ARMS = ("one try", "three tries")
WAYS = {"one": "evaluate-single", "three": "evaluate-final"}
ONE_TRY = {"max_tokens": 96, "max_turns": 1}
Cells = dict[tuple[str, str], dict[str, tuple[float, int]]]  # arm, way -> seed/task -> success and tokens


def recipe_of(arm: str, seed: int, steps: int | None) -> Recipe:
    given = load_yaml(find_recipe("code-repair"), Recipe)
    stages = list(given.stages)
    for number, stage in enumerate(stages):
        if stage.kind == "rl" and arm == "one try":
            assert steps is not None
            sampling = stage.sampling.model_copy(update=ONE_TRY)
            stages[number] = stage.model_copy(update={"sampling": sampling, "steps": steps})
    name = f"{'one' if arm == 'one try' else 'three'}-{seed}"
    return Recipe(**{**dict(given), "name": name, "seed": seed, "stages": tuple(stages)})


def tokens_a_step(ledger: Ledger, run_id: str, stage: str) -> tuple[int, int]:
    """Tokens that the policy wrote in a stage, and steps that it took."""
    episodes = list(ledger.episodes(run_id=run_id, stage=stage))
    return sum(e.cost.completion_tokens for e in episodes), len({e.weights.step for e in episodes})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/repair"))
    parser.add_argument("--single-tokens", type=int, default=1250, help="tokens of a step with one try, at first guess")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "repair.md")
    options = parser.parse_args()
    cells: Cells = {(arm, way): {} for arm in ARMS for way in WAYS}
    about: dict[str, tuple[str, str]] = {}  # split and cluster
    trained: dict[tuple[str, int], tuple[int, int]] = {}
    before: dict[str, tuple[float, int]] = {}
    hardware: dict[str, Any] = {}
    a_step = float(options.single_tokens)
    for seed in options.seeds:
        for arm in reversed(ARMS):
            steps = None if arm == "three tries" else max(1, round(trained["three tries", seed][0] / a_step))
            recipe = recipe_of(arm, seed, steps)
            where = options.folder / f"{recipe.name}.sqlite"
            result = run(recipe, folder=str(options.folder / recipe.name), ledger=str(where), listener=tell)
            with Ledger.open(where) as ledger:
                hardware = dict(ledger.run(result.run_id).hardware)
                trained[arm, seed] = tokens_a_step(ledger, result.run_id, "grpo")
                if arm == "one try":
                    a_step = trained[arm, seed][0] / trained[arm, seed][1]
                for way, stage in [*WAYS.items(), ("before", "evaluate-sft")]:
                    for sample in samples(ledger, result.run_id, stage):
                        key = f"{seed}/{sample.id}"
                        about[key] = (sample.split, sample.cluster)
                        if sample.score is not None:
                            into = before if way == "before" else cells[arm, way]
                            into[key] = (sample.score, sample.tokens or 0)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(cells, before, about, trained, options.seeds, hardware))
    print(options.out.read_text())


def page(
    cells: Cells,
    before: dict[str, tuple[float, int]],
    about: dict[str, tuple[str, str]],
    trained: dict[tuple[str, int], tuple[int, int]],
    seeds: list[int],
    hardware: dict[str, Any],
) -> str:
    lines = ["# One try, or three that read what running showed\n", (__doc__ or "").strip(), ""]
    lines += ["| seed | arm | steps of GRPO | tokens sampled |", "|---|---|---|---|"]
    lines += [
        f"| {seed} | {arm} | {steps} | {tokens:,} |"
        for (arm, seed), (tokens, steps) in sorted(trained.items(), key=lambda t: t[0][1])
    ]
    head = "| trained with | measured with | n | success | tokens an episode | against one, one | 95 % | over seeds |"
    for split in ("heldout", "unseen"):
        lines += ["", f"## {split}", "", head, "|---|---|---|---|---|---|---|---|"]
        keys = [key for key, (of, _) in about.items() if of == split]
        if before:
            lines.append(row("nothing but the format", "three", keys, before, None, about, seeds))
        plain = cells["one try", "one"]
        for arm in ARMS:
            for way in WAYS:
                some = cells[arm, way]
                lines.append(row(arm, way, keys, some, None if some is plain else plain, about, seeds))
    lines += ["", f"{hardware.get('cpu')}, {hardware.get('cores')} cores; seeds {seeds}.", ""]
    return "\n".join(lines)


def row(
    arm: str,
    way: str,
    keys: list[str],
    found: dict[str, tuple[float, int]],
    against: dict[str, tuple[float, int]] | None,
    about: dict[str, tuple[str, str]],
    seeds: list[int],
) -> str:
    mine = [key for key in keys if key in found]
    if not mine:
        return f"| {arm} | {way} | 0 | – | – | – | – | – |"
    success = 100 * statistics.fmean(found[key][0] for key in mine)
    tokens = statistics.fmean(found[key][1] for key in mine)
    cells = [arm, way, str(len(mine)), f"{success:.1f} %", f"{tokens:.0f}"]
    if against is None:
        return f"| {' | '.join([*cells, '–', '–', '–'])} |"
    both = [key for key in mine if key in against]

    def difference(some: list[str]) -> Any:
        one, other = ({key: [side[key][0]] for key in some} for side in (found, against))
        return paired(one, other, clusters={key: about[key][1] for key in some})

    p = difference(both)
    over = mean_interval([difference([k for k in both if k.startswith(f"{seed}/")]).diff or 0.0 for seed in seeds])

    cells += [points(p.diff), f"{points(p.low)} to {points(p.high)}", f"{points(over.low)} to {points(over.high)}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
