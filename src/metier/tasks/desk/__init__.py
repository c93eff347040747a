"""The desk: a service desk with records, a written policy, tools and a scripted user."""

from __future__ import annotations

from metier.tasks.desk.family import DeskFamily

__all__ = ["DeskFamily"]
