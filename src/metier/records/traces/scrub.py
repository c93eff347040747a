"""Personal data out of texts: what has a form of its own is replaced, the same thing always by the same mark.

Found are e-mail addresses, telephone numbers, payment cards and IBANs (by their check
digits), US social security numbers, IP addresses, and secrets (keys, tokens, passwords in
URLs). Marks such as `[EMAIL_1]` are numbered within a conversation, so that a tool's
argument still names who the user named. **Not** found are names, addresses, dates of birth
and whatever else only a reader recognises.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from metier.records.types import Message

__all__ = ["Scrubber"]


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if n % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for n, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    compact = re.sub(r"\s", "", text).upper()
    turned = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15


def _always(text: str) -> bool:
    return True


_IPV4, _IPV6 = r"\d{1,3}(?:\.\d{1,3}){3}", r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}"
_FORMS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("SECRET", re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"), _always),  # JSON web tokens
    ("SECRET", re.compile(r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b"), _always),
    ("SECRET", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"), _always),
    ("SECRET", re.compile(r"(?i:(?<=bearer ))[A-Za-z0-9._~+/-]{20,}=*"), _always),
    ("SECRET", re.compile(r"(?<=://)[^\s/@:]{1,64}:[^\s/@]{1,128}(?=@)"), _always),
    ("EMAIL", re.compile(r"\b[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), _always),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _iban),
    ("CARD", re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), _luhn),
    ("SSN", re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"), _always),
    ("IP", re.compile(rf"(?<![\w.:])(?:{_IPV4}|{_IPV6})(?![\w.:])"), _address),
    # with a + in front, or in groups: a bare run of digits is more often a number of something
    ("PHONE", re.compile(r"(?<![\w+])\+\d(?:[ ()./-]{0,2}\d){7,14}\b"), _phone),
    ("PHONE", re.compile(r"(?<![\w+-])\(?\d{2,5}\)?[ ./-]{1,2}\d{2,4}(?:[ ./-]\d{2,4}){1,3}\b(?!-)"), _phone),
)


class Scrubber:
    """Replaces personal data in what belongs to one conversation."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def text(self, text: str) -> str:
        """The text with marks in place of what was found."""
        for kind, form, is_one in _FORMS:
            text = form.sub(functools.partial(self._replacement, kind, is_one), text)
        return text

    def value(self, value: Any) -> Any:
        """Every text within a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.value(one) for one in value]
        return value

    def message(self, message: Message) -> Message:
        """A message, its tool calls' arguments included."""
        calls = tuple(replace(call, arguments=self.text(call.arguments)) for call in message.tool_calls)
        return replace(message, content=self.text(message.content), tool_calls=calls)

    def _replacement(self, kind: str, is_one: Callable[[str], bool], found: re.Match[str]) -> str:
        return self._mark(kind, found[0]) if is_one(found[0]) else found[0]

    def _mark(self, kind: str, found: str) -> str:
        key = (kind, re.sub(r"[\s()./-]", "", found).lower() if kind != "SECRET" else found)
        if key not in self._marks:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._marks[key] = f"[{kind}_{self._counts[kind]}]"
        return self._marks[key]
