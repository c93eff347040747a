"""Tools of MCP servers, over a pipe or streamable HTTP.

A server is connected to once and shared by all episodes; its tools are those that it lists
then. An error that a tool gives as its result, and refused arguments, are the policy's to
read; a server that dies, hangs or breaks the protocol is the environment's fault, and is
connected to anew by the next call.

The client is asynchronous and lives in a thread of its own; `call` may be used from many.
Left out: resources, prompts, sampling and elicitation, and results that are no text.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from metier.base.clock import monotonic
from metier.base.config import fill_from_environment
from metier.base.errors import ConfigError, DataError
from metier.records.types import Tool
from metier.rollout.tools import BadCallError, RunnableTool, writable
from metier.tasks.protocol import EnvironmentFailure

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

__all__ = ["McpServer"]

_PAGES = 100  # of a listing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a server is: a command to start, or a URL."""

    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class McpServer:
    """A connection to one server. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        name: str,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        url: str = "",
        headers: Mapping[str, str] | None = None,
        seconds: float = 30.0,
    ) -> None:
        """Give either `command` or `url`; `$NAME` in `env` and `headers` comes from the process's environment.

        `seconds` is how long connecting and each call may take. Raises `ConfigError` where the
        `mcp` package or a variable is missing.
        """
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"MCP server {name!r} needs the mcp package: pip install 'metier[mcp]'") from error
        if bool(command) == bool(url):
            raise ConfigError(f"MCP server {name!r} needs either a command or a url")
        what = f"MCP server {name!r}"
        self._place = _Place(
            command=tuple(command),
            env=fill_from_environment(env or {}, what),
            url=url,
            headers=fill_from_environment(headers or {}, what),
        )
        self.name, self._seconds = name, seconds
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._failed: tuple[float, Exception] | None = None  # until when connecting is not tried again
        self._closed = False
        atexit.register(self.close)

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tools(self, only: Sequence[str] | None = None) -> list[RunnableTool]:
        """The server's tools, or those named, in its order.

        Raises `ConfigError` where it cannot be reached and `DataError` for one that it does not have.
        """
        try:
            listed = self._live().listed
        except EnvironmentFailure as error:
            raise ConfigError(str(error)) from error
        missing = sorted(set(only or ()) - {tool.name for tool in listed})
        if missing:
            raise DataError(
                f"MCP server {self.name!r} has no tool {missing[0]!r}; it has {', '.join(t.name for t in listed)}"
            )
        return [
            RunnableTool(tool, lambda arguments, name=tool.name: self.call(name, arguments))  # type: ignore[misc]
            for tool in listed
            if only is None or tool.name in only
        ]

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool; its text. Raises `BadCallError` or `EnvironmentFailure`."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS, METHOD_NOT_FOUND

        writable(arguments)
        connection = self._live()
        try:
            result = connection.call(name, arguments)
        except MCPError as error:
            if error.code in (INVALID_PARAMS, METHOD_NOT_FOUND):
                raise BadCallError(error.message) from error
            if error.code == CONNECTION_CLOSED:
                self._drop(connection)
            raise self._failure(error) from error
        except TimeoutError as error:  # the others go on
            raise self._failure(error) from error
        except Exception as error:
            self._drop(connection)
            raise self._failure(error) from error
        text = _text(result)
        if result.is_error:
            raise BadCallError(text)
        return text

    def close(self) -> None:
        """Let go of the server; one that was started here ends."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        atexit.unregister(self.close)

    def _live(self) -> _Connection:
        with self._lock:
            if self._closed:
                raise EnvironmentFailure(f"MCP server {self.name!r} has been closed")
            if self._connection is None:
                if self._failed is not None and monotonic() < self._failed[0]:
                    raise self._failure(self._failed[1])  # it was tried a moment ago
                try:
                    self._connection = _Connection(self._place, self._seconds)
                except Exception as error:
                    self._failed = (monotonic() + self._seconds, error)
                    raise self._failure(error) from error
            return self._connection

    def _drop(self, connection: _Connection) -> None:
        """Forget a connection that broke, unless another thread has done so."""
        with self._lock:
            if self._connection is not connection:
                return
            self._connection = None
        connection.close()

    def _failure(self, error: BaseException) -> EnvironmentFailure:
        while isinstance(error, BaseExceptionGroup):  # how task groups wrap what happened in them
            error = error.exceptions[0]
        late = isinstance(error, (TimeoutError, concurrent.futures.TimeoutError))
        why = f"no answer in {self._seconds:g} s" if late else f"{type(error).__name__}: {error}"
        return EnvironmentFailure(f"MCP server {self.name!r} failed: {why}")


class _Connection:
    """A client in a thread of its own, from connecting to closing."""

    def __init__(self, place: _Place, seconds: float) -> None:
        """Returns when the server's tools are listed; raises what went wrong."""
        self._place, self._seconds = place, seconds
        self.listed: list[Tool] = []
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._client: Client | None = None
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._task = self._loop.create_task(self._live())
        self._thread = threading.Thread(target=self._run, name="metier-mcp", daemon=True)
        self._thread.start()
        try:
            self._ready.result(self._seconds)
        except BaseException:
            self.close()
            raise

    def call(self, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Call a tool and wait for its result."""
        assert self._client is not None
        future = asyncio.run_coroutine_threadsafe(self._client.call_tool(name, dict(arguments)), self._loop)
        try:
            return future.result(self._seconds)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the client and its thread; the server, where it was started here."""
        for let_go in (self._over.set, self._task.cancel):  # in good order, or while it still connects
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(let_go)
            self._thread.join(5.0 if self._client is not None else 0.2)
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _live(self) -> None:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        async with AsyncExitStack() as stack:
            place = self._place
            if place.command:
                parameters = StdioServerParameters(
                    command=place.command[0], args=list(place.command[1:]), env=dict(place.env)
                )
                errors = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115  # the stack closes it
                transport = stdio_client(parameters, errlog=errors)
            else:
                http = await stack.enter_async_context(
                    httpx2.AsyncClient(headers=dict(place.headers), timeout=self._seconds)
                )
                transport = streamable_http_client(place.url, http_client=http)
            async with Client(transport, cache=None) as client:
                cursor = None
                for _ in range(_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    self.listed += [
                        Tool(name=t.name, description=t.description or "", parameters=t.input_schema)
                        for t in page.tools
                    ]
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                self._client = client
                self._ready.set_result(None)
                await self._over.wait()


def _text(result: CallToolResult) -> str:
    """The text of a result; structured content where there is none; what is no text by its kind."""
    parts = [getattr(block, "text", None) or f"[{block.type}]" for block in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)
