"""`metier gate`: the release decision on a run against a base, for people and for CI."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from xml.etree import ElementTree

import typer

from metier.cli.runs import JsonOption, LedgerOption

if TYPE_CHECKING:
    from metier.cli.scores import Scores
    from metier.evaluate.gate import Gate, GateSettings, Side
    from metier.records.types import GateDecision

__all__ = ["gate"]

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 does not allow


def gate(
    run: Annotated[
        str,
        typer.Argument(help="Samples of what would be released: a file, an evaluation's or a run's id or folder."),
    ],
    against: Annotated[str, typer.Option(metavar="BASE", help="The same of what it would replace.")],
    config: Annotated[Path, typer.Option(help="The metrics with their margins, as YAML.")],
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML there.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table in Markdown there.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. alpha=0.01.")
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide whether a run may replace a base: exit code 0 pass, 1 block, 3 inconclusive.

    The decision is kept in the ledger where there is one.
    """
    from metier.base.errors import MetierError

    try:
        code = _gate(run, against, config, junit, markdown, settings or [], ledger, as_json)
    except MetierError:
        raise
    except Exception as error:  # a fault of ours is told as one, but 1 would say block
        traceback.print_exc()
        raise typer.Exit(2) from error
    raise typer.Exit(code)


def _gate(
    run: str,
    against: str,
    config: Path,
    junit: Path | None,
    markdown: Path | None,
    settings: list[str],
    ledger: str | None,
    as_json: bool,
) -> int:
    """Decide, say the verdict, and then keep and write it; the exit code."""
    from metier.base.config import load_yaml
    from metier.cli.find import open_ledger
    from metier.evaluate.gate import GateSettings, decide
    from metier.records.types import to_plain

    wanted = load_yaml(config, GateSettings, settings)
    one, two = _place(run, ledger), _place(against, ledger)
    models: dict[str, str] = {}
    done = decide(wanted, {name: _sides(name, wanted, one, two, ledger, models) for name in wanted.metrics})
    told: dict[str, Any] = {
        "verdict": done.verdict,
        "exit_code": done.exit_code,
        "run": models.get(one) or run,
        "base": models.get(two) or against,
        "alpha": done.alpha,
        "metrics": [to_plain(result) for result in done.metrics],
    }
    decision = _decision(told, wanted, ledger)
    told["gate"] = None if decision is None else decision.id
    print(json.dumps(told, ensure_ascii=False) if as_json else _text(done, told))
    if decision is not None:
        with open_ledger(ledger) as records:
            records.add_gate(decision)
    for path, written in ((junit, _junit), (markdown, _markdown)):
        if path is not None:
            _write(path, written(done, told))
    return done.exit_code


def _place(name: str, ledger: str | None) -> str:
    """The samples file in a folder, where it is one; otherwise the name itself. Raises where it is nothing."""
    from metier.cli.find import find_run, need_ledger, open_ledger

    path = Path(name)
    if path.is_file():
        return name
    if (path / "samples.jsonl").is_file():
        return str(path / "samples.jsonl")
    need_ledger(ledger, name)
    with open_ledger(ledger) as records:
        find_run(records, name.partition(":")[0])
    return name


def _sides(
    metric: str, wanted: GateSettings, run: str, base: str, ledger: str | None, models: dict[str, str]
) -> tuple[Side, Side] | str:
    """Both sides' scores in a metric, or why they cannot be had."""
    from metier.base.errors import DataError
    from metier.evaluate.gate import Side

    rule, out = wanted.metrics[metric], []
    for what, name in (("run", run), ("base", base)):
        try:
            scores = _read(name, rule.field or metric, rule.suite, wanted.cluster, ledger)
        except DataError as error:
            return f"of the {what}: {error}"
        models[name] = models.get(name) or scores.model
        out.append(
            Side(
                by_item=scores.by_item,
                clusters=scores.clusters,
                skipped=len(scores.skipped),
                notes=tuple(scores.notes),
            )
        )
    return out[0], out[1]


def _read(name: str, metric: str, suite: str | None, cluster: str | None, ledger: str | None) -> Scores:
    from metier.cli.scores import NoClusterError, read_scores

    if cluster is None:
        try:
            return read_scores(name, cluster="cluster", metric=metric, suite=suite, ledger=ledger)
        except NoClusterError as error:
            scores = read_scores(name, metric=metric, suite=suite, ledger=ledger)
            if error.lacking < error.rows:
                scores.notes.append(f"{error.lacking} of {error.rows} rows have no field cluster, so it groups nothing")
            return scores
    return read_scores(name, cluster=cluster, metric=metric, suite=suite, ledger=ledger)


def _write(path: Path, text: str) -> None:
    from metier.base.errors import DataError
    from metier.base.files import write_whole

    try:
        write_whole(path, text)
    except OSError as error:
        raise DataError(f"the verdict cannot be written to {path}: {error.strerror}; name another file") from error


def _decision(told: dict[str, Any], wanted: GateSettings, ledger: str | None) -> GateDecision | None:
    """What the ledger keeps, where there is one."""
    from metier.base.clock import now
    from metier.base.ids import canonical_json, derive_id
    from metier.cli.find import has_ledger
    from metier.records.types import GateDecision

    if not has_ledger(ledger):
        return None
    metrics = {
        "settings": wanted.model_dump(mode="json"),
        "results": {one["name"]: one for one in told["metrics"]},
    }
    return GateDecision(
        id=derive_id("gate", told["run"], told["base"], canonical_json(metrics)),
        checkpoint=told["run"],
        baseline=told["base"],
        verdict=told["verdict"],
        metrics=metrics,
        created_at=now(),
    )


# --- how it is told ------------------------------------------------------------------------


def _figure(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def _text(done: Gate, told: dict[str, Any]) -> str:
    lines = [f"{done.verdict.upper()}: {told['run']} against {told['base']}"]
    for one in done.metrics:
        kind = "" if one.hard else " (soft)"
        lines.append(f"{one.verdict:<12} {one.name}{kind}: {one.why}")
        if one.gain is not None:
            span = f"[{_figure(one.low, '+.4f')}, {_figure(one.high, '+.4f')}]"
            grouped = "" if one.clusters == one.n else f" in {one.clusters} clusters"
            lines.append(
                f"{'':<12} run {_figure(one.run)}, base {_figure(one.base)}, gain {_figure(one.gain, '+.4f')} {span}, "
                f"{one.n} items{grouped}, {one.direction} is better"
            )
        lines += [f"{'':<12} {caveat}" for caveat in one.caveats]
    return "\n".join(lines)


def _markdown(done: Gate, told: dict[str, Any]) -> str:
    rows = [
        f"## Gate: {done.verdict}",
        "",
        f"`{told['run']}` against `{told['base']}`; one-sided bounds, at most {done.alpha:g} wrong.",
        "",
        "| metric | verdict | run | base | gain | at least | at most | needed | items |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in done.metrics:
        name = one.name.replace("|", "\\|") + ("" if one.hard else " (soft)")
        figures = (_figure(one.run), _figure(one.base), _figure(one.gain, "+.4f"))
        bounds = (_figure(one.low, "+.4f"), _figure(one.high, "+.4f"), f"> {one.threshold:+g}", str(one.n))
        rows.append(f"| {' | '.join((name, one.verdict, *figures, *bounds))} |")
    rows.append("")
    for one in done.metrics:
        rows += [f"- {one.name}: {'; '.join((one.why, *one.caveats))}"]
    return "\n".join(rows) + "\n"


def _junit(done: Gate, told: dict[str, Any]) -> str:
    """A test case a metric: a hard one that is blocked failed, one that is inconclusive is in error; soft ones skip."""
    hard = [one for one in done.metrics if one.hard]
    suite = ElementTree.Element(
        "testsuite",
        name="metier gate",
        tests=str(len(done.metrics)),
        failures=str(sum(one.verdict == "block" for one in hard)),
        errors=str(sum(one.verdict == "inconclusive" for one in hard)),
        skipped=str(sum(one.verdict != "pass" for one in done.metrics if not one.hard)),
    )
    for one, plain in zip(done.metrics, told["metrics"], strict=True):
        case = ElementTree.SubElement(suite, "testcase", name=one.name, classname=f"metier.gate.{told['run']}")
        if one.verdict != "pass":
            tag = "skipped" if not one.hard else "failure" if one.verdict == "block" else "error"
            found = ElementTree.SubElement(case, tag, message=one.why)
            if tag != "skipped":
                found.set("type", one.verdict)
        ElementTree.SubElement(case, "system-out").text = json.dumps(plain, ensure_ascii=False)
    ElementTree.indent(suite)
    return NOT_XML.sub("\ufffd", ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)) + "\n"
