"""`metier serve` in a process of its own, and the real OpenAI client of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

__all__ = ["KEY", "Server"]

KEY = "a key of the test"


class Server:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "metier", "serve", *arguments, "--port", "0", "--api-key", KEY],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving "), line + self.process.stdout.read()
        self.name, self.url = line.split()[1], line.split()[3].rstrip(";")

    def client(self, **more: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, **{"api_key": KEY, "max_retries": 0, "timeout": 60, **more})

    def health(self) -> dict[str, Any]:
        import urllib.request

        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=10) as answer:
            return dict(json.load(answer))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code
