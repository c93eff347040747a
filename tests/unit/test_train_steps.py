"""Examples, the training step, its optimiser and its checkpoints, on a tiny random Llama."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from metier.base.errors import DataError, DiskFullError
from metier.train import checkpoints
from metier.train.checkpoints import Saver, load_state, put_back, save_model, save_state, weights_hash
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.objectives.sft import Sft
from metier.train.optimizer import DivergedError, Masters, scattered
from metier.train.packing import Example, pack, split_micro
from tiny import tiny_config

DTYPES = [torch.float32, torch.bfloat16]


def tiny(dtype: torch.dtype = torch.float32, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = tiny_config()
    return LlamaForCausalLM(config).to(dtype)


def trainer_of(dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> Trainer:
    given = {"lr": 1e-2, "steps": 6, "schedule": "cosine", "warmup": 2, "weight_decay": 0.1, "token_budget": 30}
    return Trainer(tiny(dtype, seed), TrainSettings(**{**given, **settings}), Sft())


def batch(seed: int) -> list[Example]:
    torch.manual_seed(seed)
    rows = torch.randint(0, 97, (4, 12)).tolist()
    prompt = tuple(rows[0][:6])
    return [Example(prompt + tuple(row[6:]), (0,) * 6 + (1,) * 6) for row in rows]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- examples ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"loss_mask": (1, 0, 0)}, "position 0"),
        ({"loss_mask": (0, 1)}, "3 tokens and 2 mask values"),
        ({"loss_mask": (0, 1, 1), "sampler_logprobs": (-1.0,)}, "2 labels, 1 values of sampler"),
    ],
)
def test_an_impossible_example_is_refused_by_name(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        Example((1, 2, 3), key="case-7", **fields)
    assert "case-7" in str(caught.value)


def test_a_label_after_a_shared_prefix_is_predicted_by_its_last_token() -> None:
    made = [Example((6, 7, 8, 9, 2, 3), (0, 0, 0, 0, 1, 1)), Example((6, 7, 8, 9, 1), (0, 0, 0, 0, 1))]
    packed = pack(made, heads=4)
    assert packed.input_ids_T.tolist() == [6, 7, 8, 9, 2]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 3, 4]
    assert packed.source_U[packed.like_M].tolist() == [3, 4, 3]
    assert packed.targets_U[packed.like_M].tolist() == [2, 3, 1]
    assert packed.example_M.tolist() == [0, 0, 1]


def test_siblings_share_what_they_say_alike_before_they_part() -> None:
    head = (1, 2, 3, 4, 5)
    answers = [(6, 7, 8, 9, 10, 11), (6, 7, 8, 9, 20, 21), (6, 7, 8, 9, 10, 11), (6, 30, 31, 32, 33, 34)]
    made = [Example(head + a, (0,) * 5 + (1,) * 6) for a in answers]
    packed = pack(made, heads=4)
    # The last token of each predicts nothing. The third is the first again, the second parts from it
    # after four tokens of the answer, the last after one.
    assert packed.input_ids_T.tolist() == [*head, 6, 7, 8, 9, 10, 20, 30, 31, 32, 33]
    assert packed.position_ids_T.tolist() == [*range(10), 9, *range(6, 10)]
    assert packed.pairs == sum(range(1, 11)) + 10 + sum(range(7, 11))
    assert len(packed.like_M) == 24 and len(packed.source_U) == 6 + 2 + 5  # what stands alike is predicted once
    for index, example in enumerate(made):
        mine = packed.like_M[packed.example_M == index]
        assert packed.targets_U[mine].tolist() == list(example.token_ids[5:])
        assert packed.input_ids_T[packed.source_U[mine]].tolist() == list(example.token_ids[4:-1])


def test_a_few_tokens_in_common_are_not_worth_a_span() -> None:
    made = [Example((1, 2, 3, n, 5), (0, 0, 0, 0, 1)) for n in (4, 6)]
    assert pack(made, heads=4).input_ids_T.tolist() == [1, 2, 3, 4, 1, 2, 3, 6]


def test_micro_batches_keep_prefixes_together_in_a_fixed_order() -> None:
    a, b = (Example((p, p, 1, 1), (0, 0, 1, 1), key=str(p)) for p in (5, 6))
    long = Example((9,) * 50, (0,) + (1,) * 49, key="long")
    # a and its twin share all 3 needed tokens; b needs 3 more; long needs 49 and goes alone.
    micro = split_micro([a, b, long, a, b], 6)
    assert [[e.key for e in m] for m in micro] == [["5", "5", "6", "6"], ["long"]]


# --- steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dr_grpo", "grpo", "dapo", "gspo"])
def test_examples_that_teach_nothing_count_in_the_mean(name: str) -> None:
    """Leaving out examples of advantage 0 changes neither loss nor gradient."""
    useful = [replace(example, advantage=1.0) for example in batch(0)]
    idle = [replace(example, advantage=0.0) for example in batch(1)[:3]]
    trainer = Trainer(tiny(), TrainSettings(lr=1e-2, steps=1), get_objective(name, mismatch="none"))
    found = []
    for chosen in (useful, useful + idle):
        told = trainer.gradient(chosen, among=useful + idle)
        found.append((told["loss"], [m.grad.clone() for m in trainer.masters.masters if m.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0]) and found[0][0] != 0
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-9)
    assert trainer.gradient(useful)["loss"] != pytest.approx(found[0][0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_lowers_the_loss_and_tells_what_it_did(dtype: torch.dtype) -> None:
    trainer = trainer_of(dtype, steps=20)
    told = [trainer.step(batch(0)) for _ in range(20)]
    assert told[-1]["loss"] < 0.5 * told[0]["loss"]
    assert trainer.step_number == 20
    first = told[0]
    assert first["tokens"] == 48 and first["loss_tokens"] == 24
    assert 0 < first["packed_tokens"] < 48
    assert first["lr"] == pytest.approx(0.005)
    assert first["nll"] == pytest.approx(first["loss"], rel=1e-5)
    assert 0 < first["entropy"] <= math.log(97) + 1e-3
    assert first["seconds"] > 0 and first["tokens_per_s"] > 0 and first["grad_norm"] > 0


def test_a_batch_without_labels_is_refused() -> None:
    trainer = trainer_of()
    before = weights(trainer)
    with pytest.raises(DataError, match="carries loss"):
        trainer.step([Example((1, 2, 3), (0, 0, 0))])
    with pytest.raises(DataError):
        trainer.step([])
    with pytest.raises(DataError):
        pack([Example((1, 2, 3), (0, 0, 0))], heads=4)
    assert same(before, weights(trainer)) and trainer.step_number == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_that_is_not_finite_changes_nothing(dtype: torch.dtype) -> None:
    trainer, twin = trainer_of(dtype), trainer_of(dtype)
    bad = [Example(e.token_ids, e.loss_mask, weight=math.inf) for e in batch(0)]
    with pytest.raises(DivergedError, match=r"loss is not finite at step 1, batch of 4 .*last checkpoint is kept"):
        trainer.step(bad)
    assert same(weights(trainer), weights(twin)) and trainer.step_number == 0
    trainer.step(batch(1))
    twin.step(batch(1))
    assert same(weights(trainer), weights(twin))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    masters = Masters(layer, lr=0.1)
    (layer(torch.ones(1, 2)).sum() * math.inf).backward()
    masters.accumulate()
    with pytest.raises(DivergedError, match="gradient is not finite at step 3"):
        masters.step(0.1, where=" at step 3")
    assert torch.equal(layer.weight, before)


# --- masters -------------------------------------------------------------------------


def test_wide_weights_are_their_own_masters_and_tied_ones_count_once() -> None:
    model = tiny()
    masters = Masters(model, lr=0.1)
    assert all(a is b for a, b in zip(masters.masters, masters.params, strict=True))
    assert len(masters.masters) == len({id(p) for p in model.parameters()})
    assert "lm_head.weight" not in masters.names


def test_small_updates_move_bf16_weights_in_proportion() -> None:
    """The mean change of the weights is that of the updates, though each is far below a step of bf16."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(400, 500, bias=False).bfloat16()  # values up to 1/20, steps of bf16 up to 2.4e-4
    before = layer.weight.detach().clone()
    masters = Masters(layer, lr=1.0)
    assert torch.equal(masters.masters[0].bfloat16(), before)  # to begin with, nothing has changed
    layer.weight.grad = torch.ones_like(layer.weight)  # Adam's first step is the learning rate everywhere
    masters.accumulate()
    masters.step(1e-5)
    moved = (layer.weight.detach().double() - before.double()).mean()
    assert float(moved) == pytest.approx(-1e-5, rel=0.05)
    # from the middle of what rounds to each weight next to nothing would have moved
    middle = ((before.float() - 1e-5).bfloat16().double() - before.double()).mean()
    assert abs(float(middle)) < 2e-6


def test_scattered_masters_round_to_their_weights() -> None:
    odd = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 1e-38, -3e38, 255.0, 256.0]).bfloat16()
    for seed in range(50):
        wide = scattered(odd, seed)
        assert torch.equal(wide.bfloat16(), odd) and wide.dtype == torch.float32
    assert not torch.equal(scattered(odd, 0), scattered(odd, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_masters_step_as_torch_adamw_does_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).to(dtype)
    masters = Masters(layer, lr=1.0, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, clip=0.5)
    plain = [m.detach().clone().requires_grad_() for m in masters.masters]
    reference = torch.optim.AdamW(plain, lr=1.0, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, foreach=False)
    for step in range(4):
        lr = 0.01 * (step + 1)
        grads: list[list[torch.Tensor]] = []
        for _ in range(3):  # micro-batches
            layer(torch.randn(2, 5, dtype=dtype)).square().sum().backward()
            if dtype == torch.bfloat16:
                grads.append([p.grad.float() for p in layer.parameters() if p.grad is not None])
            else:  # gradients add up in place
                grads = [[p.grad.clone() for p in layer.parameters() if p.grad is not None]]
            masters.accumulate()
        totals = [torch.stack(parts).sum(0) for parts in zip(*grads, strict=True)]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in totals))
        for p, g in zip(plain, totals, strict=True):
            p.grad = g * min(1.0, 0.5 / (norm + 1e-6))
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        assert masters.step(lr) == pytest.approx(norm, rel=1e-5)
        for p, m, q in zip(plain, masters.masters, layer.parameters(), strict=True):
            assert torch.allclose(p, m, atol=1e-6, rtol=1e-5)
            assert torch.equal(q, m.to(dtype))
            m.data.copy_(p.data)  # bf16 rounding of the next forward pass must not differ by a hair
            q.data.copy_(p.data)


# --- checkpoints ---------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_model_is_one_that_transformers_loads(tmp_path: Path, dtype: torch.dtype) -> None:
    trainer = trainer_of(dtype)
    trainer.step(batch(0))
    words = tokenizer()
    digest = save_model(trainer.model, words, tmp_path / "m", template="{{ messages }}", manifest={"run": "r1"})
    assert words.chat_template is None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert loaded.dtype == dtype
    assert same(weights(trainer), [p.detach() for p in loaded.parameters()])
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == "{{ messages }}"
    assert json.loads((tmp_path / "m" / "metier.json").read_text()) == {"run": "r1", "weights_hash": digest}
    assert (tmp_path / "m" / "generation_config.json").is_file()
    assert weights_hash(tmp_path / "m") == digest
    again = save_model(trainer.model, words, tmp_path / "m", template="x", manifest={})
    assert again == digest
    trainer.step(batch(1))
    assert save_model(trainer.model, words, tmp_path / "m", template="x", manifest={}) != digest
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_going_on_from_a_state_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    straight = trainer_of(dtype)
    told = [straight.step(batch(i)) for i in range(6)]
    first = trainer_of(dtype)
    for i in range(3):
        first.step(batch(i))
    assert save_state(first, tmp_path).name == "state-3"
    second = trainer_of(dtype, seed=9)
    assert load_state(second, tmp_path) == 3
    for i in range(3, 6):
        result = second.step(batch(i))
        assert (result["loss"], result["grad_norm"], result["lr"]) == (
            told[i]["loss"],
            told[i]["grad_norm"],
            told[i]["lr"],
        )
    assert second.step_number == 6
    assert same(weights(straight), weights(second))
    assert same(straight.masters.masters, second.masters.masters)
    for a, b in zip(straight.masters.masters, second.masters.masters, strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(straight.masters.optimizer.state[a][key], second.masters.optimizer.state[b][key])


def test_only_the_newest_states_stay(tmp_path: Path) -> None:
    trainer = trainer_of()
    save_state(trainer, tmp_path)
    for i in range(2):
        trainer.step(batch(i))
        save_state(trainer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state-2"]


def test_as_many_states_stay_as_are_asked_for(tmp_path: Path) -> None:
    trainer = trainer_of()
    saver = Saver(trainer, tmp_path, 0.0, keep=2)
    for i in range(3):
        trainer.step(batch(i))
        saver.after_step()
    saver.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-2", "state-3"]


@pytest.mark.parametrize("damage", ["cut", "no note", "no tensors"])
def test_a_torn_state_is_passed_over(tmp_path: Path, damage: str) -> None:
    trainer = trainer_of()
    for i in range(2):
        trainer.step(batch(i))
        save_state(trainer, tmp_path, keep=2)
    newest = tmp_path / "state-2"
    if damage == "cut":
        data = (newest / "state.safetensors").read_bytes()
        (newest / "state.safetensors").write_bytes(data[:-100])
    else:
        (newest / ("state.json" if damage == "no note" else "state.safetensors")).unlink()
    assert load_state(trainer_of(), tmp_path) == 1
    (tmp_path / "state-1" / "state.json").unlink()
    with pytest.raises(DataError, match="torn"):
        load_state(trainer_of(), tmp_path)


def test_what_a_killed_replacement_had_set_aside_is_put_back(tmp_path: Path) -> None:
    place = tmp_path / "best"
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "metier.json").write_text("{}")
    put_back(place)
    assert (place / "metier.json").read_text() == "{}" and not (tmp_path / ".best.old").exists()
    (tmp_path / ".best.old").mkdir()
    put_back(place)  # the new one got its name before the kill
    assert (place / "metier.json").is_file()


def test_no_state_is_no_error_and_another_model_is(tmp_path: Path) -> None:
    assert load_state(trainer_of(), tmp_path / "none") is None
    save_state(trainer_of(), tmp_path)
    with pytest.raises(DataError, match="another model"):
        load_state(trainer_of(torch.float64), tmp_path)


def test_a_full_disk_keeps_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of()
    trainer.step(batch(0))
    save_state(trainer, tmp_path)
    trainer.step(batch(1))

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(DiskFullError, match="saved before is kept"):
        save_state(trainer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state-1"]
    assert load_state(trainer_of(), tmp_path) == 1
