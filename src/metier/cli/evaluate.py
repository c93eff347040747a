"""`metier evaluate`: a model on suites of tasks, with repeats, budgets and results that are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import JsonOption, LedgerOption
from metier.cli.serve import RendererOption

if TYPE_CHECKING:
    from metier.evaluate.evaluation import Baseline, Evaluation, Measured
    from metier.records.ledger import Ledger

__all__ = ["as_known", "evaluate", "measured_model"]

COLUMNS = ("suite", "n", "mean", "95 % interval", "unscored", "tokens", "seconds")


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a checkpoint's id or the start of one, a run, a hub id, or smollm2; with --endpoint, the "
            "model's name there."
        ),
    ],
    suites: Annotated[
        list[str], typer.Argument(metavar="SUITE...", help="A suite's file, family:split, or a .jsonl of tasks.")
    ],
    repeats: Annotated[int | None, typer.Option(min=1, help="Attempts at each task; the suite's unless told.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=1, help="Tasks of each suite, instead of its own number.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the samples there, as metier stats and gate read them.")
    ] = None,
    inspect_logs: Annotated[
        Path | None,
        typer.Option("--inspect", metavar="FOLDER", help="Write a log of each suite there, for inspect view."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of all suites, e.g. sampling.temperature=0.7 or budget.tokens=1e6; 'endpoint.key=$VAR', …",
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask MODEL there instead, over OpenAI's protocol.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help="With --endpoint: what names its weights. Results are kept and reused under it only."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Try once more what failed: network, engine, tools.")] = False,
    against: Annotated[
        str | None, typer.Option(metavar="SCORES", help="Samples of a baseline, to tell whether this is better.")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="With --against: end as soon as that is decided.")] = False,
    margin: Annotated[
        float | None, typer.Option(help="With --stop: within this difference the two are equivalent.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file that registers tools, verifiers or families.")
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Episodes between two savings.")] = 128,
    workers: Annotated[int, typer.Option(min=1, help="Verdicts at once.")] = 1,
    renderer: RendererOption = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on suites: success with its clustered interval, what was unscored and why, and what it took.

    The same command goes on after a stop, and reuses what was measured with the same weights, template, sampling,
    seed, tasks and verifiers.
    """
    from metier.base.errors import ConfigError, DataError
    from metier.base.plugins import import_file
    from metier.cli.find import new_ledger
    from metier.evaluate.declared import read_suite

    for path in plugin or ():
        if not path.is_file():
            raise DataError(f"there is no plugin {path}")
        import_file(path, "plugin")
    if identity is not None and endpoint is None:
        raise ConfigError("--identity names weights behind an endpoint; those of a model here are known by their hash")
    if stop and against is None:
        raise ConfigError("--stop needs a baseline; name its samples with --against")
    if margin is not None and not stop:
        raise ConfigError("--margin belongs to --stop: it is the difference within which two are equivalent")
    of_endpoint, of_suites = _parted(settings or [])
    if of_endpoint and endpoint is None:
        raise ConfigError(f"{of_endpoint[0]} is of an endpoint; name one with --endpoint")
    of_suites += [f"repeats={repeats}"] if repeats is not None else []
    of_suites += [f"source.n={n}"] if n is not None else []
    read = [read_suite(text, overrides=of_suites) for text in suites]
    names = [one.suite.name for one in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two suites are called {twice!r}; evaluate them one after the other")
    if endpoint is not None and any(one.settings.sampling.top_k for one in read):
        raise ConfigError("an endpoint takes no sampling.top_k")
    baseline = _baseline(against, stop, margin, ledger) if against is not None else None
    done: list[Evaluation] = []
    with (
        new_ledger(ledger) as records,
        measured_model(model, endpoint, of_endpoint, identity, renderer, dtype, ledger) as opened,
    ):
        from metier.evaluate.evaluation import run_suite

        measured = as_known(records, opened, model)
        for wanted in read:
            done.append(
                run_suite(
                    records,
                    measured,
                    wanted,
                    seed=seed,
                    chunk=chunk,
                    again=again,
                    workers=workers,
                    against=baseline if stop else None,
                    on_chunk=_progress(wanted.suite.name),
                )
            )
        if inspect_logs is not None:
            for one in done:
                _write_inspect(inspect_logs, records, measured, one)
        told = {
            "model": measured.name,
            "identity": dict(measured.identity),
            "ledger": records.label,
            "suites": [{**one.to_json(), **_compared(one, baseline, stop)} for one in done],
        }
    if out is not None:
        _write_samples(out, done)
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(told)


def _parted(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """What --set says of the endpoint, and of the suites."""
    mine = [text for text in given if text.startswith("endpoint.")]
    return [text.removeprefix("endpoint.") for text in mine], [text for text in given if text not in mine]


@contextmanager
def measured_model(
    model: str,
    endpoint: str | None,
    of_endpoint: Sequence[str],
    identity: str | None,
    renderer: str,
    dtype: str,
    ledger: str | None,
) -> Iterator[Measured]:
    """The model that a person typed, ready to be asked; at `endpoint` where one is given."""
    from metier.evaluate.evaluation import Measured

    if endpoint is not None:
        from secrets import token_hex

        from metier.base.config import parse
        from metier.recipes.settings import EndpointSettings
        from metier.rollout.endpoint import EndpointPolicy

        given = parse(EndpointSettings, {"model": model, "base_url": endpoint}, of_endpoint, where="the endpoint")
        if identity is None:
            typer.echo(
                "the endpoint's weights are not known, so nothing is reused; name them with --identity", err=True
            )
        known = {"endpoint": model, "options": dict(given.options), "identity": identity or f"once-{token_hex(8)}"}
        with given.endpoint() as opened:
            yield Measured(name=model, identity=known, policy=EndpointPolicy(opened))
        return
    from metier.cli.serve import load_checkpoint
    from metier.feedback.judges.voice import weights_hash
    from metier.rollout.policy import EnginePolicy

    engine, render, _, name = load_checkpoint(model, renderer, dtype, ledger, 128)
    digest = weights_hash(engine.model)
    own = name.startswith("ckpt-")
    yield Measured(
        name=name if own else f"{name}@{digest[:12]}",
        identity={"weights": digest},
        policy=EnginePolicy(engine, render),
        checkpoint=name if own else None,
    )


def as_known(ledger: Ledger, measured: Measured, model: str) -> Measured:
    """The same, as the checkpoint of the ledger that it is, where a folder says which: what it learnt from is known."""
    from dataclasses import replace

    from metier.records import schema

    noted = Path(model) / "metier.json"
    if measured.checkpoint is not None or not noted.is_file():
        return measured
    own = str(json.loads(noted.read_text()).get("id") or "")
    return replace(measured, name=own, checkpoint=own) if ledger.known(schema.checkpoints, [own]) else measured


def _baseline(against: str, stop: bool, margin: float | None, ledger: str | None) -> Baseline:
    from metier.base.errors import ConfigError
    from metier.cli.scores import read_scores
    from metier.evaluate.evaluation import Baseline

    if margin is not None and not 0 < margin < 1:
        raise ConfigError(f"--margin is a difference of scores between 0 and 1, not {margin}")
    scores = read_scores(against, ledger=ledger).by_item
    values = (value for repeats in scores.values() for value in repeats if value is not None)
    outside = next((value for value in values if not 0 <= value <= 1), None)
    if stop and outside is not None:
        raise ConfigError(
            f"--stop compares successes, from 0 to 1, and {against} has a score of {outside}: divide its scores by "
            "their range, or leave --stop out"
        )
    return Baseline(scores=scores, margin=margin)


def _compared(one: Evaluation, baseline: Baseline | None, stop: bool) -> dict[str, Any]:
    """The paired difference to the baseline, where the evaluation did not stop by it."""
    from metier.stats.paired import paired

    if baseline is None or stop:
        return {}
    scores: dict[str, list[float | None]] = {}
    for row in one.samples:
        scores.setdefault(row.id, []).append(row.score)
    shared = {item: values for item, values in scores.items() if item in baseline.scores}
    theirs = {item: baseline.scores[item] for item in shared}
    found = paired(shared, theirs, clusters={row.id: row.cluster for row in one.samples})
    return {"against": {"n": found.n, "diff": found.diff, "low": found.low, "high": found.high, "p": found.p}}


def _progress(suite: str) -> Any:
    from metier.base.clock import monotonic

    began = monotonic()

    def told(done: int, total: int, episodes: Sequence[Any], feedback: Sequence[Any]) -> None:
        unscored = sum(row.value is None for row in feedback)
        more = f", {unscored} of the last {len(feedback)} verdicts unscored" if unscored else ""
        typer.echo(f"{suite}: {done} of {total} after {monotonic() - began:.0f} s{more}", err=True)

    return told


def _write_samples(out: Path, done: Sequence[Evaluation]) -> None:
    from metier.base.files import write_whole

    rows = [row.to_json() for one in done for row in one.samples]
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_inspect(folder: Path, ledger: Ledger, measured: Measured, done: Evaluation) -> None:
    from metier.base.files import write_whole
    from metier.evaluate.inspect_log import inspect_log, log_name

    log = inspect_log(ledger, done, model=measured.name)
    write_whole(folder / log_name(log), json.dumps(log, ensure_ascii=False, indent=1))


def _print(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from metier.report.wording import percent

    print(f"{told['model']}, in {told['ledger']}")
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True, justify="left" if column == "suite" else "right")
    for one in told["suites"]:
        span = "–" if one["low"] is None else f"{percent(one['low'])} to {percent(one['high'])}"
        table.add_row(
            f"{one['suite']} {one['version']}",
            str(one["n"]),
            percent(one["mean"]),
            span,
            str(one["unscored"]),
            f"{one['tokens']:,}",
            f"{one['seconds']:.1f}",
        )
    Console(highlight=False, width=200).print(table)  # only as wide as its cells; a cut figure is of no use
    for one in told["suites"]:
        print(f"{one['suite']}: {one['evaluation']}, {one['fresh']} new samples and {one['kept']} kept; ", end="")
        print(f"tasks {one['hash'][:12]}")
        for reason, count in one["reasons"].items():
            print(f"  unscored {count}: {reason}")
        print(_against(one.get("against")), end="")


def _against(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "outcome" in found:
        return f"  against the baseline: {found['outcome']}, after {found['clusters']} clusters\n"
    if found["diff"] is None:
        return "  against the baseline: no item is scored on both sides\n"
    span = "no interval" if found["low"] is None else f"[{found['low']:+.4f}, {found['high']:+.4f}]"
    return f"  against the baseline: {found['diff']:+.4f} {span} on {found['n']} tasks (95 %, paired)\n"
