"""Simulated users for tasks from a file: a script of replies, or a model with instructions.

A task's `user` is a list of what the user says, one reply after each text of the assistant,
or a text that tells a model who the user is and what they want. The model that plays them
stands behind an endpoint, which a recipe names as `user`. It is shown the conversation from
the user's side, without tool calls and their results, which a user does not see, and ends
it with `DONE`. When it cannot be reached, the environment has failed and not the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metier.records.types import Message, Sampling, ToolCall
from metier.rollout.endpoint import Endpoint, EndpointError
from metier.tasks.protocol import Environment, EnvironmentFailure

__all__ = ["WithUser", "played_by"]

DONE = "DONE"
_PART = """You play a person who is talking to an assistant. {instructions}

Write only what this person says next, in their own words. Do not play the assistant. Tell what you
know when you are asked for it. When you have what you want, or see that you will not get it, write {done}."""
_SPEAKS = Sampling(temperature=0.7, max_turn_tokens=200)

_player: Endpoint | None = None


def played_by(endpoint: Endpoint | None) -> None:
    """From now on users with instructions are played by this model."""
    global _player
    _player = endpoint


class WithUser:
    """An environment's tools, and a user who answers."""

    def __init__(self, inner: Environment, user: str | Sequence[str], opening: Sequence[Message]) -> None:
        """`user` is instructions or a script; `opening` is how the conversation begins."""
        self._inner, self._user = inner, user
        self._heard = [m for m in opening if m.role in ("user", "assistant")]
        self._replies = 0
        self.usd = 0.0  # what playing it cost

    def call(self, call: ToolCall) -> str:
        """See `Environment.call`."""
        return self._inner.call(call)

    def reply(self, text: str) -> str | None:
        """See `Environment.reply`."""
        self._heard.append(Message(role="assistant", content=text))
        said = self._next()
        if said is not None:
            self._replies += 1
            self._heard.append(Message(role="user", content=said))
        return said

    def state(self) -> Mapping[str, Any]:
        """See `Environment.state`."""
        return {**self._inner.state(), "user_replies": self._replies}

    def close(self) -> None:
        """See `Environment.close`."""
        self._inner.close()

    def _next(self) -> str | None:
        if not isinstance(self._user, str):
            return self._user[self._replies] if self._replies < len(self._user) else None
        if _player is None:
            raise EnvironmentFailure("the task's user is played by a model, and no `user` is set in the recipe")
        turned = {"user": "assistant", "assistant": "user"}
        part = Message(role="system", content=_PART.format(instructions=self._user.strip(), done=DONE))
        # Many endpoints want a user to speak first; here that is the assistant's silence before the first word.
        heard = [Message(role=turned[m.role], content=m.content) for m in self._heard]  # type: ignore[arg-type]
        opened = [Message(role="user", content="…")] if heard[0].role == "assistant" else []
        try:
            reply = _player.chat([part, *opened, *heard], sampling=_SPEAKS)
        except EndpointError as error:
            raise EnvironmentFailure(f"the simulated user failed: {error}") from error
        self.usd += reply.usd
        said = reply.message.content.strip()
        if not said:
            raise EnvironmentFailure("the simulated user failed: the model that plays it said nothing")
        return None if DONE in said else said
