"""A backend is asked for as long as its watch runs, whatever becomes of those who wait for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from greenroom.runner.remote_settings import RemoteBackend
from greenroom.runner.remotes.reading import RemoteReading
from greenroom.runner.remotes.watch import SOON, Remote, Remotes
from quiet_server import QuietServer
from waiting import until


class Lists(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        body = json.dumps({"data": [{"id": "a"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """It is a test's."""


@pytest.fixture
def url() -> Iterator[str]:
    Lists.asked = 0
    with QuietServer(("127.0.0.1", 0), Lists) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_client_that_waited_and_left_does_not_end_the_watch(url: str) -> None:
    remote = Remote("lab", RemoteBackend(url=url), every=SOON)
    told: list[RemoteReading] = []
    remote.start(told.append)
    try:
        until(lambda: remote.now.state == "answers")
        until(lambda: not (wish := remote.ask_again()).done() and wish.cancel())
        seen = len(told)
        until(lambda: len(told) > seen + 1)
    finally:
        remote.close()


def test_it_can_be_stopped_and_started_again(url: str) -> None:
    remotes = Remotes({"lab": RemoteBackend(url=url)})
    (remote,) = remotes
    for life in ("1", "2"):
        notes: list[str] = []
        remotes.start(lambda note, notes=notes: notes.append(note.life), life)  # type: ignore[misc]
        until(lambda: remote.now.state == "answers")
        assert [one.id for one in remotes.models()] == ["lab/a"]
        until(lambda notes=notes: notes)  # type: ignore[misc]
        assert set(notes) == {life}
        remotes.close()
        assert remote.ask_again().done(), "nothing waits for one that is closed"
    assert Lists.asked == 2
