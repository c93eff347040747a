"""The command line: quick help, errors as one message, and no command that does not work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from metier.base.errors import ConfigError
from metier.cli import main
from metier.records.events import Event

HEAVY = ("torch", "transformers", "pydantic", "sqlalchemy", "numpy", "scipy", "pyarrow", "yaml")

Run = Callable[..., types.SimpleNamespace]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one recipe in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    return tmp_path


def runner(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Let `metier run` call `run`, without importing torch."""
    module = types.ModuleType("metier.recipes.runner")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metier.recipes.runner", module)


def test_help_imports_nothing_heavy_and_lists_the_commands() -> None:
    code = (
        "import sys\nfrom metier.cli import main\ncode = main(['--help'])\n"
        f"print(code, sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "0 []\n"
    for name in ("run", "report", "runs"):
        assert f"│ {name} " in done.stdout


def test_python_dash_m_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "metier", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("metier 0.")


@pytest.mark.parametrize("arguments", [["rum"], ["run"], ["run", "x", "--sed", "1"], ["run", "x", "--seed", "many"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error" in captured.err


def test_an_error_is_one_message_without_a_traceback(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "no-such-recipe"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: no recipe 'no-such-recipe': there is no such file and no packaged recipe")
    assert captured.err.count("\n") == 1


def test_run_hands_everything_on_and_tells_where_the_report_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, object] = {}

    def run(
        recipe: str,
        *,
        folder: str | None,
        seed: int | None,
        overrides: Sequence[str],
        ledger: str | None,
        listener: Callable[[Event], None],
    ) -> types.SimpleNamespace:
        given.update(recipe=recipe, folder=folder, seed=seed, overrides=list(overrides), ledger=ledger)
        listener({"at": 1.0, "stage": "", "event": "run_start", "stages": ["baseline"]})
        listener({"at": 1.0, "stage": "baseline", "event": "stage_start"})
        return types.SimpleNamespace(run_id="run-1", folder=Path("f"), report=Path("f/report.html"))

    runner(monkeypatch, run)
    line = [
        "run",
        "mine.yaml",
        "--folder",
        "f",
        "--seed",
        "3",
        "--set",
        "a.b=1",
        "--set",
        "c=2",
        "--ledger",
        "l.sqlite",
    ]
    assert main(line) == 0
    assert given == {
        "recipe": "mine.yaml",
        "folder": "f",
        "seed": 3,
        "overrides": ["a.b=1", "c=2"],
        "ledger": "l.sqlite",
    }
    assert capsys.readouterr().out.splitlines() == [
        "[00:00] baseline: started (stage 1 of 1)",
        "run     run-1",
        "folder  f",
        "report  f/report.html",
    ]
    assert main([*line, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"run": "run-1", "folder": "f", "report": "f/report.html"}
    assert "baseline: started" in captured.err


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (ConfigError("stages.0.steps: expected a number"), 2, "error: stages.0.steps: expected a number\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command continues from here\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "error: the disk is full; free some space and run the same command",
        ),
    ],
)
def test_what_stops_a_run(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    told: str,
) -> None:
    def run(recipe: str, **_: object) -> types.SimpleNamespace:
        raise raised

    runner(monkeypatch, run)
    assert main(["run", "mine.yaml"]) == code
    assert capsys.readouterr().err.startswith(told)


def test_our_own_bugs_stay_tracebacks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipe: str, **_: object) -> types.SimpleNamespace:
        raise AssertionError("a bug")

    runner(monkeypatch, run)
    with pytest.raises(AssertionError, match="a bug"):
        main(["run", "mine.yaml"])


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys\nfrom metier.cli import app, main\n"
        "app.app.command('talk')(lambda: print('x' * 100000))\nsys.exit(main(['talk']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import metier.cli.app\n" + code], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert done.stderr == b""
