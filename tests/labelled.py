"""`metier label` in a process of its own, its queues, and what a browser of a person does there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "CHROMIUM_ARGUMENTS", "Client", "Desk", "free_port", "pairs", "write_queue"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def pairs(count: int, first: str = "one", second: str = "two") -> list[dict[str, Any]]:
    """Items of two responses."""
    return [
        {
            "id": f"pair-{n}",
            "messages": [{"role": "user", "content": f"Question {n}?"}],
            "responses": [f"Answer {first} to {n}.", f"Answer {second} to {n}."],
        }
        for n in range(count)
    ]


def write_queue(folder: Path, items: list[dict[str, Any]], **head: Any) -> Path:
    """A queue as JSON lines, about pairs unless told."""
    question = {"kind": "pair", "criterion": "helpfulness"}
    rows = [{"queue": "desk", "version": "1", "question": question, **head}, *items]
    path = folder / "queue.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Desk:
    """A labelling server in a process of its own."""

    def __init__(self, queue: Path, ledger: Path | str, *arguments: str, port: int = 0) -> None:
        command = [sys.executable, "-W", "error", "-m", "metier", "label", str(queue), "--ledger", str(ledger)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), "--json", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            line += self.process.stdout.read()
            self._wait()
            raise AssertionError(line)
        told = json.loads(line)
        self.url: str = told["url"]
        self.links: dict[str, str] = told["links"]

    def client(self, name: str) -> Client:
        return Client(self.url, self.links[name])

    def kill(self) -> None:
        self.process.kill()
        self._wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Client:
    """A person without a browser: a cookie, and the token of the page."""

    def __init__(self, url: str, link: str | None = None, headers: dict[str, str] | None = None) -> None:
        self.url, self.headers, self.token = url, headers or {}, ""
        self.jar = CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))
        if link is not None:
            status, _, page = self.ask(link.removeprefix(url))
            assert status == 200, page
            self.read_token()

    def read_token(self) -> None:
        page = self.ask("/")[2]
        self.token = page.split('data-token="')[1].split('"')[0]

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of an answer; a body makes it a change."""
        sent = {"x-metier-token": self.token, "accept": "application/json", **self.headers, **(headers or {})}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        request = urllib.request.Request(self.url + path, data, sent)
        try:
            with self._opener.open(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()

    def item(self) -> dict[str, Any]:
        status, _, text = self.ask("/item")
        assert status == 200, text
        return dict(json.loads(text))

    def answer(self, item: str, answer: Any, click: str, **more: Any) -> tuple[int, dict[str, Any]]:
        status, _, text = self.ask("/answer", {"item": item, "answer": answer, "click": click, **more})
        return status, json.loads(text)
