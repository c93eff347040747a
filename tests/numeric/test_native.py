"""The kernels in C against torch, and a sampling pass with them against a forward pass over everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM

from metier.models import kvcache, lean, native
from metier.models.attention import hidden_states, use_layouts
from metier.models.kvcache import ExtendLayout, KVCache, PrefixLayout

KERNELS = native.kernels()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason="no C compiler here; torch does what the kernels would")
BF16 = torch.bfloat16


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def nearly(one: Tensor, other: Tensor, *, steps: float = 2.0) -> bool:
    """Whether they differ by rounding to bfloat16 alone."""
    return torch.allclose(one.float(), other.float(), rtol=steps * 2**-8, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3, 64])
@torch.no_grad()
def test_a_norm_is_that_of_torch(rows: int) -> None:
    assert KERNELS is not None
    x, weight = randn(rows, 576) * 30, randn(576, seed=1)
    assert nearly(KERNELS.norm(x, weight, 1e-5), lean._normed(x, weight, 1e-5)[0])


@needs_kernels
@torch.no_grad()
def test_a_gated_unit_is_that_of_torch_for_every_number_there_is() -> None:
    assert KERNELS is not None
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(BF16)
    gate = every[every.isfinite()].view(-1, 2)
    wide = torch.cat([gate, torch.full_like(gate, 1.5)], 1)  # halves of one product have gaps between their rows
    found = KERNELS.gate(*wide.chunk(2, 1))
    assert nearly(found, silu(gate) * 1.5, steps=1.01)
    assert found.is_contiguous()


@needs_kernels
@torch.no_grad()
def test_a_rotation_is_that_of_torch_to_the_last_bit() -> None:
    assert KERNELS is not None
    both, cos, sin = randn(7, 5, 64), randn(7, 64, seed=1), randn(7, 64, seed=2)
    cos[:, 32:], sin[:, 32:] = cos[:, :32], sin[:, :32]
    assert torch.equal(KERNELS.rotate(both[:, :3], cos, sin), lean._rotated(both[:, :3], cos, sin))


@needs_kernels
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(9, 3, 64), (4, 4, 128), (8, 1, 64)])
@pytest.mark.parametrize("with_prefix", [True, False])
@torch.no_grad()
def test_attention_is_the_formula_in_float32(heads: int, key_heads: int, size: int, with_prefix: bool) -> None:
    assert KERNELS is not None
    room, slots = 40, 3
    keys, values = randn(slots, key_heads, room, size, seed=1), randn(slots, key_heads, room, size, seed=2)
    ahead = (randn(2, key_heads, 11, size, seed=3), randn(2, key_heads, 11, size, seed=4)) if with_prefix else None
    query, key, value = randn(4, heads, size), randn(4, key_heads, size, seed=5), randn(4, key_heads, size, seed=6)
    # token, slot, own tokens before, prefix, its tokens: one row with a short prefix, one with none, one that is full
    rows = [(2, 0, 5, 1, 7), (0, 2, 0, -1, 0), (3, 1, room - 1, 0, 11)]
    if not with_prefix:
        rows = [(token, slot, before, -1, 0) for token, slot, before, *_ in rows]
    found = KERNELS.attend(native.token_table(rows), query, key, value, (keys, values), ahead, 0.125)
    for number, (token, slot, before, prefix, length) in enumerate(rows):
        assert torch.equal(keys[slot, :, before], key[token]) and torch.equal(values[slot, :, before], value[token])
        seen = [
            torch.cat(
                [*([] if ahead is None or not length else [ahead[n][prefix, :, :length]]), own[slot, :, : before + 1]],
                1,
            )
            for n, own in enumerate((keys, values))
        ]
        all_keys, all_values = (x.float().repeat_interleave(heads // key_heads, 0) for x in seen)
        weights = torch.softmax(all_keys @ query[token].float()[..., None] * 0.125, 1)
        assert nearly(found[number], (weights * all_values).sum(1), steps=1.01), number


def tiny(head_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=head_size, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(BF16).eval()


@pytest.mark.parametrize("compiled", [True, False])
@torch.inference_mode()
def test_rows_that_grow_give_what_one_pass_over_everything_gives(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix, two rows of which one listens while the other speaks, then both speak."""
    if compiled and KERNELS is None:
        pytest.skip("no C compiler here")
    if not compiled:
        for module in (kvcache, native):
            monkeypatch.setattr(module, "serving", lambda *_: None)
    model = use_layouts(tiny(64))
    cache = KVCache(model, 2)
    assert (cache.kernels is not None) == compiled
    words = torch.randint(0, 64, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    hidden_states(model, torch.tensor(words[:6]), torch.arange(6), PrefixLayout(cache))
    cache.clear_row(0, 0)
    cache.clear_row(1, -1)
    said: dict[int, list[int]] = {0: words[:6], 1: []}
    ends: dict[int, Tensor] = {}
    for new in ([(0, 1), (1, 9)], [(0, 1), (1, 1)], [(0, 1), (1, 1)], [(0, 4), (1, 1)]):
        ids = []
        for row, n in new:
            more = [words[(7 * row + len(said[row]) + i) % 40] for i in range(n)]
            said[row] += more
            ids += more
        layout = ExtendLayout(cache, new)
        hidden = hidden_states(model, torch.tensor(ids), layout.position_ids_T, layout)
        for (row, _), end in zip(new, torch.tensor([n for _, n in new]).cumsum(0).tolist(), strict=True):
            ends[row] = hidden[end - 1]
    for row, tokens in said.items():
        whole = KVCache(model, 1)
        expected = hidden_states(model, torch.tensor(tokens), torch.arange(len(tokens)), PrefixLayout(whole))[-1]
        assert torch.allclose(ends[row].float(), expected.float(), atol=0.06, rtol=0.05), row


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METIER_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.kernels.__wrapped__() is None
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert native.kernels.__wrapped__() is None
    assert not list(tmp_path.glob("native/*.so"))


@needs_kernels
def test_they_are_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METIER_CACHE", str(tmp_path))
    assert native.kernels.__wrapped__() is not None
    (library,) = tmp_path.glob("native/*")
    made = library.stat().st_mtime_ns
    assert native.kernels.__wrapped__() is not None
    assert library.stat().st_mtime_ns == made
