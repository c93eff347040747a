"""The command line: one thin file per command, each calling what Python users call.

`main` turns every error that a user can mend into one message on stderr and exit code 2;
our own bugs stay tracebacks. Nothing heavy is imported before a command runs, so that
`metier --help` answers at once: torch, pydantic and the ledger are imported inside the
commands.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from metier.base.errors import MetierError

__all__ = ["main"]

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        return _invoke(arguments)
    except BrokenPipeError:
        # The reader went away (`metier runs list | head`): nothing to tell, and nobody to tell it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except MetierError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            "error: the disk is full; free some space and run the same command: it continues where it was",
            file=sys.stderr,
        )
        return USER_ERROR


def _invoke(arguments: Sequence[str] | None) -> int:
    from metier.cli.app import app

    try:
        app(args=None if arguments is None else list(arguments), prog_name="metier")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else USER_ERROR
        sys.stdout.flush()
        return code
    return 0
