"""Tools behind an HTTP endpoint.

The arguments go into the `{places}` of the URL, the rest of them into the query (`GET`,
`DELETE`) or, as JSON, into the body. What comes back is what the policy reads.

An answer of 4xx says that the call was wrong, which is the policy's fault; failing to sign in
(401, 403, 407), 5xx, a time-out or no answer at all is the environment's. A call is made again
where it cannot have had an effect (no connection, 429, 503), and `GET` after any failure.

Left out: signing in that takes more than a header, and files.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx2

from metier.base.clock import monotonic
from metier.base.config import fill_from_environment
from metier.base.errors import ConfigError
from metier.records.types import Tool
from metier.rollout.tools import BadCallError, RunnableTool, writable
from metier.tasks.protocol import EnvironmentFailure

__all__ = ["HttpTool", "Method"]

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

_PLACE = re.compile(r"\{(\w+)\}")
_MOST_BYTES = 1 << 20  # of an answer; what follows is not read
_OURS = (401, 403, 407)  # the key is wrong, not the call
_AGAIN = (429, 503)  # the server says that it did nothing
_WAIT = 0.5  # seconds before the first repetition, twice that before the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTool:
    """A tool that is a request. `$NAME` in a header's value is taken from the process's environment."""

    record: Tool
    url: str
    method: Method = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 30.0  # for everything, repetitions included
    retries: int = 2

    def runnable(self) -> RunnableTool:
        """What `register_tool` takes. Raises `ConfigError` for a place in the URL that no required argument fills."""
        required = self.record.parameters.get("required") or ()
        for place in _PLACE.findall(self.url):
            if place not in required:
                raise ConfigError(f"tool {self.record.name!r}: {{{place}}} of its url is no required argument")
        headers = fill_from_environment(self.headers, f"tool {self.record.name!r}")
        return RunnableTool(self.record, lambda arguments: self._call(arguments, headers))

    def _call(self, arguments: Mapping[str, Any], headers: Mapping[str, str]) -> str:
        writable(arguments)
        places = set(_PLACE.findall(self.url))
        for place in places:
            if _spell(arguments[place]) in ("", ".", ".."):  # which would lead to another place
                raise BadCallError(f"{place} cannot be {arguments[place]!r}")
        url = httpx2.URL(_PLACE.sub(lambda found: quote(_spell(arguments[found[1]]), safe=""), self.url))
        rest = {key: value for key, value in arguments.items() if key not in places}
        in_query = self.method in ("GET", "DELETE")
        if in_query and rest:
            url = url.copy_merge_params({key: _spell(value) for key, value in rest.items()})
        until, wait = monotonic() + self.seconds, _WAIT
        for left in reversed(range(self.retries + 1)):
            try:
                with httpx2.stream(
                    self.method,
                    url,
                    json=None if in_query else rest,
                    headers=dict(headers),
                    timeout=max(0.1, until - monotonic()),
                ) as answer:
                    text = _read(answer, until)
                    status = answer.status_code
            except httpx2.HTTPError as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
                again = self.method == "GET" or isinstance(error, httpx2.ConnectError)
            else:
                if 200 <= status < 300:
                    return text
                if 400 <= status < 500 and status not in (*_OURS, *_AGAIN):
                    raise BadCallError(f"{status}: {text[:500]}".strip(": "))
                why, again = f"it answered {status}: {text[:200]}", status in _AGAIN or self.method == "GET"
            if not again or not left or monotonic() + wait >= until:
                break
            time.sleep(wait)
            wait *= 2
        raise EnvironmentFailure(f"tool {self.record.name!r} failed: {why}")


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(answer: httpx2.Response, until: float) -> str:
    """The body as text, cut where it is too long or too late."""
    parts, size = [], 0
    for part in answer.iter_bytes():
        parts.append(part)
        size += len(part)
        if size >= _MOST_BYTES:
            break
        if monotonic() > until:
            raise httpx2.ReadTimeout("the answer did not end")
    return b"".join(parts)[:_MOST_BYTES].decode(answer.encoding or "utf-8", "replace")
