"""A judge: a rubric, a voice that answers under it, and how its answers become verdicts.

    score       a level of the rubric, as (level - 1) / (levels - 1)
    compare     both orders are asked: u = (v_AB + 1 - v_BA) / 2, where v is how far the response shown first is
                preferred, 1, 0 or .5. The value is 0 or 1, the better one's index, where both orders say so; where
                they disagree, or say tie, it is .5. A flip (each order prefers what it showed first, or last) is
                noted in the evidence
    `expected`  instead of words, the probabilities of the verdicts' tokens are read: v is the expected value. Small
                models know more than they can write. The value of a comparison is then the side on which u lies

What cannot be judged is unscored with the reason and the part that failed (`boundary`), never 0: an answer without
a verdict, an endpoint that is down, a response beyond `max_characters`, a budget that is spent.

A judge's `version` is the hash of its whole identity: weights, templates, rubric, sampling. Feedback carries it, the
store keeps answers and audits under it. The answers themselves are kept, so that another reading costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from metier.base.clock import now
from metier.base.errors import ConfigError
from metier.base.ids import content_hash, derive_id
from metier.base.seeds import derive_seed
from metier.feedback.judges.budget import Budget, OverBudget
from metier.feedback.judges.prompts import (
    compare_prompt,
    draw_nonce,
    read_verdict,
    score_prompt,
    shown,
    template_hash,
    verdict_mark,
)
from metier.feedback.judges.rubric import Rubric
from metier.feedback.judges.store import Store
from metier.feedback.judges.voice import Answer, Boundary, Unanswered, Voice
from metier.records.types import Cost, Feedback, Message, Sampling, Source

__all__ = ["Item", "Judge", "Judgement", "Manner", "PromptedJudge", "failed", "feedback_of", "texts_of", "together"]

Mode = Literal["score", "compare"]
_SIDES = ("A", "B")
_LEAST_MASS = 1e-3  # of probability on the verdicts' tokens, for their expected value to mean something
_KEPT = 2000  # characters of an answer that go into the evidence, its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is judged: a request, and one response to score or two to compare."""

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge says of an item."""

    kind: Literal["score", "preference"]
    value: float | None  # a score from 0 to 1; or the better one's index, .5 for a tie
    reason: str = ""
    boundary: Boundary | None = None  # what failed, where it is unscored
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)  # of what was asked now; nothing where the store knew it

    @property
    def status(self) -> Literal["scored", "unscored"]:
        """Whether there is a value."""
        return "unscored" if self.value is None else "scored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a judge is asked."""

    expected: bool = False  # read the probabilities of the verdicts' tokens, where the voice tells them
    temperature: float = 0.0
    max_tokens: int = 400  # of an answer, its reasons included
    seed: int = 0
    max_characters: int = 40_000  # of a request or a response; longer ones are unscored

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_tokens < 1 or self.max_characters < 1:
            raise ConfigError("a judge needs a temperature of 0 or more, and room for a token and a character")


class Judge(Protocol):
    """Says how good responses are. May be used by many threads."""

    name: str  # model and rubric, as people read them
    version: str  # the hash of `identity`
    identity: Mapping[str, Any]
    short_is_wanted: bool  # whether it is asked to like shorter responses, so that an audit does not hold it against it
    one_number: bool  # whether scores and comparisons read the same number, so that an audit of one speaks for both

    def score(self, item: Item) -> Judgement:
        """How good the one response is."""
        ...

    def compare(self, item: Item) -> Judgement:
        """Which of two responses is better."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class PromptedJudge:
    """A language model that is asked."""

    one_number = False

    def __init__(
        self,
        voice: Voice,
        rubric: Rubric,
        manner: Manner | None = None,
        *,
        store: Store | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Raises `ConfigError` where the voice cannot answer in that manner."""
        self.voice, self.rubric, self.manner = voice, rubric, manner or Manner()
        self._store, self._budget = store, budget or Budget()
        if self.manner.expected and not voice.tells_shares:
            raise ConfigError(f"{voice.name!r} does not tell the probabilities of words; leave `expected` out")
        self.name = f"{voice.name}/{rubric.name}"
        self.short_is_wanted = rubric.length_matters
        self.identity: Mapping[str, Any] = {
            "voice": dict(voice.identity),
            "template": template_hash(),
            "rubric": {"name": rubric.name, "version": rubric.version, "hash": rubric.hash},
            "manner": asdict(self.manner),
        }
        self.version = content_hash(self.identity, length=16)

    def score(self, item: Item) -> Judgement:
        """See `Judge.score`."""
        texts = texts_of(item, 1, self.manner.max_characters)
        if isinstance(texts, Judgement):
            return texts
        asked, response = texts
        levels = [str(number) for number in range(1, len(self.rubric.levels) + 1)]
        nonce = draw_nonce(self.manner.seed, asked, response)
        prompt = score_prompt(self.rubric, asked, response, nonce, reason=not self.manner.expected)
        value, told = self._verdict("score", prompt, nonce, {level: float(level) - 1 for level in levels})
        if value is None:
            return told
        evidence = {"level": 1 + value, **told.evidence}
        return Judgement(
            kind="score", value=value / (len(levels) - 1), reason=told.reason, evidence=evidence, cost=told.cost
        )

    def compare(self, item: Item) -> Judgement:
        """See `Judge.compare`."""
        texts = texts_of(item, 2, self.manner.max_characters)
        if isinstance(texts, Judgement):
            return texts
        asked, first, second = texts
        if first == second:
            return Judgement(kind="preference", value=0.5, reason="the responses are the same", evidence={"u": 0.5})
        values: list[float] = []
        answers: list[Judgement] = []
        for one, other in ((first, second), (second, first)):
            nonce = draw_nonce(self.manner.seed, asked, one, other)
            prompt = compare_prompt(self.rubric, asked, one, other, nonce, reason=not self.manner.expected)
            verdicts = {"A": 1.0, "B": 0.0} if self.manner.expected else {"A": 1.0, "B": 0.0, "tie": 0.5}
            value, told = self._verdict("preference", prompt, nonce, verdicts)
            if value is None:
                return failed("preference", told.boundary or "judge", told.reason, [*answers, told])
            values.append(value)
            answers.append(told)
        return together(values[0], values[1], answers, graded=self.manner.expected)

    def ask(self, messages: Sequence[Message], *, begin: str = "", words: Sequence[str] = ()) -> tuple[Answer, bool]:
        """One answer, and whether it was known. Raises `Unanswered`, also where the budget is spent."""
        manner = self.manner
        turns = [message.to_openai() for message in messages]
        sampling = [manner.temperature, manner.max_tokens]
        key = content_hash([self.voice.identity, turns, sampling, manner.seed, begin, list(words)])
        known = None if self._store is None else self._store.answer(key)
        if known is not None:
            return known, True
        try:
            with self._budget.call() as costs:
                answer = self.voice.ask(
                    messages,
                    sampling=Sampling(temperature=manner.temperature, max_turn_tokens=manner.max_tokens),
                    seed=derive_seed(manner.seed, key),
                    begin=begin,
                    words=words,
                )
                costs.append(answer.cost)
        except OverBudget as error:
            raise Unanswered("budget", str(error)) from error
        if self._store is not None:
            self._store.keep(key, answer)
        return answer, False

    def close(self) -> None:
        """See `Judge.close`."""
        self.voice.close()

    def _verdict(
        self, kind: Literal["score", "preference"], prompt: Sequence[Message], nonce: str, values: Mapping[str, float]
    ) -> tuple[float | None, Judgement]:
        """The value of one answer and what goes with it; or None and an unscored judgement."""
        words = list(values) if self.manner.expected else ()
        try:
            answer, known = self.ask(prompt, begin=verdict_mark(nonce) if words else "", words=words)
        except Unanswered as error:
            return None, Judgement(kind=kind, value=None, reason=str(error), boundary=error.boundary)
        cost = Cost() if known else answer.cost
        if words:
            mass = sum(answer.shares.values())
            evidence: dict[str, Any] = {"shares": {word: round(share, 6) for word, share in answer.shares.items()}}
            if mass < _LEAST_MASS:
                why = f"the judge gives all verdicts together {mass:.1g} of its probability"
                return None, Judgement(
                    kind=kind, value=None, reason=why, boundary="judge", evidence=evidence, cost=cost
                )
            value = sum(values[word] * share for word, share in answer.shares.items()) / mass
            return value, Judgement(kind=kind, value=value, evidence=evidence, cost=cost)
        verdict, why = read_verdict(answer.text, nonce, list(values))
        evidence = {"answer": answer.text[-_KEPT:]}
        if verdict is None:
            why += "" if answer.whole else f"; it was cut off at {self.manner.max_tokens} tokens"
            return None, Judgement(kind=kind, value=None, reason=why, boundary="judge", evidence=evidence, cost=cost)
        reason = answer.text[-_KEPT:].rpartition("\n")[0].strip()[-300:]
        return values[verdict], Judgement(kind=kind, value=values[verdict], reason=reason, evidence=evidence, cost=cost)


def texts_of(item: Item, responses: int, most: int) -> tuple[str, ...] | Judgement:
    """The request and its responses as text, inert; or why they cannot be judged. Long ones are not even read."""
    kind: Literal["score", "preference"] = "score" if responses == 1 else "preference"
    if len(item.responses) != responses:
        return failed(kind, "input", f"{len(item.responses)} responses were given, {responses} are judged")
    every = (item.prompt, *item.responses)
    for turns, what in zip(every, ("request", "response", "second response"), strict=False):
        length = sum(len(one.content) + sum(len(call.arguments) for call in one.tool_calls) for one in turns)
        if length > most:
            return failed(kind, "input", f"the {what} has {length} characters, this judge reads {most}")
    return tuple(shown(turns) for turns in every)


def failed(
    kind: Literal["score", "preference"], boundary: Boundary, reason: str, parts: Sequence[Judgement] = ()
) -> Judgement:
    """No judgement, and why; `parts` is what was asked on the way."""
    evidence = {"answers": [dict(part.evidence) for part in parts]} if parts else {}
    return Judgement(kind=kind, value=None, reason=reason, boundary=boundary, evidence=evidence, cost=_sum(parts))


def together(v_ab: float, v_ba: float, parts: Sequence[Judgement] = (), *, graded: bool = False) -> Judgement:
    """A comparison out of its two orders: how far each preferred the response that it showed first."""
    u = (v_ab + 1 - v_ba) / 2
    flip = (v_ab - 0.5) * (v_ba - 0.5) > 0
    if graded:
        value = 0.5 if u == 0.5 else float(u < 0.5)
    else:
        value = 0.0 if v_ab > 0.5 > v_ba else 1.0 if v_ab < 0.5 < v_ba else 0.5
    return Judgement(
        kind="preference",
        value=value,
        reason=next((part.reason for part in parts if part.reason), ""),
        evidence={
            "u": u,
            "orders": [v_ab, v_ba],
            "flip": flip,
            **({"answers": [dict(part.evidence) for part in parts]} if parts else {}),
        },
        cost=_sum(parts),
    )


def feedback_of(
    judge: Judge, judgement: Judgement, about: Sequence[str], *, criterion: str, run_id: str | None = None
) -> Feedback:
    """A judgement as a row of the ledger; `about` is the episodes of the responses, in their order."""
    u = judgement.evidence.get("u")
    return Feedback(
        id=derive_id("fb", *about, "judge", judge.version, judgement.kind),
        about=tuple(about),
        criterion=criterion,
        kind=judgement.kind,
        value=judgement.value,
        status=judgement.status,
        source=Source(kind="judge", name=judge.name, version=judge.version),
        reason=judgement.reason,
        evidence={**judgement.evidence, **({"boundary": judgement.boundary} if judgement.boundary else {})},
        confidence=None if u is None or judgement.value is None else max(u, 1 - u),
        cost=judgement.cost,
        created_at=now(),
        run_id=run_id,
    )


def _sum(parts: Sequence[Judgement]) -> Cost:
    return Cost(
        prompt_tokens=sum(part.cost.prompt_tokens for part in parts),
        completion_tokens=sum(part.cost.completion_tokens for part in parts),
        seconds=sum(part.cost.seconds for part in parts),
        usd=sum(part.cost.usd for part in parts),
    )
