"""The front door of an embedded Greenroom on a unix socket, for other processes."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fake_greenroom import fake_greenroom
from greenroom.actors.kernel.errors import StartFailed
from greenroom.runner import SocketUnusable, serve
from waiting import until

ASK = """
import http.client, socket, sys
asking = http.client.HTTPConnection("localhost")
asking.sock = socket.socket(socket.AF_UNIX)
asking.sock.connect(sys.argv[1])
asking.request("GET", "/livez")
answer = asking.getresponse()
print(answer.status, answer.read().decode())
"""


def get(path: Path, what: str = "/livez", host: str = "localhost") -> Any:
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url=f"http://{host}") as client:
        return client.get(what)


def test_other_processes_of_the_user_reach_it_and_nobody_else(home: Path) -> None:
    path = home / "door.sock"
    before = set(threading.enumerate())
    with fake_greenroom(home / "home") as greenroom, serve(greenroom, uds=path) as door:
        assert door.path == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [one.name for one in home.glob(".*")] == []
        said = subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, text=True, timeout=60)
        assert said.stdout.startswith("200 "), said.stderr
        assert get(path, "/engines/status").json()
        assert get(path, host="evil.example").status_code == 403
    assert not path.exists()
    until(lambda: not set(threading.enumerate()) - before, what="the end of all threads")


def test_it_closes_with_the_greenroom_too(home: Path) -> None:
    path = home / "door.sock"
    with fake_greenroom(home / "home") as greenroom:
        door = serve(greenroom, uds=str(path))
        assert get(path).status_code == 200
    assert not path.exists()
    door.close()
    with pytest.raises(StartFailed, match="start it before"):
        serve(greenroom, uds=path)


def test_what_a_dead_program_left_is_replaced_and_what_is_not_ours_stays(home: Path) -> None:
    path = home / "door.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with fake_greenroom(home / "home") as greenroom:
        with serve(greenroom, uds=path):
            assert get(path).status_code == 200
            with pytest.raises(SocketUnusable, match="Another program listens"):
                serve(greenroom, uds=path)
            path.unlink()
            path.write_text("another's")
        assert path.read_text() == "another's", "it is not ours to remove"
        with pytest.raises(SocketUnusable, match="is no socket"):
            serve(greenroom, uds=path)
        with pytest.raises(SocketUnusable, match="too long"):
            serve(greenroom, uds=home / ("a" * 100))
        with pytest.raises(SocketUnusable, match="No such file"):
            serve(greenroom, uds=home / "nowhere" / "door.sock")
    assert sorted(one.name for one in home.iterdir()) == ["door.sock", "home"]
