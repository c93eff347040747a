"""LoRA from a file and in a recipe: only the adapter learns, is saved, goes on, and merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from metier.base.errors import ConfigError, ModelError
from metier.cli import main
from metier.models.adapters import Adapter, add_adapter, fingerprint
from metier.models.hub import load_model
from metier.recipes.runner import run
from metier.records.events import read, steps
from metier.train.checkpoints import export
from metier.train.fit import FitSettings, fit
from metier.train.packing import Example
from metier.train.score import score

pytest.importorskip("peft")

# peft asks transformers for a property by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = [{"prompt": f"Say {n}.", "completion": f"{n}!"} for n in ("one", "two", "three", "four", "five", "six")]


PLUGIN = """
from metier.feedback.verifiers.protocol import Verdict
from metier.feedback.verifiers.registry import register

class Holds:
    name, version = "holds_a", "1"

    def verify(self, task, attempt, params):
        said = "".join(m.content for m in attempt.messages if m.role == "assistant")
        return Verdict(score=float("a" in said), reason=said)

register(Holds())
"""


def examples() -> list[Example]:
    torch.manual_seed(5)
    rows = torch.randint(10, 4000, (3, 12)).tolist()
    return [Example(tuple(row), (0,) * 6 + (1,) * 6) for row in rows]


def trained(model: Path, folder: Path, **given: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {"objective": "sft", "model": str(model), "dtype": "float32", "lr": 1e-2, "epochs": 4, "batch": 3}
    return fit(
        FitSettings(
            data=str(folder / "rows.jsonl"), out=str(folder / "out"), adapter=Adapter(rank=4), **settings | given
        )
    )


def test_only_the_adapter_learns_and_is_written(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(trained(tiny_model, tmp_path)["out"])
    assert (folder / "adapter_model.safetensors").stat().st_size < 200_000
    assert not (folder / "model.safetensors").exists()
    base, tuned = load_model(str(tiny_model)), load_model(str(folder))
    before, after = score(base, examples()), score(tuned, examples())
    assert before != after
    tuned.disable_adapters()
    assert score(tuned, examples()) == before
    done = steps(read(tmp_path / "out"), "train")
    assert done[-1]["loss"] < done[0]["loss"]
    # transformers alone reads the folder and gives the same numbers
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    one = examples()[0]
    with torch.no_grad():
        logprobs = plain(torch.tensor([one.token_ids])).logits.log_softmax(-1)[0]
    expected = [float(logprobs[t - 1, one.token_ids[t]]) for t in range(6, 12)]
    assert after[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_known_again_in_either_type(tiny_model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = Path(trained(tiny_model, tmp_path, dtype="bfloat16")["out"])
    noted = json.loads((folder / "metier.json").read_text())["base_fingerprint"]
    assert fingerprint(load_model(str(folder), dtype=dtype)) == noted


def test_an_adapter_learns_on_and_a_stopped_training_ends_the_same(tiny_model: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    wanted = trained(tiny_model, whole)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    (parts / "rows.jsonl").write_text((whole / "rows.jsonl").read_text())
    settings = FitSettings(
        objective="sft", model=str(tiny_model), dtype="float32", lr=1e-2, epochs=4, batch=3, adapter=Adapter(rank=4),
        data=str(parts / "rows.jsonl"), out=str(parts / "out"), save_seconds=0.0,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        fit(settings, on_event=stop)
    assert fit(settings.model_copy())["weights_hash"] == wanted["weights_hash"]
    more = tmp_path / "more"
    more.mkdir()
    again = trained(Path(wanted["out"]), more)
    first, second = (load_file(Path(r["out"]) / "adapter_model.safetensors") for r in (wanted, again))
    assert first.keys() == second.keys() and any(not torch.equal(first[k], second[k]) for k in first)


def test_merged_weights_give_what_base_and_adapter_give(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(trained(tiny_model, tmp_path)["out"])
    digest = export(folder, tmp_path / "whole")
    noted = json.loads((tmp_path / "whole" / "metier.json").read_text())
    assert noted["weights_hash"] == digest and noted["objective"] == "sft" and "base_fingerprint" not in noted
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    apart, joined = (score(load_model(str(p)), examples()) for p in (folder, tmp_path / "whole"))
    for a, b in zip(apart, joined, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_an_adapter_of_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    folder = Path(trained(base, tmp_path)["out"])
    load_model(str(folder))
    other = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(base)
    with pytest.raises(ModelError, match="trained on other weights"):
        load_model(str(folder))


def test_what_cannot_be_adapted_is_said(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="adapter does not fit"):
        add_adapter(load_model(str(tiny_model)), Adapter(targets=("no_such_layer",)), seed=0)
    with pytest.raises(ConfigError, match="leave adapter out"):
        trained(tiny_model, tmp_path, objective="reward")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes"):
        load_model(str(tiny_model), quantize="4bit")


def test_a_recipe_trains_one_adapter_through_its_stages(tiny_model: Path, tmp_path: Path) -> None:
    """SFT, then RL with a KL term to the SFT adapter, which is kept as a copy of the adapter alone."""
    rows = []
    for split, n in (("demo", 6), ("train", 4)):
        for number in range(n):
            row = {"prompt": f"Say a word, {split} {number}.", "split": split, "verifier": "holds_a"}
            rows.append({**row, "demonstration": [{"role": "assistant", "content": f"a {number}"}]})
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    recipe = {
        "name": "lora",
        "model": {"name": str(tiny_model), "dtype": "float32", "adapter": {"rank": 4}},
        "tasks": {"file": "tasks.jsonl"},
        "plugins": ["plugin.py"],
        "stages": [
            {"kind": "demonstrate", "name": "demos", "split": "demo", "n": 6},
            {"kind": "sft", "name": "sft", "data": "demos", "lr": 1e-3, "batch": 3},
            {
                "kind": "rl", "name": "grpo", "of": "sft", "split": "train", "steps": 2, "tasks": 2, "group": 8,
                "lr": 1e-2, "options": {"kl": "k3", "kl_coef": 0.1},
                "sampling": {"max_turn_tokens": 2, "max_turns": 1},
            },
        ],
    }  # fmt: skip
    (tmp_path / "lora.yaml").write_text(json.dumps(recipe))
    done = run(str(tmp_path / "lora.yaml"), folder=str(tmp_path / "run"))
    sft, grpo = (load_file(done.folder / "checkpoints" / n / "adapter_model.safetensors") for n in ("sft", "grpo"))
    assert sft.keys() == grpo.keys()
    first, second = steps(read(done.folder), "grpo")
    assert first["groups_without_variance"] < 2
    assert abs(second["mismatch_kl"]) < 1e-6  # the engine samples with the adapter as it is now
    assert first["reference_kl"] == pytest.approx(0.0, abs=1e-9) and second["reference_kl"] > 1e-6
    assert any(not torch.equal(sft[key], grpo[key]) for key in sft)


def test_the_commands(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out, whole = tmp_path / "out", tmp_path / "whole"
    train = ["train", "sft", "--model", str(tiny_model), "--data", str(tmp_path / "rows.jsonl"), "--out", str(out)]
    assert main([*train, "--set", "adapter.rank=4", "--set", "adapter.targets=[q_proj]", "--set", "dtype=float32"]) == 0
    weights = load_file(out / "model" / "adapter_model.safetensors")
    assert {tuple(t.shape) for t in weights.values()} == {(4, 32), (32, 4)} and all(
        "q_proj" in name for name in weights
    )
    capsys.readouterr()
    assert main(["runs", "export", str(out / "model"), "--out", str(whole), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights_hash"] == json.loads((whole / "metier.json").read_text())["weights_hash"]
    assert main(["runs", "export", str(out / "model"), "--out", str(whole)]) == 2
    assert "is there already" in capsys.readouterr().err
