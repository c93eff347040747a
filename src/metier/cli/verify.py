"""`metier verify`: score responses out of a file, list the verifiers, or audit one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["verify"]


def verify(
    file: Annotated[
        Path | None,
        typer.Argument(help="Responses as JSON lines; with --audit, labelled cases. - reads standard input."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where verdicts go; what it has already is kept. Else stdout.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Verdicts at once.")] = 1,
    listed: Annotated[bool, typer.Option("--list", help="Show the verifiers with their parameters.")] = False,
    audit: Annotated[
        str | None, typer.Option(metavar="NAME", help="Measure a verifier's own errors, instead of using it.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --audit: use the cases that ship for this verifier.")
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file that registers verifiers.")] = None,
    sandbox: Annotated[
        str | None, typer.Option(help="auto, zygote, bubblewrap, docker:IMAGE or a service's URL, for code.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score any responses offline: a line in, {"id", "verifier": {"name", …}, "prompt"?, "response"}; a line out.

    The same command continues a file that was stopped. With --audit it ends with exit code 1 where the verifier is
    not fit to be a reward.
    """
    import os
    import sys

    from metier.base.errors import DataError
    from metier.base.plugins import import_file

    if sandbox is not None:
        from metier.sandbox.choose import open_sandbox
        from metier.sandbox.protocol import SandboxUnavailableError

        try:
            open_sandbox(sandbox).close()
        except SandboxUnavailableError as error:
            raise DataError(str(error)) from error
        os.environ["METIER_SANDBOX"] = sandbox
    for path in plugin or ():
        if not path.is_file():
            raise DataError(f"there is no plugin {path}")
        import_file(path, "plugin")
    if listed:
        _list(as_json)
    elif audit is not None:
        _audit(audit, like, file, jobs, as_json)
    elif file is None:
        raise DataError("name a file of responses, or use --list or --audit NAME")
    else:
        from metier.feedback.verify_file import verify_file

        if str(file) != "-" and not file.is_file():
            raise DataError(f"there is no file {file}")
        source = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        with source:
            counts = verify_file(source, out, sys.stdout.write, jobs=jobs)
        summary = f"{counts.lines} lines: {counts.passed} pass, {counts.scored - counts.passed} do not, "
        summary += f"{counts.unscored} unscored" + (f"; {counts.kept} were done before" if counts.kept else "")
        typer.echo(summary, err=True)
        for reason, count in counts.reasons.items():
            typer.echo(f"  unscored {count}: {reason}", err=True)


def _list(as_json: bool) -> None:
    from metier.feedback.verifiers.registry import get_verifier, names

    found = {name: dict(getattr(get_verifier(name), "parameters", {})) for name in names()}
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for name, parameters in found.items():
        print(name)
        for parameter, words in parameters.items():
            print(f"  {parameter}: {words}")


def _audit(name: str, like: str | None, file: Path | None, jobs: int, as_json: bool) -> None:
    from metier.base.errors import DataError
    from metier.feedback.audit.audit import audit, spelled
    from metier.feedback.audit.cases import read_cases

    if file is not None and not file.is_file():
        raise DataError(f"there is no file {file}")
    done = audit(name, read_cases(file) if file else None, jobs=jobs, like=like)
    print(json.dumps(done.to_json(), ensure_ascii=False) if as_json else spelled(done))
    if done.fit != "fit":
        raise typer.Exit(1)
