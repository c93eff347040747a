"""The wheel brings all that runs without a checkout: recipes, the report's page, passages, types."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install 'metier[dev]'")
ROOT = Path(__file__).parents[2]


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    source = ROOT / "src"
    wanted = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {"metier/recipes/desk.yaml", "metier/report/page.css", "metier/tasks/passages.txt"} <= wanted
    assert wanted <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
