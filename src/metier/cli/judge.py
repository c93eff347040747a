"""`metier judge`: responses or pairs out of a file, judged by a model; judges audited, revised by, and taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from metier.feedback.judges.judge import Mode

__all__ = ["judge"]


def judge(
    file: Annotated[
        Path | None, typer.Argument(help="Responses or pairs as JSON lines. - reads standard input.")
    ] = None,
    rubric: Annotated[str | None, typer.Option(help="A rubric's name or file; a reward model takes none.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, hub id or smollm2: a model that is asked, or a reward model.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask --model there instead, over OpenAI's protocol.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare pairs, in both orders.")] = False,
    expected: Annotated[
        bool, typer.Option("--expected", help="Read the probabilities of the verdicts instead of words.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where lines go; what it has already is kept. Else stdout.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="GOLD", help="Judge the judge, on labelled items that it never saw.")
    ] = None,
    teach: Annotated[
        str | None, typer.Option(metavar="KIND", help="Write labelled items as rows for metier train: sft or reward.")
    ] = None,
    revise: Annotated[
        str | None, typer.Option(metavar="CONSTITUTION", help="Mend responses under a constitution's name or file.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The most to spend, as usd=2,tokens=1e6,calls=500,seconds=600.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Items at once.")] = 8,
    store: Annotated[Path | None, typer.Option(help="Where answers and audits are kept; runs/judges.sqlite.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="temperature, max_tokens, seed or max_characters; 'endpoint.key=$VAR', …"
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the rubrics and constitutions that ship.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let a model judge: a line in, {"id", "prompt", "response"} or {"id", "prompt", "responses": [A, B]}; a line out.

    The same command continues a file that was stopped. With --audit it ends with exit code 1 where the judge is
    not fit to be a reward.
    """
    from metier.base.errors import ConfigError, DataError
    from metier.feedback.judges.budget import Budget, parse_limits
    from metier.feedback.judges.opening import open_judge
    from metier.feedback.judges.store import DEFAULT_STORE, Store

    mode: Mode = "compare" if compare else "score"
    if listed:
        _list(as_json)
        return
    if teach is not None:
        _teach(teach, mode, file, rubric, out)
        return
    if audit is None and file is None:
        raise DataError("name a file of items, or use --list or --audit GOLD")
    if model is None:
        raise ConfigError("name the judge's --model; with --endpoint, the model's name there")
    manner, of_endpoint = _settings(settings or [], expected)
    with Store(store or DEFAULT_STORE) as kept:
        judging = open_judge(
            model=None if endpoint else model,
            endpoint={"model": model, "base_url": endpoint, **of_endpoint} if endpoint else None,
            rubric=rubric,
            manner=manner,
            store=kept,
            budget=Budget(parse_limits(budget)) if budget else None,
        )
        try:
            if audit is not None:
                _audit(judging, mode, audit, None if endpoint else model, kept, jobs, as_json)
            else:
                assert file is not None
                _judge(judging, mode, file, out, revise, jobs, as_json)
        finally:
            judging.close()


def _settings(given: list[str], expected: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What --set says of the judge's manner, and of its endpoint."""
    from metier.base.errors import ConfigError

    manner: dict[str, Any] = {"expected": True} if expected else {}
    endpoint: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, for instance max_tokens=200; got {text!r}")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        place, name = (endpoint, key.removeprefix("endpoint.")) if key.startswith("endpoint.") else (manner, key)
        place[name] = read
    return manner, endpoint


def _judge(
    judging: Any, mode: Mode, file: Path, out: Path | None, revise: str | None, jobs: int, as_json: bool
) -> None:
    import sys

    from metier.base.errors import DataError
    from metier.feedback.judges.lines import judge_file
    from metier.feedback.judges.mending import revise_file

    if str(file) != "-" and not file.is_file():
        raise DataError(f"there is no file {file}")
    source = sys.stdin.buffer if str(file) == "-" else file.open("rb")
    with source:
        if revise is not None:
            counts = revise_file(judging, revise, source, out, sys.stdout.write, jobs=jobs)
        else:
            counts = judge_file(judging, mode, source, out, sys.stdout.write, jobs=jobs)
    if as_json and out is not None:
        print(json.dumps({**counts.to_json(), "judge": judging.name, "version": judging.version}))
    summary = f"{counts.lines} lines, {counts.unscored} unscored, {counts.tokens} tokens, {counts.usd:.4f} USD"
    summary += f", {counts.flips} flips" if mode == "compare" else ""
    typer.echo(summary + (f"; {counts.kept} were done before" if counts.kept else ""), err=True)
    for reason, count in counts.reasons.items():
        typer.echo(f"  unscored {count}: {reason}", err=True)


def _audit(judging: Any, mode: Mode, gold: Path, model: str | None, kept: Any, jobs: int, as_json: bool) -> None:
    from metier.feedback.judges.audit import audit, spelled
    from metier.feedback.judges.gold import read_gold
    from metier.feedback.judges.training import learned_by
    from metier.feedback.judges.trust import keep_audit

    known = None if model is None else learned_by(model)
    done = audit(judging, mode, read_gold(gold, mode), jobs=jobs, learned=known or frozenset())
    keep_audit(kept, judging, done)
    print(json.dumps(done.to_json(), ensure_ascii=False) if as_json else spelled(done))
    if done.fit != "fit":
        raise typer.Exit(1)


def _teach(kind: str, mode: Mode, file: Path | None, rubric: str | None, out: Path | None) -> None:
    from metier.base.errors import ConfigError
    from metier.feedback.judges.gold import read_gold
    from metier.feedback.judges.rubric import find_rubric
    from metier.feedback.judges.training import training_rows, write_rows

    if kind not in ("sft", "reward"):
        raise ConfigError(f"--teach writes rows for sft or reward, not {kind!r}")
    if file is None or out is None:
        raise ConfigError("--teach needs a file of labelled items and -o ROWS")
    gold = read_gold(file, mode)
    rows = training_rows(kind, mode, gold, rubric=None if rubric is None else find_rubric(rubric))  # type: ignore[arg-type]
    write_rows(out, rows, gold)
    typer.echo(f"{len(rows)} rows of {len(gold)} items; metier train {kind} --data {out} --out FOLDER", err=True)


def _list(as_json: bool) -> None:
    from metier.feedback.judges.rubric import find_constitution, find_rubric, packaged

    rubrics = [find_rubric(name) for name in packaged("rubrics")]
    laws = [find_constitution(name) for name in packaged("constitutions")]
    if as_json:
        found = {
            "rubrics": [{**one.model_dump(mode="json"), "hash": one.hash} for one in rubrics],
            "constitutions": [{**one.model_dump(mode="json"), "hash": one.hash} for one in laws],
        }
        print(json.dumps(found, ensure_ascii=False))
        return
    for one in rubrics:
        print(f"{one.name:<16} version {one.version} ({one.hash}): {one.question}")
    for law in laws:
        names = ", ".join(principle.name for principle in law.principles)
        print(f"{law.name:<16} version {law.version} ({law.hash}), a constitution: {names}")
