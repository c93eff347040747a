"""Every program in examples/ runs as it stands, with a tiny model of random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_loop_by_hand(repository: Path, tiny_model: Path) -> None:
    assert [p.name for p in (repository / "examples").glob("*.py")] == ["own_loop.py"]
    done = subprocess.run(
        [sys.executable, "examples/own_loop.py", "--steps", "2", "--tasks", "2", "--group", "3", "--model", tiny_model],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0].split(":")[0] for line in done.stdout.splitlines()] == ["step 1", "step 2"]
