"""Models behind an OpenAI-compatible endpoint: a real `metier serve`, and a server that misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from httpd import serving
from metier.base.errors import ConfigError
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.recipes.settings import Recipe
from metier.records.types import EnvironmentSpec, Message, Sampling, Task, Tool, Weights
from metier.rollout.endpoint import Endpoint, EndpointError, EndpointPolicy
from metier.rollout.episodes import Plan, environment_for, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.torch_engine import TorchEngine
from metier.rollout.users import played_by
from metier.tasks.desk.family import DeskFamily
from metier.tasks.files import FileFamily
from metier.tasks.protocol import EnvironmentFailure
from served import KEY, Server

pytest.importorskip("openai", reason="the client is not installed: pip install 'metier[openai]'")

GREEDY = Sampling(temperature=0.0, max_turn_tokens=24, max_turns=2)
HELLO = (Message(role="user", content="Hello."),)


class Flaky(BaseHTTPRequestHandler):
    """Answers as `script` says: a status with text, an answer, or how the connection ends."""

    protocol_version = "HTTP/1.1"
    script: ClassVar[list[Any]] = []
    asked: ClassVar[list[dict[str, Any]]] = []
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Flaky.lock:
            Flaky.asked.append(body)
            act = Flaky.script.pop(0) if len(Flaky.script) > 1 else Flaky.script[0]
        if act == "cut":  # it dies in the middle of the answer
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
            return
        status, text = act if isinstance(act, tuple) else (200, json.dumps(answer(act)))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def answer(said: str | dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": said} if isinstance(said, str) else said
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }  # fmt: skip


@pytest.fixture
def flaky() -> Iterator[str]:
    Flaky.script, Flaky.asked = ["Hi."], []
    with serving(Flaky) as url:
        yield f"{url}/v1"
    played_by(None)


def endpoint(url: str, **changes: Any) -> Endpoint:
    return Endpoint("m", base_url=url, key="k", **{"usd_in": 2.0, "usd_out": 10.0, "retries": 2, **changes})


def run(policy: Any, tasks: list[Task], sampling: Sampling = GREEDY) -> Any:
    plans = [Plan(id=f"ep-{n}", task=task, seed=n) for n, task in enumerate(tasks)]
    return run_episodes(policy, plans, sampling=sampling, weights=Weights(checkpoint="m"), run_id="r", stage="s")


def test_a_served_model_says_through_the_endpoint_what_it_says_here() -> None:
    pytest.importorskip("uvicorn", reason="the server is not installed: pip install 'metier[serve]'")
    tasks = DeskFamily().tasks("heldout", 4, 1)
    renderer = get_renderer(load_tokenizer("smollm2"))
    here = run(EnginePolicy(TorchEngine(load_model("smollm2")), renderer), tasks)
    server = Server("smollm2", "--dtype", "float32", "--rows", "4")
    try:
        there = run(EndpointPolicy(Endpoint(server.name, base_url=server.url, key=KEY, at_once=2)), tasks)
    finally:
        server.stop()
    assert [e.messages for e in there] == [e.messages for e in here]
    assert [e.stop_reason for e in there] == [e.stop_reason for e in here]
    assert [e.cost.completion_tokens for e in there] == [e.cost.completion_tokens for e in here]
    assert all(not e.token_ids and not e.sampler_logprobs for e in there)


def test_failures_that_pass_are_waited_out_and_paid_for_once(flaky: str) -> None:
    Flaky.script = [(429, "{}"), (500, "{}"), "Hi."]
    reply = endpoint(flaky).chat(HELLO, sampling=GREEDY, seed=3)
    assert (reply.message.content, reply.usd) == ("Hi.", pytest.approx(0.003))
    assert len(Flaky.asked) == 3
    assert {"temperature": 0.0, "max_tokens": 24, "seed": 3}.items() <= Flaky.asked[-1].items()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ([(500, '{"error": {"message": "no memory"}}')], "InternalServerError 500: no memory"),
        ([(401, '{"error": {"message": "bad key"}}')], "AuthenticationError 401: bad key"),
        (["cut"], "m: "),
        ([(200, "<html>")], "m: "),
        ([(200, '{"choices": []}')], "no chat completion"),
        ([(200, "null")], "no chat completion"),
    ],
)
def test_an_endpoint_that_fails_leaves_an_episode_unscored_and_the_others_alone(
    flaky: str, script: list[Any], why: str
) -> None:
    Flaky.script = script
    with pytest.raises(EndpointError, match=why):
        endpoint(flaky, retries=1).chat(HELLO)
    Flaky.script = ["Hi.", *script]
    task = Task(family="t", kind="t", messages=HELLO)
    episodes = run(EndpointPolicy(endpoint(flaky, retries=0, at_once=1)), [task, task])
    assert [(e.stop_reason, e.error_boundary) for e in episodes] == [("stop", None), ("error", "network")]
    assert why in str(episodes[1].error)


def test_log_probabilities_that_are_not_told_are_an_error(flaky: str) -> None:
    with pytest.raises(EndpointError, match="tells no log-probabilities"):
        endpoint(flaky).chat(HELLO, logprobs=True)


def test_requests_keep_to_a_pace_and_to_so_many_at_once(flaky: str) -> None:
    one = endpoint(flaky, per_minute=600)
    started = time.monotonic()
    for _ in range(4):
        one.chat(HELLO)
    assert time.monotonic() - started > 0.29  # three pauses of a tenth of a second


def test_tools_are_called_through_an_endpoint(flaky: str) -> None:
    call = {"id": "call_x", "type": "function", "function": {"name": "nothing_here", "arguments": "{}"}}
    Flaky.script = [{"role": "assistant", "content": None, "tool_calls": [call]}, "There is none."]
    tool = Tool(name="look", description="Look.", parameters={"type": "object", "properties": {}})
    (episode,) = run(EndpointPolicy(endpoint(flaky)), [Task(family="t", kind="t", messages=HELLO, tools=(tool,))])
    assert [m.role for m in episode.messages] == ["user", "assistant", "tool", "assistant"]
    assert episode.messages[2].tool_call_id == "call_x" and "no tool" in episode.messages[2].content
    assert Flaky.asked[0]["tools"][0]["function"]["name"] == "look"
    assert Flaky.asked[1]["messages"][1]["tool_calls"] == [call]
    assert episode.cost.usd == pytest.approx(0.006)


# --- users ------------------------------------------------------------------------------


def with_user(user: Any) -> Task:
    spec = EnvironmentSpec(name="file", version="1", state={"user": user})
    return Task(family="file", kind="t", messages=HELLO, environment=spec)


def test_a_scripted_user_answers_line_by_line(flaky: str) -> None:
    Flaky.script = ["What is your name?", "And your city?", "Thanks."]
    (episode,) = run(EndpointPolicy(endpoint(flaky)), [with_user(["Ada.", "Rome."])], Sampling(max_turns=8))
    assert [m.content for m in episode.messages] == [
        "Hello.", "What is your name?", "Ada.", "And your city?", "Rome.", "Thanks.",
    ]  # fmt: skip
    assert (episode.stop_reason, episode.final_state["user_replies"]) == ("stop", 2)


def test_a_model_plays_the_user_until_it_is_done(flaky: str) -> None:
    played_by(endpoint(flaky))
    environment = environment_for(with_user("You are Ada and want a room in Rome."))
    Flaky.script = ["I am Ada.", "DONE"]
    assert environment.reply("Who is there?") == "I am Ada."
    assert environment.reply("Here is your room.") is None
    heard = Flaky.asked[-1]["messages"]
    assert "You are Ada and want a room in Rome." in heard[0]["content"]
    assert [(m["role"], m["content"]) for m in heard[1:]] == [
        ("user", "…"), ("assistant", "Hello."), ("user", "Who is there?"), ("assistant", "I am Ada."),
        ("user", "Here is your room."),
    ]  # fmt: skip


def test_a_user_who_cannot_be_reached_is_the_environments_fault(flaky: str) -> None:
    Flaky.script = [(500, "{}")]
    environment = environment_for(with_user("You are Ada."))
    with pytest.raises(EnvironmentFailure, match="no `user` is set"):
        environment.reply("Hi.")
    played_by(endpoint(flaky, retries=0))
    with pytest.raises(EnvironmentFailure, match="the simulated user failed"):
        environment_for(with_user("You are Ada.")).reply("Hi.")


def test_users_in_a_file_of_tasks(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "Hi.", "user": ["yes"]}\n')
    assert not FileFamily(file, lambda name: pytest.fail(name)).needs_player
    file.write_text('{"prompt": "Hi.", "user": "You are Ada."}\n')
    assert FileFamily(file, lambda name: pytest.fail(name)).needs_player
    for bad in ("3", "{}", '" "', "[1]"):
        file.write_text(f'{{"prompt": "Hi.", "user": {bad}}}\n')
        with pytest.raises(ValueError, match="line 1"):
            FileFamily(file, lambda name: pytest.fail(name))


# --- recipes ----------------------------------------------------------------------------


def test_an_evaluation_of_another_model_stands_in_the_same_report(flaky: str, tmp_path: Path, monkeypatch: Any) -> None:
    from metier.recipes.runner import run as run_recipe

    monkeypatch.setenv("SOME_KEY", "k")
    Flaky.script = ["4"]
    lines = [{"prompt": f"{n} + {n}?", "verifier": "exact", "answer": str(2 * n), "split": "heldout"} for n in range(4)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: other
tasks: {{file: tasks.jsonl}}
stages:
  - kind: evaluate
    name: theirs
    endpoint: {{model: m, base_url: "{flaky}", key: $SOME_KEY}}
    splits: {{heldout: 4}}
  - {{kind: report}}
"""
    )
    result = run_recipe(str(recipe), folder=str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "stages" / "theirs.json").read_text())["heldout"]["success"] == 0.25
    assert result.report is not None and "theirs" in result.report.read_text()


def test_what_an_endpoint_cannot_do_is_refused() -> None:
    stage = {"kind": "evaluate", "name": "e", "splits": {"heldout": 1}, "endpoint": {"model": "m"}}
    with pytest.raises(ValueError, match="takes the place of 'of'"):
        said = {"name": "x", "tasks": {"family": "desk"}, "stages": [{**stage, "text": "general"}]}
        Recipe.model_validate_json(json.dumps(said))
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        Endpoint("m", key="$NO_SUCH_KEY")
