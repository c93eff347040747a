"""`metier label` over HTTP: who may do what, what a page may do, and what happens when things break."""

from __future__ import annotations

import http.client
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelled import Client, Desk, free_port, pairs, write_queue
from metier.records.ledger import Ledger
from postgres import Server

pytest.importorskip("uvicorn", reason="the server is not installed: pip install 'metier[serve]'")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    queue = write_queue(folder, pairs(30), overlap=2)
    made = Desk(queue, folder / "ledger.sqlite", "--people", "3")
    yield made
    assert made.stop() == 0


def test_a_link_opens_a_session_that_scripts_cannot_read(shared: Desk) -> None:
    ada = shared.client("person-1")
    (cookie,) = ada.jar
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite") == "lax"
    assert not cookie.secure  # plain HTTP on this machine; TLS comes with a proxy
    assert ada.item()["item"] is not None


def test_strangers_see_nothing(shared: Desk) -> None:
    stranger = Client(shared.url)
    token = shared.links["person-1"].rpartition("/")[2]
    for path in (
        "/",
        "/item",
        "/owner",
        "/owner/panel",
        "/owner/labels.csv",
        "/owner/feedback.jsonl",
        "/whole/0/0?item=pair-0",
    ):
        assert stranger.ask(path)[0] == 401
    for forged in (token[:-1] + "x", token.partition(".")[0], "a.b", "é"):
        assert stranger.ask(f"/join/{forged if forged.isascii() else '%C3%A9'}")[0] == 401
    status, _, text = stranger.ask("/answer", {"item": "pair-0", "answer": {"choice": 0}, "click": "x" * 12})
    assert status == 401 and "pair" not in text
    assert stranger.ask("/health")[0] == 200
    assert stranger.ask("/static/label.js")[0] == 200
    assert stranger.ask("/static/../server.py")[0] in (401, 404) and stranger.ask("/docs")[0] == 404


def test_a_change_needs_the_token_of_a_page(shared: Desk) -> None:
    ada, bob = shared.client("person-1"), shared.client("person-2")
    item = ada.item()["item"]
    body = {"item": item, "answer": {"choice": 0}, "click": "c" * 12}
    for token in ("", "x", bob.token):
        assert ada.ask("/answer", body, {"x-metier-token": token})[0] == 403
    assert ada.ask("/answer", body, {"sec-fetch-site": "cross-site"})[0] == 403
    assert ada.ask("/answer", body, {"content-type": "text/plain"})[0] == 422  # what a form of elsewhere could send
    assert ada.item()["item"] == item


def test_a_labeller_is_no_owner(shared: Desk) -> None:
    ada = shared.client("person-1")
    for path in ("/owner", "/owner/panel", "/owner/labels.csv", "/owner/feedback.jsonl"):
        assert ada.ask(path)[0] == 403
    assert ada.ask("/owner/invite", {"name": "Eve", "role": "owner"})[0] == 403
    assert ada.ask("/owner/revoke", {"id": "anybody"})[0] == 403
    assert "/owner" not in ada.ask("/")[2]


def test_an_owner_makes_links_and_takes_them_back(shared: Desk) -> None:
    owner = shared.client("owner")
    assert owner.ask("/owner/invite", {"name": "  Zoë   Q ", "role": "labeller"})[0] == 200
    panel = owner.ask("/owner/panel")[2]
    row = panel.split("Zoë Q", 1)[1]
    link, person = row.split('data-copy="')[1].split('"')[0], row.split('data-revoke="')[1].split('"')[0]
    zoe = Client(shared.url, link)
    assert zoe.item()["item"]
    assert owner.ask("/owner/revoke", {"id": person})[0] == 200
    assert zoe.ask("/item")[0] == 401 and Client(shared.url).ask(link.removeprefix(shared.url))[0] == 401
    mine = panel.split('<th scope="row">owner')[1].split("</tr>")[0]
    assert "data-revoke" not in mine
    for name in ("", "  ", "x" * 81, "a\u202eb"):
        assert owner.ask("/owner/invite", {"name": name, "role": "labeller"})[0] == 422
    assert owner.ask("/owner/invite", {"name": "Al", "role": "god"})[0] == 422


def test_every_answer_is_kept_to_itself(shared: Desk) -> None:
    ada = shared.client("person-2")
    for path in ("/", "/item", "/static/label.js", "/nowhere", "/health"):
        headers = {name.lower(): value for name, value in ada.ask(path)[1].items()}
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store" and "server" not in headers
    page = ada.ask("/")[2]
    assert "<script>" not in page and " style=" not in page and " onclick" not in page


def test_what_is_no_answer_is_told(shared: Desk) -> None:
    ada = shared.client("person-3")
    item = ada.item()["item"]
    for body, status in [
        ({"item": item, "answer": {"choice": 7}, "click": "d" * 12}, 422),
        ({"item": "pair-none", "answer": {"choice": 1}, "click": "d" * 12}, 422),
        ({"item": item, "answer": {"choice": 1}, "click": "short"}, 422),
        ({"item": item, "answer": 1, "click": "d" * 12}, 422),
        ({"item": item, "answer": {"choice": 1}, "click": "d" * 12, "note": "x" * 4001}, 422),
        ({"item": item, "answer": {"choice": 1}, "click": "d" * 12, "seconds": "NaN"}, 422),
    ]:
        got, _, text = ada.ask("/answer", body)
        assert got == status and json.loads(text)["error"]
    assert ada.ask("/answer", b"{nonsense")[0] == 422
    assert ada.ask("/answer", b"[" * 100_000)[0] == 400
    assert ada.ask("/skip", {"item": item, "why": " ", "click": "d" * 12})[0] == 422
    assert ada.ask(f"/whole/7/0?item={item}")[0] == 422
    assert ada.ask("/whole/0/0?item=pair-29")[0] == 422  # not before this person
    assert ada.item()["item"] == item


def test_a_request_that_is_too_large_or_of_no_length_is_refused_before_it_is_read(shared: Desk) -> None:
    for length in ("4000001", "-1", "1e3", None):
        connection = http.client.HTTPConnection(shared.url.removeprefix("http://"), timeout=10)
        connection.putrequest("POST", "/answer")
        if length is None:
            connection.putheader("transfer-encoding", "chunked")
        else:
            connection.putheader("content-length", length)
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status in (400, 413)
        answer.read()
        connection.close()


def test_who_comes_too_often_waits(tmp_path: Path) -> None:
    with Desk(write_queue(tmp_path, pairs(1)), tmp_path / "ledger.sqlite") as desk:
        owner = desk.client("owner")
        found = [owner.ask("/draft", {"item": "pair-0", "body": {}})[:2] for _ in range(300)]
        refused = [headers for status, headers in found if status == 429]
        assert refused and refused[0]["retry-after"] == "1"
        guesses = [Client(desk.url).ask(f"/join/guess-{n}.{n}")[0] for n in range(60)]
        assert guesses[0] == 401 and guesses[-1] == 429
        time.sleep(1.5)
        assert owner.item()["item"]  # guesses do not shut out who has a link


def test_behind_a_login_proxy(tmp_path: Path) -> None:
    url = "https://labels.example.org/team"
    with Desk(
        write_queue(tmp_path, pairs(4)), tmp_path / "ledger.sqlite",
        "--url", url, "--user-header", "X-Remote-User", "--owner", "olga@example.org", port=(port := free_port()),
    ) as desk:  # fmt: skip
        here = f"http://127.0.0.1:{port}"
        assert desk.url == url and desk.links["olga@example.org"].startswith(url + "/join/")
        proxied = {"X-Forwarded-Proto": "https"}
        assert Client(here, headers=proxied).ask("/")[0] == 401  # the proxy named nobody
        ada = Client(here, headers={**proxied, "X-Remote-User": "ada@example.org"})
        status, headers, page = ada.ask("/")
        assert status == 200 and 'src="/team/static/label.js"' in page and "ada@example.org" in page
        cookie = headers["set-cookie"]
        assert "Secure" in cookie and "Path=/team" in cookie and "HttpOnly" in cookie
        ada.headers["Cookie"] = cookie.partition(";")[0]
        ada.token = page.split('data-token="')[1].split('"')[0]
        item = json.loads(ada.ask("/team/item")[2])["item"]  # a proxy may leave the path as it is
        assert ada.answer(item, {"choice": 1}, "proxy-click-1")[0] == 200
        eve = Client(here, headers={**ada.headers, "X-Remote-User": "eve@example.org"})
        eve.token = ada.token  # ada's cookie does not speak for eve
        assert eve.answer(item, {"choice": 1}, "proxy-click-2")[0] == 403
        assert ada.ask("/owner")[0] == 403
        assert Client(here, headers={**proxied, "X-Remote-User": "olga@example.org"}).ask("/owner")[0] == 200
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert [row.source.name for row in ledger.feedback()] == ["ada@example.org"]


def test_without_a_proxy_the_header_means_nothing(shared: Desk) -> None:
    assert Client(shared.url, headers={"X-Remote-User": "owner", "X-Forwarded-User": "owner"}).ask("/")[0] == 401


def test_the_same_command_goes_on_with_the_same_links(tmp_path: Path) -> None:
    queue, ledger = write_queue(tmp_path, pairs(3)), tmp_path / "ledger.sqlite"
    port = free_port()
    with Desk(queue, ledger, "--invite", "Ada", port=port) as desk:
        ada, links = desk.client("Ada"), desk.links
        item = ada.item()["item"]
        assert ada.ask("/draft", {"item": item, "body": {"note": "half a thought"}})[0] == 200
        desk.kill()
    with Desk(queue, ledger, "--invite", "Ada", port=port) as again:
        assert again.links == links
        now = ada.item()  # the session goes on too
        assert now["item"] == item and now["draft"] == {"note": "half a thought"}
        assert ada.answer(item, {"choice": 0}, "after-restart", note="half a thought", seconds=3.5)[0] == 200
        assert again.stop() == 0
    with Ledger.open(ledger) as records:
        (row,) = records.feedback()
    assert row.reason == "half a thought" and row.cost.seconds == 3.5
    shown = subprocess.run(
        [sys.executable, "-m", "metier", "label", str(queue), "--ledger", str(ledger), "--results", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["done"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    with Desk(write_queue(tmp_path, pairs(60)), tmp_path / "ledger.sqlite") as desk:
        owner, kept, refused = desk.client("owner"), {}, 0
        item = owner.item()["item"]
        for number in range(3):
            assert owner.answer(item, {"choice": 0}, f"before-{number:04}")[0] == 200
        # No file may grow any more: what a full disk and a full quota look like to SQLite.
        size = max(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
        resource.prlimit(desk.process.pid, resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
        for number in range(200):
            status, said = owner.answer(item, {"choice": number % 2}, f"full-disk-{number:04}", note="x" * 3000)
            if status != 200:
                refused += 1
                assert status == 503 and said["error"], said
                if refused == 3:
                    break
                continue
            kept[number] = item
        assert refused == 3
        assert owner.ask("/owner/panel")[0] in (200, 503)
        resource.prlimit(desk.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        last = max((n for n in range(200) if n not in kept), default=0)
        status, said = owner.answer(item, {"choice": 1}, f"full-disk-{last:04}", note="x" * 3000)
        assert status == 200, said
        assert owner.ask("/health")[0] == 200
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        rows = ledger.feedback(current=False)
        revisions = [row.evidence["revision"] for row in rows]
        assert revisions == sorted(set(revisions)) and len(rows) >= len(kept) + 4
        assert len(ledger.feedback()) == 1


def test_a_database_that_is_locked_and_back(tmp_path: Path) -> None:
    import sqlite3

    with Desk(write_queue(tmp_path, pairs(3)), tmp_path / "ledger.sqlite") as desk:
        owner = desk.client("owner")
        item = owner.item()["item"]
        with sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            status, said = owner.answer(item, {"choice": 0}, "while-locked-1")
            assert status == 503 and "locked" in said["error"]
            other.execute("ROLLBACK")
        other.close()
        assert owner.answer(item, {"choice": 0}, "while-locked-1")[0] == 200
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert len(ledger.feedback(current=False)) == 1


def test_a_server_of_the_ledger_that_is_gone_and_back(tmp_path: Path, postgres: Server) -> None:
    where = f"{postgres.database()}&arrays={tmp_path}/arrays"
    with Desk(write_queue(tmp_path, pairs(3)), where) as desk:
        owner = desk.client("owner")
        item = owner.item()["item"]
        postgres.stop()
        try:
            status, said = owner.answer(item, {"choice": 0}, "while-away-1")
            assert status == 503 and said["error"], said
            assert owner.ask("/health")[0] == 503
        finally:
            postgres.start()
        assert owner.answer(item, {"choice": 0}, "while-away-1")[0] == 200
        assert owner.answer(item, {"choice": 0}, "while-away-1")[0] == 200
    with Ledger.open(where) as ledger:
        assert [row.value for row in ledger.feedback(current=False)] == [0]


def test_it_starts_soon_and_without_torch(tmp_path: Path) -> None:
    queue = write_queue(tmp_path, pairs(3))
    code = (
        "import sys; from metier.cli import main;"
        f"code = main(['label', {str(queue)!r}, '--ledger', {str(tmp_path / 'l.sqlite')!r}, '--results']);"
        "import metier.feedback.people.server; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--port", "1", "--host", "203.0.113.1"], "cannot listen"), (["--invite", "a\u202eb"], "no name for a person")],
)
def test_what_cannot_be_served(tmp_path: Path, arguments: list[str], why: str) -> None:
    command = [sys.executable, "-m", "metier", "label", str(write_queue(tmp_path, pairs(1)))]
    command += ["--ledger", str(tmp_path / "ledger.sqlite"), *arguments]
    done: Any = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
