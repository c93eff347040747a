"""docs/audits.md: the audits of all verifiers that ship, without times, which differ from machine to machine.

python -m metier.feedback.audit.page > docs/audits.md
"""

from __future__ import annotations

from metier.feedback.audit.audit import AUDITED, REPEATS, Audit, audit
from metier.stats.intervals import wilson

__all__ = ["main", "page", "row", "section"]

_HEAD = """# Audits of the verifiers

Written by `make docs`; a test makes them anew and fails where anything differs. How to read them, and how to
audit a verifier of your own: [verifiers.md](verifiers.md). False passes and false fails are shares of the
cases with a verdict, with 95 % Wilson intervals; all cases ship with Metier and say nothing of texts that
look different.

| verifier | version | verdict | false pass | false fail | changed in repeats |
|---|---|---|---|---|---|
"""


def row(done: Audit) -> str:
    """One verifier in the table."""
    cells = [done.name, done.version, done.fit]
    for passes in (False, True):
        wrong, n = done.counts(passes)
        low, high = wilson(wrong, n) if n else (0.0, 1.0)
        cells.append(f"{100 * wrong / max(n, 1):.1f} % ({100 * low:.1f} to {100 * high:.1f}), {wrong} of {n}")
    return "| " + " | ".join([*cells, f"{done.changed} of {done.repeated} cases, {REPEATS} times each"]) + " |"


def section(done: Audit) -> str:
    """One verifier's slices."""
    lines = [f"## {done.name}", "", "| cases | must | from | n | wrong | unscored |", "|---|---|---|---|---|---|"]
    for one in done.slices:
        must = "pass" if one.passes else "fail"
        lines.append(f"| {one.kind} | {must} | {one.origin} | {one.n} | {one.wrong} | {one.unscored} |")
    return "\n".join(lines)


def page(audits: list[Audit]) -> str:
    """The whole page."""
    rows = "\n".join(map(row, audits))
    sections = "\n\n".join(map(section, audits))
    return f"{_HEAD}{rows}\n\n{sections}\n"


def main() -> None:
    """Print it."""
    print(page([audit(name, jobs=2) for name in AUDITED]), end="")


if __name__ == "__main__":
    main()
