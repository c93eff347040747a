"""Forgetting a record, a source or a person: what they said goes, that they said it stays.

`forget` finds the records that are meant, and what quotes them; erases all of it; and marks
every dataset that holds any of it, and every checkpoint trained on one, in one transaction.
A person or a source is forgotten for good: a mark keeps the name, and later imports leave
out what it says.

A *person* is who gave feedback under that name, and who is the user of conversations that
were imported (`meta.user` of an episode). A *source* is anything else that gave feedback
under a name (a verifier, a judge, an app), or one version of it (`NAME@VERSION`).

What stays: ids, and the names of sources, which say who spoke; name people by something
that only you can resolve. Checkpoint folders and reports are named by the marks, not
deleted; exports are written anew (`exporting.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.ledger import Ledger
from metier.records.lineage import Reach, kind_of, reach
from metier.records.rows import mark, mark_stale, rows_among
from metier.records.types import Source

__all__ = ["FORGOTTEN", "Target", "forget", "forgotten", "names_of", "target", "users_of"]

FORGOTTEN = "forgotten"  # the mark of a person or source
_USERS = ("user", "user_id", "userId")  # where imported traces keep whose conversation it was


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be forgotten."""

    kind: str  # task, episode or feedback; person or source
    name: str
    members: dict[str, list[str]] = field(default_factory=dict)  # ids by kind of record


def target(connection: Connection, text: str) -> Target:
    """What `text` means: a record's id, `person:NAME`, `source:NAME[@VERSION]`, or a name that is only one of these.

    Raises `LedgerError` where it is nothing, or more than one thing.
    """
    prefix, _, name = text.partition(":")
    if prefix == "person" and name:
        found = [_person(connection, name)]
    elif prefix == "source" and name:
        found = [_source(connection, name)]
    else:
        kind = kind_of(connection, text)
        if kind is not None:
            return Target(kind, text, {kind: [text]})
        found = [_person(connection, text), _source(connection, text)]
    found = [one for one in found if any(one.members.values())]
    if not found:
        raise LedgerError(
            f"there is no record, person or source {text!r} in the ledger; nothing was done: give a record's id,"
            " person:NAME or source:NAME"
        )
    if len(found) > 1:
        raise LedgerError(f"{text!r} is a person and another source; say person:{text} or source:{text}")
    return found[0]


def forget(ledger: Ledger, text: str, *, why: str) -> Reach:
    """Erase what is meant and what quotes it, and mark as stale all that it reached.

    Forgetting again changes nothing and names the same reach.
    """
    with ledger.writing() as connection:
        meant = target(connection, text)
        reached = reach(connection, meant.name, meant.kind, meant.members)
        ledger.erase_in(connection, reached.records, why=why)
        what = meant.name if meant.kind in schema.PAYLOADS else f"{meant.kind} {meant.name}"
        mark_stale(connection, (*reached.datasets, *reached.checkpoints), [f"{what} was forgotten: {why}"])
        if meant.kind not in schema.PAYLOADS:
            mark(connection, [f"{meant.kind}:{meant.name}"], FORGOTTEN, why)
    ledger.scrub()
    return reached


def forgotten(connection: Connection) -> set[str]:
    """Who was forgotten, as `person:NAME`, `source:NAME` or `source:NAME@VERSION`."""
    query = select(schema.marks.c.record_id).where(schema.marks.c.mark == FORGOTTEN)
    return set(connection.execute(query).scalars())


def names_of(source: Source) -> set[str]:
    """The names under which a source may have been forgotten."""
    if source.kind == "person":
        return {f"person:{source.name}"}
    return {f"source:{source.name}", f"source:{source.name}@{source.version}"}


def users_of(meta: Mapping[str, Any]) -> set[str]:
    """Those of the user of a conversation with this metadata."""
    return {f"person:{meta[key]}" for key in _USERS if meta.get(key) is not None}


def _person(connection: Connection, name: str) -> Target:
    sorts = schema.feedback_sorts
    query = select(sorts.c.seq).where(sorts.c.source_name == name, sorts.c.source_kind == "person")
    said = _of_sorts(connection, list(connection.execute(query).scalars()))
    return Target("person", name, {"feedback": said, "episode": _spoken_by(connection, name)})


def _source(connection: Connection, name: str) -> Target:
    """A source by its name, or by name and version where no source has the whole text for a name."""
    sorts = schema.feedback_sorts
    of_sources = select(sorts.c.seq).where(sorts.c.source_kind != "person")
    numbers = list(connection.execute(of_sources.where(sorts.c.source_name == name)).scalars())
    if not numbers and "@" in name:
        bare, _, version = name.rpartition("@")
        query = of_sources.where(sorts.c.source_name == bare, sorts.c.source_version == version)
        numbers = list(connection.execute(query).scalars())
    return Target("source", name, {"feedback": _of_sorts(connection, numbers)})


def _of_sorts(connection: Connection, numbers: list[int]) -> list[str]:
    query = select(schema.feedback.c.id).order_by(schema.feedback.c.seq)
    return [row.id for row in rows_among(connection, query, schema.feedback.c.sort, numbers)]


def _spoken_by(connection: Connection, name: str) -> list[str]:
    """Episodes whose user this was. Their payloads are searched as text first, so that few are read."""
    table, payload = schema.episodes, schema.episode_payloads
    written = json.dumps(name)[1:-1]  # a user who is a number has no quotation marks
    query = select(table.c.id, payload.c.body).join(payload, payload.c.seq == table.c.seq)
    query = query.where(payload.c.body.contains(written, autoescape=True)).order_by(table.c.seq)
    found = []
    for row in connection.execute(query):
        if f"person:{name}" in users_of(json.loads(row.body).get("meta", {})):
            found.append(row.id)
    return found
