"""Who may do what: links that can be revoked, sessions, and limits on how often.

A link names a person by a random id and is signed with a key that is made once and lies with
the assignments; so it can be printed again at any time, and nobody can make one up. Opening
it sets a cookie, signed for this queue alone, that says no more than the link did; whether
the person may still come is looked up with every request. A change needs, beside the cookie,
a token that only a page of this server knows (`csrf`).

Does not protect: a link that its owner gives away; who holds it is that person until it is revoked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, select, update

from metier.base.clock import monotonic, now
from metier.base.errors import DataError
from metier.feedback.people.tables import LabelDatabase, keys, people

__all__ = ["Links", "Person", "RateLimit", "clean_name"]

_MOST_KEYS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who was given a link."""

    id: str
    name: str
    role: str  # owner or labeller
    created_at: float
    revoked_at: float | None = None


class Links:
    """The people of one queue, and what proves who they are."""

    def __init__(self, database: LabelDatabase) -> None:
        self._database = database
        self._queue = database.queue
        self._key = self._secret()

    # --- people ------------------------------------------------------------------------

    def invite(self, name: str, role: str) -> Person:
        """A link for this name; the one that there is, where it stands and has this role."""
        with self._database.writing() as connection:
            for person in self._everybody(connection):
                if person.name == name and person.revoked_at is None:
                    if person.role == role:
                        return person
                    connection.execute(update(people).where(people.c.id == person.id).values(revoked_at=now()))
            new = Person(id=secrets.token_urlsafe(12), name=name, role=role, created_at=now())
            row = {"id": new.id, "queue": self._queue, "name": name, "role": role, "created_at": new.created_at}
            connection.execute(insert(people), row)
        return new

    def revoke(self, person_id: str) -> None:
        """Close a link; whoever uses it is out with the next request."""
        with self._database.writing() as connection:
            mine = and_(
                people.c.id == person_id,
                people.c.queue == self._queue,
                people.c.revoked_at.is_(None),
            )
            connection.execute(update(people).where(mine).values(revoked_at=now()))

    def person(self, person_id: str) -> Person | None:
        """Who has this link, where it stands."""
        with self._database.reading() as connection:
            query = select(people).where(people.c.id == person_id, people.c.queue == self._queue)
            row = connection.execute(query).first()
        return None if row is None or row.revoked_at is not None else _person(row)

    def everybody(self) -> list[Person]:
        """All links, revoked ones too, in the order of making."""
        with self._database.reading() as connection:
            return self._everybody(connection)

    def _everybody(self, connection: Connection) -> list[Person]:
        query = select(people).where(people.c.queue == self._queue).order_by(people.c.created_at, people.c.id)
        return [_person(row) for row in connection.execute(query)]

    # --- proofs ------------------------------------------------------------------------

    def token(self, person: Person) -> str:
        """What stands in this person's link."""
        return f"{person.id}.{self._sign('link', person.id)}"

    def by_token(self, token: str) -> Person | None:
        """Who opens this link; None where it was made up or revoked."""
        return self._proven("link", token)

    def session(self, person: Person) -> str:
        """The value of a new cookie."""
        about = f"{person.id}~{secrets.token_urlsafe(9)}"
        return f"{about}.{self._sign('session', about)}"

    def by_session(self, cookie: str) -> Person | None:
        """Whose cookie this is; None where it was made up or its link revoked."""
        return self._proven("session", cookie)

    def csrf(self, session: str) -> str:
        """What a page of this session must send along with a change."""
        return self._sign("csrf", session)

    def is_csrf(self, session: str, token: str) -> bool:
        """Whether a change comes from a page of this session."""
        return hmac.compare_digest(self.csrf(session).encode(), token.encode())

    def _proven(self, purpose: str, given: str) -> Person | None:
        about, _, signature = given.rpartition(".")
        if not hmac.compare_digest(self._sign(purpose, about).encode(), signature.encode()):
            return None
        return self.person(about.partition("~")[0])

    def _sign(self, purpose: str, about: str) -> str:
        mac = hmac.new(self._key, "\x1f".join((purpose, self._queue, about)).encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()

    def _secret(self) -> bytes:
        """The key that signs links and sessions; made once."""
        with self._database.writing() as connection:
            value = connection.execute(select(keys.c.value).where(keys.c.name == "key")).scalar()
            if value is None:
                value = secrets.token_hex(32)
                connection.execute(insert(keys), {"name": "key", "value": value})
        return bytes.fromhex(value)


def clean_name(name: str) -> str:
    """A person's name without odd spaces. Raises `DataError` where nothing is left of it, or it cannot be read."""
    clean = " ".join(name.split())
    if not clean or not clean.isprintable() or len(clean) > 80:
        raise DataError(f"{name!r} is no name for a person; give 1 to 80 readable characters")
    return clean


class RateLimit:
    """A bucket of `burst` requests for each key, which fills by `per_second`."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._levels: dict[str, tuple[float, float]] = {}  # key -> requests left, when
        self._lock = threading.Lock()

    def allows(self, key: str) -> bool:
        """Whether one more request of this key is within the limit; it counts then."""
        at = monotonic()
        with self._lock:
            if len(self._levels) > _MOST_KEYS:
                self._levels.clear()
            left, since = self._levels.get(key, (float(self._burst), at))
            left = min(float(self._burst), left + (at - since) * self._per_second)
            self._levels[key] = (max(left - 1.0, 0.0) if left >= 1.0 else left, at)
        return left >= 1.0


def _person(row: Row[Any]) -> Person:
    return Person(id=row.id, name=row.name, role=row.role, created_at=row.created_at, revoked_at=row.revoked_at)
