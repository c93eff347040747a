"""The house keeps its own rules: layers, docstrings, declared names, no trace of a machine."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "metier"
DRAWERS = {"utils", "util", "helpers", "common", "misc"}
SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".json",
    ".jsonl",
    ".html",
    ".css",
    ".js",
    ".jinja",
    ".sh",
    "",
}

# Put together here, so that this file does not hold them itself.
MACHINE = ["/" + "work/", "/" + "root/", "/" + "opt/pypi", "/" + "opt/wheels", "bash" + "_jobs"]


def modules() -> list[Path]:
    """Every module that is not private."""
    return sorted(p for p in PACKAGE.rglob("*.py") if not p.stem.startswith("_") or p.stem in ("__init__", "__main__"))


def tracked() -> Iterator[Path]:
    """The text files that git would keep."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix in SUFFIXES:
            yield path


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_opens_with_its_design_and_declares_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    body = tree.body[1:]
    if not body and path.stem == "__init__":
        return  # a package that holds its docstring alone
    targets = [t for node in body if isinstance(node, (ast.Assign, ast.AnnAssign)) for t in assigned(node)]
    assert "__all__" in targets, f"{name_of(path)} has no __all__"
    imported = [n for n in body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    assert imported, f"{name_of(path)} lacks: from __future__ import annotations"


def assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def test_there_are_no_drawers() -> None:
    assert not [name_of(p) for p in modules() if p.stem in DRAWERS]


def test_modules_import_only_from_the_layers_below() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_this_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {trace}"
        for path in tracked()
        for trace in MACHINE
        if trace in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert not found


def test_constraints_pin_every_dependency_of_the_project() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    apart = {"inspect", "verifiers"}  # tested in environments of their own, which the Makefile pins
    extras = {name: group for name, group in project["optional-dependencies"].items() if name not in apart}
    wanted = [*project["dependencies"], *(d for group in extras.values() for d in group)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    for requirement in wanted:
        name = re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, f"constraints.txt does not pin {name}"
    assert pinned["torch"] == "2.13.0"
    assert not [version for version in pinned.values() if "+" in version]
