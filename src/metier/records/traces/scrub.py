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
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from metier.records.traces.calls import loaded
from metier.records.types import Message

__all__ = ["Scrubber"]


def _card(text: str) -> int:
    """How much of the text is the number of a payment card, by its check digit; an expiry date may follow it."""
    places = [n for n, c in enumerate(text) if c.isdigit()]
    for count in range(min(19, len(places)), 13, -1):
        digits = [int(text[n]) for n in places[:count]]
        doubled = [d if n % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for n, d in enumerate(reversed(digits))]
        end = places[count - 1] + 1
        if sum(doubled) % 10 == 0 and not text[end : end + 1].isdigit():
            return end
    return 0


def _iban(text: str) -> int:
    """How much of the text is an IBAN, by its check digits; other words may follow it."""
    for end in sorted({len(text), *(m.start() for m in re.finditer(r"\s", text))}, reverse=True):
        compact = re.sub(r"\s", "", text[:end]).upper()
        turned = compact[4:] + compact[:4]
        if 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1:
            return end
    return 0


def _address(text: str) -> int:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return 0
    parts = [part for part in text.split(":") if part]
    return len(text) if found.version == 4 or len(parts) > 2 else 0  # a::b is more often a word of a program


def _phone(text: str) -> int:
    return len(text) if 8 <= sum(c.isdigit() for c in text) <= 15 else 0


def _with_digit(text: str) -> int:
    return len(text) if any(c.isdigit() for c in text) else 0


_IPV4, _IPV6 = r"\d{1,3}(?:\.\d{1,3}){3}", r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}"
_KEYS = r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,256}|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[\w-]{30,64}|\bhf_[A-Za-z0-9]{20,64}"
_TOKENS = r"\bgh[pousr]_[A-Za-z0-9]{30,255}|\bgithub_pat_\w{20,255}|\bxox[abprs]-[A-Za-z0-9-]{10,255}"
_NATIONAL = r"0\d{1,5}[ /-]?\d{2,5}(?:[ /-]?\d{2,5}){1,3}"
_AREA = r"\(0\d{1,5}\) ?\d{2,5}(?:[ -]?\d{2,5}){1,3}"
_FORMS: tuple[tuple[str, re.Pattern[str], Callable[[str], int]], ...] = (
    ("SECRET", re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]{1,8192}(?:-----END [A-Z ]{0,20}-----)?"), len),
    ("SECRET", re.compile(r"\beyJ[\w-]{8,512}\.[\w-]{8,4096}\.[\w-]{8,1024}"), len),  # JSON web tokens
    ("SECRET", re.compile(_KEYS), _with_digit),
    ("SECRET", re.compile(_TOKENS), len),
    ("SECRET", re.compile(r"(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/-]{20,4096}=*"), len),
    ("SECRET", re.compile(r"(?<=://)[^\s/@:]{0,64}:[^\s@]{1,128}(?=@)"), len),
    ("EMAIL", re.compile(r"\b[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b"), len),
    ("IBAN", re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,4})?\b"), _iban),
    ("CARD", re.compile(r"(?<![\w.])[2-6]\d{3}(?:[ -]?\d){10,15}(?![\w])"), _card),
    ("SSN", re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"), len),
    ("IP", re.compile(rf"(?<![\w.:])(?:{_IPV4}(?![\w]|\.\d)|{_IPV6}(?![\w:]))"), _address),
    # with a country's code, with the 0 of a national number, or in the groups of a North American one:
    # a bare run of digits is more often a number of something
    ("PHONE", re.compile(r"(?<![\w+])\+\d(?:[ ()./-]{0,2}\d){7,14}\b"), _phone),
    ("PHONE", re.compile(rf"(?<![\w.,+/-])(?:{_NATIONAL}|{_AREA})(?![\w.,/-]\d|\w)"), _phone),
    ("PHONE", re.compile(r"(?<![\w.+-])(?:\(\d{3}\) ?|\d{3}([ .-]))\d{3}(?(1)\1|-)\d{4}(?![\w-]|\.\d)"), _phone),
)  # fmt: skip
_SPACED = ("PHONE", "CARD", "IBAN", "SSN")


class Scrubber:
    """Replaces personal data in what belongs to one conversation."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def text(self, text: str) -> str:
        """The text with marks in place of what was found."""
        for kind, form, extent in _FORMS:
            text = form.sub(functools.partial(self._replacement, kind, extent), text)
        return text

    def json_text(self, text: str) -> str:
        """The same within a text that is JSON, which stays JSON; as any text where it is none."""
        found = loaded(text)
        if isinstance(found, str):
            return self.text(text)
        clean = self.value(found)
        return text if clean == found else json.dumps(clean, ensure_ascii=False)

    def value(self, value: Any) -> Any:
        """Every text within a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.value(one) for one in value]
        return value

    def message(self, message: Message) -> Message:
        """A message, its tool calls' arguments included."""
        calls = tuple(replace(call, arguments=self.json_text(call.arguments)) for call in message.tool_calls)
        content = self.json_text(message.content) if message.role == "tool" else self.text(message.content)
        return replace(message, content=content, tool_calls=calls)

    def _replacement(self, kind: str, extent: Callable[[str], int], found: re.Match[str]) -> str:
        end = extent(found[0])
        return self._mark(kind, found[0][:end]) + found[0][end:] if end else found[0]

    def _mark(self, kind: str, found: str) -> str:
        same = (
            re.sub(r"[\s()./-]", "", found).lower() if kind in _SPACED else found.lower() if kind == "EMAIL" else found
        )
        if (kind, same) not in self._marks:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._marks[(kind, same)] = f"[{kind}_{self._counts[kind]}]"
        return self._marks[(kind, same)]
