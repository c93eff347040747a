"""What commands that serve a page or an endpoint do alike: a socket, and a server that ends in peace."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

from metier.base.errors import ConfigError

__all__ = ["listen", "need_server", "serve_until_stopped"]


def need_server(command: str) -> None:
    """Raise `ConfigError` where what serves is not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"metier {command} needs FastAPI and uvicorn; run: pip install 'metier[serve]'") from error


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket to which clients may come from now on, and its address. Raises `ConfigError` where it cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


def serve_until_stopped(app: Any, listener: socket.socket, *, grace: int, **settings: Any) -> None:
    """Answer those who come to the socket until a signal says to stop, and `grace` seconds longer what is under way."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace, **settings)
    # uvicorn raises the signal that stopped it once more when it is done; to be stopped is no failure
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
