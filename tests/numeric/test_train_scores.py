"""Divergences, reward models and process rewards: by hand, and against transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from metier.base.errors import ConfigError, DataError
from metier.models.attention import hidden_states
from metier.models.divergence import token_divergence
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.distill import Distill
from metier.train.objectives.reward import ProcessReward, Reward
from metier.train.objectives.sft import Sft
from metier.train.packing import Example, Packed, pack
from tiny import tiny_config

CONFIG = tiny_config(pad_token_id=0)


# --- divergences -----------------------------------------------------------------------


def test_divergences_by_hand() -> None:
    # logits are the hidden states themselves. Teacher (0, 0): p = .5, .5; student (ln 3, 0): q = .75, .25
    # forward: .5 ln(.5/.75) + .5 ln(.5/.25) = .5 ln(4/3), slope q - p = .25, -.25
    # reverse: R = .75 ln 1.5 + .25 ln .5, slope q_i (ln(q_i / p_i) - R)
    # middle:  m = .625, .375
    forward = 0.5 * math.log(4 / 3)
    reverse = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    middle = 0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375))
    middle += 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))
    slope = 0.75 * (math.log(1.5) - reverse)
    for beta, value, first in ((0.0, forward, 0.25), (1.0, reverse, slope), (0.5, middle, None)):
        hidden = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
        head = torch.eye(2, dtype=torch.float64)
        found = token_divergence(hidden, head, torch.zeros(1, 2, dtype=torch.float64), head, beta=beta)
        assert found.tolist() == pytest.approx([value])
        found.sum().backward()
        assert hidden.grad is not None
        if first is not None:
            assert hidden.grad.tolist()[0] == pytest.approx([first, -first])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk", [2, 100])
def test_divergences_against_finite_differences(beta: float, chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    taught, teacher_head = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)

    def divergence(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return token_divergence(h, w, taught, teacher_head, beta=beta, temperature=1.7, chunk=chunk)

    assert torch.autograd.gradcheck(divergence, (hidden, head))


def test_a_student_learns_from_its_teacher_and_rests_when_equal() -> None:
    torch.manual_seed(0)
    teacher, student = LlamaForCausalLM(CONFIG), LlamaForCausalLM(CONFIG)
    made = [Example(tuple(torch.randint(1, 97, (9,)).tolist()), (0, 0, 0) + (1,) * 6) for _ in range(4)]
    for beta in (0.0, 0.5, 1.0):
        trainer = Trainer(student, TrainSettings(lr=3e-3, steps=40), Distill(beta=beta), teacher=teacher)
        losses = [trainer.step(made)["loss"] for _ in range(15)]
        assert losses[-1] < 0.6 * losses[0]
    same = Trainer(teacher, TrainSettings(lr=1e-3, steps=2), Distill(), teacher=teacher)
    assert same.gradient(made)["loss"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="needs a teacher"):
        Trainer(student, TrainSettings(lr=1e-3, steps=2), Distill())
    with pytest.raises(DataError, match="takes no teacher"):
        Trainer(student, TrainSettings(lr=1e-3, steps=2), Sft(), teacher=teacher)
    for wrong in ({"beta": 1.1}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            Distill(**wrong)


# --- reward models ---------------------------------------------------------------------


def judged(*parts: tuple[str, float], margin: float = 0.0) -> Packed:
    """One label an example, given as (unit, target)."""
    return pack([Example((1, 1), (0, 1), unit=u, target=t, margin=margin) for u, t in parts], heads=4)


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None].requires_grad_()


def test_rewards_by_hand() -> None:
    # better 2 ln 2, worse ln 2: x = ln 2, s(x) = 2/3, L = -ln(2/3); slope -1/3 and 1/3
    values = scores(math.log(2), 2 * math.log(2))
    loss, metrics = Reward().loss(values, torch.zeros(2), judged(("a", 0.0), ("a", 1.0)), denominator=1.0)
    assert float(loss.detach()) == pytest.approx(-math.log(2 / 3))
    (slope,) = torch.autograd.grad(loss, values)
    assert slope[:, 0].tolist() == pytest.approx([1 / 3, -1 / 3])
    assert metrics["accuracy"] / metrics["labels"] == 1
    assert metrics["margin"] / metrics["labels"] == pytest.approx(math.log(2))
    # a margin of ln 2 takes the lead away: L = ln 2
    moved, _ = Reward().loss(
        values, torch.zeros(2), judged(("a", 0.0), ("a", 1.0), margin=math.log(2)), denominator=1.0
    )
    assert float(moved.detach()) == pytest.approx(math.log(2))
    # centring adds .5 (3 ln 2)^2
    centred, _ = Reward(centre=0.5).loss(values, torch.zeros(2), judged(("a", 0.0), ("a", 1.0)), denominator=1.0)
    assert float(centred.detach()) == pytest.approx(-math.log(2 / 3) + 0.5 * (3 * math.log(2)) ** 2)


def test_ties_by_hand() -> None:
    # x = 2 ln 2, nu = 1: D = 2 + 1/2 + 1 = 3.5; win 2 / 3.5, tie 1 / 3.5
    values = scores(2 * math.log(2), 0.0)
    won, _ = Reward(tie=1.0).loss(values, torch.zeros(2), judged(("a", 1.0), ("a", 0.0)), denominator=1.0)
    drawn, metrics = Reward(tie=1.0).loss(values, torch.zeros(2), judged(("a", 0.5), ("a", 0.5)), denominator=1.0)
    assert float(won.detach()) == pytest.approx(-math.log(2 / 3.5))
    assert float(drawn.detach()) == pytest.approx(-math.log(1 / 3.5))
    assert metrics["accuracy"] == 0
    both = judged(("a", 1.0), ("b", 0.5), ("a", 0.0), ("b", 0.5))
    mixed = scores(2 * math.log(2), 2 * math.log(2), 0.0, 0.0)
    loss, _ = Reward(tie=1.0).loss(mixed, torch.zeros(4), both, denominator=2.0)
    assert float(loss.detach()) == pytest.approx(-(math.log(2 / 3.5) + math.log(1 / 3.5)) / 2)
    with pytest.raises(DataError, match="set the option tie"):
        Reward().loss(values, torch.zeros(2), judged(("a", 0.5), ("a", 0.5)), denominator=1.0)
    with pytest.raises(DataError, match="on both sides"):
        Reward(tie=1.0).loss(values, torch.zeros(2), judged(("a", 0.5), ("a", 1.0)), denominator=1.0)


def test_an_ensemble_is_the_mean_of_its_heads() -> None:
    # leads ln 2 and 0: L = -(ln(2/3) + ln(1/2)) / 2
    values = torch.tensor([[math.log(2), 0.0], [0.0, 0.0]], dtype=torch.float64)
    loss, _ = Reward().loss(values, torch.zeros(2), judged(("a", 1.0), ("a", 0.0)), denominator=1.0)
    assert float(loss) == pytest.approx(-(math.log(2 / 3) + math.log(1 / 2)) / 2)


def test_process_rewards_by_hand() -> None:
    # z = ln 3 on a right step: s = 3/4; z = 0 on a wrong one: L = -(ln 3/4 + ln 1/2) / 2
    batch = pack([Example((1, 1, 1), (0, 1, 1), advantage=(1.0, 0.0))], heads=4)
    loss, metrics = ProcessReward().loss(scores(math.log(3), 0.0), torch.zeros(2), batch, denominator=2.0)
    assert float(loss.detach()) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2)
    assert metrics == {"labels": 2, "accuracy": 2, "right": 1}


@torch.no_grad()
def test_scores_of_a_wide_model_are_wide() -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_config(pad_token_id=0, num_labels=1)).double()
    rows = torch.randint(1, 97, (3, 6)).tolist()
    batch = pack([Example((*row, 0), (0,) * 6 + (1,)) for row in rows], heads=4)
    trainer = Trainer(model, TrainSettings(lr=1e-2, steps=1), Reward())
    hidden = hidden_states(trainer.model, batch.input_ids_T, batch.position_ids_T, batch.layout)
    wanted = hidden[batch.source_U[batch.like_M]] @ model.score.weight.T
    torch.testing.assert_close(trainer._values(batch)[0], wanted, rtol=1e-12, atol=1e-12)


def test_transformers_scores_the_token_that_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_config(pad_token_id=0, num_labels=1))
    ids = [tuple(torch.randint(1, 97, (n,)).tolist()) for n in (5, 8, 6, 7)]
    made = [
        Example((*row, 0), (0,) * len(row) + (1,), unit=str(n // 2), target=float(n % 2 == 0))
        for n, row in enumerate(ids)
    ]
    trainer = Trainer(model, TrainSettings(lr=1e-2, steps=30), Reward())
    metrics = [trainer.step(made) for _ in range(30)][-1]
    assert metrics["accuracy"] == 1.0 and metrics["loss"] < 0.1
    model.save_pretrained(tmp_path)
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    longest = max(map(len, ids))
    padded = torch.tensor([(*row, *(0,) * (longest - len(row))) for row in ids])
    with torch.no_grad():
        found = read(padded, attention_mask=(padded != 0).long()).logits[:, 0]
        packed = pack(made, heads=4)
        ours = trainer._values(packed)[0][:, 0]
    assert found.tolist() == pytest.approx(ours.tolist(), abs=1e-4)
    assert bool((found[0::2] > found[1::2]).all())
    with pytest.raises(DataError, match="score head"):
        Trainer(LlamaForCausalLM(CONFIG), TrainSettings(lr=1e-2, steps=1), Reward())
