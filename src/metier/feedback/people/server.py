"""The labelling page over HTTP: one queue, several people, each by a link of their own.

Scripts and styles are our own files and nothing else may run: the content security policy admits
no inline script, so what a model wrote could not run even if it got past the escaping. A change
needs the cookie of a link and the token of a page (see `access.py`), is at most 4 MB, and
is answered only when it is in the ledger. Where ledger or disk fail, the answer is 503 with the reason;
the page keeps what it has and sends it again.

Behind a login proxy, `user_header` names the header in which the proxy says who it is. Whoever
can reach this server past the proxy can then be anybody: let only the proxy reach it, and let it
strip that header from what comes in.

Left out: TLS, passwords, and anything that sends links to people.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NoReturn
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from markupsafe import Markup
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metier.base.errors import DataError, MetierError
from metier.base.ids import content_hash
from metier.feedback.people import views
from metier.feedback.people.access import Person, RateLimit, clean_name
from metier.feedback.people.labelling import Labelling
from metier.feedback.people.results import as_csv, as_jsonl, results

__all__ = ["make_app"]

_LARGEST = 4_000_000  # bytes of a request
_LONGEST_NAME = 80
_COOKIE_SECONDS = 30 * 24 * 3600
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}

Click = Annotated[str, Field(min_length=8, max_length=64)]
ItemId = Annotated[str, Field(min_length=1, max_length=500)]


class _Answer(BaseModel):
    item: ItemId
    click: Click
    answer: dict[str, Any]
    note: str = ""
    seconds: float = Field(default=0.0, allow_inf_nan=False)


class _Skip(BaseModel):
    item: ItemId
    click: Click
    why: str


class _Undo(BaseModel):
    click: Click


class _Draft(BaseModel):
    item: ItemId
    body: dict[str, Any]


class _Invite(BaseModel):
    name: str = Field(min_length=1, max_length=_LONGEST_NAME)
    role: str = Field(pattern="^(owner|labeller)$")


class _Revoke(BaseModel):
    id: str = Field(max_length=64)


def make_app(labelling: Labelling, *, url: str | None = None, user_header: str | None = None) -> FastAPI:
    """The application for one queue. `url` is where people reach it, where that is not the server itself."""
    site = _Site(labelling, url, user_header)
    app = FastAPI(title="metier label", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Guard, root=site.root)
    _label_routes(app, site)
    _owner_routes(app, site)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        found = views.asset(name)
        if found is None:
            raise HTTPException(404, "there is no such file")
        return Response(found[0], media_type=found[1])

    @app.get("/health")
    def health() -> dict[str, Any]:
        labelling.ping()
        return {"status": "ok", "queue": labelling.queue.key}

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _told(request, error.status_code, str(error.detail), site.root)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _told(request, 422, f"{where}: {first['msg']}", site.root)

    @app.exception_handler(MetierError)
    async def failed(request: Request, error: MetierError) -> Response:
        return _told(request, 422 if isinstance(error, DataError) else 503, str(error), site.root)

    return app


class _Site:
    """One queue as a site: who a request comes from, and what is put on their screen."""

    def __init__(self, labelling: Labelling, url: str | None, user_header: str | None) -> None:
        self.labelling = labelling
        self.links = labelling.links
        self.url = url
        self.root = urlsplit(url).path.rstrip("/") if url else ""
        self._user_header = user_header
        self._cookie = f"metier-{content_hash(labelling.queue.key, length=10)}"
        self._often, self._strangers = RateLimit(20.0, 200), RateLimit(1.0, 40)

    def who(self, request: Request) -> Person:
        """The person of a request. Raises 401 for a stranger, 429 for who comes too often."""
        named = self._named if self._user_header else self._session_of
        person = named(request)
        if person is None:
            self.stranger(request, "this page is open to people with a link; ask whoever invited you for a new one")
        if not self._often.allows(person.id):
            raise HTTPException(429, "too many requests; this goes on in a moment")
        return person

    def changing(self, request: Request) -> Person:
        """The person of a change that comes from a page of this server."""
        person, mine = self.who(request), self._session_of(request)
        session = request.cookies.get(self._cookie, "")
        token = request.headers.get("x-metier-token", "")
        if (
            mine is None
            or mine.id != person.id
            or not self.links.is_csrf(session, token)
            or request.headers.get("sec-fetch-site") == "cross-site"
        ):
            raise HTTPException(403, "this change did not come from the page; load the page again")
        return person

    def stranger(self, request: Request, why: str) -> NoReturn:
        """Turn away somebody who has proven nothing."""
        client = request.client.host if request.client else ""
        if not self._strangers.allows(client):
            raise HTTPException(429, "too many attempts; wait a minute")
        raise HTTPException(401, why)

    def whole_page(self, request: Request, person: Person, name: str, **values: Any) -> Response:
        """A page for a person, and a session where they have none yet: the proxy said who they are."""
        mine, queue = self._session_of(request), self.labelling.queue
        fresh = mine is None or mine.id != person.id
        session = self.links.session(person) if fresh else request.cookies[self._cookie]
        token = self.links.csrf(session)
        known = {"base": self.root, "queue": queue, "question": queue.question, "person": person, "token": token}
        response = HTMLResponse(views.page(name, **known, **values))
        if fresh:
            self.sign_in(request, response, session)
        return response

    def sign_in(self, request: Request, response: Response, session: str) -> None:
        """Set the cookie of a session."""
        response.set_cookie(
            self._cookie,
            session,
            max_age=_COOKIE_SECONDS,
            path=self.root or "/",
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https" or (self.url or "").startswith("https:"),
        )

    def view(self, person: Person) -> dict[str, Any]:
        """What the page puts on the screen: the item, and how far this person is."""
        shown, store = self.labelling.shown(person.name), self.labelling.store
        done = store.done(person.name)
        left = store.left(person.name) + (shown is not None)
        progress = {"done": done, "left": left, "undo": store.can_undo(person.name)}
        if shown is None:
            return {"item": None, "html": views.page("done", done=done), **progress}
        html = views.item_html(shown, self.labelling.queue, self.root)
        return {"item": shown.slot.item, "html": html, "answer": shown.answer, "draft": shown.draft, **progress}

    def saved(self, person: Person) -> dict[str, Any]:
        """What follows a change that is kept: the next item, where it can be read."""
        try:
            return {"saved": True, "view": self.view(person)}
        except MetierError:
            return {"saved": True, "view": None}

    def panel(self, request: Request, person: Person) -> str:
        """What the owner sees of progress and people."""
        people = [one for one in self.links.everybody() if one.revoked_at is None]
        base = (self.url or str(request.base_url)).rstrip("/")
        found = results(self.labelling)
        return views.page(
            "panel",
            results=found,
            people=people,
            gone=[w for w in found.workers if w.name not in {one.name for one in people}],
            workers={worker.name: worker for worker in found.workers},
            urls={one.id: f"{base}/join/{self.links.token(one)}" for one in people},
            me=person.id,
            question=self.labelling.queue.question,
            gold=len(self.labelling.queue.gold),
        )

    def _session_of(self, request: Request) -> Person | None:
        return self.links.by_session(request.cookies.get(self._cookie, ""))

    def _named(self, request: Request) -> Person | None:
        """Who the proxy says it is; somebody new is a labeller."""
        try:
            name = clean_name(request.headers.get(self._user_header or "", ""))
        except DataError:
            return None
        known = [one for one in self.links.everybody() if one.name == name]
        if known and known[-1].revoked_at is not None:
            return None
        return known[-1] if known else self.links.invite(name, "labeller")


def _label_routes(app: FastAPI, site: _Site) -> None:
    labelling = site.labelling

    @app.get("/join/{token}")
    def join(request: Request, token: str) -> Response:
        person = site.links.by_token(token)
        if person is None:
            site.stranger(request, "this link does not open anything (any more); ask whoever invited you for a new one")
        response = RedirectResponse(f"{site.root}/", status_code=303)
        site.sign_in(request, response, site.links.session(person))
        return response

    @app.get("/")
    def label(request: Request) -> Response:
        return site.whole_page(request, site.who(request), "page")

    @app.get("/item")
    def item(request: Request) -> dict[str, Any]:
        return site.view(site.who(request))

    @app.post("/answer")
    def answer(request: Request, sent: _Answer) -> dict[str, Any]:
        person = site.changing(request)
        labelling.answer(person.name, sent.item, sent.answer, sent.click, note=sent.note, seconds=sent.seconds)
        return site.saved(person)

    @app.post("/skip")
    def skip(request: Request, sent: _Skip) -> dict[str, Any]:
        person = site.changing(request)
        labelling.skip(person.name, sent.item, sent.why, sent.click)
        return site.saved(person)

    @app.post("/undo")
    def undo(request: Request, sent: _Undo) -> dict[str, Any]:
        person = site.changing(request)
        labelling.undo(person.name, sent.click)
        return site.saved(person)

    @app.post("/draft")
    def draft(request: Request, sent: _Draft) -> dict[str, Any]:
        labelling.draft(site.changing(request).name, sent.item, sent.body)
        return {"saved": True}

    @app.get("/whole/{place}/{turn}")
    def whole(request: Request, item: str, place: int, turn: int) -> Response:
        content = labelling.whole(site.who(request).name, item, place, turn)
        name = f"{re.sub('[^A-Za-z0-9]+', '-', item)[:60]}-{place}-{turn}.txt"
        return _download(content, "text/plain", name)


def _owner_routes(app: FastAPI, site: _Site) -> None:
    labelling = site.labelling

    @app.get("/owner")
    def owner(request: Request) -> Response:
        person = _owner(site.who(request))
        return site.whole_page(request, person, "owner", panel=Markup(site.panel(request, person)))

    @app.get("/owner/panel")
    def panel(request: Request) -> Response:
        return HTMLResponse(site.panel(request, _owner(site.who(request))))

    @app.post("/owner/invite")
    def invite(request: Request, sent: _Invite) -> dict[str, Any]:
        _owner(site.changing(request))
        site.links.invite(clean_name(sent.name), sent.role)
        return {"saved": True}

    @app.post("/owner/revoke")
    def revoke(request: Request, sent: _Revoke) -> dict[str, Any]:
        if sent.id == _owner(site.changing(request)).id:
            raise DataError("this is your own link; ask another owner to revoke it")
        site.links.revoke(sent.id)
        return {"saved": True}

    @app.get("/owner/labels.csv")
    def labels(request: Request) -> Response:
        _owner(site.who(request))
        return _download(as_csv(labelling), "text/csv", f"{labelling.queue.name}-labels.csv")

    @app.get("/owner/feedback.jsonl")
    def feedback(request: Request) -> Response:
        _owner(site.who(request))
        return _download(as_jsonl(labelling), "application/x-ndjson", f"{labelling.queue.name}-feedback.jsonl")


def _owner(person: Person) -> Person:
    if person.role != "owner":
        raise HTTPException(403, "this page is for the owner of the queue")
    return person


def _told(request: Request, status: int, why: str, base: str) -> Response:
    """A refusal: as a page where a person looks, else as JSON."""
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(views.page("refused", base=base, status=status, why=why), status, headers)
    return JSONResponse({"error": why}, status, headers)


def _download(text: str, media: str, name: str) -> Response:
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
    return Response(text.encode("utf-8", "replace"), media_type=f"{media}; charset=utf-8", headers=headers)


class _Guard:
    """Headers that keep a page to itself, on every answer; and no request larger than the largest.

    Paths may come with the proxy's part of them, `root`, or without.
    """

    def __init__(self, app: ASGIApp, root: str) -> None:
        self._app = app
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        if self._root and scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root)}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        length = dict(scope["headers"]).get(b"content-length")
        chunked = scope["method"] == "POST" and length is None
        if chunked or (length is not None and (not length.isdigit() or int(length) > _LARGEST)):
            why = {"error": f"a request may have {_LARGEST // 1_000_000} MB, and must say its length"}
            await JSONResponse(why, 413)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)
