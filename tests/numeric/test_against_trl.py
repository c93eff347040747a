"""Losses and gradients against TRL on the same weights and the same batch, in float32 and float64.

TRL's own trainers compute theirs, from batches that their collators made or from the
tensors that their loss takes; ours are made from the same token ids. In float64 only what
TRL itself computes in it: its trainers of the others round log-probabilities or losses to
float32 on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from metier.models.hub import load_scorer
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.preferences import kto_point
from metier.train.objectives.protocol import Objective
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example
from metier.train.score import score
from tiny import exact_norms

pytest.importorskip("trl", reason="TRL is not installed: pip install 'metier[dev]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own

ROWS = [
    {"prompt": "The price of an apple", "chosen": " is two euros today.", "rejected": " is unknown."},
    {"prompt": "A loaf", "chosen": " of bread costs four.", "rejected": " costs me nothing at all, so I think."},
    {"prompt": "Honey from the north", "chosen": " is nine euros.", "rejected": " is cheap."},
]


BOTH = pytest.mark.parametrize("models", [torch.float32, torch.float64], ids=["fp32", "fp64"], indirect=True)


@pytest.fixture
def models(tiny_model: Path, request: pytest.FixtureRequest) -> tuple[Path, PreTrainedModel, PreTrainedModel]:
    """The folder, a model of clear opinions, and a reference that differs from it."""
    dtype = getattr(request, "param", torch.float32)
    attention = "eager" if dtype == torch.float32 else "sdpa"  # transformers' eager softmax is in float32
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=dtype, attn_implementation=attention)
    if dtype == torch.float64:
        exact_norms(model)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(1)
        for one in (model, reference):
            for parameter in one.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return tiny_model, model, reference


def common(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 3,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def theirs(model: PreTrainedModel, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    model.zero_grad()
    value = loss()
    value.backward()
    return float(value.detach()), gradient(model)


def ours(
    model: PreTrainedModel, objective: Objective, made: list[Example], *, teacher: PreTrainedModel | None = None
) -> tuple[float, Tensor]:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = None
    settings = TrainSettings(lr=1e-3, steps=1, token_budget=60)
    sums = Trainer(model, settings, objective, teacher=copy.deepcopy(teacher)).gradient(made)
    return sums["loss"], gradient(model)


def same(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> None:
    limit = 1e-8 if wanted[1].dtype == torch.float64 else 1e-4
    assert found[1].dtype == wanted[1].dtype
    assert found[0] == pytest.approx(wanted[0], rel=limit, abs=limit / 100)
    assert float(wanted[1].norm()) > 1e-6
    assert float((found[1] - wanted[1]).norm() / wanted[1].norm()) < limit


def rows_of(ids: Tensor, seen: Tensor, own: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids and loss masks without the padding."""
    out = []
    for row, kept, mask in zip(ids, seen.bool(), own, strict=True):
        out.append((tuple(row[kept].tolist()), tuple(int(m) for m in mask[kept])))
    return out


@pytest.mark.parametrize(
    ("kind", "smoothing", "sft"),
    [("sigmoid", 0.0, 0.0), ("robust", 0.1, 0.0), ("hinge", 0.0, 0.0), ("ipo", 0.0, 0.0), ("sigmoid", 0.0, 0.7)],
    ids=str,
)
def test_dpo(
    kind: str, smoothing: float, sft: float, models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    """With an SFT term on one pair: TRL's is a mean over the tokens of a batch, ours over each answer's and answers."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder, model, reference = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = copy.deepcopy(model)
    trainer = DPOTrainer(
        peer,
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(
            **common(tmp_path),
            beta=0.3,
            label_smoothing=smoothing,
            loss_type=[kind, "sft"] if sft else [kind],
            loss_weights=[1.0, sft] if sft else None,
        ),
        train_dataset=Dataset.from_list(ROWS[1:2] if sft else ROWS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = theirs(peer, lambda: trainer.compute_loss(peer, dict(batch)))
    rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    half = len(rows) // 2
    made = [Example(ids, mask, unit=str(n % half), target=float(n < half)) for n, (ids, mask) in enumerate(rows)]
    found = score(copy.deepcopy(reference), made)
    made = [replace(e, reference_logprobs=p) for e, p in zip(made, found, strict=True)]
    same(ours(model, get_objective("dpo", kind=kind, beta=0.3, smoothing=smoothing, sft_coef=sft), made), wanted)


def test_sft_packed_and_masked(models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder, model, _ = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = copy.deepcopy(model)
    trainer = SFTTrainer(
        peer,
        args=SFTConfig(**common(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = theirs(peer, lambda: trainer.compute_loss(peer, dict(batch)))
    made = [
        Example(ids, mask)
        for ids, mask in rows_of(batch["input_ids"], batch["attention_mask"], batch["labels"] != -100)
    ]
    same(ours(model, get_objective("sft"), made), wanted)


def pairs(folder: Path) -> list[Example]:
    """Better and worse answers in turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = []
    for number, row in enumerate(ROWS):
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side, target in (("chosen", 1.0), ("rejected", 0.0)):
            said = tokenizer(row[side])["input_ids"]
            mask = (0,) * len(prompt) + (1,) * len(said)
            made.append(Example((*prompt, *said), mask, unit=str(number), target=target))
    return made


def padded(made: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask, and labels with -100 where there is none."""
    widest = max(len(e.token_ids) for e in made)
    ids, seen = torch.zeros(len(made), widest, dtype=torch.long), torch.zeros(len(made), widest, dtype=torch.long)
    labels = torch.full((len(made), widest), -100)
    for n, e in enumerate(made):
        row = torch.tensor(e.token_ids)
        ids[n, : len(row)], seen[n, : len(row)] = row, 1
        labels[n, : len(row)] = torch.where(torch.tensor(e.loss_mask).bool(), row, -100)
    return ids, seen, labels


def mean_logprobs(model: PreTrainedModel, made: list[Example]) -> tuple[Tensor, Tensor]:
    """The mean log-probability of better and worse answers, by TRL's own function."""
    from trl.experimental.orpo import ORPOTrainer

    ids, seen, labels = padded(made)
    logits = model(input_ids=ids, attention_mask=seen).logits
    means = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    return means[0::2], means[1::2]


def test_orpo(models: tuple[Path, PreTrainedModel, PreTrainedModel]) -> None:
    """TRL's penalty; its likelihood term is a mean over the tokens of a batch, ours and the paper's over answers."""
    from trl.experimental.orpo import ORPOTrainer

    folder, model, _ = models
    made, peer = pairs(folder), copy.deepcopy(model)
    stand_in = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))

    def loss() -> Tensor:
        better, worse = mean_logprobs(peer, made)
        return -better.mean() - ORPOTrainer.odds_ratio_loss(stand_in, better, worse)[0].mean()

    same(ours(model, get_objective("orpo", lam=0.3), made), theirs(peer, loss))


@BOTH
def test_simpo(models: tuple[Path, PreTrainedModel, PreTrainedModel]) -> None:
    from trl.experimental.cpo import CPOTrainer

    folder, model, _ = models
    made, peer = pairs(folder), copy.deepcopy(model)
    stand_in = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip

    def loss() -> Tensor:
        return CPOTrainer.cpo_loss(stand_in, *mean_logprobs(peer, made))[0].mean()

    same(ours(model, get_objective("simpo", beta=2.0, gamma=0.7), made), theirs(peer, loss))


def test_kto(models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    folder, model, reference = models
    data = [
        {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
        for row, good in zip(ROWS, (True, False, True), strict=True)
    ]
    peer = copy.deepcopy(model)
    trainer = KTOTrainer(
        peer,
        ref_model=copy.deepcopy(reference),
        args=KTOConfig(**common(tmp_path), beta=0.3, desirable_weight=1.5, undesirable_weight=0.75),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = theirs(peer, lambda: trainer.compute_loss(peer, dict(batch)))
    rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    made = [Example(ids, mask, target=float(good)) for (ids, mask), good in zip(rows, batch["label"], strict=True)]
    others = rows_of(batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"])
    swapped = [Example(ids, mask) for ids, mask in others]
    point = kto_point(score(copy.deepcopy(model), swapped), score(copy.deepcopy(reference), swapped))
    fixed = score(copy.deepcopy(reference), made)
    made = [replace(e, reference_logprobs=p, margin=point) for e, p in zip(made, fixed, strict=True)]
    same(ours(model, get_objective("kto", beta=0.3, good_weight=1.5, bad_weight=0.75), made), wanted)


@BOTH
@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.5, 2.0), (1.0, 1.0)])
def test_distillation(beta: float, temperature: float, models: tuple[Path, PreTrainedModel, PreTrainedModel]) -> None:
    from trl.experimental.gkd import GKDTrainer

    folder, model, reference = models
    made, peer = pairs(folder), copy.deepcopy(model)
    ids, seen, labels = padded(made)

    def loss() -> Tensor:
        student, teacher = (m(input_ids=ids, attention_mask=seen).logits[:, :-1] for m in (peer, reference))
        return GKDTrainer.generalized_jsd_loss(
            student, teacher.detach(), labels[:, 1:], beta=beta, temperature=temperature
        )

    objective = get_objective("distill", beta=beta, temperature=temperature)
    same(ours(model, objective, made, teacher=reference), theirs(peer, loss))


def test_reward(tiny_model: Path, tmp_path: Path) -> None:
    """Rows of one length, so that no padding stands between the score and its token."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(2)
    model = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=1, attn_implementation="eager")
    model.save_pretrained(tmp_path / "scorer")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "scorer")
    model.config.pad_token_id = 0
    trainer = RewardTrainer(
        model,
        args=RewardConfig(**common(tmp_path)),
        train_dataset=Dataset.from_list([{"chosen": r["chosen"], "rejected": r["rejected"]} for r in ROWS]),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    ids = torch.randint(3, 400, (6, 9))  # three better ones, then three worse ones
    margin = torch.tensor([0.5, 0.0, 1.0])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "margin": margin}
    wanted = theirs(model, lambda: trainer.compute_loss(model, dict(inputs)))
    # a score is read at the token before its label, so each row gets one more token
    made = [
        Example((*row.tolist(), 0), (0,) * 9 + (1,), unit=str(n % 3), target=float(n < 3), margin=float(margin[n % 3]))
        for n, row in enumerate(ids)
    ]
    same(ours(load_scorer(str(tmp_path / "scorer")), get_objective("reward"), made), wanted)


def shaken(row: tuple[float, ...]) -> tuple[float, ...]:
    """Log-probabilities a little off."""
    return tuple(p + 0.3 * float(x) for p, x in zip(row, torch.randn(len(row)), strict=True))


def test_rloo(models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    """The gradient alone, where the episodes are of the policy: TRL's loss takes the ratio of whole episodes there,
    whose value differs from ours, a sum over tokens, by their lengths."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    folder, model, _ = models
    peer = copy.deepcopy(model)
    trainer = RLOOTrainer(
        peer,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=RLOOConfig(**{**common(tmp_path), "num_generations": 3}),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in ROWS]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    torch.manual_seed(3)
    prompt, n, advantages = torch.randint(3, 400, (5,)), 6, [1.5, -0.5, 0.75]
    completions = torch.randint(3, 400, (3, n))
    made = [
        Example((*prompt.tolist(), *c.tolist()), (0,) * 5 + (1,) * n, advantage=a)
        for c, a in zip(completions, advantages, strict=True)
    ]
    now = score(copy.deepcopy(model), made)
    inputs = {
        "prompt_ids": prompt.expand(3, -1),
        "prompt_mask": torch.ones(3, 5, dtype=torch.long),
        "completion_ids": completions,
        "completion_mask": torch.ones(3, n, dtype=torch.long),
        "advantages": torch.tensor(advantages),
        "old_logps": torch.tensor([sum(row) for row in now]),
    }
    peer.train()
    _, wanted = theirs(peer, lambda: trainer._compute_loss(peer, inputs))
    loss, found = ours(
        model,
        get_objective("rloo", mismatch="none"),
        [replace(e, old_logprobs=p) for e, p in zip(made, now, strict=True)],
    )
    assert loss == pytest.approx(-sum(advantages) * n / 3, rel=1e-4)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, "grpo", {}),
    "grpo with kl": (
        {"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": False},
        "grpo",
        {"kl": "k3", "kl_coef": 0.2},
    ),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, "dapo", {}),
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": 32}, "dr_grpo", {"length": 32}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, "cispo", {}),
    "truncated importance sampling": ({"loss_type": "grpo"}, "grpo", {"cap": 1.1, "mismatch": "truncate"}),
    "masked importance sampling": ({"loss_type": "grpo"}, "grpo", {"cap": 1.1, "mismatch": "mask"}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "gspo",
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_policy_gradients(case: str, models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    theirs_settings, name, options = CASES[case]
    folder, model, reference = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = copy.deepcopy(model)
    trainer = GRPOTrainer(
        peer,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=GRPOConfig(**{**common(tmp_path), "num_generations": 3, **theirs_settings}),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in ROWS]),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(3)
    prompt, lengths = torch.randint(3, 400, (5,)), (4, 7, 2)
    completions = [torch.randint(3, 400, (n,)) for n in lengths]
    advantages = [1.5, -0.5, 0.75]
    made = [
        Example(
            (*prompt.tolist(), *c.tolist()), (0,) * 5 + (1,) * len(c), advantage=a,
        )
        for c, a in zip(completions, advantages, strict=True)
    ]  # fmt: skip
    now = score(copy.deepcopy(model), made)
    old = [shaken(row) for row in now]
    drawn = [shaken(row) for row in old] if "mismatch" in options else old
    fixed = score(copy.deepcopy(reference), made)
    made = [
        replace(e, old_logprobs=o, sampler_logprobs=d, reference_logprobs=f)
        for e, o, d, f in zip(made, old, drawn, fixed, strict=True)
    ]
    widest = max(lengths)

    def filled(rows: list[Any]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(torch.as_tensor(r), (0, widest - len(r))) for r in rows])

    inputs = {
        "prompt_ids": prompt.expand(3, -1),
        "prompt_mask": torch.ones(3, 5, dtype=torch.long),
        "completion_ids": filled(completions),
        "completion_mask": filled([torch.ones(n, dtype=torch.long) for n in lengths]),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": filled(old),
        "ref_per_token_logps": filled(fixed),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }
    if "mismatch" in options:  # TRL corrects where vLLM sampled, by factors that its sampling has made
        ratio, cap = (filled(old) - filled(drawn)).exp(), options["cap"]
        assert (ratio > cap).any() and (ratio < 1 / cap).any()
        kept = (
            ratio.clamp(max=cap) if options["mismatch"] == "truncate" else ratio * ((ratio <= cap) & (ratio >= 1 / cap))
        )
        inputs["importance_sampling_ratio"] = kept
        trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    peer.train()
    trainer.args.steps_per_generation = 1
    wanted = theirs(peer, lambda: trainer._compute_loss(peer, inputs))
    same(ours(model, get_objective(name, **options), made), wanted)
