"""The desks, one file each; `load` reads a desk by name."""

from __future__ import annotations

import importlib

from metier.tasks.desk.spec import Desk

__all__ = ["TRAIN_DESKS", "UNSEEN_DESKS", "load"]

TRAIN_DESKS = ("shop", "library")
UNSEEN_DESKS = ("clinic", "hotel", "garage", "gym")


def load(name: str) -> Desk:
    """The desk of that name."""
    desk = importlib.import_module(f"metier.tasks.desk.desks.{name}").DESK
    assert isinstance(desk, Desk)
    return desk
