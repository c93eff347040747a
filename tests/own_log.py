"""A log of Inspect that Metier wrote of an evaluation of its own, for tests of what writes it and of what reads it."""

from __future__ import annotations

import json
from pathlib import Path

from metier.cli.evaluate import evaluate


def own_log(model: Path, logs: Path = Path("logs")) -> Path:
    """The log, in the working directory, of three tasks twice each; one task's verifier cannot tell.

    The samples are in samples.jsonl beside it, the ledger at its usual place.
    """
    rows = [
        {"prompt": f"Say {n}.", "answer": str(n), "verifier": "exact" if n else {"name": "exact", "answer": ""}}
        for n in range(3)
    ]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(
        model=str(model), suites=["t.jsonl"], repeats=2, out=Path("samples.jsonl"), inspect_logs=logs,
        settings=["sampling.max_turn_tokens=3", "sampling.temperature=1.0"], as_json=True,
    )  # fmt: skip
    (log,) = logs.iterdir()
    return log
