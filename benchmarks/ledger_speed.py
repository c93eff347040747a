"""The ledger at scale: how fast it takes feedback, and what a large one answers.

    append    into a ledger that holds a million rows: through the record API in batches of 1,000 and 10,000
              (`add_feedback`), and from Arrow tables of 200,000 rows (`append_arrow`)
    select    at ten million rows: the pairs of a dataset of 100,000, with the conversations of both sides, as
              `metier ledger export --as preference` reads them; then the manifest of these rows
    lineage   at ten million rows: from a checkpoint trained on that dataset back to its rows and their sources
    memory    the largest resident set of the process of each phase; a server's is not in it

One process writes, and what it wrote is on disk when it is counted (SQLite: synchronous = FULL; PostgreSQL: fsync on).
Of the rows, one in a hundred is a preference between two episodes, one in ten a label, the rest scores; ids are
hashes, as the ledger's own are, so that they come in no order. Episodes are a tenth of the rows. Each phase is a
process of its own, on files that lie where --folder says.

    python benchmarks/ledger_speed.py --out benchmarks/results/ledger-speed.md
    python benchmarks/ledger_speed.py --rows 100000 --large 0      # a minute
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from metier.records.ledger import Ledger
from metier.records.types import (
    Checkpoint,
    DatasetManifest,
    Episode,
    Feedback,
    Message,
    Run,
    Source,
    Task,
    Weights,
)

RUN = "run-0123456789abcdef0123"
TASKS, PAIRS, TABLE, ROUNDS = 1000, 100_000, 200_000, 5


def ids(prefix: str, numbers: range) -> list[str]:
    return [f"{prefix}-{hashlib.md5(b'%d' % n).hexdigest()[:20]}" for n in numbers]


def task(n: int) -> Task:
    return Task(family="bench", kind="ask", messages=(Message(role="user", content=f"Where is order {n}? " * 8),))


def add_episodes(ledger: Ledger, count: int) -> None:
    ledger.add_run(Run(id=RUN, recipe="bench", config={}, seed=0, folder="", code_version="0"))
    tasks = [task(n) for n in range(TASKS)]
    ledger.add_tasks(tasks)
    names = ids("ep", range(count))
    for start in range(0, count, 10_000):
        ledger.add_episodes(
            [
                Episode(
                    id=names[n],
                    task_id=tasks[n // 2 % TASKS].id,
                    run_id=RUN,
                    stage="rollout",
                    weights=Weights(checkpoint="base", step=n % 7),
                    messages=(
                        *tasks[n // 2 % TASKS].messages,
                        Message(role="assistant", content=f"Answer {n}: it is on its way. " * 8),
                    ),
                )
                for n in range(start, min(start + 10_000, count))
            ]
        )


def table(start: int, stop: int, episodes: list[str]) -> pa.Table:
    """Statements `start` to `stop`, the same for the same numbers."""
    numbers = np.arange(start, stop)
    pair, label = numbers % 100 == 0, (numbers % 10 == 0) & (numbers % 100 != 0)
    # Siblings, so that a pair answers one task; each pair is of two episodes of its own, as long as there are any.
    first = np.where(pair, numbers // 50, numbers * 2) % len(episodes)
    about = [
        [episodes[one], episodes[one + 1]] if both else [episodes[one]]
        for one, both in zip(first.tolist(), pair.tolist(), strict=True)
    ]
    pick = np.where(pair, "preference", np.where(label, "label", "score"))
    return pa.table(
        {
            "id": ids("fb", range(start, stop)),
            "about": pa.array(about, pa.list_(pa.string())),
            "criterion": np.where(pair, "better", np.where(label, "topic", "success")),
            "kind": pick,
            "source_kind": np.where(pair | label, "person", "verifier"),
            "source_name": np.where(pair | label, np.char.add("p", (numbers // 100 % 50).astype(str)), "state"),
            "source_version": pa.array(["1"] * len(numbers)),
            "value": pa.array(np.where(label, np.nan, numbers // 100 % 2), mask=label),
            "value_json": pa.array(np.where(label, '"delivery"', ""), mask=~label),
            "reason": pa.array(["short and to the point"] * len(numbers)),
            "created_at": np.full(len(numbers), 1.7e9),
            "run_id": pa.array([RUN] * len(numbers)),
        }
    )


def rate(rows: int, work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return rows / (time.perf_counter() - began)


# --- phases, each in a process of its own -------------------------------------------------


def fill(where: str, start: int, stop: int, episodes: int) -> dict[str, Any]:
    with Ledger.open(where) as ledger:
        if start == 0:
            add_episodes(ledger, episodes)
        names = ids("ep", range(episodes))
        seconds = 0.0
        for begin in range(start, stop, TABLE):
            made = table(begin, min(begin + TABLE, stop), names)
            seconds += made.num_rows / rate(made.num_rows, lambda made=made: ledger.append_arrow(made))
            print(f"{where.partition(':')[0]}: {begin + made.num_rows:,} rows", file=sys.stderr, flush=True)
    return {"rows_per_s": (stop - start) / max(seconds, 1e-9)}


def append(where: str, rows: int, episodes: int) -> dict[str, Any]:
    names = ids("ep", range(episodes))
    source = Source(kind="verifier", name="state", version="2")
    found: dict[str, Any] = {}
    with Ledger.open(where) as ledger:
        for batch in (1000, 10_000):
            rates = []
            for part in range(ROUNDS):
                new = [
                    Feedback(
                        id=name,
                        about=(names[n * 7919 % episodes],),
                        criterion="success",
                        kind="score",
                        source=source,
                        value=n % 2,
                        reason="half of it was right",
                        run_id=RUN,
                        created_at=1.7e9,
                    )
                    for n, name in enumerate(ids(f"rec-{batch}-{part}", range(20_000)))
                ]
                chunks = [new[start : start + batch] for start in range(0, len(new), batch)]
                rates.append(rate(len(new), lambda chunks=chunks: [ledger.add_feedback(one) for one in chunks]))
            found[f"records, {batch:,} a call"] = rates
        rates = []
        for part in range(ROUNDS):
            start = rows + part * TABLE
            made = table(start, start + TABLE, names)
            rates.append(rate(TABLE, lambda made=made: ledger.append_arrow(made)))
        found[f"Arrow, {TABLE:,} a call"] = rates
    return {"rates": found}


def ask(where: str) -> dict[str, Any]:
    from metier.records.layouts.exporting import rows_of
    from metier.records.lineage import why

    with Ledger.open(where, create=False) as ledger:
        total = ledger.counts()["feedback"]
        began = time.perf_counter()
        taken = list(itertools.islice(ledger.iter_feedback(kind="preference", criterion="better"), PAIRS))
        picked = time.perf_counter() - began
        began = time.perf_counter()
        pairs = sum(1 for _ in itertools.islice(rows_of(ledger, "preference", criterion="better"), PAIRS))
        selected = time.perf_counter() - began
        manifest = DatasetManifest(
            id=f"data-{total}",
            kind="pairs",
            name="bench",
            run_id=RUN,
            stage="dpo",
            query={"criterion": "better"},
            feedback_ids=tuple(one.id for one in taken),
            episode_ids=tuple(dict.fromkeys(episode for one in taken for episode in one.about)),
        )
        began = time.perf_counter()
        ledger.add_dataset(manifest)
        recorded = time.perf_counter() - began
        ledger.add_checkpoint(
            Checkpoint(
                id=f"ck-{total}",
                run_id=RUN,
                stage="dpo",
                step=1,
                path="p",
                parent="base",
                dataset_ids=(manifest.id,),
            )
        )
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            lineage = why(ledger, f"ck-{total}")
            times.append(time.perf_counter() - began)
        (link,) = lineage.checkpoints
        assert link.datasets[0].n_feedback == len(taken)
    return {
        "total": total,
        "pairs": pairs,
        "statements_s": picked,
        "pairs_s": selected,
        "manifest_s": recorded,
        "lineage_s": times,
        "episodes": link.datasets[0].n_episodes,
    }


# --- the whole ----------------------------------------------------------------------------


def phase(name: str, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--phase", json.dumps([name, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


@contextmanager
def address(database: str, folder: Path) -> Iterator[str]:
    if database == "sqlite":
        yield str(folder / "ledger.sqlite")
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from postgres import missing, server

    if (why := missing()) is not None:
        raise SystemExit(why)
    with server(fsync="on", shared_buffers="1GB", max_wal_size="8GB") as running:
        yield f"{running.database()}&arrays={folder}/arrays"


def spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def measure(database: str, rows: int, large: int, folder: Path) -> tuple[list[str], list[str]]:
    episodes = max(rows, large) // 10 or 1000
    speed, scale = [], []
    with address(database, folder) as where:
        phase("fill", where, 0, rows, episodes)
        done = phase("append", where, rows, episodes)
        for what, rates in done["rates"].items():
            speed.append(f"| {database} | {what} | {spread(rates)} | {done['mb']:,.0f} MB |")
        if large:
            start = rows + ROUNDS * TABLE
            filled = phase("fill", where, start, large, episodes)
            asked = phase("ask", where)
            scale += [
                f"| {database} | {start:,} to {large:,} rows from Arrow | {filled['rows_per_s']:,.0f} rows/s |"
                f" {filled['mb']:,.0f} MB |",
                f"| {database} | {asked['pairs']:,} pairs of {asked['total']:,} rows, both conversations |"
                f" {asked['pairs_s']:.1f} s | {asked['mb']:,.0f} MB |",
                f"| {database} | their statements alone | {asked['statements_s']:.1f} s | |",
                f"| {database} | the manifest of them and {asked['episodes']:,} episodes | {asked['manifest_s']:.1f} s"
                " | |",
                f"| {database} | lineage of a checkpoint trained on it | {statistics.median(asked['lineage_s']):.2f} s"
                f" ({min(asked['lineage_s']):.2f} to {max(asked['lineage_s']):.2f}) | |",
            ]
    return speed, scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the ledger before appending is timed")
    parser.add_argument("--large", type=int, default=10_000_000, help="in the ledger that is asked; 0 leaves it out")
    parser.add_argument("--folder", type=Path, help="for the databases; a temporary one if not given")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        name, *arguments = json.loads(options.phase)
        made = {"fill": fill, "append": append, "ask": ask}[name](*arguments)
        print(json.dumps({**made, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
        return
    from metier.recipes.runner import hardware

    speed: list[str] = []
    scale: list[str] = []
    for database in options.databases.split(","):
        folder = Path(tempfile.mkdtemp(prefix="metier-ledger-", dir=options.folder))
        try:
            one, two = measure(database, options.rows, options.large, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        speed += one
        scale += two
    lines = ["# The ledger", "", *(__doc__ or "").strip().splitlines(), ""]
    lines += [f"| into a ledger of {options.rows:,} rows | what | rows/s | memory |", "|---|---|---|---|", *speed, ""]
    if scale:
        lines += ["| a large ledger | what | | memory |", "|---|---|---|---|", *scale, ""]
    lines.append(", ".join(f"{key} {value}" for key, value in hardware().items()) + f"; {ROUNDS} rounds")
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
