"""An OpenAI-compatible endpoint on the embedded engine: chat completions, tools, streaming, log-probabilities.

What is answered is what the checkpoint's own renderer makes of the messages, so a client
or an evaluation harness sees the model exactly as training and evaluation here do.
`temperature` and `top_p` mean what they mean there; where they are left out they are 1.

Left out: text completions, images, audio, JSON schemas of answers, batches, embeddings. What
is not supported is refused by name, not passed over.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import hmac
import json
import random
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from metier.base.clock import now
from metier.base.errors import MetierError
from metier.models.renderer import Renderer
from metier.records.traces.calls import chat_message
from metier.records.types import Message, Sampling, Tool
from metier.rollout.engine import Request, Word
from metier.rollout.speaker import BusyError, Ending, OnEvent, Speaker, Ticket

__all__ = ["Served", "make_app"]

_MOST_OTHERS = 20  # as in OpenAI's API


@dataclass(frozen=True, slots=True)
class Served:
    """What an endpoint speaks with."""

    name: str  # the model's, as clients ask for it
    renderer: Renderer
    decode: Callable[[Sequence[int]], str]  # tokens to text, special ones included
    speaker: Speaker
    context: int  # tokens that a conversation may have
    api_key: str | None = None
    created: int = field(default_factory=lambda: int(now()))


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool | None = None


class _Chat(BaseModel):
    """The body of a request; what the API knows beside these is refused where it would change the answer."""

    model_config = ConfigDict(extra="allow")

    model: str = ""
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)  # not of OpenAI's API; -1 and 0 are off
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=_MOST_OTHERS)
    parallel_tool_calls: bool | None = None


# What would change the answer and is not supported, with the values that change nothing.
_CHANGING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "prompt_logprobs": (0,),
}


class _Refused(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def make_app(served: Served) -> FastAPI:
    """The application, to be run by an ASGI server."""
    app = FastAPI(title="Metier", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(_Refused)
    async def refused(_: HttpRequest, error: _Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _Refused(400, f"{where or 'the body'}: {first['msg']}", "invalid_request_error").response()

    @app.exception_handler(HTTPException)
    async def missing(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return _Refused(error.status_code, str(error.detail), "invalid_request_error").response()

    @app.exception_handler(Exception)
    async def broken(_: HttpRequest, error: Exception) -> JSONResponse:
        return _Refused(500, f"{type(error).__name__}: {error}", "server_error").response()

    async def key(request: HttpRequest) -> None:
        given = request.headers.get("authorization", "")
        if served.api_key is not None and not hmac.compare_digest(given.encode(), f"Bearer {served.api_key}".encode()):
            raise _Refused(401, "the API key is missing or wrong", "authentication_error", "invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": served.name, "under_way": served.speaker.load}

    @app.get("/v1/models", dependencies=[Depends(key)])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served)]}

    @app.get("/v1/models/{name:path}", dependencies=[Depends(key)])
    async def model(name: str) -> dict[str, Any]:
        _check_model(served, name)
        return _model(served)

    @app.post("/v1/chat/completions", dependencies=[Depends(key)])
    async def chat(body: _Chat, request: HttpRequest) -> Any:
        asked = _read(served, body)
        answers = [_Answer(served, asked, index) for index in range(body.n or 1)]
        try:
            for answer, ticket in zip(answers, served.speaker.submit([a.request() for a in answers]), strict=True):
                answer.ticket = ticket
        except BusyError as error:
            raise _Refused(429, str(error), "rate_limit_error", "busy") from error
        if body.stream:
            return _Events(_stream(served, asked, answers), answers)
        try:
            await _all(answers, request)
        finally:
            for answer in answers:
                answer.cancel()
        return _whole(served, asked, answers)

    return app


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "metier"}


def _check_model(served: Served, name: str) -> None:
    if name and name != served.name:
        raise _Refused(
            404, f"this server has the model {served.name!r}, not {name!r}", "invalid_request_error", "model_not_found"
        )


# --- what was asked -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, read and rendered."""

    id: str
    created: int
    prompt: tuple[int, ...]
    begun: str  # what the answer must begin with; the prompt ends in it
    prefix: int
    sampling: Sampling
    stops: tuple[str, ...]
    seed: int
    tools: bool
    one_call: bool  # of several, the first only
    logprobs: bool
    others: int
    usage: bool  # at the end of a stream


def _read(served: Served, body: _Chat) -> _Asked:
    _check_model(served, body.model)
    extra = body.model_extra or {}
    for name, neutral in _CHANGING.items():
        if extra.get(name) is not None and extra[name] not in neutral:
            raise _Refused(400, f"{name} is not supported here", "invalid_request_error", "unsupported")
    if (body.n or 1) > served.speaker.most:
        raise _Refused(400, f"n is {body.n}; this server takes {served.speaker.most} at once", "invalid_request_error")
    if extra.get("response_format") not in (None, {"type": "text"}):
        raise _Refused(
            400, "response_format other than text is not supported here", "invalid_request_error", "unsupported"
        )
    try:
        messages = [chat_message(raw) for raw in body.messages]
        tools = [Tool.from_openai(raw) for raw in body.tools or ()] if body.tool_choice != "none" else []
        rendered = served.renderer.render(messages, tools, prompt=True)
    except (MetierError, TypeError, AttributeError, ValueError) as error:
        raise _Refused(400, str(error), "invalid_request_error") from error
    begun = _begun(served, body.tool_choice, tools)
    prompt = (*rendered.token_ids, *served.renderer.spell(begun))
    room = served.context - len(prompt)
    if room < 1:
        raise _Refused(
            400,
            f"the conversation has {len(prompt)} tokens; the model reads {served.context} with its answer",
            "invalid_request_error",
            "context_length_exceeded",
        )
    most = min(body.max_completion_tokens or body.max_tokens or room, room)
    return _Asked(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(now()),
        prompt=prompt,
        begun=begun,
        prefix=rendered.prefix,
        sampling=Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            max_turn_tokens=most,
            max_tokens=most,
        ),
        stops=tuple([body.stop] if isinstance(body.stop, str) else body.stop or ()),
        seed=random.SystemRandom().getrandbits(32) if body.seed is None else body.seed,
        tools=bool(tools),
        one_call=body.parallel_tool_calls is False,
        logprobs=bool(body.logprobs),
        others=body.top_logprobs or 0 if body.logprobs else 0,
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _begun(served: Served, choice: Any, tools: Sequence[Tool]) -> str:
    """What an answer begins with so that it calls a tool; nothing where the model may choose."""
    if choice in (None, "auto", "none"):
        return ""
    name = None
    if choice != "required":
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in {tool.name for tool in tools}:
            raise _Refused(
                400, "tool_choice is none, auto, required or a function among the tools", "invalid_request_error"
            )
    if not tools:
        raise _Refused(400, "tool_choice is required and there are no tools", "invalid_request_error")
    return served.renderer.calls.opening(name)


# --- answers --------------------------------------------------------------------------------


class _Answer:
    """One choice of a completion as it grows. Words come from the speaker's thread."""

    def __init__(self, served: Served, asked: _Asked, index: int) -> None:
        self.index = index
        self.words: list[Word] = []
        self.ending: Ending | None = None
        self.text = asked.begun  # what may be shown: without the end token, and up to a stop string
        self.ticket: Ticket | None = None
        self._cut = False  # by a stop string
        self._tokens: list[int] = []  # of the text
        self._from, self._read = 0, 0  # tokens that are spelled: those before `_read`, looked at again from `_from`
        self._served, self._asked = served, asked
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Word | Ending] = asyncio.Queue()

    def request(self) -> tuple[Request, OnEvent]:
        """What the speaker is asked."""
        a = self._asked
        request = Request(a.prompt, a.prefix, a.seed + self.index, a.sampling, self._served.renderer.stop_ids, a.others)

        def on_event(event: Word | Ending) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

        return request, on_event

    def cancel(self) -> None:
        """Free the slot, if it is still held."""
        if self.ticket is not None and self.ending is None:
            self._served.speaker.cancel(self.ticket)

    @property
    def error(self) -> str:
        """What went wrong, where the ending is `failed`."""
        return "" if self.ticket is None else self.ticket.error

    async def grow(self) -> bool:
        """Take in the next word; False once the answer is complete."""
        if self.ending is not None:
            return False
        event = await self._events.get()
        if not isinstance(event, Word):
            self.ending = event
            self._spell(last=True)
            return False
        self.words.append(event)
        if event.token in self._served.renderer.stop_ids:
            return True
        self._tokens.append(event.token)
        searched = max(0, len(self.text) - max(map(len, self._asked.stops), default=0))
        self._spell()
        found = [at for stop in self._asked.stops if stop and (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self._cut = self.text[: min(found)], True
            self.cancel()
            self.ending = "stop"
            return False
        return True

    def _spell(self, *, last: bool = False) -> None:
        """Add what the newest tokens say. A character may need several tokens: until it is whole, it is held back."""
        settled = self._served.decode(self._tokens[self._from : self._read])
        spelled = self._served.decode(self._tokens[self._from :])
        if len(spelled) > len(settled) and (last or not spelled.endswith("\ufffd")):
            self.text += spelled[len(settled) :]
            self._from, self._read = self._read, len(self._tokens)

    def shown(self, *, last: bool) -> str:
        """As much of the text as nothing that comes can change."""
        if last:
            return self.message().content
        text = self.text.lstrip()
        marks = self._served.renderer.calls.marks if self._asked.tools else ()
        begun = [at for mark in marks if (at := text.find(mark)) >= 0]
        if begun:
            return text[: min(begun)].rstrip()
        held = [*self._asked.stops, *marks]
        most = max((_overlap(text, one) for one in held), default=0)
        return text[: len(text) - most].rstrip()

    def message(self) -> Message:
        """The answer as a message; a call that was cut off is none."""
        if not self._asked.tools:
            return Message(role="assistant", content=self.text.strip())
        spoken = self._served.renderer.calls
        said = spoken.parse(self.text)
        calls = said.tool_calls
        if (self._cut or self.ending == "length") and calls and spoken.broken(calls[-1]):
            calls = calls[:-1]
        return replace(said, tool_calls=calls[:1] if self._asked.one_call else calls)

    def finish_reason(self) -> str:
        """As the API spells it."""
        if self.ending == "length":
            return "length"
        return "tool_calls" if self._asked.tools and self.message().tool_calls else "stop"

    def told(self, start: int = 0) -> dict[str, Any] | None:
        """Log-probabilities of the words from `start` on."""
        if not self._asked.logprobs:
            return None
        return {"content": [self._one(word) for word in self.words[start:]], "refusal": None}

    def _one(self, word: Word) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._served.decode([token])
            whole = "\ufffd" not in text  # else it is a part of a character, whose bytes are not known here
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if whole else None}

        return {**entry(word.token, word.logprob), "top_logprobs": [entry(*other) for other in word.others]}


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` may be the beginning of `word`."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)


async def _all(answers: Sequence[_Answer], request: HttpRequest) -> None:
    """Until every answer is complete, or the client has gone."""

    async def finish(answer: _Answer) -> None:
        while await answer.grow():
            pass

    work = asyncio.ensure_future(asyncio.gather(*(finish(answer) for answer in answers)))
    while not work.done():
        await asyncio.wait([work], timeout=0.5)
        if not work.done() and await request.is_disconnected():
            work.cancel()
            raise _Refused(499, "the client has gone", "cancelled")
    await work


def _failed(answers: Sequence[_Answer]) -> _Refused | None:
    broken = next((a for a in answers if a.ending == "failed"), None)
    return None if broken is None else _Refused(500, broken.error, "server_error")


def _usage(asked: _Asked, answers: Sequence[_Answer]) -> dict[str, int]:
    written = sum(len(a.words) for a in answers)
    return {
        "prompt_tokens": len(asked.prompt),
        "completion_tokens": written,
        "total_tokens": len(asked.prompt) + written,
    }


def _whole(served: Served, asked: _Asked, answers: Sequence[_Answer]) -> dict[str, Any]:
    if (failed := _failed(answers)) is not None:
        raise failed
    choices = []
    for answer in answers:
        message = answer.message()
        said: dict[str, Any] = {"role": "assistant", "content": message.content or None, "refusal": None}
        if message.tool_calls:
            said["tool_calls"] = _calls(asked, answer)
        elif said["content"] is None:
            said["content"] = ""
        choices.append(
            {
                "index": answer.index,
                "message": said,
                "logprobs": answer.told(),
                "finish_reason": answer.finish_reason(),
            }
        )
    return {**_head(served, asked, "chat.completion"), "choices": choices, "usage": _usage(asked, answers)}


def _calls(asked: _Asked, answer: _Answer) -> list[dict[str, Any]]:
    """Tool calls with ids that no other answer has."""
    calls = answer.message().to_openai().get("tool_calls", [])
    return [{**call, "id": f"call_{asked.id[-12:]}_{answer.index}_{n}"} for n, call in enumerate(calls)]


def _head(served: Served, asked: _Asked, kind: str) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": served.name, "system_fingerprint": None}


class _Events(StreamingResponse):
    """Server-sent events; however they end, also before they begin, slots are freed."""

    def __init__(self, events: AsyncIterator[str], answers: Sequence[_Answer]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for answer in self._answers:
                answer.cancel()


async def _stream(served: Served, asked: _Asked, answers: Sequence[_Answer]) -> AsyncIterator[str]:
    """Server-sent events: what is new of each answer, whichever grows."""

    def event(index: int, delta: Mapping[str, Any], told: Any = None, reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return _sse({**_head(served, asked, "chat.completion.chunk"), "choices": [choice]})

    for answer in answers:
        yield event(answer.index, {"role": "assistant", "content": ""})
    growing = {asyncio.ensure_future(answer.grow()): answer for answer in answers}
    sent = dict.fromkeys(range(len(answers)), 0)
    told = dict.fromkeys(range(len(answers)), 0)
    while growing:
        done, _ = await asyncio.wait(growing, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            answer = growing.pop(future)
            more = future.result()
            if (failed := _failed([answer])) is not None:
                yield _sse(failed.body)
                return
            text = answer.shown(last=not more)
            n = answer.index
            if len(text) > sent[n] or (asked.logprobs and len(answer.words) > told[n]):
                yield event(n, {"content": text[sent[n] :]}, answer.told(told[n]))
                sent[n], told[n] = max(sent[n], len(text)), len(answer.words)
            if more:
                growing[asyncio.ensure_future(answer.grow())] = answer
                continue
            if asked.tools and (calls := _calls(asked, answer)):
                yield event(n, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
            yield event(n, {}, None, answer.finish_reason())
    if asked.usage:
        usage = {"choices": [], "usage": _usage(asked, answers)}
        yield _sse({**_head(served, asked, "chat.completion.chunk"), **usage})
    yield "data: [DONE]\n\n"


def _sse(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
