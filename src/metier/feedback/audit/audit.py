"""An audit: how often a verifier passes what must fail, and fails what must pass.

    false pass   passed / judged, of the cases that must fail      (Wilson intervals, 95 %)
    false fail   failed / judged, of the cases that must pass

by slice and together. A case without a verdict counts in neither; its share is told. Each of a sample of
cases of either sort is judged `REPEATS` times: any other verdict is a flaw. A verifier is

    unfit       where an exploit, an empty answer or talk to the judge passes; where more than 1 % of what
                must fail passes or more than 5 % of what must pass fails; where verdicts change; or
                where more than 5 % of cases have none
    undecided   where nothing of that is seen, but there are less than 30 cases of either sort
    fit         else

The limits are ours: a policy that is trained on a reward finds whatever passes, so that one false pass
that anybody can make weighs more than many false fails.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from metier.base.errors import DataError
from metier.feedback.audit.cases import OTHERS, Case
from metier.feedback.verifiers.registry import get_verifier
from metier.feedback.verify_file import verify_lines
from metier.stats.intervals import wilson

__all__ = ["AUDITED", "Audit", "Slice", "audit", "built_in_cases", "spelled"]

REPEATS = 20
_SAMPLE = 10  # cases of either sort that are repeated
_ENOUGH = 30  # cases of either sort
_FALSE_PASS, _FALSE_FAIL, _UNSCORED = 0.01, 0.05, 0.05
_NEVER = frozenset({kind for kind, _ in OTHERS} | {"exploit"})  # slices of which nothing may pass

AUDITED = (
    *("citations", "code", "combination", "conduct", "exact", "format", "instructions", "json_schema"),
    *("math", "reasoning_gym", "regex", "tool_calls"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The cases of one kind that must all pass, or all fail."""

    kind: str
    passes: bool
    origin: str
    n: int
    wrong: int
    unscored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found."""

    name: str
    version: str
    slices: tuple[Slice, ...]
    seconds: tuple[float, float]  # per verdict: median and 95th percentile
    changed: int  # repeated cases whose verdict was not always the same
    repeated: int
    fit: Literal["fit", "unfit", "undecided"]
    why: tuple[str, ...]
    wrong: tuple[Mapping[str, Any], ...]  # the cases judged wrongly, at most 50

    def counts(self, passes: bool) -> tuple[int, int]:
        """Wrong verdicts and all verdicts, of the cases that must pass or of those that must fail."""
        mine = [one for one in self.slices if one.passes is passes]
        return sum(one.wrong for one in mine), sum(one.n - one.unscored for one in mine)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "version": self.version,
            "verdict": self.fit,
            "why": list(self.why),
            "false_pass": _rate(*self.counts(False)),
            "false_fail": _rate(*self.counts(True)),
            "slices": [
                {
                    "kind": one.kind,
                    "must": "pass" if one.passes else "fail",
                    "origin": one.origin,
                    "n": one.n,
                    "wrong": one.wrong,
                    "unscored": one.unscored,
                }
                for one in self.slices
            ],
            "seconds": {"median": self.seconds[0], "p95": self.seconds[1]},
            "repeats": {"cases": self.repeated, "times": REPEATS, "changed": self.changed},
            "wrong": list(self.wrong),
        }


def _rate(wrong: int, n: int) -> dict[str, Any]:
    low, high = wilson(wrong, n) if n else (None, None)
    return {"rate": wrong / n if n else None, "wrong": wrong, "n": n, "ci95": [low, high]}


def built_in_cases(name: str) -> list[Case]:
    """The cases that ship for a verifier, always the same.

    Raises `DataError` where there are none.
    """
    if name not in AUDITED:
        raise DataError(
            f"no cases ship for the verifier {name!r}; give labelled ones as a file (docs/verifiers.md). "
            f"Those of {', '.join(AUDITED)} do"
        )
    cases: list[Case] = import_module(f"metier.feedback.audit.of_{name}").cases()
    return cases


def audit(name: str, cases: Sequence[Case] | None = None, *, jobs: int = 1, like: str | None = None) -> Audit:
    """Judge all cases: those that ship (for the verifier, or for the one that it is `like`), and those given."""
    verifier = get_verifier(name)
    known = like or name
    every = [*(built_in_cases(known) if cases is None or known in AUDITED else []), *(cases or ())]
    sorts = [[number for number, case in enumerate(every) if case.passes is passes] for passes in (True, False)]
    sample = [number for one in sorts for number in random.Random(0).sample(one, min(_SAMPLE, len(one)))]
    lines = [case.line(name, number) for number, case in enumerate(every)]
    again = [lines[number] for number in sample for _ in range(REPEATS - 1)]
    told = list(verify_lines([*lines, *again], jobs=jobs))
    first, later = told[: len(every)], told[len(every) :]
    changed = 0
    for place, number in enumerate(sample):
        repeats = later[place * (REPEATS - 1) : (place + 1) * (REPEATS - 1)]
        changed += any(one["score"] != first[number]["score"] for one in repeats)
    slices: dict[tuple[str, bool, str], list[int]] = {}
    wrong = []
    for case, one in zip(every, first, strict=True):
        count = slices.setdefault((case.kind, case.passes, case.origin), [0, 0, 0])
        count[0] += 1
        if one["status"] == "unscored":
            count[2] += 1
        elif (one["score"] == 1.0) is not case.passes:
            count[1] += 1
        else:
            continue
        said = case.response if isinstance(case.response, str) else [m.to_openai() for m in case.response]
        wrong.append(
            {
                "kind": case.kind,
                "must": "pass" if case.passes else "fail",
                "score": one["score"],
                "reason": one["reason"],
                "params": case.params,
                "response": said if not isinstance(said, str) or len(said) < 500 else said[:500] + " …",
            }
        )
    made = tuple(
        Slice(kind=kind, passes=passes, origin=origin, n=n, wrong=bad, unscored=none)
        for (kind, passes, origin), (n, bad, none) in sorted(slices.items())
    )
    fit, why = _judge(made, changed)
    times = sorted(one["seconds"] for one in first)
    return Audit(
        name=name,
        version=verifier.version,
        slices=made,
        seconds=(statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.95))]) if times else (0.0, 0.0),
        changed=changed,
        repeated=len(sample),
        fit=fit,
        why=why,
        wrong=tuple(wrong[:50]),
    )


def _judge(slices: Sequence[Slice], changed: int) -> tuple[Literal["fit", "unfit", "undecided"], tuple[str, ...]]:
    faults = [
        f"{one.wrong} of {one.n} cases of {one.kind!r} pass"
        for one in slices
        if not one.passes and one.kind in _NEVER and one.wrong
    ]
    few = []
    for passes, most, what in ((False, _FALSE_PASS, "false passes"), (True, _FALSE_FAIL, "false fails")):
        mine = [one for one in slices if one.passes is passes]
        n = sum(one.n - one.unscored for one in mine)
        wrong = sum(one.wrong for one in mine)
        if n and wrong / n > most:
            low, high = wilson(wrong, n)
            faults.append(f"{100 * wrong / n:.1f} % {what} ({100 * low:.1f} to {100 * high:.1f})")
        if n < _ENOUGH:
            few.append(f"only {n} cases that must {'pass' if passes else 'fail'} have a verdict")
    total = sum(one.n for one in slices)
    none = sum(one.unscored for one in slices)
    if total and none / total > _UNSCORED:
        faults.append(f"{none} of {total} cases have no verdict")
    if changed:
        faults.append(f"{changed} cases are judged one way and another")
    if faults:
        return "unfit", tuple(faults)
    return ("undecided", tuple(few)) if few else ("fit", ())


def spelled(done: Audit) -> str:
    """The audit as people read it."""
    lines = [f"verifier    {done.name} (version {done.version})"]
    for passes, what in ((False, "false pass"), (True, "false fail")):
        wrong, n = done.counts(passes)
        if n:
            low, high = wilson(wrong, n)
            lines.append(f"{what}  {100 * wrong / n:.2f} % ({100 * low:.2f} to {100 * high:.2f}), {wrong} of {n}")
    lines.append(f"time        {1000 * done.seconds[0]:.1f} ms median, {1000 * done.seconds[1]:.1f} ms 95th percentile")
    lines.append(f"repeats     {done.repeated} cases {REPEATS} times each, {done.changed} changed")
    lines.append("")
    lines.append(f"{'slice':<24} {'must':<5} {'from':<9} {'n':>5} {'wrong':>6} {'unscored':>9}")
    for one in done.slices:
        must = "pass" if one.passes else "fail"
        lines.append(f"{one.kind:<24} {must:<5} {one.origin:<9} {one.n:>5} {one.wrong:>6} {one.unscored:>9}")
    for bad in done.wrong[:10]:
        said = f"{str(bad['response'])[:100]!r}: {bad['reason'][:120]}"
        lines.append(f"  wrong: {bad['kind']}, must {bad['must']}: {said}")
    verdict = {"fit": "fit to be a reward", "unfit": "not fit to be a reward", "undecided": "undecided"}[done.fit]
    lines.append("")
    lines.append(f"verdict     {verdict}" + "".join(f"\n            {why}" for why in done.why))
    return "\n".join(lines)
