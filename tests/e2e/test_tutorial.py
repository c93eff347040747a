"""The tutorial works as it stands: its files are cut out of the page and its commands run.

Only the model is exchanged, for a tiny one with random weights; whether it answers well
is not asked here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from metier.records.ledger import Ledger

FILES = {
    "tasks.jsonl",
    "plugin.py",
    "recipe.yaml",
    "run.sh",
    "look.sh",
    "from_python.py",
    "python.sh",
}

REPLAY = """
import importlib.util, sys
from metier.records.ledger import Ledger
from metier.rollout.tools import ToolBox

spec = importlib.util.spec_from_file_location("plugin", "plugin.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
with Ledger.open("runs/ledger.sqlite") as ledger:
    for episode in ledger.episodes(stage="demonstrations"):
        box = ToolBox(ledger.task(episode.task_id).tools)
        calls = [call for m in episode.messages for call in m.tool_calls]
        told = [m.content for m in episode.messages if m.role == "tool"]
        assert calls and [box.call(call) for call in calls] == told, (calls, told)
        print("replayed")
"""


def _blocks(page: Path) -> dict[str, str]:
    found = re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    assert len(found) == len(dict(found)), "a file stands on the page twice"
    return dict(found)


def _shell(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_runs(repository: Path, tiny_model: Path, tmp_path: Path) -> None:
    blocks = _blocks(repository / "docs" / "tutorial.md")
    assert blocks.keys() == FILES
    named = 'ModelSettings(name="smollm2")'
    assert blocks["from_python.py"].count(named) == 1
    blocks["from_python.py"] = blocks["from_python.py"].replace(named, f"ModelSettings(name={str(tiny_model)!r})")
    for name, text in blocks.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    told = _shell(f"{blocks['run.sh'].strip()} --set model.name={tiny_model}", tmp_path)
    assert "runs/units/report.html" in told
    assert (tmp_path / "runs/units/report.html").stat().st_size > 10_000
    assert "new names, ids" not in (tmp_path / "runs/units/report.html").read_text()  # which only the desk's are
    assert (tmp_path / "runs/units/checkpoints/grpo/config.json").is_file()

    looked = _shell(blocks["look.sh"], tmp_path)
    assert "evaluate-final" in looked  # show
    assert "verifier converted 1" in looked  # why

    told = _shell(blocks["python.sh"], tmp_path)
    assert (tmp_path / "runs/units-python/report.html").is_file()
    assert told.count("tool calls:") == 4

    assert _shell(f"{sys.executable} -c '{REPLAY}'", tmp_path).count("replayed") == 16  # 8 in each run
    with Ledger.open(tmp_path / "runs" / "ledger.sqlite") as ledger:
        demonstrated = {e.id for e in ledger.episodes(stage="demonstrations")}
        tried = {e.id for e in ledger.episodes(stage="grpo")}
        said = [f for f in ledger.feedback() if (f.source.kind, f.source.name) == ("verifier", "converted")]
    assert all(f.status == "scored" for f in said), "the verifier on the page raised"
    assert demonstrated and tried
    assert demonstrated | tried <= {f.about[0] for f in said}
    assert {f.value for f in said if f.about[0] in demonstrated} == {1.0}
