"""An audit in words and in JSON. Pure.

Gains and ratio are in units of the spread at the start; curves and false passes in those of reward and gold. Every
figure has its 95 % interval beside it, or says that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metier.evaluate.transfer.audit import Audit, FalsePass
from metier.evaluate.transfer.pool import Sample
from metier.records.transcript import printable, turns
from metier.records.types import to_plain
from metier.stats.best_of_n import n_of_kl
from metier.stats.intervals import Interval

__all__ = ["as_json", "as_text", "one_line"]

SHOWN = 3  # features
LONGEST = 300  # characters of an example


def one_line(audit: Audit) -> str:
    """Reward and verdict, and how many more items would decide."""
    found = audit.transfer
    if found is None:
        return f"{audit.reward}: undecided ({audit.note})"
    more = "" if found.more is None else f"; about {found.more:,} more {_items(audit)} would decide"
    return f"{audit.reward}: {found.verdict} ({found.why}{more})"


def as_text(audit: Audit) -> str:
    """The whole audit of one reward, a line for each finding."""
    lines = [one_line(audit)]
    found = audit.transfer
    if found is not None:
        lines.append(
            f"  reward gains {_span(found.reward)} and gold {_span(found.gold)} spreads, over {found.gold.n} "
            f"{_items(audit)}" + ("" if found.gold.clusters == found.gold.n else f" in {found.gold.clusters} clusters")
        )
        if found.ratio is not None:
            lines.append(f"  ratio {_span(found.ratio)}, margin {found.margin:g}")
        if found.late is not None:
            lines.append(f"  late gain of gold {_span(found.late)}")
    lines += [*_checkpoints(audit), *_curve(audit), *_peak(audit)]
    lines += [_false_pass(one) for one in audit.false_pass]
    lines += _form(audit)
    if audit.exploits:
        lines.append(f"  {audit.exploits} responses of high reward fail gold" + (":" if audit.clusters else ""))
    for number, cluster in enumerate(audit.clusters, 1):
        lines.append(
            f"    {number}. {cluster.trait}: {cluster.count} to {cluster.prompts} prompts; "
            f"{cluster.among_exploits:.0%} of them, {cluster.among_others:.0%} of all others"
        )
        lines += [f"       “{_shown(one)}”" for one in cluster.examples]
    caveats = [*(found.caveats if found is not None else ()), *audit.caveats]
    caveats += audit.explained.caveats if audit.explained is not None else ()
    lines += [f"  note: {caveat}" for caveat in caveats]
    return "\n".join(lines) + "\n"


def as_json(audit: Audit) -> dict[str, Any]:
    """Plain values; the messages of examples in the OpenAI format."""
    told: dict[str, Any] = to_plain(audit)
    told["verdict"] = audit.verdict
    told["alarm"] = audit.transfer is not None and audit.transfer.alarm
    for plain, cluster in zip(told["clusters"], audit.clusters, strict=True):
        plain["examples"] = [
            {
                "id": one.id,
                "prompt": one.prompt,
                "reward": one.rewards[audit.reward],
                "gold": one.gold,
                "messages": [m.to_openai() for m in (*one.asked, *one.said)],
            }
            for one in cluster.examples
        ]
    return told


def _items(audit: Audit) -> str:
    return "held-out tasks" if audit.checkpoints else "prompts"


def _span(one: Interval | None, form: str = "+.2f") -> str:
    if one is None or one.mean is None:
        return "unknown"
    if one.low is None or one.high is None:
        return f"{one.mean:{form}} [no interval]"
    return f"{one.mean:{form}} [{one.low:{form}}, {one.high:{form}}]"


def _curve(audit: Audit) -> list[str]:
    if not audit.curve:
        return []
    rows = [["best of", "KL", "reward", "gold"]]
    rows += [[str(p.n), f"{p.kl:.2f}", _span(p.reward, ".3f"), _span(p.gold, ".3f")] for p in audit.curve]
    return _table(rows)


def _checkpoints(audit: Audit) -> list[str]:
    if not audit.checkpoints:
        return []
    rows = [["step", "reward", "held-out gold", "gain"]]
    for one in audit.checkpoints:
        gain = "" if one.gain is None else _span(one.gain, "+.3f")
        rows.append([str(one.step), _span(one.reward, ".3f"), _span(one.gold, ".3f"), gain])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["    " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _peak(audit: Audit) -> list[str]:
    fit = audit.fit
    if fit is None:
        return []
    out = []
    if fit.a is not None and fit.b is not None:
        law = "d (a - b d)" if fit.law == "best_of_n" else "d (a - b ln d)"
        out.append(f"  over-optimisation: gold gains {law}, a = {fit.a:.3f}, b = {fit.b:.3f}")
    if fit.peak is not None and fit.peak > 0:
        high = "open" if fit.peak_high is None else f"{fit.peak_high:.2f}"
        at = f"; best of {n_of_kl(fit.peak**2):.0f}" if fit.law == "best_of_n" and fit.peak < 6 else ""
        out.append(f"    peak at d = {fit.peak:.2f} [{fit.peak_low:.2f}, {high}]{at}, gold {fit.height:+.3f} there")
    return out + [f"    {caveat}" for caveat in fit.caveats]


def _false_pass(one: FalsePass) -> str:
    if one.fails.mean is None:
        return f"  false passes, by {one.by}: no response of high reward has been judged yet"
    return (
        f"  of responses with a reward of at least {one.threshold:.4g} ({one.share:.0%} of all), gold fails "
        f"{_span(one.fails, '.0%')}; of all {_span(one.anywhere, '.0%')}; by {one.by}, {one.fails.n} judged"
        + (f", {one.fails.left_out} open" if one.fails.left_out else "")
    )


def _form(audit: Audit) -> list[str]:
    form = audit.explained
    if form is None or form.alone is None:
        return []
    ranked = sorted(form.partial.items(), key=lambda item: -abs(item[1].mean or 0.0))[:SHOWN]
    named = ", ".join(f"{name} {_span(value)}" for name, value in ranked)
    beside = "" if form.beside_gold is None else f", and {_span(form.beside_gold, '.0%')} of what gold leaves"
    return [
        f"  length and form alone explain {_span(form.alone, '.0%')} of the reward within prompts{beside} "
        f"(by chance {form.chance:.0%})" + ("" if form.by_gold is None else f"; gold {_span(form.by_gold, '.0%')}"),
        f"    most at fixed gold: {named}",
    ]


def _shown(sample: Sample) -> str:
    parts = []
    for turn in turns(sample.said):
        if turn.role == "assistant":
            parts += [f"[{call.name}({call.arguments})]" for call in turn.calls]
            parts += [turn.text] if turn.text else []
    text = " ".join(printable(" ".join(parts)).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
