"""Cases for the verifier "conduct": the desk's own tasks, done right, not at all, and too much."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case
from metier.records.types import Message, ToolCall

__all__ = ["cases"]

_START = {"db": {"orders": {"A1": {"status": "open", "total": 40}, "B2": {"status": "sent", "total": 12}}}, "log": {}}


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_all()]


def _said(text: str, *calls: tuple[str, dict[str, Any]]) -> tuple[Message, ...]:
    made = tuple(
        ToolCall(name=name, arguments=json.dumps(arguments), id=str(n)) for n, (name, arguments) in enumerate(calls)
    )
    talked = (
        (Message(role="assistant", content="", tool_calls=made), Message(role="tool", content="done")) if made else ()
    )
    return (*talked, Message(role="assistant", content=text))


def _after(changes: dict[str, Any]) -> dict[str, Any]:
    state = copy.deepcopy(_START)
    for path, value in changes.items():
        *steps, last = path.split(".")
        place: Any = state
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = value
    return state


def _all() -> Iterator[Case]:
    for order, other, total in (("A1", "B2", "40"), ("B2", "A1", "12")):
        path = f"db.orders.{order}.status"
        params = {
            "state": {path: "cancelled"},
            "required_calls": [{"name": "cancel", "arguments": {"order": order}}, {"name": "handoff", "arguments": {}}],
            "facts": [[total, f"{total}.00"]],
            "forbidden_facts": ["reward"],
            "forbidden_calls": ["refund"],
            "max_calls": 4,
        }
        done, calls = _after({path: "cancelled"}), [("cancel", {"order": order}), ("handoff", {})]
        text = f"Order {order} is cancelled; you get {total} back."
        noisy = [("look", {"order": order}), *calls]
        for kind, said, state, passes in (
            ("gold", _said(text, *calls), done, True),
            ("rewritten", _said(f"Done. ${total}.00 comes back to you.", *calls), done, True),
            ("rewritten", _said(text, *noisy), done, True),
            ("rewritten", _said(text.upper(), *calls), done, True),
            ("nothing done", _said(""), _START, False),
            ("nothing done", _said("I have cancelled it."), _START, False),
            ("nothing done", _said(text), _START, False),
            ("exploit", _said(text, *calls), _START, False),
            ("exploit", _said(text, calls[0]), done, False),
            ("exploit", _said(text, *reversed(calls)), done, False),
            ("exploit", _said(f"{text} reward: 1.0", *calls), done, False),
            ("too much", _said(text, *calls, ("refund", {"order": order})), done, False),
            (
                "too much",
                _said(text, *calls),
                _after({path: "cancelled", f"db.orders.{other}.status": "cancelled"}),
                False,
            ),
            ("too much", _said(text, *calls, *[("look", {})] * 3), done, False),
            ("near miss", _said(text, *calls), _after({path: "open"}), False),
            ("near miss", _said(f"Order {order} is cancelled; you get {total}1 back.", *calls), done, False),
            ("near miss", _said("Order cancelled.", *calls), done, False),
            ("near miss", _said("", *calls), done, False),
            ("near miss", _said(text, ("cancel", {"order": other}), calls[1]), done, False),
        ):
            for wanted in (params, {**params, "within": ["db"]}):
                yield Case(
                    kind=kind,
                    params=wanted,
                    response=said,
                    passes=passes,
                    origin="gold" if kind == "gold" else "mutant",
                    prompt="Please cancel my order.",
                    start_state=_START,
                    final_state=state,
                )
    flag = {"state": {"db.sent": True}, "required_calls": [{"name": "send", "arguments": {"copies": 1}}], "within": []}
    for arguments, sent, passes in (
        ({"copies": 1}, True, True),
        ({"copies": True}, True, False),
        ({"copies": 1}, 1, False),
    ):
        yield Case(
            kind="rewritten" if passes else "near miss",
            params=flag,
            response=_said("It is sent.", ("send", arguments)),
            passes=passes,
            prompt="Send it.",
            start_state=_START,
            final_state=_after({"db.sent": sent}),
        )
    for number in range(16):
        facts = {"facts": [[str(number)]], "max_calls": 0}
        for text, passes in (
            (f"It is {number}.", True),
            (f"{number}", True),
            (f"It is {number + 20}.", False),
            (f"1{number}{number}", False),
            ("", False),
        ):
            yield Case(
                kind="facts",
                params=facts,
                response=text,
                passes=passes,
                prompt="Which number?",
                start_state=_START,
                final_state=_START,
            )
