"""`metier profile`: how a model behaves, trait by trait, and what differs between two models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import JsonOption, LedgerOption
from metier.cli.serve import RendererOption

if TYPE_CHECKING:
    from metier.evaluate.profile.figures import Change, Figure, Profiled
    from metier.evaluate.profile.probe import Probe
    from metier.evaluate.profile.run import Wanted

__all__ = ["profile"]


def profile(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a checkpoint's id or the start of one, a run, a hub id, or smollm2; or a profile that was "
            "saved with -o."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Tell what differs from this one, which is named likewise.")
    ] = None,
    traits: Annotated[
        list[str] | None, typer.Option("--trait", "-t", help="Only this trait; may be given several times.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Public sets to ask as well: xstest, bfcl, in3, ifeval.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(min=1, help="Items of each set, at most; of public ones 60 unless told.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Answers to each item; more than one are drawn at temperature 0.7.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.json", help="Save the profile.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Draw the profile, or what differs from --against.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Check the scoring rules instead, against public labels in --data.")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask MODEL there instead, over OpenAI's protocol.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help="With --endpoint: what names its weights. Answers are kept and reused under it only."),
    ] = None,
    renderer: RendererOption = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how a model behaves: refusal, length, tools, calibration, asking back, tone, sycophancy, honesty, language.

    Each figure has its number of items, its 95 % interval and its caveats. What was asked before is read from the
    ledger and not asked again.
    """
    from metier.base.errors import ConfigError

    if validate:
        _validate(data, as_json)
        return
    if model is None:
        raise ConfigError("name the model to profile, or check the scoring rules with --validate")
    if identity is not None and endpoint is None:
        raise ConfigError("--identity names weights behind an endpoint; those of a model here are known by their hash")
    from metier.evaluate.profile.figures import changes
    from metier.evaluate.profile.registry import choose
    from metier.evaluate.profile.run import Wanted

    probes = choose(traits or [])  # a wrong name is told before a model is loaded
    wanted = Wanted(seed=seed, repeats=repeats, items=items, data=data)
    made = [
        _only(traits, _profiled(name, probes, wanted, place, identity, renderer, dtype, ledger))
        for name, place in ((model, endpoint), (against, None))
        if name is not None
    ]
    mine, other = made[0], made[1] if len(made) > 1 else None
    found = [] if other is None else changes(mine, other)
    if out is not None:
        _write(out, json.dumps(mine.to_json(), ensure_ascii=False, indent=1) + "\n")
    if picture is not None:
        from metier.report.profile import page

        _write(picture, page(mine, other))
    if as_json:
        told: dict[str, Any] = {"profile": mine.to_json()}
        if other is not None:
            told |= {"against": other.to_json(), "changes": [one.to_json() for one in found]}
        print(json.dumps(told, ensure_ascii=False))
        return
    _print(mine, other, found)


def _profiled(
    name: str,
    probes: Sequence[Probe],
    wanted: Wanted,
    endpoint: str | None,
    identity: str | None,
    renderer: str,
    dtype: str,
    ledger: str | None,
) -> Profiled:
    """A saved profile, or one made now."""
    from metier.base.errors import DataError
    from metier.cli.evaluate import as_known, measured_model
    from metier.cli.find import new_ledger
    from metier.evaluate.profile.figures import from_json
    from metier.evaluate.profile.run import make_profile

    if name.endswith(".json") and endpoint is None:
        try:
            given = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"the saved profile {name} cannot be read: {error}") from error
        return from_json(given, name)

    def told(probe: Probe, done: int, total: int, seconds: float) -> None:
        typer.echo(f"{probe.name}: {done} of {total} traits after {seconds:.0f} s", err=True)

    with (
        new_ledger(ledger) as records,
        measured_model(name, endpoint, (), identity, renderer, dtype, ledger) as opened,
    ):
        return make_profile(records, as_known(records, opened, name), probes, wanted, on_trait=told)


def _only(traits: Sequence[str] | None, profiled: Profiled) -> Profiled:
    """These traits alone of a profile that was saved with more; all unless told."""
    from dataclasses import replace

    if not traits:
        return profiled
    return replace(
        profiled,
        figures=tuple(one for one in profiled.figures if one.trait in traits),
        details={trait: found for trait, found in profiled.details.items() if trait in traits},
    )


def _write(path: Path, text: str) -> None:
    from metier.base.files import write_whole

    write_whole(path, text)
    typer.echo(f"written {path}", err=True)


def _print(mine: Profiled, other: Profiled | None, found: list[Change]) -> None:
    from itertools import groupby

    from rich.console import Console
    from rich.table import Table

    from metier.report.profile import summary

    print(f"{mine.model}" + (f" against {other.model}" if other is not None else ""))
    if mine.seconds:
        print(f"{mine.suite}, seed {mine.seed}, {mine.repeats} answers to an item, {mine.seconds:.0f} s")
    by_name = {one.figure.name: one for one in found}
    table = Table(box=None, pad_edge=False)
    for column in ("measure", mine.model[:24], "95 % interval", "n"):
        table.add_column(column, no_wrap=True, justify="left" if column == "measure" else "right")
    if other is not None:
        for column in (other.model[:24], "difference", "95 % interval", "sure?"):
            table.add_column(column, no_wrap=True, justify="left" if column == "sure?" else "right")
    for title, group in groupby(mine.figures, key=lambda one: one.title):
        table.add_row(f"[bold]{title}[/bold]")
        for one in group:
            table.add_row(f"  {one.label}", *_cells(one), *(_changed(by_name.get(one.name)) if other else ()))
    Console(highlight=False, width=200).print(table)
    for trait, details in mine.details.items():
        for way, row in details.items():
            if row.get("n"):
                null = row["ece_null"]
                print(
                    f"{trait}, {way}: ECE {row['ece']:.3f} where chance alone gives {null['mean']:.3f} "
                    f"[{null['low']:.3f}, {null['high']:.3f}], n {row['n']}"
                )
    for figure in mine.figures:
        if figure.caveats:
            print(f"{figure.name}: {'; '.join(figure.caveats)}")
    if other is not None:
        print(summary(found))


def _cells(one: Figure) -> tuple[str, str, str]:
    from metier.report.profile import span, written

    return (
        written(one.value, one.unit),
        span(one.low, one.high, one.unit),
        f"{one.n}" + (f" of {one.n + one.unscored}" if one.unscored else ""),
    )


def _changed(one: Change | None) -> tuple[str, ...]:
    from metier.report.profile import difference, span, written

    if one is None:
        return ()
    unit = one.figure.unit
    return written(one.other.value, unit), difference(one.diff, unit), span(one.low, one.high, unit), one.verdict


def _validate(data: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from metier.evaluate.profile.registry import PROBES
    from metier.evaluate.profile.validation import validate
    from metier.report.wording import percent

    checks = validate(data)
    if as_json:
        print(json.dumps([asdict(one) for one in checks], ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("rule", "on", "what", "n", "share", "95 % interval"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("n", "share", "95 % interval") else "left")
    for one in checks:
        table.add_row(
            one.rule, one.on, one.what, str(one.n), percent(one.value), f"{percent(one.low)} to {percent(one.high)}"
        )
    Console(highlight=False, width=200).print(table)
    for probe in PROBES:
        print(f"{probe.name}: {probe.validation}")
    if data is None:
        typer.echo("on our own examples only; name a folder of public sets with --data", err=True)
