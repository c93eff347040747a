"""The vLLM engine: samples in vLLM, whose weights are exchanged after each step.

vLLM pins a torch of its own, so it usually lives in another environment: `python` names
that environment's interpreter and the worker is started there, or `address` names a worker
that runs already, perhaps on another machine. Without either, vLLM is used in this process.
The weights go through a folder of safetensors, in memory where the machine has `/dev/shm`,
adapters merged; a worker on another machine needs a shared folder.

A conversation's turns are requests that begin alike, so vLLM's prefix cache keeps what was
computed. Each turn draws with a seed of its own, made from the conversation's.

vLLM tells log-probabilities at the sampling temperature, after truncation; `top_p` and
`top_k` are therefore refused. Left out: adapters without merging, and the likeliest tokens
beside each word.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import selectors
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from metier.base.errors import ConfigError, DataError, ModelError
from metier.base.seeds import derive_seed
from metier.rollout.engine import Drawn, OnWord, Request, Word

__all__ = ["VllmEngine", "VllmSession"]

_WORKER = Path(__file__).with_name("vllm_worker.py")
_STARTS_IN = 900.0  # seconds that a worker may take to load a model


class _Host(Protocol):
    """Whoever answers a line; see `vllm_worker`."""

    context: int

    def handle(self, asked: dict[str, Any]) -> dict[str, Any]: ...


class VllmEngine:
    """Samples from the weights in a folder. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        folder: str | Path,
        *,
        python: str | None = None,
        address: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings` are vLLM's engine arguments. Raises `ConfigError` where vLLM cannot be reached."""
        asked = {**(settings or {}), "model": str(folder), "tokenizer": str(folder), "skip_tokenizer_init": True}
        self._host: _Host
        if address is not None:
            self._host = _Remote.connect(address)
        elif python is not None:
            self._host = _Remote.start(python, asked)
        elif importlib.util.find_spec("vllm") is not None:
            from metier.rollout.vllm_worker import Host

            self._host = Host(asked)
        else:
            raise ConfigError(
                "vLLM is not installed here; name the Python of an environment that has it (`engine.python`), "
                "or a worker that runs (`engine.address`)"
            )
        self.context = self._host.context
        self._turns = 0

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def session(self, on_word: OnWord | None = None) -> VllmSession:
        """See `Engine.session`."""
        return VllmSession(self, on_word)

    def load_weights(self, save: Callable[[Path], object]) -> None:
        """Exchange the weights for those that `save` writes into a folder, in the layout of `save_pretrained`."""
        shared = Path("/dev/shm")
        with tempfile.TemporaryDirectory(prefix="metier-", dir=shared if shared.is_dir() else None) as folder:
            where = Path(folder) / "weights"
            save(where)
            self.handle({"weights": str(where)})

    def handle(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Pass a line on. Raises `ModelError` with what vLLM says where it fails."""
        answer = self._host.handle(asked)
        if "error" in answer:
            raise ModelError(f"vLLM failed: {answer['error']}")
        return answer

    def number(self) -> int:
        """A number for a turn that no other one has."""
        self._turns += 1
        return self._turns

    def close(self) -> None:
        """End the worker, where it was started here."""
        if isinstance(self._host, _Remote):
            self._host.close()


@dataclass(slots=True)
class _Talk:
    """A conversation, and the turn that is drawn of it."""

    request: Request
    tokens: list[int]  # prompt and all that was said
    turn: int = 0  # the number of the turn that is drawn; 0: it waits
    turns: int = 0
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class VllmSession:
    """Conversations that vLLM holds. See `Session`."""

    def __init__(self, engine: VllmEngine, on_word: OnWord | None) -> None:
        self._engine, self._on_word = engine, on_word
        self._talks: dict[int, _Talk] = {}
        self._speaks: dict[int, int] = {}  # turn -> conversation
        self._new: list[dict[str, Any]] = []
        self._gone: list[int] = []

    def add(self, number: int, request: Request) -> None:
        """See `Session.add`. Raises `DataError` where there is no room for a word, `ConfigError` for truncation."""
        if len(request.prompt) >= self._engine.context:
            raise DataError(
                f"a prompt of {len(request.prompt)} tokens does not fit the model, which reads {self._engine.context}"
            )
        s = request.sampling
        if s.temperature > 0 and (s.top_p < 1.0 or s.top_k > 0):
            raise ConfigError(
                "the vllm engine takes no top_p and no top_k: vLLM tells log-probabilities after truncation only"
            )
        self._talks[number] = _Talk(request, list(request.prompt))
        self._speak(number)

    def reply(self, number: int, token_ids: tuple[int, ...]) -> None:
        """See `Session.reply`."""
        self._talks[number].tokens += token_ids
        self._speak(number)

    def end(self, number: int) -> None:
        """See `Session.end`."""
        talk = self._talks.pop(number, None)
        if talk is not None and talk.turn:
            del self._speaks[talk.turn]
            self._new = [asked for asked in self._new if asked["turn"] != talk.turn]
            self._gone.append(talk.turn)

    @property
    def speaking(self) -> bool:
        """See `Session.speaking`."""
        return bool(self._speaks)

    def step(self) -> list[tuple[int, Drawn]]:
        """See `Session.step`."""
        if not self._speaks and not self._gone:
            return []
        answer = self._engine.handle({"new": self._new, "gone": self._gone})
        self._new, self._gone = [], []
        for turn, token, logprob in answer["words"]:
            number = self._speaks.get(turn)
            if number is None:
                continue
            talk = self._talks[number]
            talk.drawn.append(token)
            talk.logprobs.append(logprob)
            if self._on_word is not None:
                self._on_word(number, Word(token, logprob))
        ended = []
        for turn, how in answer["ended"]:
            number = self._speaks.pop(turn, None)
            if number is None:
                continue
            talk = self._talks[number]
            talk.turn = 0
            talk.tokens += talk.drawn
            ended.append((number, Drawn(tuple(talk.drawn), tuple(talk.logprobs), how)))
            talk.drawn, talk.logprobs = [], []
        return ended

    def _speak(self, number: int) -> None:
        talk, s = self._talks[number], self._talks[number].request.sampling
        talk.turn, talk.turns = self._engine.number(), talk.turns + 1
        self._speaks[talk.turn] = number
        self._new.append(
            {
                "turn": talk.turn,
                "prompt": talk.tokens,
                "temperature": s.temperature,
                "top_p": 1.0,
                "top_k": 0,
                "seed": derive_seed(talk.request.seed, "turn", talk.turns) % 2**31,
                "max_tokens": min(s.max_turn_tokens, self._engine.context - len(talk.tokens)),
                "stop_ids": sorted(talk.request.stop_ids),
            }
        )


class _Remote:
    """A worker behind a pipe or a socket."""

    def __init__(
        self, lines: IO[str], out: IO[str], close: Callable[[], str], process: subprocess.Popen[str] | None = None
    ) -> None:
        """`close` ends it and tells what it last complained of."""
        self._lines, self._out, self._close, self._process = lines, out, close, process
        with selectors.DefaultSelector() as selector:
            selector.register(lines, selectors.EVENT_READ)
            if not selector.select(_STARTS_IN):
                close()
                raise ModelError(f"the vLLM worker has not loaded its model in {_STARTS_IN:g} s")
        self.context = int(self._read()["context"])

    @classmethod
    def start(cls, python: str, settings: Mapping[str, Any]) -> _Remote:
        """A worker in another environment of this machine."""
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it lives as long as the worker
        try:
            process = subprocess.Popen(
                [python, str(_WORKER), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        except OSError as error:
            errors.close()
            raise ConfigError(f"no vLLM worker starts with {python!r}: {error.strerror}") from error
        assert process.stdin is not None and process.stdout is not None

        def close() -> str:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]  # it ends when nothing more can come
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
            errors.seek(0)
            said = errors.read()
            errors.close()
            return said

        return cls(process.stdout, process.stdin, close, process)

    @classmethod
    def connect(cls, address: str) -> _Remote:
        """A worker that listens."""
        host, _, port = address.rpartition(":")
        try:
            connection = socket.create_connection((host, int(port)), timeout=10)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no vLLM worker answers at {address!r}: {error}") from error
        connection.settimeout(None)
        lines, out = connection.makefile("r"), connection.makefile("w")

        def close() -> str:
            for one in (out, lines, connection):
                with contextlib.suppress(OSError):
                    one.close()
            return ""

        return cls(lines, out, close)

    def handle(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Pass a line on and wait for the answer."""
        try:
            print(json.dumps(asked), file=self._out, flush=True)
        except OSError:
            raise self._died() from None
        return self._read()

    def close(self) -> None:
        """End it."""
        if not self._lines.closed:
            self._close()

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> ModelError:
        said = [line for line in self._close().strip().splitlines() if line.strip()]
        why = f"; it last said: {said[-1]}" if said else ""
        return ModelError(f"the vLLM worker is gone{why}")
