"""`metier stats`: statistics of files, whoever made them: scores, forecasts, labels and judgements."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from metier.cli.runs import JsonOption, LedgerOption
from metier.cli.sources import aggregate_labels, agreement, ppi
from metier.cli.tables import read_rows, tell_skipped

__all__ = ["stats_app"]

stats_app = typer.Typer(
    name="stats",
    help="Statistics of files: scores, forecasts, labels of many people, judgements.",
    no_args_is_help=True,
)


@stats_app.callback()
def _root() -> None:
    pass


@stats_app.command("compare")
def compare_scores(
    a: Annotated[str, typer.Argument(help="Scores by item: JSON lines or CSV, an Inspect or lm-eval log, or a run.")],
    b: Annotated[str, typer.Argument(help="The same of what A is compared with.")],
    cluster: Annotated[
        str | None, typer.Option(metavar="FIELD", help="The field that groups items whose scores move together.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="The score to compare where there are several: field, metric or scorer.")
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations on the items that both have, paired; diff is A minus B.

    Scores of the same id are repeats and averaged first. Of a run, the last evaluation is taken, or RUN:STAGE, or
    RUN:STAGE:SPLIT.
    """
    from metier.cli.scores import read_scores
    from metier.stats.compare import compare
    from metier.stats.paired import joint_clusters

    one, two = (read_scores(name, cluster=cluster, metric=metric, ledger=ledger) for name in (a, b))
    clusters = joint_clusters(one.clusters, two.clusters, (one.name, two.name))
    done = compare(one.by_item, two.by_item, clusters=clusters or None)
    found = done.paired
    notes = [*done.caveats, *(f"{side.name}: {note}" for side in (one, two) for note in side.notes)]
    if as_json:
        told = {
            "n": found.n,
            "mean_a": found.mean_a,
            "mean_b": found.mean_b,
            "diff": found.diff,
            "se_paired": found.se,
            "se_unpaired": done.se_unpaired,
            "ci95": None if found.low is None else [found.low, found.high],
            "p": found.p,
            "mcnemar_p": done.mcnemar_p,
            "mde": done.mde,
            "clusters": found.clusters,
            "only_a": done.only_a,
            "only_b": done.only_b,
            "left_out": found.left_out,
            "only_in_a": done.only_in_a,
            "only_in_b": done.only_in_b,
            "repeats": done.repeats,
            "unscored": done.unscored,
            "caveats": notes,
            "skipped": [{"file": side.name, **asdict(row)} for side in (one, two) for row in side.skipped],
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    span = "no interval" if found.low is None else f"[{found.low:+.4f}, {found.high:+.4f}]"
    print(f"A {found.mean_a:.4f}  B {found.mean_b:.4f}  difference {found.diff:+.4f}  {span}  (95 %, paired)")
    grouped = "" if found.clusters == found.n else f" in {found.clusters} clusters"
    print(f"{found.n} items{grouped}; " + ("no p" if found.p is None else f"p = {found.p:.4g}"))
    if found.se is not None and done.se_unpaired is not None:
        print(f"standard error {found.se:.4f} paired, {done.se_unpaired:.4f} if unpaired")
    if done.mcnemar_p is not None:
        print(f"right only in A {done.only_a}, only in B {done.only_b}; McNemar's exact p = {done.mcnemar_p:.4g}")
    if done.mde is not None:
        print(f"a difference of {done.mde:.4f} would be found four times out of five")
    if found.left_out:
        typer.echo(
            f"left out {found.left_out} items: {done.only_in_a} scored only in A, {done.only_in_b} only in B, "
            f"{found.left_out - done.only_in_a - done.only_in_b} in neither",
            err=True,
        )
    if done.repeats or done.unscored:
        typer.echo(
            f"{done.repeats} repeats of an id were averaged with it; {done.unscored} scores are missing", err=True
        )
    for note in notes:
        typer.echo(note, err=True)
    for side in (one, two):
        tell_skipped(side.name, side.skipped)


@stats_app.command("passk")
def passk(
    scores: Annotated[str, typer.Argument(help="Scores by item, with repeats under one id; as for compare.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many attempts.")],
    threshold: Annotated[float | None, typer.Option(help="Score from which on an attempt is a success.")] = None,
    metric: Annotated[str | None, typer.Option(help="The score to use where there are several.")] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how often one attempt succeeds, at least one of k (pass@k) and all of k (pass^k), without bias."""
    from metier.base.errors import DataError
    from metier.cli.scores import read_scores
    from metier.stats.repeats import passes

    if threshold is not None and not math.isfinite(threshold):
        raise DataError(f"a threshold of {threshold} parts no scores; give a number")
    read = read_scores(scores, metric=metric, ledger=ledger)
    by_item = read.by_item
    if threshold is not None:
        by_item = {
            item: [None if value is None else float(value >= threshold) for value in values]
            for item, values in by_item.items()
        }
    found = passes(by_item, k)
    if as_json:
        told = {
            "k": k,
            "pass@1": found.pass_1,
            "pass@k": found.pass_at_k,
            "pass^k": found.pass_all_k,
            "se_naive": found.se_naive,
            "se_clustered": found.se_clustered,
            "se_pass@k": found.se_at_k,
            "se_pass^k": found.se_all_k,
            "tasks": found.tasks,
            "attempts": found.attempts,
            "tasks_with_fewer_than_k": found.short,
            "unscored": found.unscored,
            "caveats": found.caveats,
            "notes": read.notes,
            "skipped": [asdict(row) for row in read.skipped],
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    errors = ["" if se is None else f"  (se {se:.4f})" for se in (found.se_clustered, found.se_at_k, found.se_all_k)]
    print(f"pass@1 {found.pass_1:.4f}{errors[0]}\npass@{k} {found.pass_at_k:.4f}{errors[1]}")
    print(f"pass^{k} {found.pass_all_k:.4f}{errors[2]}\n{found.attempts} attempts at {found.tasks} tasks")
    if found.se_naive:
        print(f"the error of pass@1 would be {found.se_naive:.4f} were attempts at one task independent")
    if found.short:
        typer.echo(f"{found.short} tasks have fewer than {k} attempts and count in pass@1 only", err=True)
    if found.unscored:
        typer.echo(f"{found.unscored} attempts are unscored and count nowhere", err=True)
    for note in (*found.caveats, *read.notes):
        typer.echo(note, err=True)
    tell_skipped(read.name, read.skipped)


@stats_app.command("calibration")
def calibration_of(
    forecasts: Annotated[Path, typer.Argument(help="Forecasts: p in [0, 1] and y, 0 or 1; JSON lines or CSV.")],
    as_json: JsonOption = False,
) -> None:
    """Tell whether probabilities can be believed: calibration and what chance makes of it, Brier, log score, AUROC."""
    from metier.base.errors import DataError
    from metier.stats.calibration import calibration
    from metier.stats.tables import number

    table = read_rows(forecasts, ("p", "y"))
    p, y = [], []
    for row in table.rows:
        try:
            pair = number(row.cells["p"]), number(row.cells["y"])
        except DataError as error:
            table.skip(row, str(error))
            continue
        if not 0 <= pair[0] <= 1 or pair[1] not in (0.0, 1.0):
            table.skip(row, "p lies in [0, 1] and y is 0 or 1")
            continue
        p.append(pair[0])
        y.append(pair[1])
    if not p:
        table.rows.clear()
    table.need("p in [0, 1] and y of 0 or 1")
    found = calibration(p, y)
    caveats = []
    if found.auroc is None:
        caveats.append(
            "all outcomes are the same, so nothing can be said of telling them apart: no AUROC, resolution 0"
        )
    if found.n < 100:
        caveats.append(f"{found.n} forecasts: calibration errors are mostly chance; compare with the null band")
    if found.clipped:
        caveats.append(
            f"{found.clipped} forecasts gave what happened a probability of (nearly) 0; the log score is clipped"
        )
    if as_json:
        told = {
            "n": found.n,
            "base_rate": found.base_rate,
            "mean_forecast": found.mean_forecast,
            "ece": found.ece,
            "ece_null": asdict(found.ece_null),
            "adaptive_ece": found.adaptive_ece,
            "adaptive_ece_null": asdict(found.adaptive_ece_null),
            "brier": found.brier,
            "reliability": found.split.reliability,
            "resolution": found.split.resolution,
            "uncertainty": found.split.uncertainty,
            "decomposition": f"brier = reliability - resolution + uncertainty, by {found.split.by}",
            "log_score": found.log_score,
            "auroc": found.auroc,
            "bins": [asdict(one) for one in found.bins],
            "caveats": caveats,
            "skipped": [asdict(row) for row in table.skipped],
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    for name, value, band in (
        ("ECE", found.ece, found.ece_null),
        ("adaptive ECE", found.adaptive_ece, found.adaptive_ece_null),
    ):
        print(f"{name} {value:.4f}; by chance alone {band.mean:.4f} [{band.low:.4f}, {band.high:.4f}]")
    split = found.split
    print(
        f"Brier {found.brier:.4f} = reliability {split.reliability:.4f} - resolution {split.resolution:.4f} "
        f"+ uncertainty {split.uncertainty:.4f}  (by {split.by})"
    )
    told_apart = "none" if found.auroc is None else f"{found.auroc:.4f}"
    print(f"log score {found.log_score:.4f}  AUROC {told_apart}")
    print(f"{found.n} forecasts of {found.mean_forecast:.3f} on average; {found.base_rate:.3f} happened")
    for caveat in caveats:
        typer.echo(caveat, err=True)
    tell_skipped(table.name, table.skipped)


stats_app.command("aggregate")(aggregate_labels)
stats_app.command("agreement")(agreement)
stats_app.command("ppi")(ppi)
