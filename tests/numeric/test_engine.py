"""The torch engine against slow, obvious references, on a tiny random model in float32."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from metier.base.errors import DataError
from metier.models.attention import ForestLayout, Span, hidden_states, use_layouts
from metier.models.logprobs import token_logprobs
from metier.records.types import Sampling
from metier.rollout.engine import Drawn, Engine, OnTurn, Request, Word, converse
from metier.rollout.torch_engine import TorchEngine, _buckets, _inverse, _truncate
from tiny import tiny_config

VOCABULARY = 97
STOP = frozenset({5})
CONFIG = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config(**CONFIG)).eval()


def full_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits at every position, the whole sequence computed anew."""
    layout = ForestLayout([Span(0, len(tokens))], heads=4)
    hidden = hidden_states(use_layouts(model), torch.tensor(tokens), torch.arange(len(tokens)), layout)
    return model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]


def run(engine: Engine, requests: list[Request], sampling: Sampling, stop_ids: frozenset[int], on_turn: OnTurn) -> None:
    """Converse with all requests in the same way."""
    converse(engine, [replace(r, sampling=sampling, stop_ids=stop_ids) for r in requests], on_turn)


def prompts(n: int) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    heads = [tuple(torch.randint(6, VOCABULARY, (length,), generator=generator).tolist()) for length in (7, 11)]
    out = []
    for i in range(n):
        body = tuple(torch.randint(6, VOCABULARY, (1 + i % 5,), generator=generator).tolist())
        head = heads[i % 2] if i % 3 else ()
        out.append(Request(head + body, len(head), seed=i))
    return out


@torch.no_grad()
def test_greedy_turns_equal_recomputing_everything(model: PreTrainedModel) -> None:
    """More requests than rows, two turns each, shared and missing prefixes."""
    requests = prompts(9)
    said = (17, 23, 42)
    whole = [list(r.prompt) for r in requests]
    turns = [0] * len(requests)
    logprobs: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(requests))}

    def on_turn(number: int, drawn: Drawn) -> tuple[int, ...] | None:
        start = len(whole[number])
        whole[number].extend(drawn.token_ids)
        logprobs[number].extend((start + i, lp) for i, lp in enumerate(drawn.logprobs))
        turns[number] += 1
        if turns[number] == 2 + number % 2:
            return None
        whole[number].extend(said)
        return said

    engine = TorchEngine(use_layouts(model), rows=4, pass_tokens=16)
    run(engine, requests, Sampling(temperature=0.0, max_turn_tokens=6), STOP, on_turn)
    for number, tokens in enumerate(whole):
        logits = full_logits(model, tokens)
        for place, logprob in logprobs[number]:
            assert tokens[place] == int(logits[place - 1].argmax())
            expected = torch.log_softmax(logits[place - 1], -1)[tokens[place]]
            assert logprob == pytest.approx(float(expected), abs=1e-4)
    assert turns == [2 + n % 2 for n in range(9)]


@torch.no_grad()
def test_greedy_equals_transformers_generate(model: PreTrainedModel) -> None:
    request = Request(tuple(range(10, 20)), 4, seed=0)
    got: list[int] = []

    def on_turn(number: int, drawn: Drawn) -> None:
        got.extend(drawn.token_ids)

    run(TorchEngine(use_layouts(model)), [request], Sampling(temperature=0.0, max_turn_tokens=12), frozenset(), on_turn)
    plain = LlamaForCausalLM(tiny_config(**CONFIG, attn_implementation="eager")).eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.tensor([request.prompt])
    expected = plain.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
    )
    assert got == expected[0, 10:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampler_and_trainer_agree_on_the_same_tokens(model: PreTrainedModel, temperature: float) -> None:
    requests = prompts(6)
    found: dict[int, Drawn] = {}

    def on_turn(number: int, drawn: Drawn) -> None:
        found[number] = drawn

    run(TorchEngine(use_layouts(model)), requests, Sampling(temperature=temperature, max_turn_tokens=10), STOP, on_turn)
    for number, drawn in found.items():
        tokens = [*requests[number].prompt, *drawn.token_ids]
        start = len(requests[number].prompt)
        layout = ForestLayout([Span(0, len(tokens))], heads=4)
        hidden = hidden_states(model, torch.tensor(tokens), torch.arange(len(tokens)), layout)
        policy_logprobs, _ = token_logprobs(
            hidden[start - 1 : -1],
            model.get_output_embeddings().weight,
            torch.tensor(tokens[start:]),
            temperature=temperature,
        )
        assert torch.allclose(policy_logprobs, torch.tensor(drawn.logprobs), atol=1e-4)


def test_rows_that_wait_to_be_read_may_move(model: PreTrainedModel) -> None:
    """More prompts than one pass can read, and turns that end at once: those not yet read take the free slots."""
    found: dict[int, tuple[int, ...]] = {}

    def on_turn(number: int, drawn: Drawn) -> None:
        found[number] = drawn.token_ids

    requests = [Request(tuple(6 + (n + i) % 80 for i in range(12)), 0, seed=n) for n in range(40)]
    how = Sampling(temperature=0.0, max_turn_tokens=1)
    run(TorchEngine(use_layouts(model), rows=40, pass_tokens=30), requests, how, frozenset(), on_turn)
    with torch.no_grad():
        for number, request in enumerate(requests):
            assert found[number] == (int(full_logits(model, list(request.prompt))[-1].argmax()),)


def test_each_request_draws_by_its_own_seed(model: PreTrainedModel) -> None:
    def sample(requests: list[Request]) -> dict[int, tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}

        def on_turn(number: int, drawn: Drawn) -> None:
            found[requests[number].seed] = drawn.token_ids

        run(TorchEngine(use_layouts(model), rows=3), requests, Sampling(max_turn_tokens=8), STOP, on_turn)
        return found

    requests = prompts(8)
    assert sample(requests) == sample(requests)
    assert sample(requests) == sample(requests[::-1])  # neighbours do not matter in float32 here
    assert len(set(sample([Request((9, 9), 0, seed=s) for s in range(8)]).values())) > 4


@pytest.mark.parametrize(("rows", "seeds", "share"), [(3, 12, 1.0), (16, 12, 0.8), (64, 40, 0.8)])
def test_siblings_are_computed_once_until_they_part(
    model: PreTrainedModel, rows: int, seeds: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each had been alone, in several turns, some of which only some siblings are told something in."""
    read: list[int] = []

    def counted(model: PreTrainedModel, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        read.append(len(ids))
        return hidden_states(model, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("metier.rollout.torch_engine.hidden_states", counted)

    def sample(requests: list[Request]) -> dict[int, list[Drawn]]:
        found: dict[int, list[Drawn]] = {}

        def on_turn(number: int, drawn: Drawn) -> tuple[int, ...] | None:
            seed = requests[number].seed
            turns = found.setdefault(seed, [])
            turns.append(drawn)
            if len(turns) == 3 or (seed == 4 and len(turns) == 2):
                return None
            return (50, 51, 52) if seed % 5 else (60, 61)

        sampling = Sampling(temperature=0.3, max_turn_tokens=5)
        run(TorchEngine(use_layouts(model), rows=rows), requests, sampling, STOP, on_turn)
        return found

    requests = [Request((11, 12, 13, 14), 2 * (seed < 8), seed=seed) for seed in range(seeds)]
    together = sample(requests)
    shared = sum(read)
    read.clear()
    for request in requests:
        for a, b in zip(sample([request])[request.seed], together[request.seed], strict=True):
            assert a.token_ids == b.token_ids and a.stop == b.stop
            assert b.logprobs == pytest.approx(a.logprobs, abs=1e-4)
    one_by_one = sum(read)
    assert shared < share * one_by_one
    assert len({tuple(turns[0].token_ids) for turns in together.values()}) > 1  # they do part


def test_drawing_by_inversion_follows_the_distribution() -> None:
    """A chi-square test over 600 words, more than two buckets, 40,000 draws."""
    from scipy.stats import chisquare

    weights = torch.rand(600, generator=torch.Generator().manual_seed(0)) ** 3
    weights[[0, 255, 256, 599]] = 0.0  # what has no weight is never drawn
    n = 40_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rows = weights.expand(n, -1)
    words = _inverse(rows[:1], _buckets(rows[:1]).sum(-1), torch.zeros(n, dtype=torch.long), uniform)
    counts = torch.bincount(words, minlength=600)
    assert counts[weights == 0].sum() == 0
    keep = weights > 0
    expected = (weights / weights.sum() * n)[keep].double()
    expected *= counts[keep].sum() / expected.sum()
    assert chisquare(counts[keep].numpy(), expected.numpy()).pvalue > 0.5  # evenly spread uniforms: closer than chance


def test_truncation_keeps_the_words_it_should() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert _truncate(probabilities, Sampling(top_k=2))[0].count_nonzero() == 2
    # 0.5 + 0.3 reaches 0.7, so the third word is left out
    assert _truncate(probabilities, Sampling(top_p=0.7))[0].tolist()[2:] == [0.0, 0.0]


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_conversations_that_wait_leave_their_slots_and_come_back_as_they_were(
    model: PreTrainedModel, rows: int
) -> None:
    """Replies come any number of steps later, siblings' too; every turn is as if all had been answered at once."""
    how = Sampling(temperature=0.3, max_turn_tokens=4)
    requests = [Request((11, 12, 13, 14 + n // 3), 2, seed=n, sampling=how, stop_ids=STOP) for n in range(12)]

    def said(number: int, turn: int) -> tuple[int, ...] | None:
        return None if turn == 3 else (50, 51 + number % 2)

    wanted: dict[int, list[Drawn]] = {n: [] for n in range(12)}

    def on_turn(number: int, drawn: Drawn) -> tuple[int, ...] | None:
        wanted[number].append(drawn)
        return said(number, len(wanted[number]))

    converse(TorchEngine(use_layouts(model), rows=rows), requests, on_turn)

    session = TorchEngine(use_layouts(model), rows=rows).session()
    found: dict[int, list[Drawn]] = {n: [] for n in range(12)}
    waiting: list[tuple[int, int]] = []  # until which step, who
    for number, request in enumerate(requests):
        session.add(number, request)
    chance = random.Random(rows)
    most = step = 0
    while session.speaking or waiting:
        for number, drawn in session.step():
            found[number].append(drawn)
            waiting.append((step + chance.choice([0, 0, 1, 3, 9]), number))
        for due, number in [w for w in waiting if w[0] <= step]:
            waiting.remove((due, number))
            answer = said(number, len(found[number]))
            if answer is None:
                session.end(number)
            else:
                session.reply(number, answer)
        most, step = max(most, len(waiting)), step + 1
    assert most > 2
    assert [[d.token_ids for d in found[n]] for n in range(12)] == [[d.token_ids for d in wanted[n]] for n in range(12)]
    for mine, theirs in zip(found.values(), wanted.values(), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_conversations_of_one_batch_sample_each_in_their_own_way(model: PreTrainedModel) -> None:
    ways = [Sampling(temperature=t, top_k=k, max_turn_tokens=n) for t, k, n in ((0.0, 0, 3), (1.0, 1, 5), (0.7, 0, 6))]
    requests = [Request((9, 10, 11), 0, seed=n, sampling=ways[n % 3], stop_ids=frozenset()) for n in range(9)]

    def sample(some: list[Request]) -> dict[int, tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}

        def on_turn(number: int, drawn: Drawn) -> None:
            found[some[number].seed] = drawn.token_ids

        converse(TorchEngine(use_layouts(model)), some, on_turn)
        return found

    together = sample(requests)
    for request in requests:
        assert sample([request]) == {request.seed: together[request.seed]}
    assert [len(together[n]) for n in range(3)] == [3, 5, 6]
    assert together[0] == together[1][:3]  # greedy, and the best word alone


def test_long_prompts_are_read_in_parts_and_the_context_ends_a_turn(model: PreTrainedModel) -> None:
    prompt = tuple(6 + n % 80 for n in range(60))
    greedy = Sampling(temperature=0.0, max_turn_tokens=9)
    found: dict[int, Drawn] = {}
    for parts in (1000, 16):
        engine = TorchEngine(use_layouts(model), pass_tokens=parts)
        converse(engine, [Request(prompt, 0, 0, greedy)], lambda _, drawn, parts=parts: found.__setitem__(parts, drawn))
    assert found[1000].token_ids == found[16].token_ids
    engine = TorchEngine(use_layouts(model))
    engine.context = 64
    converse(engine, [Request(prompt, 0, 0, greedy)], lambda _, drawn: found.__setitem__(0, drawn))
    assert (found[0].token_ids, found[0].stop) == (found[16].token_ids[:4], "length")
    engine.context = 60
    with pytest.raises(DataError, match="a prompt of 60 tokens does not fit the model, which reads 60"):
        engine.session().add(0, Request(prompt, 0, 0, greedy))


def test_long_prompts_are_read_while_others_speak(model: PreTrainedModel) -> None:
    """A prompt longer than a pass is not put off until all others have ended."""
    session = TorchEngine(use_layouts(model), rows=8, pass_tokens=8).session()
    greedy = Sampling(temperature=0.0, max_turn_tokens=60)
    for number in range(4):
        session.add(number, Request((9, 10 + number), 0, 0, greedy))
    session.step()
    session.add(9, Request(tuple(6 + n % 80 for n in range(40)), 0, 0, replace(greedy, max_turn_tokens=1)))
    steps = 0
    while not any(number == 9 for number, _ in session.step()):
        steps += 1
    assert steps < 25  # at least two tokens a pass


def test_conversations_can_be_let_go_of_at_any_time(model: PreTrainedModel) -> None:
    how = Sampling(temperature=0.7, max_turn_tokens=6)
    requests = [Request((11, 12, 13 + n // 2), 2, seed=n, sampling=how, stop_ids=frozenset()) for n in range(8)]
    whole: dict[int, Drawn] = {}
    converse(TorchEngine(use_layouts(model)), requests, lambda n, drawn: whole.__setitem__(n, drawn))
    session = TorchEngine(use_layouts(model), rows=6).session()
    found: dict[int, Drawn] = {}
    for number, request in enumerate(requests):
        session.add(number, request)
    session.end(7)  # has not begun
    for step in range(40):
        if step == 2:
            session.end(0)  # speaks, and shares its first words with a sibling
            session.end(3)
        found.update(session.step())
        for number in [n for n in found if n in (1, 2)]:
            session.end(number)
    assert not {0, 3, 7} & found.keys() and found.keys() == {1, 2, 4, 5, 6}
    assert {n: d.token_ids for n, d in found.items()} == {n: whole[n].token_ids for n in found}


def test_words_are_told_as_they_are_drawn_with_the_likeliest_others(model: PreTrainedModel) -> None:
    told: dict[int, list[Word]] = {0: [], 1: []}
    session = TorchEngine(use_layouts(model)).session(lambda number, word: told[number].append(word))
    how = Sampling(temperature=1.0, max_turn_tokens=5)
    session.add(0, Request((9, 10, 11), 0, 3, how, others=4))
    session.add(1, Request((9, 10, 11), 0, 4, how))
    turns: dict[int, Drawn] = {}
    while session.speaking:
        turns.update(session.step())
    for number, words in told.items():
        assert tuple(word.token for word in words) == turns[number].token_ids
        assert tuple(word.logprob for word in words) == turns[number].logprobs
    assert all(not word.others for word in told[1])
    so_far = [9, 10, 11]
    with torch.no_grad():
        for word in told[0]:
            best = torch.log_softmax(full_logits(model, so_far)[-1], -1).topk(4)
            assert [token for token, _ in word.others] == best.indices.tolist()
            assert [p for _, p in word.others] == pytest.approx(best.values.tolist(), abs=1e-4)
            so_far.append(word.token)
