"""`metier train` on plain files: what is learned, what is refused, and going on after a stop."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from metier.base.errors import ConfigError, DataError, ModelError
from metier.cli import main
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import Message, Task
from metier.train.checkpoints import weights_hash
from metier.train.data import Encoder, limited, read_rows
from metier.train.fit import FitSettings, fit
from metier.train.objectives import registry
from metier.train.optimizer import DivergedError
from metier.train.score import score

WORDS = ["apple", "bread", "cheese", "dates", "eggs", "figs", "grapes", "honey"]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rows_for(objective: str) -> list[dict[str, Any]]:
    if objective == "sft":
        return [{"messages": chat(f"Price of {w}?", f"{n} euros.")} for n, w in enumerate(WORDS)]
    if objective == "kto":
        return [
            {"prompt": f"Price of {w}?", "completion": f"{n} {'euros' if good else 'dollars'}.", "label": good}
            for n, w in enumerate(WORDS)
            for good in (True, False)
        ]
    return [
        {
            "prompt": [{"role": "user", "content": f"Price of {w}?"}],
            "chosen": [{"role": "assistant", "content": f"{n} euros."}],
            "rejected": [{"role": "assistant", "content": f"{n} dollars."}],
        }
        for n, w in enumerate(WORDS)
    ]


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(tiny_model: Path, tmp_path: Path, objective: str, **more: Any) -> FitSettings:
    given = {"objective": objective, "model": str(tiny_model), "data": str(tmp_path / "rows.jsonl")}
    return FitSettings(**{**given, "out": str(tmp_path / "out"), "dtype": "float32", "lr": 1e-2, "batch": 4, **more})


def test_a_row_of_any_type_has_a_weight(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    encoder = Encoder(tokenizer, get_renderer(tokenizer))
    for objective, kind in (("sft", "single"), ("dpo", "pair"), ("kto", "judged")):
        row = rows_for(objective)[0]
        for weight, kept in ((0.25, 0.25), (None, 1.0), (0, 0.0)):
            assert {e.weight for e in encoder.unit({**row, "weight": weight}, kind, 1)} == {kept}
        for wrong in (-1, "much", float("nan"), True):
            with pytest.raises(DataError, match="row 7: the weight of a row must be a number, 0 or more"):
                encoder.unit({**row, "weight": wrong}, kind, 7)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 3}]
    (example,) = encoder.unit({"messages": turns, "weight": 0.5}, "single", 1)
    assert set(example.weight) == {1.5}  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "orpo", "simpo"])
def test_what_is_better_becomes_likelier(objective: str, tiny_model: Path, tmp_path: Path) -> None:
    written(tmp_path, rows_for(objective))
    result = fit(settings(tiny_model, tmp_path, objective, epochs=4))
    assert result["steps"] == (16 if objective == "kto" else 8)
    tokenizer = load_tokenizer(str(tiny_model))
    encoder = Encoder(tokenizer, get_renderer(tokenizer))
    pairs = [encoder.unit(row, "pair", n) for n, row in enumerate(rows_for("dpo"))]
    flat = [example for pair in pairs for example in pair]
    before = score(load_model(str(tiny_model)), flat)
    after = score(load_model(result["out"]), flat)

    def leads(found: list[tuple[float, ...]]) -> torch.Tensor:
        sums = torch.tensor([sum(f) for f in found]).view(-1, 2)
        return sums[:, 0] - sums[:, 1]

    assert float((leads(after) > leads(before)).float().mean()) == 1.0


def test_the_worked_example_of_the_docs_works(
    repository: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "docs" / "training.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry._known, "registered", {})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_for("sft")))
    assert "options={" in code
    (tmp_path / "example.py").write_text(code.replace("options={", f"model={str(tiny_model)!r}, options={{"))
    runpy.run_path("example.py", run_name="example")
    noted = json.loads((tmp_path / "models" / "focal" / "model" / "metier.json").read_text())
    # an untrained model gives each word about 1 / 49152, so (1 - p) is about 1
    assert noted["objective"] == "focal" and noted["metrics"]["focus"] == pytest.approx(1.0, abs=0.01)


def test_a_reward_model_prefers_what_people_preferred(tiny_model: Path, tmp_path: Path) -> None:
    written(tmp_path, rows_for("dpo"))
    result = fit(settings(tiny_model, tmp_path, "reward", epochs=8, heads=2))
    tokenizer = AutoTokenizer.from_pretrained(result["out"])
    scorer = AutoModelForSequenceClassification.from_pretrained(result["out"]).eval()
    assert scorer.config.pad_token_id != tokenizer.eos_token_id  # the end of a turn is scored, not passed over
    renderer = get_renderer(load_tokenizer(str(tiny_model)))
    leads = []
    for row in rows_for("dpo"):
        better, worse = (
            renderer.render([Message.from_openai(m) for m in [*row["prompt"], *row[side]]]).token_ids
            for side in ("chosen", "rejected")
        )
        with torch.no_grad():
            scores = [scorer(torch.tensor([ids])).logits.mean() for ids in (better, worse)]
        leads.append(float(scores[0] - scores[1]))
    assert min(leads) > 0
    # the verifier says the same of the last pair
    asked = Message.from_openai(row["prompt"][0])
    task = Task(family="t", kind="t", messages=(asked,))
    said = [Attempt(messages=(asked, Message.from_openai(row[side][0]))) for side in ("chosen", "rejected")]
    params = {"model": result["out"], "shift": 0.5, "scale": 2.0}
    told = [judge("reward_model", task, attempt, params) for attempt in said]
    assert [one.score for one in told] == pytest.approx(
        [float(torch.sigmoid((s - 0.5) / 2.0)) for s in scores], abs=1e-5
    )
    none = judge("reward_model", task, said[0], {"model": str(tiny_model)})
    assert none.score is None and "is no reward model" in none.reason
    lost = judge("reward_model", task, said[0], {"model": str(tmp_path / "nowhere")})
    assert lost.score is None and "nowhere" in lost.reason


def test_a_process_reward_model_tells_right_steps(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Price of {w}?", "completions": [f"{w} is food.", f"{n} dollars."], "labels": [True, False]}
        for n, w in enumerate(WORDS)
    ]
    written(tmp_path, rows)
    result = fit(settings(tiny_model, tmp_path, "process_reward", epochs=10))
    noted = json.loads((Path(result["out"]) / "metier.json").read_text())
    assert noted["metrics"]["accuracy"] == 1.0 and noted["metrics"]["right"] == 0.5
    read = AutoModelForSequenceClassification.from_pretrained(result["out"]).eval()  # scores the last token
    tokenizer = AutoTokenizer.from_pretrained(result["out"])

    def scored(text: str) -> float:
        return float(read(**tokenizer(text, return_tensors="pt")).logits[0, 0].detach())

    for n, w in enumerate(WORDS):
        first = f"Price of {w}?{w} is food."
        assert scored(first) > 0 > scored(f"{first}\n{n} dollars.")


def test_distillation_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    written(tmp_path, rows_for("sft"))
    teacher = fit(settings(tiny_model, tmp_path, "sft", out=str(tmp_path / "teacher"), epochs=4))["out"]
    gaps: dict[str, list[float]] = {}
    for name, of in (("itself", str(tiny_model)), ("another", str(teacher))):
        out, options = str(tmp_path / name), {"beta": 0.0}
        given = settings(tiny_model, tmp_path, "distill", teacher=of, out=out, epochs=8, options=options)
        found = gaps.setdefault(name, [])
        fit(given, on_event=lambda e, found=found: found.append(e["divergence"]) if e["event"] == "step" else None)
    assert abs(gaps["itself"][0]) < 1e-5  # a model is its own best student
    assert gaps["another"][0] > 0.01 and gaps["another"][-1] < 0.5 * gaps["another"][0], gaps
    with pytest.raises(ConfigError, match="needs a teacher"):
        fit(settings(tiny_model, tmp_path, "distill", out=str(tmp_path / "other")))


def test_a_stopped_training_goes_on_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    data = written(tmp_path, rows_for("dpo") * 4)
    command = [sys.executable, "-m", "metier", "train", "dpo", "--data", data, "--model", str(tiny_model)]
    command += ["--set", "dtype=float32", "--set", "lr=1e-2", "--set", "batch=2", "--set", "save_seconds=0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def train(out: str) -> dict[str, Any]:
        done = subprocess.run(
            [*command, "--out", str(tmp_path / out)], capture_output=True, env=environment, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    whole = train("whole")
    process = subprocess.Popen([*command, "--out", str(tmp_path / "cut")], env=environment, stdout=subprocess.DEVNULL)
    log = tmp_path / "cut" / "events.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count('"step"') > 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "model").exists()
    cut = train("cut")
    assert "continues after step" in log.read_text()
    assert cut["weights_hash"] == whole["weights_hash"]
    assert train("cut") == cut  # done: nothing is done again


def test_rows_of_every_type(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    encoder = Encoder(tokenizer, get_renderer(tokenizer))

    def learned(row: dict[str, Any], kind: Any = "single") -> list[str]:
        return [
            tokenizer.decode([t for t, own in zip(e.token_ids, e.loss_mask, strict=True) if own])
            for e in encoder.unit(row, kind, 1)
        ]

    assert learned({"text": "one two"}) == [" two<|im_end|>"]
    assert learned({"prompt": "one", "completion": " two"}) == [" two<|im_end|>"]
    assert learned({"prompt": "one", "completion": [{"role": "assistant", "content": "two"}]}) == ["two<|im_end|>"]
    talk = [*chat("a?", "b."), *chat("c?", "d.")]
    assert learned({"messages": talk}) == ["b.<|im_end|>d.<|im_end|>"]
    weighted = [dict(m) for m in talk]
    weighted[1]["weight"] = 0  # type: ignore[assignment]
    assert learned({"messages": weighted}) == ["d.<|im_end|>"]
    # what came before the completion carries no loss, even where an assistant said it
    assert learned({"prompt": [*chat("a?", "b."), talk[2]], "completion": [talk[3]]}) == ["d.<|im_end|>"]
    assert learned({"chosen": [talk[0], talk[1]], "rejected": [talk[0], talk[3]]}, "pair") == [
        "b.<|im_end|>",
        "d.<|im_end|>",
    ]
    assert learned({"chosen": "say yes", "rejected": "say no"}, "pair") == ["yes<|im_end|>", "no<|im_end|>"]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
    said = learned(
        {"messages": [talk[0], call, {"role": "tool", "tool_call_id": "1", "content": "r"}, talk[1]], "tools": [tool]}
    )
    assert said[0].count("<tool_call>") == 1 and "r<" not in said[0]


def test_the_end_of_a_turn_is_learned_though_it_is_the_padding_token(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (example,) = Encoder(tokenizer, get_renderer(tokenizer)).unit({"messages": chat("a?", "b.")}, "single", 1)
    last = max(i for i, own in enumerate(example.loss_mask) if own)
    assert example.token_ids[last] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("objective", "text", "message"),
    [
        ("sft", "", "has no rows"),
        ("sft", "{", "line 1: not JSON"),
        ("sft", '{"prompt": "a"}', "row 1: expected 'messages'"),
        ("sft", '{"messages": [{"role": "user", "content": "a"}]}', "without a token that carries loss"),
        ("dpo", '{"prompt": "a", "chosen": "b", "rejected": "b"}', "row 1: chosen and rejected are the same"),
        ("dpo", '{"prompt": "a", "chosen": "b"}', "row 1: expected 'rejected'"),
        ("kto", '{"prompt": "a", "completion": "b", "label": "good"}', "row 1: label must be true or false"),
        ("dpo", '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}', "row 1: margin must be a number"),
        (
            "sft",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": "x"}]}',
            "row 1: the weight of a message must be a number, 0 or more, got 'x'",
        ),
        (
            "sft",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": -1}]}',
            "row 1: the weight of a message must be a number, 0 or more, got -1",
        ),
        ("grpo", '{"prompt": "a"}', "learns from episodes"),
        ("sftt", '{"prompt": "a"}', "nearest is 'sft'"),
    ],
)
def test_rows_that_cannot_be_used(
    objective: str, text: str, message: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    arguments = ["train", objective, "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(tiny_model)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    assert not (tmp_path / "out" / "model").exists()


def test_rows_that_are_too_long(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    encoder = Encoder(tokenizer, get_renderer(tokenizer))
    rows = [{"prompt": "a b", "completion": " c" * n} for n in (2, 9)]
    units = [encoder.unit(row, "single", n) for n, row in enumerate(rows, 1)]
    with pytest.raises(DataError, match="row 2 has 12 tokens, more than max_length 8"):
        limited(units, 8, "error")
    kept, counts = limited(units, 8, "drop")
    assert kept == [units[0]] and counts == {"dropped": 1, "truncated": 0, "without_labels": 0, "alike": 0}
    kept, counts = limited(units, 8, "truncate")
    assert len(kept[1][0].token_ids) == 8 and kept[1][0].labels == 6 and counts["truncated"] == 1
    with pytest.raises(DataError, match="no row is left"):
        limited(units, 2, "truncate")
    both = {"prompt": "a b", "chosen": " c c c c d", "rejected": " c c c c e e"}  # part at their seventh token
    pairs = [encoder.unit(both, "pair", 1), encoder.unit({**both, "rejected": " f"}, "pair", 2)]
    kept, counts = limited(pairs, 6, "truncate")
    assert [e.key for unit in kept for e in unit] == ["row 2 (chosen)", "row 2 (rejected)"]
    assert counts == {"dropped": 0, "truncated": 1, "without_labels": 0, "alike": 1}


def test_answers_in_steps_that_are_too_long(tiny_model: Path) -> None:
    """The token behind the last step, which carries its label, is not one that a model reads."""
    tokenizer = load_tokenizer(str(tiny_model))
    row = {"prompt": "a b", "completions": ["c d", "e f g"], "labels": [True, False]}
    unit = Encoder(tokenizer, get_renderer(tokenizer)).unit(row, "steps", 1)
    n = len(unit[0].token_ids) - 1
    assert unit[0].advantage == (1.0, 0.0)
    kept, _ = limited([unit], n, "error", unread=1)
    assert kept == [unit]
    with pytest.raises(DataError, match=f"row 1 has {n} tokens, more than max_length {n - 1}"):
        limited([unit], n - 1, "error", unread=1)
    kept, counts = limited([unit], n - 1, "truncate", unread=1)
    assert kept[0][0].advantage == (1.0,) and kept[0][0].labels == 1 and counts["truncated"] == 1


def test_a_reward_is_read_off_the_last_token_of_a_row_that_is_cut(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": " good" * n, "rejected": " bad" * n} for n in (3, 30)]
    written(tmp_path, rows)
    events: list[dict[str, Any]] = []
    given = settings(tiny_model, tmp_path, "reward", max_length=10, too_long="truncate")
    assert fit(given, on_event=lambda event: events.append(event))["rows"] == 2
    assert [e["text"] for e in events if e["event"] == "note"] == ["1 rows truncated"]


def test_a_training_that_diverges_keeps_its_last_good_state(tiny_model: Path, tmp_path: Path) -> None:
    written(tmp_path, rows_for("sft"))
    with pytest.raises(
        DivergedError, match=r"not finite at step \d+, batch of 4 examples \(row \d, row \d, row \d …\)"
    ):
        fit(settings(tiny_model, tmp_path, "sft", batch=4, lr=1e30, clip=0, epochs=4))
    (state,) = (tmp_path / "out" / "state").iterdir()
    assert (state / "state.safetensors").is_file()


def test_a_cut_model_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(tiny_model, cut)
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load the model of"):
        load_model(str(cut))
    with pytest.raises(ModelError, match=r"model.safetensors is cut off"):
        weights_hash(cut)


def test_a_teacher_of_another_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    noted = json.loads((other / "tokenizer.json").read_text())
    words = noted["model"]["vocab"]
    a, b = list(words)[500:502]
    words[a], words[b] = words[b], words[a]
    (other / "tokenizer.json").write_text(json.dumps(noted))
    written(tmp_path, rows_for("sft"))
    with pytest.raises(ModelError, match="has another tokenizer than the student"):
        fit(settings(tiny_model, tmp_path, "distill", teacher=str(other)))


def test_another_training_does_not_overwrite(tiny_model: Path, tmp_path: Path) -> None:
    written(tmp_path, rows_for("sft"))
    fit(settings(tiny_model, tmp_path, "sft"))
    with pytest.raises(ConfigError, match="of other settings"):
        fit(settings(tiny_model, tmp_path, "sft", lr=1e-3))
    written(tmp_path, rows_for("sft")[:4])
    with pytest.raises(ConfigError, match="of other settings or data"):
        fit(settings(tiny_model, tmp_path, "sft"))


def test_a_stopped_training_does_not_go_on_with_other_settings(tiny_model: Path, tmp_path: Path) -> None:
    written(tmp_path, rows_for("sft"))

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(settings(tiny_model, tmp_path, "sft", epochs=4, save_seconds=0), on_event=stop)
    with pytest.raises(ConfigError, match="of other settings"):
        fit(settings(tiny_model, tmp_path, "sft", epochs=4, save_seconds=0, lr=1e-3))


def test_the_weights_that_do_best_on_held_out_rows_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    """Learning eight rows by heart lets the loss on others fall and then rise; the best is the same after a stop."""
    rows = rows_for("sft")
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[4:]))
    written(tmp_path, rows[:4])
    given = {"eval_data": str(tmp_path / "held.jsonl"), "eval_every": 2, "epochs": 40, "lr": 3e-2, "save_seconds": 0}
    events: list[dict[str, Any]] = []

    def stop_once(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step" and event["step"] == 21:
            raise KeyboardInterrupt

    best = settings(tiny_model, tmp_path, "sft", keep="best", **given)
    with pytest.raises(KeyboardInterrupt):
        fit(best, on_event=stop_once)
    result = fit(best, on_event=lambda event: events.append(event))
    losses = {e["step"]: e["loss"] for e in events if e["event"] == "measure"}
    kept = min(losses, key=lambda step: losses[step])
    assert 0 < kept < max(losses) and losses[kept] < losses[0] and losses[kept] < losses[max(losses)]
    assert result["steps"] == kept
    noted = json.loads((Path(result["out"]) / "metier.json").read_text())
    assert noted["metrics"]["loss"] == losses[kept]
    last = fit(settings(tiny_model, tmp_path, "sft", out=str(tmp_path / "last"), **given))
    assert last["steps"] == max(losses) and last["weights_hash"] != result["weights_hash"]
    with pytest.raises(ConfigError, match="name them as eval_data"):
        fit(settings(tiny_model, tmp_path, "sft", keep="best", out=str(tmp_path / "no")))


def test_other_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "a"}, {"text": "b"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert read_rows(tmp_path / "rows.parquet") == rows == read_rows(tmp_path / "rows.json")
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(DataError, match="no Parquet file"):
        read_rows(tmp_path / "bad.parquet")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text: byte 13"):
        read_rows(tmp_path / "latin.jsonl")
