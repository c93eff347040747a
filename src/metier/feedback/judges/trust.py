"""Which judges may be rewards: those whose own audit, of this very identity, found them fit.

What an audit found is kept in the store under the judge's version. Other weights, another rubric or other
settings are another version, without an audit. A reward model compares by the difference of its scores, and a
policy's gradient uses no more of them, so there an audit of one speaks for the other. A user who insists gets the
judge all the same; the reason why it would be refused is told, so that it can stand in a log.
"""

from __future__ import annotations

from metier.base.errors import ConfigError
from metier.feedback.judges.audit import Audit
from metier.feedback.judges.judge import Judge, Mode
from metier.feedback.judges.store import Store

__all__ = ["doubt", "keep_audit", "require_fit"]


def keep_audit(store: Store, judge: Judge, done: Audit) -> None:
    """Keep what an audit found with the identity of the judge."""
    store.add_audit(judge.version, done.mode, judge.identity, done.to_json())


def doubt(store: Store, judge: Judge, mode: Mode) -> str | None:
    """Why a judge should be no reward; None where its audit found it fit."""
    modes: tuple[Mode, ...] = ("score", "compare") if judge.one_number else (mode,)
    known = [found for each in modes if (found := store.audit(judge.version, each)) is not None]
    if not known:
        return f"the judge {judge.name} (version {judge.version}) has no audit of how it does {mode}"
    if any(found["fit"] == "fit" for found in known):
        return None
    return f"the audit of the judge {judge.name} found it {known[0]['fit']}: {'; '.join(known[0]['why'])}"


def require_fit(store: Store, judge: Judge, mode: Mode, *, insist: bool = False) -> str | None:
    """Refuse a judge that is not known to be fit; who insists gets the reason back instead. Raises `ConfigError`."""
    why = doubt(store, judge, mode)
    if why is not None and not insist:
        raise ConfigError(
            f"{why}; audit it on gold that it never saw (metier judge --audit GOLD), train one (docs/judges.md), or "
            "set insist to take it as a reward all the same"
        )
    return why
