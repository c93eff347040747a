"""`metier serve`, asked by the real OpenAI client; and a tiny model that has learnt to call a tool."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import Message, Sampling, Tool, ToolCall
from metier.rollout.engine import Drawn, Request, converse
from metier.rollout.torch_engine import TorchEngine
from metier.train.checkpoints import save_model
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example
from served import Server
from tiny import tiny_config

openai = pytest.importorskip("openai", reason="the client is not installed: pip install 'metier[dev]'")
pytest.importorskip("uvicorn", reason="the server is not installed: pip install 'metier[serve]'")

ASK: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server("smollm2", "--dtype", "float32", "--rows", "4", "--waiting", "4")
    yield made
    assert made.stop() == 0


def ask(server: Server, **more: Any) -> Any:
    options = {"model": server.name, "messages": ASK, "temperature": 0.0, "max_tokens": 24, **more}
    return server.client().chat.completions.create(**options)


def test_an_answer_is_what_the_engine_says_here(server: Server) -> None:
    answer = ask(server, logprobs=True, top_logprobs=3)
    tokenizer = load_tokenizer("smollm2")
    renderer = get_renderer(tokenizer)
    prompt = renderer.render([Message.from_openai(m) for m in ASK], prompt=True).token_ids
    drawn: list[Drawn] = []
    greedy = Sampling(temperature=0.0, max_turn_tokens=24)
    engine = TorchEngine(load_model("smollm2"))
    converse(engine, [Request(prompt, 0, 0, greedy, renderer.stop_ids)], lambda _, turn: drawn.append(turn))
    assert answer.choices[0].message.content == renderer.parse(drawn[0].token_ids).content
    told = answer.choices[0].logprobs.content
    assert [w.logprob for w in told] == pytest.approx(list(drawn[0].logprobs), abs=1e-3)
    assert all(w.top_logprobs[0].logprob == pytest.approx(w.logprob, abs=1e-4) for w in told)  # greedy takes the best
    assert len(told[0].top_logprobs) == 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(drawn[0].token_ids))
    assert answer.choices[0].finish_reason == drawn[0].stop


def test_a_stream_adds_up_to_the_whole(server: Server) -> None:
    whole = ask(server)
    chunks = list(ask(server, stream=True, stream_options={"include_usage": True}, logprobs=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3  # it came in pieces
    told = [w for c in chunks if c.choices and c.choices[0].logprobs for w in c.choices[0].logprobs.content]
    assert len(told) == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_several_answers_and_seeds(server: Server) -> None:
    first, again, other = (
        [c.message.content for c in ask(server, temperature=1.0, n=3, seed=seed).choices] for seed in (1, 1, 2)
    )
    assert first == again != other and len(set(first)) == 3


def test_stop_strings_end_an_answer(server: Server) -> None:
    content = ask(server).choices[0].message.content
    word = content.split()[1]
    for streamed in (False, True):
        answer = ask(server, stop=[word], stream=streamed)
        if streamed:
            text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
        else:
            text = answer.choices[0].message.content
            assert answer.choices[0].finish_reason == "stop"
        assert text.strip() == content[: content.index(word)].strip()


def idle(server: Server, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while server.health()["under_way"] and time.monotonic() < until:
        time.sleep(0.05)
    return server.health()["under_way"] == 0


def test_many_at_once_and_too_many(server: Server) -> None:
    assert idle(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(server, max_tokens=6, seed=n), range(8)))
    assert len({a.choices[0].message.content for a in answers}) == 1  # greedy
    with pytest.raises(openai.BadRequestError, match="n is 16; this server takes 8 at once"):
        ask(server, n=16, temperature=1.0)
    assert idle(server)
    streams = [ask(server, stream=True, max_tokens=400, temperature=1.0, seed=n, n=4) for n in range(2)]
    with pytest.raises(openai.RateLimitError, match="8 requests are under way and this server takes 8"):
        ask(server)
    for stream in streams:
        stream.close()
    assert idle(server)


def test_a_client_that_goes_away_frees_its_slot(server: Server) -> None:
    """It is asked for more than it could say in the time that is waited here."""
    stream = ask(server, stream=True, max_tokens=7000, temperature=1.5, n=4)
    next(iter(stream))
    assert server.health()["under_way"] > 0
    stream.close()
    assert idle(server, 10)
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=1).chat.completions.create(
            model=server.name, messages=ASK, max_tokens=7000, temperature=1.5, n=4
        )
    assert idle(server, 10)


def test_what_clients_leave_empty_is_not_missed(server: Server) -> None:
    empty = dict.fromkeys(("n", "stream", "logprobs", "top_logprobs", "stop", "seed", "top_p"))
    more = {"top_k": -1, "repetition_penalty": 1.0, "min_p": None, **empty}
    answer = server.client().chat.completions.create(
        model=server.name, messages=ASK, temperature=0.0, max_tokens=4, extra_body=more
    )
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model": "gpt"}, "NotFoundError", "this server has the model 'smollm2', not 'gpt'"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "BadRequestError", "the model reads 8192"),
        ({"messages": [{"role": "king", "content": "a"}]}, "BadRequestError", "message role 'king' is not one of"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "BadRequestError",
            "a message holds a part of type 'image_url'",
        ),
        ({"temperature": 3.0}, "BadRequestError", "temperature: Input should be less than or equal to 2"),
        ({"presence_penalty": 1.0}, "BadRequestError", "presence_penalty is not supported here"),
        ({"response_format": {"type": "json_object"}}, "BadRequestError", "response_format other than text"),
        ({"tool_choice": "required"}, "BadRequestError", "tool_choice is required and there are no tools"),
        ({"tool_choice": "sometimes"}, "BadRequestError", "tool_choice is none, auto, required or a function"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "other"}}},
            "BadRequestError",
            "a function among the tools",
        ),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": 5}]}, "BadRequestError", "tool_calls must be"),
        ({"extra_body": {"min_p": 0.1}}, "BadRequestError", "min_p is not supported here"),
        ({"extra_body": {"response_format": "json"}}, "BadRequestError", "response_format other than text"),
    ],
)
def test_what_cannot_be_answered_is_said(server: Server, changes: dict[str, Any], kind: str, says: str) -> None:
    with pytest.raises(getattr(openai, kind), match=says):
        ask(server, **changes)


def test_a_key_is_asked_for(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
        server.client(api_key="guess").models.list()
    assert [m.id for m in server.client().models.list()] == [server.name]


def test_what_is_under_way_is_finished_before_the_end() -> None:
    server = Server("smollm2", "--dtype", "float32")
    stream = ask(server, stream=True, max_tokens=40, temperature=1.0, seed=3)
    found = [next(iter(stream))]
    server.process.send_signal(signal.SIGTERM)
    found += list(stream)
    assert found[-1].choices[0].finish_reason in ("stop", "length")
    assert server.stop() == 0
    with pytest.raises(openai.APIConnectionError):
        ask(server)


# --- tools ------------------------------------------------------------------------------------

TOOL = Tool(
    name="track",
    description="Find an order.",
    parameters={"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny model that has one conversation by heart: it says something, and calls a tool."""
    tokenizer = load_tokenizer("smollm2")
    renderer = get_renderer(tokenizer)
    call = ToolCall(id="1", name="track", arguments='{"order": 7}')
    talk = [
        Message(role="user", content="Where is order 7?"),
        Message(role="assistant", content="One moment.", tool_calls=(call,)),
        Message(role="tool", content="on its way", tool_call_id="1"),
        Message(role="assistant", content="It is on its way."),
    ]
    made = renderer.render(talk, [TOOL])
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(vocab_size=len(tokenizer), hidden_size=64, max_position_embeddings=512))
    trainer = Trainer(model, TrainSettings(lr=1e-2, steps=60), get_objective("sft"))
    for _ in range(60):
        told = trainer.step([Example(made.token_ids, made.loss_mask)])
    assert told["loss"] < 0.05
    folder = tmp_path_factory.mktemp("caller") / "caller"
    save_model(model, tokenizer, folder, template=renderer.template, manifest={"id": "of-a-test"})
    return folder


def test_a_tool_is_called_and_its_result_read(caller: Path) -> None:
    server = Server(str(caller), "--dtype", "float32")
    try:
        client = server.client()
        messages: list[Any] = [{"role": "user", "content": "Where is order 7?"}]
        options = {"model": server.name, "tools": [TOOL.to_openai()], "temperature": 0.0, "max_tokens": 60}
        first = client.chat.completions.create(messages=messages, **options)
        said = first.choices[0].message
        assert (first.choices[0].finish_reason, said.content) == ("tool_calls", "One moment.")
        assert (said.tool_calls[0].function.name, said.tool_calls[0].function.arguments) == ("track", '{"order": 7}')

        chunks = list(client.chat.completions.create(messages=messages, stream=True, **options))
        deltas = [c.choices[0].delta for c in chunks]
        assert "".join(d.content or "" for d in deltas) == "One moment."  # and nothing of the call's own text
        (call,) = [call for d in deltas for call in d.tool_calls or ()]
        assert (call.index, call.function.arguments) == (0, '{"order": 7}')
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

        messages += [said.model_dump(exclude_none=True)]
        messages += [{"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "on its way"}]
        cut = client.chat.completions.create(messages=messages[:1], **{**options, "max_tokens": 14})
        assert (cut.choices[0].finish_reason, cut.choices[0].message.tool_calls) == ("length", None)
        assert cut.choices[0].message.content == "One moment."  # and nothing of the call that was cut off

        last = client.chat.completions.create(messages=messages, **options)
        assert last.choices[0].message.content == "It is on its way."
        assert last.choices[0].finish_reason == "stop"
    finally:
        assert server.stop() == 0


def test_a_call_can_be_demanded(server: Server) -> None:
    named = {"type": "function", "function": {"name": "track"}}
    for choice in ("required", named):
        answer = ask(server, tools=[TOOL.to_openai()], tool_choice=choice, max_tokens=40).choices[0]
        assert answer.message.tool_calls, choice
        assert answer.finish_reason in ("tool_calls", "length")
    assert answer.message.tool_calls[0].function.name == "track"
    chunks = list(ask(server, tools=[TOOL.to_openai()], tool_choice=named, max_tokens=40, stream=True))
    (call,) = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    assert call.function.model_dump() == answer.message.tool_calls[0].function.model_dump()


def test_talking_in_the_terminal(caller: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metier", "chat", str(caller), "--dtype", "float32", "--max-tokens", "8"],
        input="Where is order 7?\nAnd now?\n/new\nHello\n\n", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caller; an empty line ends\n> ") and done.stdout.count("> ") >= 4


def test_a_server_that_cannot_be() -> None:
    def refused(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "metier", *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    assert "an API key is needed" in refused("serve", "smollm2", "--host", "0.0.0.0")
    assert "--dtype must be" in refused("serve", "smollm2", "--dtype", "int8")
    assert "there is no ledger" in refused("serve", "ckpt-nothing", "--ledger", "nowhere.sqlite")
