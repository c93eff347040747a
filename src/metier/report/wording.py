"""How numbers and findings are put into words: one voice for page, terminal and verdict.

The rules: a share has one decimal; an interval has none unless a bound is within one
point of zero; "rose" and "fell" only where the interval leaves zero out, "no clear
change" otherwise. Signs are true minus signs; spaces inside figures do not break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from metier.base.clock import iso

if TYPE_CHECKING:
    from metier.stats.intervals import Interval
    from metier.stats.paired import Paired

__all__ = [
    "change_in_unit",
    "change_words",
    "count",
    "day",
    "duration",
    "figure",
    "in_unit",
    "label_of",
    "p_value",
    "percent",
    "plain",
    "points",
    "points_interval",
    "share_with_interval",
    "signed",
    "title_of",
]

NB = "\u00a0"  # no-break space
FINE = ("nats", "gap", "Brier")  # units that are written with three decimals; others have one
ACRONYMS = {
    "sft",
    "rl",
    "grpo",
    "dpo",
    "ipo",
    "kto",
    "orpo",
    "rloo",
    "ppo",
    "gspo",
    "cispo",
    "dapo",
    "simpo",
    "cpu",
    "gpu",
    "gb",
}


def percent(share: float | None, digits: int = 1) -> str:
    """`61.3 %` for .613; `–` for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}{NB}%"


def points(diff: float | None, digits: int = 1) -> str:
    """`+13.0` for .13: percentage points, always with a sign; `–` for None."""
    if diff is None:
        return "–"
    text = f"{100 * diff:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def signed(number: float) -> str:
    """`+0.213`, `−0.002`: three decimals, always with a sign."""
    return f"{number:+.3f}".replace("-", "−")


def plain(number: float, unit: str, sign: Literal["", "+"] = "") -> str:
    """With the decimals of its unit and a true minus sign; zero has no sign, even with `+`."""
    text = f"{number:{sign}.{3 if unit in FINE else 1}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def in_unit(value: float, unit: str) -> str:
    """`61.3 %` of a share, `84.0` of tokens, `2.315` of nats."""
    return percent(value) if unit == "share" else plain(value, unit)


def change_in_unit(diff: float, unit: str) -> str:
    """`+13.0` points of a share, `−31.7` tokens, `+0.213` nats; always with a sign."""
    return points(diff) if unit == "share" else plain(diff, unit, "+")


def points_interval(low: float | None, high: float | None) -> str:
    """`+55 to +67`; one decimal where a bound is within a point of zero.

    A difference of shares cannot leave -100 to +100 points, and its interval is cut there.
    """
    if low is None or high is None:
        return "not known"
    low, high = max(-1.0, low), min(1.0, high)
    digits = 1 if min(abs(low), abs(high)) < 0.01 else 0
    return f"{points(low, digits)}{NB}to{NB}{points(high, digits)}"


def share_with_interval(share: Interval) -> str:
    """`61.3 % (55 to 67)`."""
    if share.mean is None:
        return "–"
    if share.low is None or share.high is None:
        return percent(share.mean)
    return f"{percent(share.mean)} ({100 * share.low:.0f}{NB}to{NB}{100 * share.high:.0f})"


def p_value(p: float | None) -> str:
    """`<0.001`, `0.012`, `0.34`; `–` for None."""
    if p is None:
        return "–"
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(number: float | None) -> str:
    """`1,234`, `56.7 k`, `1.2 M`; `–` for None."""
    if number is None:
        return "–"
    if number >= 999_500:
        return f"{number / 1e6:.1f}{NB}M"
    if number >= 9_999.5:
        return f"{number / 1e3:.1f}{NB}k"
    return f"{number:,.0f}"


def figure(number: float) -> str:
    """Three significant digits, plainly written where it can be: `0.0123`, `4.56`, `789`, `1,230`, `5e-6`."""
    if number == 0:
        return "0"
    size = abs(number)
    if size >= 100:
        text = f"{number:,.0f}"
    elif size < 0.001:
        text = f"{number:.1e}".replace("e-0", "e-").replace(".0e", "e")
    else:
        digits = 2 if size >= 1 else 3 if size >= 0.1 else 4 if size >= 0.01 else 5
        text = f"{number:.{digits}f}".rstrip("0").rstrip(".")
    return text.replace("-", "−", 1) if number < 0 else text


def day(at: float) -> str:
    """`2026-11-28` for UTC seconds; nothing for 0, which is no time."""
    return iso(at)[:10] if at else ""


def duration(seconds: float | None) -> str:
    """`42 s`, `12 min 5 s`, `3 h 7 min`; `–` for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{NB}s" if seconds < 9.95 else f"{whole}{NB}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{NB}min" + (f"{NB}{rest}{NB}s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{NB}h" + (f"{NB}{minutes}{NB}min" if minutes else "")


def title_of(name: str) -> str:
    """A name from a recipe as a reader sees it: `changed_policy` becomes `Changed policy`."""
    words = name.replace("_", " ").replace("-", " ").replace(".", " ").split()
    shown = [word.upper() if word.lower() in ACRONYMS else word for word in words]
    text = " ".join(shown)
    return text[:1].upper() + text[1:]


def label_of(measured: str) -> str:
    """A model's short name: that of the stage that made it."""
    return title_of(measured)


def change_words(change: Paired) -> str:
    """`clear gain`, `clear loss`, `no clear change` or why nothing can be said."""
    if change.n == 0:
        return "not compared"
    if change.clear:
        return "clear gain" if (change.diff or 0) > 0 else "clear loss"
    if change.low is None and change.diff == 0:
        return "no task changed"
    if change.low is None:
        return "too few tasks for an interval" if change.se is None else "every task changed alike"
    return "no clear change"
