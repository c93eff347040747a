"""`metier doctor`: is this machine computing right, and is a training going well."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

__all__ = ["doctor"]


def doctor(
    folder: Annotated[
        str | None, typer.Argument(help="The folder of a run or of a training, to look for what is wrong with it.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check each fast path against the slow one; or, given a folder, say what is wrong with its training.

    Ends with exit code 1 where something is.
    """
    if folder is None:
        from metier.models.hub import device_of
        from metier.train.doctor import examine

        checks = examine(device=device_of(device))
        if as_json:
            print(
                json.dumps([{"name": c.name, "error": c.error, "limit": c.limit, "passed": c.passed} for c in checks])
            )
        else:
            for check in checks:
                verdict = "ok    " if check.passed else "WRONG "
                print(f"{verdict} {check.name}: {check.error:.2g} (limit {check.limit:.2g})")
        wrong = not all(check.passed for check in checks)
    else:
        from pathlib import Path

        from metier.base.errors import DataError
        from metier.records.events import FILE_NAME, read, steps
        from metier.train.diagnose import diagnose

        if not (Path(folder) / FILE_NAME).is_file():
            raise DataError(f"{folder} holds no event log; give the folder of a run, for instance runs/desk")
        events = read(folder)
        stages = list(dict.fromkeys(e["stage"] for e in events if e["event"] == "step"))
        found = {stage: diagnose(steps(events, stage)) for stage in stages}
        if as_json:
            print(json.dumps({s: [{"name": f.name, "text": f.text} for f in fs] for s, fs in found.items()}))
        else:
            for stage, findings in found.items():
                for finding in findings:
                    print(f"{stage}: {finding.name}: {finding.text}")
                if not findings:
                    print(f"{stage}: nothing found")
        wrong = any(found.values())
    if wrong:
        raise typer.Exit(1)
