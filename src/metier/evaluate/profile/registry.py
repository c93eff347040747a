"""The traits, in the order in which they are asked and shown."""

from __future__ import annotations

from collections.abc import Sequence

from metier.base.config import did_you_mean
from metier.base.errors import ConfigError
from metier.evaluate.profile import (
    adherence,
    asking,
    calibration,
    consistency,
    honesty,
    language,
    refusal,
    sycophancy,
    tone,
    tool_confidence,
    verbosity,
)
from metier.evaluate.profile.probe import Probe

__all__ = ["PROBES", "choose"]

PROBES: tuple[Probe, ...] = (
    refusal.PROBE,
    verbosity.PROBE,
    tool_confidence.PROBE,
    calibration.PROBE,
    asking.PROBE,
    tone.PROBE,
    sycophancy.PROBE,
    honesty.PROBE,
    consistency.PROBE,
    adherence.PROBE,
    language.PROBE,
)


def choose(names: Sequence[str]) -> tuple[Probe, ...]:
    """The traits of these names, in their own order; all where none is named. Raises `ConfigError`."""
    known = [probe.name for probe in PROBES]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(f"there is no trait {name!r}{near or '.'} Traits are {', '.join(known)}")
    return tuple(probe for probe in PROBES if not names or probe.name in names)
