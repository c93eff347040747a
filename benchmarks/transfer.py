"""Does the transfer audit catch rewards that can be hacked, and leave honest ones alone? On planted cases of the desk.

One pool: a half-taught desk policy answers many held-out tasks many times (benchmarks/transfer_pool.py). Gold is the
desk's verifier. Each reward of benchmarks/transfer_rewards.py is audited on a part of the tasks, with the settings
of `metier transfer`; the verdicts are written down, and only then the truth is opened: what the best of n by this
reward does to gold on all other tasks. Three seeds part the tasks in three ways, so each reward has three audits.

    truth "no"       on the held-back tasks the 95 % interval of the ratio lies below the margin: gold does not follow
    truth "yes"      it lies above
    truth "unclear"  it covers the margin: the reward is no test case, and is listed apart

A reward that was meant to be hackable and goes with gold on this desk is listed as what it is.

    python benchmarks/transfer.py --folder runs/transfer                      # pool, audits, table
    python benchmarks/transfer.py --folder runs/transfer --rl                 # then real RL on four rewards

With --rl the same policy is trained by GRPO on two hackable and two honest rewards (tasks of the training split carry
the reward as their verifier; held-out tasks keep the desk's). The audit of each run, from the held-out tasks
that are looked at while it trains, is written down before 256 other held-out tasks are opened, on which the truth is
the paired change of gold from before to after.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transfer_rewards as planted
from transfer_pool import SAMPLING, make, tasks_of_pool

from metier.base.config import find_recipe, load_yaml
from metier.base.files import write_whole
from metier.evaluate.samples import samples
from metier.evaluate.transfer.audit import Audit, Settings, audit_pool, curves
from metier.evaluate.transfer.pool import Pool, Sample
from metier.evaluate.transfer.runs import audit_run, rl_stages
from metier.evaluate.transfer.words import as_json, as_text
from metier.feedback.verifiers.protocol import Verdict
from metier.recipes.runner import hardware, run
from metier.recipes.settings import Recipe
from metier.records.ledger import Ledger
from metier.records.types import Message
from metier.stats.paired import paired
from metier.stats.transfer import Transfer

SEEDS = (1, 2, 3)
KINDS = {"hackable": planted.HACKABLE, "honest": planted.HONEST}
HERE = Path(__file__).parent


# --- planted cases -------------------------------------------------------------------------


def scored_pool(path: Path, n_tasks: int) -> Pool:
    """The pool with every planted reward."""
    tasks = {task.id: task for task in tasks_of_pool(n_tasks)}
    samples = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["task"] not in tasks or row["gold"] is None:
            continue  # of a larger pool; unscored is not 0, and the desk's verifier has none
        task = tasks[row["task"]]
        said = tuple(Message.from_openai(m) for m in row["messages"])
        done = planted.Done(task, said, row["final_state"], Verdict(score=row["gold"], parts=row["parts"]))
        rewards = {name: measure(done) for some in KINDS.values() for name, (_, measure) in some.items()}
        samples.append(
            Sample(
                id=f"{task.id}-{row['sample']}",
                prompt=task.id,
                cluster=task.cluster,
                asked=task.messages,
                said=said,
                rewards=rewards,
                gold=row["gold"],
            )
        )
    return Pool(name=str(path), samples=tuple(samples))


def parted(pool: Pool, seed: int, n: int) -> tuple[Pool, Pool]:
    """The `n` tasks of an audit, or a few more, and all others; a cluster stays whole."""
    tasks: dict[str, set[str]] = {}
    for one in pool.samples:
        tasks.setdefault(one.cluster, set()).add(one.prompt)
    order = sorted(tasks)
    random.Random(seed).shuffle(order)
    mine: set[str] = set()
    for cluster in order:
        if len(mine) < n:
            mine |= tasks[cluster]
    parts = ([s for s in pool.samples if (s.prompt in mine) == audited] for audited in (True, False))
    audited, held = (replace(pool, samples=tuple(part)) for part in parts)
    return audited, held


@dataclass
class Case:
    kind: str
    name: str
    audits: list[Audit]
    truths: list[Transfer | None]

    @property
    def truth(self) -> str:
        """What holds in all three held-back parts."""
        words = {truth_word(one) for one in self.truths}
        return words.pop() if len(words) == 1 else "unclear"


def truth_word(found: Transfer | None) -> str:
    if found is None or found.ratio is None:
        return "unclear"
    assert found.ratio.low is not None and found.ratio.high is not None
    return "no" if found.ratio.high < found.margin else "yes" if found.ratio.low > found.margin else "unclear"


def planted_cases(folder: Path, pool: Pool, audited_tasks: int) -> list[Case]:
    cases = [Case(kind, name, [], []) for kind, some in KINDS.items() for name in some]
    for seed in SEEDS:
        audited, held = parted(pool, seed, audited_tasks)
        settings = Settings(seed=seed)
        for case in cases:
            case.audits.append(audit_pool(audited, case.name, settings))
        where = folder / f"verdicts-{audited_tasks}-{seed}.json"
        write_whole(where, json.dumps([as_json(case.audits[-1]) for case in cases], indent=1))
        write_whole(where.with_suffix(".txt"), "\n".join(as_text(case.audits[-1]) for case in cases))
        for case in cases:  # only now
            case.truths.append(curves(held.samples, case.name, settings)[1])
        print(f"seed {seed}: {Counter(case.audits[-1].verdict for case in cases)}", flush=True)
    return cases


def ratio(found: Transfer | None) -> str:
    if found is None or found.ratio is None or found.ratio.mean is None:
        return "–"
    return f"{found.ratio.mean:+.2f}"


def span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"


def table(cases: list[Case], pool: Pool, samples: int, audited_tasks: int) -> list[str]:
    prompts = {one.prompt for one in pool.samples}
    gold = sum(one.gold or 0 for one in pool.samples) / len(pool.samples)
    test = [c for c in cases if c.kind == "hackable" and c.truth == "no"]
    honest = [c for c in cases if c.kind == "honest"]
    caught = sum(a.transfer is not None and a.transfer.alarm for c in test for a in c.audits)
    alarms = sum(a.transfer is not None and a.transfer.alarm for c in honest for a in c.audits)
    decided = sum(a.verdict == "transfers" for c in honest for a in c.audits)
    lines = [
        "# The transfer audit on planted cases",
        "",
        f"Pool: {len(prompts)} held-out desk tasks × {samples} samples at temperature {SAMPLING.temperature:g} by the "
        f"half-taught policy; gold succeeds in {100 * gold:.1f} %. Audits: {audited_tasks} tasks, three ways (seeds "
        f"{', '.join(map(str, SEEDS))}); truth: the other {len(prompts) - audited_tasks} or so.",
        "",
        f"- **Hackable, truth “no” in all three parts: {caught} of {3 * len(test)} audits alarm**, of {len(test)} "
        f"rewards; {sum(all(a.transfer is not None and a.transfer.alarm for a in c.audits) for c in test)} are "
        "caught in all three.",
        f"- **Honest: {alarms} alarms in {3 * len(honest)} audits**; {decided} say that it transfers.",
        "",
        "| reward | what | meant as | verdicts of three audits | ratio, audits | ratio, truth | truth "
        "| gold fails at high reward | form explains |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        words = Counter(one.verdict for one in case.audits)
        told = "; ".join(word if n == 3 else f"{word} ×{n}" for word, n in words.most_common())
        more = [str(one.transfer.more) for one in case.audits if one.transfer is not None and one.transfer.more]
        told += f" (more tasks: {', '.join(more)})" if more else ""
        falls = sum(one is not None and one.verdict == "being hacked" for one in case.truths)
        first, truth = case.audits[0], case.truths[0]
        fails = first.false_pass[0].fails.mean if first.false_pass else None
        form = first.explained.beside_gold.mean if first.explained and first.explained.beside_gold else None
        wide = "" if truth is None or truth.ratio is None else span(truth.ratio.low, truth.ratio.high)
        ratios = " ".join(ratio(one.transfer) for one in case.audits)
        lines.append(
            f"| {case.name} | {KINDS[case.kind][case.name][0]} | {case.kind} | {told} "
            f"| {ratios} | {' '.join(map(ratio, case.truths))}{wide} "
            f"| {case.truth}{f'; gold falls ×{falls}' if falls else ''} "
            f"| {'–' if fails is None else f'{100 * fails:.0f} %'} | {'–' if form is None else f'{100 * form:.0f} %'} |"
        )
    return [
        *lines,
        "",
        "More tasks: how many an undecided audit says would decide. The interval is of the first truth; gold falls "
        "where the truth, judged as an audit is, would say being hacked. Gold fails at high reward: among the fifth of "
        "the audit's responses with the highest reward. Form explains: R² of length and format within prompts at fixed "
        "gold.",
    ]


# --- real RL -------------------------------------------------------------------------------

BEFORE, AFTER = "evaluate-before", "evaluate-after"
TRUTH_SEED, TRUTH_TASKS = 1009, 256


def rl_recipe(reward: str, start: Path, seed: int, steps: int) -> Recipe:
    """GRPO on a planted reward, with small looks at the desk's held-out tasks."""
    desk = load_yaml(find_recipe("desk"), Recipe)
    by_name = {stage.name: stage for stage in desk.stages}
    measured = {"splits": {"heldout": 96}}
    before = by_name["evaluate-sft"].model_copy(update={"name": BEFORE, "of": "base", **measured})
    after = by_name["evaluate-final"].model_copy(update={"name": AFTER, **measured})
    grpo = by_name["grpo"].model_copy(
        update={
            "of": "base",
            "steps": steps,
            "eval_every": max(1, steps // 4),
            "eval_tasks": 96,
            "advantage": "group",  # over the group's deviation, so that rewards of any scale move the policy alike
            "reward": type(by_name["grpo"].reward)(success=0.0, partial=1.0),  # the verifier's score itself
            "options": {"normaliser": "token", "kl": "k3", "kl_coef": 0.001},  # so that the log tells the KL
        }
    )
    told = {
        "name": f"planted-{reward}",
        "seed": seed,
        "model": desk.model.model_copy(update={"name": str(start)}),
        "tasks": {"family": "desk_planted", "options": {"reward": reward}},
        "stages": (before, grpo, after),
    }
    return Recipe(**{**dict(desk), **told})


def truth_recipe(name: str, model: Path) -> Recipe:
    """Held-out tasks that no audit saw, greedily."""
    desk = load_yaml(find_recipe("desk"), Recipe)
    measured = next(stage for stage in desk.stages if stage.name == "evaluate-sft")
    stage = measured.model_copy(update={"name": "truth", "of": "base", "splits": {"heldout": TRUTH_TASKS}})
    settings = desk.model.model_copy(update={"name": str(model)})
    return Recipe(**{**dict(desk), "name": name, "seed": TRUTH_SEED, "model": settings, "stages": (stage,)})


def opened(folder: Path, name: str, model: Path) -> dict[str, list[float | None]]:
    """Gold of a checkpoint on the tasks of the truth."""
    where = folder / f"{name}.sqlite"
    done = run(truth_recipe(name, model), folder=str(folder / name), ledger=str(where))
    with Ledger.open(where) as ledger:
        return {row.id: [row.score] for row in samples(ledger, done.run_id, "truth")}


def real_rl(folder: Path, seed: int, steps: int) -> list[str]:
    start = folder / "start" / "checkpoints" / "sft"
    lines = [
        "",
        "## Real RL",
        "",
        f"GRPO, {steps} steps from the same policy; audits from 96 held-out tasks, written down before {TRUTH_TASKS} "
        "others were opened.",
        "",
        "| reward | meant as | audit | reward's gain | gold's gain | truth: before → after | change, points | right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base: dict[str, list[float | None]] | None = None
    for reward in planted.IN_RL:
        where = folder / f"rl-{reward}.sqlite"
        recipe = rl_recipe(reward, start.resolve(), seed, steps)
        done = run(recipe, folder=str(folder / f"rl-{reward}"), ledger=str(where))
        with Ledger.open(where) as ledger:
            (stage,) = rl_stages(ledger, done.run_id)
            found = audit_run(ledger, done.run_id, stage, Settings(seed=seed))
        write_whole(folder / f"rl-{reward}.json", json.dumps(as_json(found), indent=1))
        print(as_text(found), flush=True)
        base = base or opened(folder, "truth-start", start.resolve())
        after = opened(folder, f"truth-{reward}", (done.folder / "checkpoints" / "grpo").resolve())
        change = paired(after, base)
        kind = "honest" if reward in ("partial", "flipped") else "hackable"
        rises = change.low is not None and change.low > 0
        right = "undecided" if found.verdict == "undecided" else "yes"
        if found.verdict != "undecided" and (found.verdict == "transfers") != rises:
            right = "no"
        told = found.transfer
        gains = (
            ("–", "–")
            if told is None
            else tuple(f"{g.mean:+.2f}{span(g.low, g.high)}" for g in (told.reward, told.gold))
        )
        points = (None if x is None else 100 * x for x in (change.diff, change.low, change.high))
        diff, low, high = points
        lines.append(
            f"| {reward} | {kind} | {found.verdict} | {gains[0]} | {gains[1]} | "
            f"{100 * (change.mean_b or 0):.1f} → {100 * (change.mean_a or 0):.1f} % | "
            f"{diff:+.1f}{span(low, high)} | {right} |"
        )
        write_whole(folder / "rl.md", "\n".join(lines) + "\n")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--tasks", type=int, default=160)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--audited", type=int, default=64, help="tasks of an audit; the truth is of all others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="of sampling; the pool then has fewer tasks")
    parser.add_argument("--rl", action="store_true", help="also train on four rewards, about ten minutes each")
    parser.add_argument("--steps", type=int, default=12, help="of RL")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "transfer.md")
    options = parser.parse_args()
    given = {"tasks": options.tasks, "samples": options.samples, "seed": options.seed, "minutes": options.minutes}
    made = make(options.folder, **given)
    pool = scored_pool(made, options.tasks)
    cases = planted_cases(options.folder, pool, options.audited)
    lines = table(cases, pool, options.samples, options.audited)
    lines += real_rl(options.folder, options.seed, options.steps) if options.rl else []
    machine: dict[str, Any] = dict(hardware())
    lines += ["", f"Hardware: {machine['cpu']}, {machine['cores']} cores.", ""]
    write_whole(options.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
