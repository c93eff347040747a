"""`python -m metier` is `metier`."""

from __future__ import annotations

import sys

from metier.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
