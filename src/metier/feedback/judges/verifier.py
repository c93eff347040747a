"""The verifier "judge": a judge's score of an attempt, as a reward in a recipe or a line of `metier verify`.

A judge is a reward only where its audit, kept in the store, found it fit; with `insist` it is one all the same, and
every verdict says what speaks against it. Refused, unreachable or undecided, an attempt is unscored.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from metier.base.errors import MetierError
from metier.feedback.judges.judge import Item, Judge, Judgement
from metier.feedback.judges.opening import open_judge
from metier.feedback.judges.store import DEFAULT_STORE, Store
from metier.feedback.judges.trust import doubt, require_fit
from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, unscored
from metier.records.types import Task

__all__ = ["JudgeVerifier"]

_OPENING = threading.Lock()


class JudgeVerifier(Described):
    """What a judge says, between 0 and 1."""

    name = "judge"
    version = "1"
    parameters: ClassVar = {
        "model": "a folder or name of a model: one that is asked, or a reward model",
        "endpoint": "instead of a model: {model, base_url, key, …} as in a recipe",
        "rubric": "a file or the name of a rubric; a reward model needs none",
        "manner": "how it is asked: expected, temperature, max_tokens, seed, max_characters",
        "store": "where answers and audits are kept; default runs/judges.sqlite",
        "insist": "true takes a judge whose audit did not find it fit; default false",
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """The score of what came after the task's own messages."""
        start = len(task.messages)
        response = attempt.messages[start:]
        if not any(message.role == "assistant" for message in response):
            return Verdict(score=0.0, reason="nothing was said")
        insist = params.get("insist", False)
        opened = {key: value for key, value in params.items() if key != "insist"}
        try:
            with _OPENING:
                judge, store = _opened(json.dumps(opened, sort_keys=True))
            against = doubt(store, judge, "score") if insist is True else require_fit(store, judge, "score")
        except MetierError as error:
            return unscored(str(error))
        told: Judgement = judge.score(Item(prompt=attempt.messages[:start], responses=(response,)))
        if told.value is None:
            return unscored(told.reason)
        return Verdict(score=told.value, reason=told.reason + (f" [insisted: {against}]" if against else ""))


@functools.lru_cache(maxsize=4)
def _opened(params: str) -> tuple[Judge, Store]:
    given = json.loads(params)
    store = Store(given.pop("store", DEFAULT_STORE))
    return open_judge(**given, store=store), store
