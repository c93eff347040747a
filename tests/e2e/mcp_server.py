"""A small MCP server for tests: over a pipe, or with a port over streamable HTTP."""

from __future__ import annotations

import os
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("shelf")


@server.tool()
def look_up(title: str, copies: int = 1) -> str:
    """Look a book up."""
    if title == "nothing":
        raise ToolError("no such book")
    return f"{copies} x {title} for {os.environ.get('SHELF_OWNER', 'nobody')}"


@server.tool()
def hang(seconds: float) -> str:
    """Take long."""
    time.sleep(seconds)
    return "at last"


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
