"""Tools behind real endpoints: HTTP, and MCP servers over a pipe and over streamable HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from httpd import serving
from metier.base.errors import ConfigError, DataError
from metier.recipes.settings import ToolSettings
from metier.records.types import Tool, ToolCall
from metier.rollout.http_tools import HttpTool
from metier.rollout.mcp_tools import McpServer
from metier.rollout.tools import BadCallError, RunnableTool, ToolBox, get_tool, register_tool
from metier.tasks.protocol import EnvironmentFailure

SERVER = str(Path(__file__).with_name("mcp_server.py"))
SCHEMA = {"type": "object", "properties": {"id": {"type": "string"}, "n": {"type": "integer"}}, "required": ["id"]}


class Shop(BaseHTTPRequestHandler):
    """Answers by path; counts what it was asked."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, str, Any, str | None]]] = []
    busy = 0  # how many requests it still turns away

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def work(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        Shop.asked.append((self.command, self.path, json.loads(body) if body else None, self.headers["X-Key"]))
        if self.path.startswith("/flood"):
            self.send_response(200)
            self.send_header("Content-Length", str(100 << 20))
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x" * (1 << 20))
            except OSError:
                Shop.asked.append(("hung up", "", None, None))
            self.close_connection = True
        elif self.path.startswith("/busy") and Shop.busy > 0:
            Shop.busy -= 1
            self.say(503, b"come again")
        elif self.path.startswith("/broken"):
            self.say(500, b"oh no")
        elif self.path.startswith("/locked"):
            self.say(401, b"who are you")
        elif self.path.startswith("/slow"):
            time.sleep(1.5)
            self.say(200, b"late")
        elif self.path.startswith("/orders/none"):
            self.say(404, b"no such order")
        else:
            self.say(200, "fünf".encode())

    do_GET = do_POST = work


@pytest.fixture
def shop() -> Iterator[str]:
    Shop.asked, Shop.busy = [], 0
    with serving(Shop) as url:
        yield url


def http(url: str, **changes: Any) -> RunnableTool:
    record = Tool(name="order", description="An order.", parameters=SCHEMA)
    return HttpTool(record=record, url=url, **changes).runnable()


def test_arguments_go_where_the_endpoint_wants_them(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "s3")
    key = {"X-Key": "key $SHOP_KEY"}
    assert http(f"{shop}/orders/{{id}}", method="GET", headers=key).run({"id": "a b/c", "n": 2}) == "fünf"
    assert http(f"{shop}/orders", headers=key).run({"id": "ü", "n": 2}) == "fünf"
    assert Shop.asked == [
        ("GET", "/orders/a%20b%2Fc?n=2", None, "key s3"),
        ("POST", "/orders", {"id": "ü", "n": 2}, "key s3"),
    ]


def test_an_endpoints_own_query_stays_and_no_argument_leads_elsewhere(shop: str) -> None:
    with_key = http(f"{shop}/orders/{{id}}?units=metric", method="GET")
    with_key.run({"id": "1", "n": 2})
    with_key.run({"id": "1"})
    assert [path for _, path, _, _ in Shop.asked] == ["/orders/1?units=metric&n=2", "/orders/1?units=metric"]
    for bad in ({"id": ".."}, {"id": "."}, {"id": ""}, {"id": "a\ud800"}, {"id": "1", "n": float("nan")}):
        with pytest.raises(BadCallError):
            with_key.run(bad)
    assert len(Shop.asked) == 2


def test_who_is_to_blame_for_an_endpoint_that_refuses(shop: str) -> None:
    register_tool(http(f"{shop}/orders/{{id}}", method="GET"))
    box = ToolBox([get_tool("order").record])
    assert json.loads(box.call(ToolCall(name="order", arguments='{"id": "none"}'))) == {"error": "404: no such order"}
    refused = box.call(ToolCall(name="order", arguments='{"id": "1", "n": "two"}'))
    assert json.loads(refused) == {"error": 'n: "two" is not of type "integer"'}
    assert len(Shop.asked) == 1, "the second call does not fit the schema and was not made"
    for path, why in (("locked", "401"), ("broken", "500: oh no")):
        register_tool(http(f"{shop}/{path}"))
        with pytest.raises(EnvironmentFailure, match=why):
            box.call(ToolCall(name="order", arguments='{"id": "1"}'))
    assert len(Shop.asked) == 3, "neither may be made again: the first would not help, the second may have worked"


def test_a_call_is_made_again_only_where_it_had_no_effect(shop: str) -> None:
    Shop.busy = 2
    assert http(f"{shop}/busy").run({"id": "1"}) == "fünf"
    assert len(Shop.asked) == 3
    Shop.asked.clear()
    with pytest.raises(EnvironmentFailure, match="500"):
        http(f"{shop}/broken", method="GET", retries=1).run({"id": "1"})
    assert len(Shop.asked) == 2
    Shop.asked.clear()
    with pytest.raises(EnvironmentFailure, match="Timeout"):
        http(f"{shop}/slow", seconds=0.5).run({"id": "1"})
    assert len(Shop.asked) == 1
    with pytest.raises(EnvironmentFailure, match="Connect"):
        http("http://127.0.0.1:9/", retries=0).run({"id": "1"})


def test_an_answer_of_100_mb_is_not_read_to_its_end(shop: str) -> None:
    assert len(http(f"{shop}/flood").run({"id": "1"})) == 1 << 20
    for _ in range(50):
        if ("hung up", "", None, None) in Shop.asked:
            return
        time.sleep(0.1)
    pytest.fail("it was read whole")


def test_http_tools_that_cannot_work_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"\{n\} of its url is no required argument"):
        http("http://127.0.0.1/{n}")
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        http("http://127.0.0.1/", headers={"X-Key": "$NOT_SET_ANYWHERE"})
    with pytest.raises(DataError, match="no JSON schema"):
        register_tool(RunnableTool(Tool(name="x", description="", parameters={"type": "thing"}), lambda _: ""))


@pytest.fixture(params=["pipe", "http"])
def place(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Where the same server is, in both ways."""
    if request.param == "pipe":
        yield {"command": (sys.executable, SERVER), "env": {"SHELF_OWNER": "$OWNER"}}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, SERVER, str(port)], env={"SHELF_OWNER": "ada"}, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield {"url": f"http://127.0.0.1:{port}/mcp"}
    finally:
        process.kill()
        process.wait()


def test_tools_of_a_real_mcp_server(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNER", "ada")
    settings = ToolSettings.model_validate({"mcp": {"shelf": {**place, "only": ("look_up",)}}})
    with settings.ready():
        record = get_tool("look_up").record
        assert record.description == "Look a book up."
        assert record.parameters["required"] == ["title"]
        box = ToolBox([record])
        assert box.call(ToolCall(name="look_up", arguments='{"title": "Emma", "copies": 2}')) == "2 x Emma for ada"
        refused = json.loads(box.call(ToolCall(name="look_up", arguments='{"title": "nothing"}')))
        assert "no such book" in refused["error"]
        assert "error" in json.loads(box.call(ToolCall(name="look_up", arguments='{"copies": 1}')))
        said: list[str] = []
        threads = [
            threading.Thread(
                target=lambda n=n: said.append(
                    box.call(ToolCall(name="look_up", arguments=json.dumps({"title": f"b{n}"})))
                )
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said) == [f"1 x b{n} for ada" for n in range(8)]


def test_a_server_that_dies_or_hangs_is_the_environments_fault_and_comes_back() -> None:
    with McpServer("shelf", command=(sys.executable, SERVER), seconds=20) as server:
        assert [tool.record.name for tool in server.tools()] == ["look_up", "hang", "die"]
        with pytest.raises(EnvironmentFailure, match="shelf"):
            server.call("die", {})
        assert server.call("look_up", {"title": "Emma"}) == "1 x Emma for nobody"
    with McpServer("shelf", command=(sys.executable, SERVER), seconds=5) as server:
        server.tools()
        first = server._connection
        with pytest.raises(BadCallError, match="cannot be written"):
            server.call("look_up", {"title": "a\ud800"})
        with pytest.raises(EnvironmentFailure, match="no answer in 5 s"):
            server.call("hang", {"seconds": 6.0})
        assert server.call("look_up", {"title": "Emma"}) == "1 x Emma for nobody"
        assert server._connection is first, "who waits for another call is left alone"
    with pytest.raises(EnvironmentFailure, match="has been closed"):
        server.call("look_up", {"title": "Emma"})


def test_a_server_that_never_says_hello_is_let_go() -> None:
    silent = ("import sys, time, os; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)",)
    with (
        tempfile.NamedTemporaryFile("r") as pid,
        McpServer("mute", command=(sys.executable, "-c", *silent, pid.name), seconds=2) as server,
    ):
        with pytest.raises(ConfigError, match="no answer in 2 s"):
            server.tools()
        number = int(pid.read())
        for _ in range(100):
            if not Path(f"/proc/{number}").exists():
                break
            time.sleep(0.1)
        assert not Path(f"/proc/{number}").exists()
        began = time.monotonic()
        with pytest.raises(EnvironmentFailure, match="no answer in 2 s"):
            server.call("look_up", {})
        assert time.monotonic() - began < 1, "it was tried a moment ago"


def test_mcp_servers_that_cannot_be_reached_are_told_by_name() -> None:
    with (
        McpServer("gone", command=("/no/such/program",), seconds=5) as server,
        pytest.raises(ConfigError, match="gone"),
    ):
        server.tools()
    with McpServer("gone", url="http://127.0.0.1:9/mcp", seconds=5) as server, pytest.raises(ConfigError, match="gone"):
        server.tools()
    with McpServer("shelf", command=(sys.executable, SERVER)) as server, pytest.raises(DataError, match="look_up"):
        server.tools(only=["lookup"])
    with pytest.raises(ConfigError, match="either"):
        McpServer("both", command=("x",), url="http://127.0.0.1/")
    twice = {name: {"command": (sys.executable, SERVER)} for name in "ab"}
    with (
        pytest.raises(ConfigError, match="two tools are called 'die'"),
        ToolSettings.model_validate({"mcp": twice}).ready(),
    ):
        pass
