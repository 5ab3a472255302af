"""Opening a Greenroom and ending it: once, twice, in a fork, by Ctrl-C, with wrong settings, elsewhere."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fake_greenroom import fake_greenroom
from greenroom.runner import (
    Client,
    Greenroom,
    GreenroomError,
    HomeLocked,
    NotAvailable,
    RequestRefused,
    StoredModel,
    Unreachable,
    connect,
)
from greenroom.runner.client import calls
from greenroom.runner.client.async_http import ask
from greenroom.runner.client.http_client import HttpClient
from waiting import until


def test_the_same_home_opened_again_is_the_same_greenroom_until_the_last_is_closed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.parent)
    first = Greenroom.open(home.name, install_policy="never")
    monkeypatch.chdir("/")
    with first:
        assert first.models() == []
        second = Greenroom.open(home, install_policy="never")  # as a notebook's cell that runs again
        with second:
            assert second.runner is first.runner
        assert first.models() == []
        with pytest.raises(ValueError, match=r"open in this process with other settings \(keep_alive\)"):
            Greenroom.open(home, install_policy="never", keep_alive="1h")
        with pytest.raises(NotAvailable, match="in use by this very process") as caught:
            fake_greenroom(home).client().models()
        assert (caught.value.code, caught.value.kind) == ("home_in_use", "conflict")
    with pytest.raises(NotAvailable, match="closed"):
        first.models()
    third = Greenroom.open(home, install_policy="never", keep_alive="1h")
    assert third.models() == []
    assert third.runner is not first.runner
    del third  # as in a program that forgets to close it
    gc.collect()
    with Greenroom.open(home, install_policy="never") as fourth:
        assert fourth.models() == []


def test_settings_are_checked_where_they_are_given(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = Greenroom
    with pytest.raises(TypeError, match="there is no setting 'installing'"):
        wrong.open(home, installing="auto")
    with pytest.raises(TypeError, match="home must be a path, not int"):
        wrong.open(7)
    for keep_alive in ("soon", object(), []):
        with pytest.raises(ValueError, match=r"^keep_alive cannot be used: .* is not a duration"):
            Greenroom.open(home, keep_alive=keep_alive)
    with pytest.raises(ValueError, match=r"^install_policy cannot be used: 'often' is not one of ask, auto"):
        wrong.open(home, install_policy="often")
    with pytest.raises(ValueError, match=r"^port cannot be used"):
        connect(home, port="many")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="start must be True or False, not str"):
        connect(home, start="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target must be a path or a URL"):
        connect(7)  # type: ignore[arg-type]
    client: Any = connect(home)
    with pytest.raises(TypeError, match=r"no option 'n_ctx'; did you mean num_ctx\? there are"):
        client.chat("poet", "Hello", n_ctx=2048)
    for address in ("127.0.0.1:12400", "localhost:80", "[::1]:12400"):
        with pytest.raises(ValueError, match=re.escape(f"write http://{address}")):
            connect(address)
    monkeypatch.setenv("HOME", str(home))
    runner = Greenroom.open("~/mine").runner
    assert runner is not None
    assert runner.home == home / "mine"
    assert not (home / "mine").exists()


def test_a_home_that_cannot_be_used_is_said_to_be_so(home: Path) -> None:
    (home / "file").touch()
    for client in (Greenroom.open(home / "file" / "home"), connect(home / "file" / "home")):
        with pytest.raises(NotAvailable, match="is a file and should be a folder") as caught:
            client.models()
        assert caught.value.code == "home_unusable"
        assert "or set the argument home to a folder you may write to" in str(caught.value)
    with pytest.raises(NotAvailable, match="/dev/null is not a folder"):
        connect("/dev/null/home").models()


def test_a_greenroom_that_runs_stays_its_owners(home: Path) -> None:
    with fake_greenroom(home) as runner:
        with runner.client() as client:
            assert client.models() == []
        assert runner.is_running


def test_a_greenroom_that_its_owner_stops_takes_its_clients_along(home: Path) -> None:
    runner = fake_greenroom(home)
    runner.start()
    client = runner.client()
    assert client.models() == []
    runner.stop()
    with pytest.raises(NotAvailable, match="has been stopped"):
        client.models()
    with runner:
        assert client.models() == []
    client.close()


def test_only_a_shared_daemon_goes_to_another_process(home: Path) -> None:
    sent = pickle.loads(pickle.dumps(connect(home, start=False)))
    with pytest.raises(NotAvailable, match="No Greenroom daemon runs on"):
        sent.models()
    with pytest.raises(TypeError, match=r"share a daemon instead: greenroom\.connect"):
        pickle.dumps(Greenroom.open(home))


def test_a_child_is_told_to_open_its_own_and_its_parent_goes_on(home: Path) -> None:
    with fake_greenroom(home).client() as client:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                client.models()
            except NotAvailable as error:
                os.write(write, f"{error.code}: {error}".encode())
            client.close()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            assert told.read().startswith(f"forked: This Greenroom runs in process {os.getpid()}")
        os.waitpid(pid, 0)
        assert client.models() == []


def test_ctrl_c_in_a_start_leaves_the_home_free(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greenroom = fake_greenroom(home)
    started, begin = threading.Event(), greenroom.start

    def start() -> None:
        begin()
        started.set()
        time.sleep(0.3)  # the interruption comes while it is still starting

    monkeypatch.setattr(greenroom, "start", start)
    main = threading.get_ident()

    def interrupt() -> None:
        started.wait(30)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        greenroom.client().models()
    until(lambda: not greenroom.is_running)
    with fake_greenroom(home) as another:
        assert another.statuses()


def test_ctrl_c_in_a_stop_waits_for_its_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greenroom = fake_greenroom(home)
    client = greenroom.client()
    assert client.models() == []
    stop, main = greenroom.stop, threading.get_ident()

    def interrupted(**more: Any) -> None:
        signal.pthread_kill(main, signal.SIGINT)
        stop(**more)

    monkeypatch.setattr(greenroom, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.close()
    assert not greenroom.is_running
    with fake_greenroom(home) as another:
        assert another.statuses()


def test_a_program_that_forgets_to_close_ends_all_the_same(home: Path) -> None:
    program = "import sys; from greenroom import Greenroom; print(Greenroom.open(sys.argv[1]).models())"
    done = subprocess.run(
        [sys.executable, "-c", program, str(home)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_connecting_to_what_this_program_has_inside_says_so(home: Path) -> None:
    with fake_greenroom(home) as runner:
        assert runner.is_running
        with pytest.raises(NotAvailable, match="is open in this very process") as caught:
            connect(home, start=False).models()
    assert caught.value.code == "home_in_use"
    assert "127.0.0.1" not in caught.value.sentence


def test_nothing_is_started_where_that_is_not_wanted(home: Path, unused_tcp_port: int) -> None:
    with pytest.raises(NotAvailable) as caught:
        connect(home, start=False).models()
    assert caught.value.code == "not_running"
    with pytest.raises(NotAvailable, match="No Greenroom daemon answers") as caught:
        connect(f"http://127.0.0.1:{unused_tcp_port}").models()
    assert caught.value.advice.startswith("Start it there. Otherwise: Give connect the right address")
    with pytest.raises(GreenroomError):
        connect(f"unix:{home}/absent").models()


CONNECTS = """
import sys, greenroom
with greenroom.connect(sys.argv[1]) as client:
    client.models()
    print(client.url)
"""


@pytest.mark.parametrize("says", [b"", None])
def test_a_daemon_that_ends_before_its_proof_has_got_nothing(
    home: Path, says: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the request may be sent to the next one."""
    monkeypatch.setattr("greenroom.runner.client.http_client.PROOF_WITHIN", 0.1)
    monkeypatch.setattr("greenroom.runner.client.async_http.PROOF_WITHIN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    if says is None:
                        connection.recv(65_536)
                        connection.recv(1)  # until the client has had enough

        serving = threading.Thread(target=serve)
        serving.start()
        http = HttpClient("http://127.0.0.1:{1}".format(*server.getsockname()), b"secret")
        with pytest.raises(Unreachable) as caught:
            http.get("/models", timeout=120)
        with pytest.raises(Unreachable) as caught_too:
            asyncio.run(ask(http, calls.models()))
        serving.join()
    for one in (caught.value, caught_too.value):
        assert not one.sent
        assert "120s" not in one.sentence


def test_programs_that_connect_at_once_share_one_daemon(home: Path) -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", CONNECTS, str(home)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    urls = {program.communicate(timeout=120)[0] for program in programs}
    assert len(urls) == 1
    assert [program.returncode for program in programs] == [0, 0]
    client = connect(home, start=False)
    try:
        with pytest.raises(RequestRefused, match="not in the store"), client.engine("absent"):
            pass
        with pytest.raises(NotAvailable, match="in use by process") as caught:
            fake_greenroom(home).client().models()
        assert isinstance(caught.value.__cause__, HomeLocked)
        assert caught.value.advice == "Or share it: greenroom.connect(…) asks that daemon."
        stop(client)  # and the client goes on to the next daemon
        assert connect(home).models() == client.models() == asyncio.run(models(client)) == []
    finally:
        stop(client)


async def models(client: Client) -> list[StoredModel]:
    return await client.in_asyncio().models()


def stop(client: Client) -> None:
    HttpClient(client.url).post("/daemon/stop", {})  # no client stops a daemon that it shares
