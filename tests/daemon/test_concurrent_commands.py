"""Many who want everything at once of one daemon that is killed meanwhile: what it says is what is there."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest

from package_index import Misbehaviour
from waiting import until
from workshop import Workshop

NAMES = ("alpha", "beta")
SHELLS = 4
REFUSED = frozenset({409, 503})
"""The allowed refusals: another shell has just ended it, or it is not available at the moment."""


class Outcome(NamedTuple):
    """What a command came to: a status, 0 if the daemon was killed or the client has left; and the text."""

    status: int
    text: str = ""


def outcome(answer: Any) -> Outcome:
    return Outcome(answer.status, str(answer.body))


def install(daemon: Any, name: str, **more: Any) -> Outcome:
    return outcome(daemon.post("/engines/install-backend", {"backend": name, **more}))


def verb(daemon: Any, name: str, what: str, **more: Any) -> Outcome:
    return outcome(daemon.post(f"/engines/{what}", {"backend": name, **more}))


def leave_in_the_middle(daemon: Any, name: str) -> Outcome:
    where = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=0.1)
    try:
        connection.request("POST", "/engines/install-backend", json.dumps({"backend": name}))
        return Outcome(connection.getresponse().status)
    except OSError:
        return Outcome(0)
    finally:
        connection.close()


WISHES: tuple[Callable[[Any, str], Outcome], ...] = (
    install,
    install,
    lambda daemon, name: install(daemon, name, version="2.0"),
    lambda daemon, name: install(daemon, name, version="latest"),
    lambda daemon, name: install(daemon, name, reinstall=True),
    lambda daemon, name: outcome(daemon.post("/engines", {"name": name})),
    leave_in_the_middle,
    lambda daemon, name: verb(daemon, name, "uninstall-backend"),
    lambda daemon, name: verb(daemon, name, "uninstall-backend", version="1.0"),
    lambda daemon, name: outcome(daemon.ask("DELETE", f"/engines/{name}?version=2.0")),
    lambda daemon, name: verb(daemon, name, "activate-backend"),
    lambda daemon, name: verb(daemon, name, "verify-backend"),
    lambda daemon, name: verb(daemon, name, "cancel-install"),
    lambda daemon, name: verb(daemon, name, "cancel-install", leave=True),
    lambda daemon, _: outcome(daemon.post("/models/prune")),
)


class Shell:
    """A user who runs one command after the other until `stop`."""

    def __init__(self, daemon: Any, seed: int) -> None:
        self._daemon = daemon
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self.heard: list[Outcome] = []
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a command waits forever"

    def _live(self) -> None:
        while not self._over.wait(self._random.random() * 0.2):
            wish = self._random.choice(WISHES)
            self.heard.append(wish(self._daemon, self._random.choice(NAMES)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "rounds"), [(1, 2), (2, 40)])
def test_whatever_many_want_at_once_status_is_what_is_on_the_disk(
    seed: int,
    rounds: int,
    workshop: Workshop,
    make_daemon: Callable[..., Any],
    tmp_path: Path,
) -> None:
    chance = random.Random(seed)
    for name in NAMES:
        workshop.add(name, 200_000)
        workshop.index.add(name, "2.0", {f"{name}/__init__.py": b"VALUE = 1\n"})
    daemon = make_daemon(**workshop.environment(tmp_path))
    workshop.furnish(daemon.home)
    daemon.start()
    shells = [Shell(daemon, seed * 100 + number) for number in range(SHELLS)]
    for number in range(rounds):
        time.sleep(chance.uniform(1.0, 2.5))
        if number % 2:
            daemon.kill()
            daemon.start()
        else:
            workshop.index.wrong[NAMES[0]] = Misbehaviour(status=503)
            time.sleep(chance.uniform(0.0, 1.0))
            workshop.index.wrong.clear()
    for shell in shells:
        shell.end()
    heard = [one for shell in shells for one in shell.heard]
    assert 200 in {one.status for one in heard}
    assert not [one for one in heard if one.status >= 400 and one.status not in REFUSED]

    def told() -> Any:
        return [daemon.get(f"/engines/{name}").json for name in NAMES]

    def at_rest() -> Any:
        found = told()
        going = any(one["retiring"] for backend in found for one in backend["installations"])
        if going or any(backend["job"] for backend in found):
            return None
        # Between a build's end and the retiring of what it replaced there is a moment.
        time.sleep(0.5)
        return found if told() == found else None

    for backend in until(at_rest):
        folder = daemon.home / "backends" / backend["name"]
        there = {one.name for one in folder.iterdir()} if folder.exists() else set()
        assert {one["id"] for one in backend["installations"]} == there
        assert (backend["state"] == "installed") == bool(there)
    verified = daemon.run("backends", "verify")
    assert verified.returncode == 0, verified.stdout
    assert "DAMAGED" not in verified.stdout
    assert daemon.run("journal", "verify").returncode == 0
    daemon.stop()
    assert "Traceback" not in daemon.log()
    words = [one.info["cmdline"] or () for one in psutil.process_iter(["cmdline"])]
    left = [line for line in words if any(str(daemon.home) in word for word in line)]
    assert not left, "a process has outlived the daemon"
