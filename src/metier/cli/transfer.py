"""`metier transfer`: does what a reward is optimised for arrive in what is wanted?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metier.cli.runs import JsonOption, LedgerOption
from metier.cli.tables import tell_left_out

if TYPE_CHECKING:
    from metier.evaluate.transfer.asking import Drawn
    from metier.evaluate.transfer.audit import Answer, Audit, Settings
    from metier.evaluate.transfer.pool import Pool
    from metier.records.ledger import Ledger
    from metier.records.traces.calls import Skipped

__all__ = ["transfer"]


def transfer(
    run: Annotated[str | None, typer.Argument(help="A run with an rl stage; or give --pool.")] = None,
    pool: Annotated[
        Path | None, typer.Option(metavar="POOL.jsonl", help="Samples with rewards and gold, whoever made them.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this reward, or rl stage of the run; may be repeated."),
    ] = None,
    queue: Annotated[
        Path | None,
        typer.Option(
            metavar="QUEUE.jsonl", help="Draw samples for metier label and metier judge; if there, read the answers."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=3, help="Samples that the queue is to hold.")] = 60,
    judged: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers of metier judge to the queue, instead of the ledger's.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="The share of the reward's gain below which gold's is no transfer.")
    ] = 0.2,
    passes: Annotated[float, typer.Option(help="Gold from which on a response passes.")] = 0.5,
    high: Annotated[float, typer.Option(help="The share of responses whose reward counts as high.")] = 0.2,
    most: Annotated[
        int | None, typer.Option("--best-of", min=2, help="The largest n; half of a prompt's samples unless told.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and of the draw.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write all that was found, as JSON.")] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Audit each reward against gold: transfers, does not transfer, being hacked, or undecided, with intervals.

    Of a run, held-out gold over its checkpoints; of a pool, the best of n samples of each prompt. docs/transfer.md
    says how to read it. With --queue, people or a stronger judge say how often a high reward is undeserved.
    """
    from metier.base.errors import ConfigError, DataError
    from metier.base.files import write_whole
    from metier.cli.find import find_run, open_ledger
    from metier.evaluate.transfer.audit import Settings
    from metier.evaluate.transfer.words import as_json as plain
    from metier.evaluate.transfer.words import as_text

    if (run is None) == (pool is None):
        raise ConfigError("name a run or a --pool of samples" + ("" if run is None else ", not both"))
    if not 0 < margin < 1 or not 0 < high < 1:
        raise ConfigError("--margin and --high are shares, between 0 and 1")
    if not math.isfinite(passes):
        raise ConfigError(f"--passes is a value of gold, a finite number, not {passes}")
    if judged is not None and queue is None:
        raise ConfigError("--judged has answers to a --queue; name it too")
    settings = Settings(margin=margin, passes=passes, high=high, seed=seed, most=most)
    wanted = list(reward or ())
    if pool is not None:
        audits, drawn = _of_pool(pool, wanted, queue, n, judged, settings, ledger)
    else:
        assert run is not None
        with open_ledger(ledger) as records:
            audits, drawn = _of_run(records, find_run(records, run), wanted, queue, n, judged, settings)
    if not audits:
        raise DataError("there is no reward to audit")
    told = {
        "source": run if pool is None else str(pool),
        "settings": {"margin": margin, "passes": passes, "high": high, "seed": seed, "most": most},
        "audits": [plain(one) for one in audits],
        "queue": None if queue is None else {"path": str(queue), "drawn": len(drawn)},
    }
    text = json.dumps(told, ensure_ascii=False, indent=2, allow_nan=False)
    if out is not None:
        write_whole(out, text + "\n")
    if as_json:
        print(text)
        return
    print("\n".join(as_text(one) for one in audits), end="")
    if drawn and queue is not None:
        from metier.evaluate.transfer.asking import judge_file

        print(f"\n{queue}: {len(drawn)} responses drawn; metier label {queue} asks people, {judge_file(queue)} a judge")


def _of_pool(
    path: Path,
    wanted: list[str],
    queue: Path | None,
    n: int,
    judged: Path | None,
    settings: Settings,
    where: str | None,
) -> tuple[list[Audit], tuple[Drawn, ...]]:
    from metier.base.errors import DataError
    from metier.evaluate.transfer.audit import audit_pool
    from metier.evaluate.transfer.pool import read_pool

    pool = read_pool(path)
    tell_left_out(pool.skipped)
    for name in wanted:
        if name not in pool.rewards:
            raise DataError(f"{path} has no reward {name!r}; it has {', '.join(pool.rewards)}")
    names = wanted or list(pool.rewards)
    answers, drawn = _asked(pool, names, queue, n, judged, settings.seed, where)
    return [audit_pool(pool, name, settings, answers=answers) for name in names], drawn


def _of_run(
    records: Ledger, run_id: str, wanted: list[str], queue: Path | None, n: int, judged: Path | None, settings: Settings
) -> tuple[list[Audit], tuple[Drawn, ...]]:
    from metier.base.errors import DataError
    from metier.evaluate.transfer.runs import audit_run, pool_of_stage, rl_stages

    stages = {str(stage["name"]): stage for stage in rl_stages(records, run_id)}
    for name in wanted:
        if name not in stages:
            raise DataError(f"{run_id} has no rl stage {name!r}; it has {', '.join(stages)}")
    names = wanted or list(stages)
    answers: list[Answer] = []
    drawn: tuple[Drawn, ...] = ()
    if queue is not None:
        pool = pool_of_stage(records, run_id, stages[names[0]])
        answers, drawn = _asked(pool, names, queue, n, judged, settings.seed, records)
    return [audit_run(records, run_id, stages[name], settings, answers=answers) for name in names], drawn


def _asked(
    pool: Pool,
    names: list[str],
    queue: Path | None,
    n: int,
    judged: Path | None,
    seed: int,
    where: str | Ledger | None,
) -> tuple[list[Answer], tuple[Drawn, ...]]:
    """The answers to a queue that is there; or else the queue, written."""
    from metier.base.errors import ConfigError
    from metier.cli.find import has_ledger, open_ledger
    from metier.evaluate.transfer.asking import answers_of_judge, answers_of_ledger, draw, reward_of, write_queue

    if queue is None:
        return [], ()
    if len(names) > 1:
        raise ConfigError(f"a queue is of one reward; choose it with --reward, out of {', '.join(names)}")
    if not queue.exists():
        drawn = draw(pool, names[0], n, seed=seed)
        write_queue(queue, drawn, names[0], seed=seed)
        return [], drawn
    if reward_of(queue) != names[0]:
        raise ConfigError(f"{queue} was drawn by the reward {reward_of(queue)!r}, not {names[0]!r}; name another file")
    if judged is not None:
        skipped: list[Skipped] = []
        answers = answers_of_judge(judged, queue, skipped)
        tell_left_out(skipped)
        return answers, ()
    if where is None or isinstance(where, str):
        if not has_ledger(where):
            return [], ()  # nobody has been asked yet
        with open_ledger(where) as records:
            return answers_of_ledger(records, queue), ()
    return answers_of_ledger(where, queue), ()
