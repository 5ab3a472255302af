from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any
from urllib.request import Request, urlopen

import pytest

from greenroom.actors.journal import writer_lock
from greenroom.runner.client.daemons import Unresponsive, find, listener_at
from greenroom.runner.client.errors import GreenroomError, Unreachable
from greenroom.runner.config import Settings, load
from greenroom.runner.daemon_lock import DaemonHolder, DaemonLock, HomeLocked, holder_of
from greenroom.runner.proof import is_proof, keep_secret, prove, read_secret
from quiet_server import QuietServer
from waiting import suspend


def identity(**changes: Any) -> dict[str, Any]:
    return {"status": "ok", "instance_id": "other", "pid": 77, "version": "1", "home": "/elsewhere"} | changes


def test_a_daemon_is_believed_when_it_knows_this_data_directorys_secret(our_daemon: Any) -> None:
    found = find(load())

    assert found is not None
    assert found.url == our_daemon.url


def test_a_server_that_repeats_our_daemons_identity_is_sent_nothing(
    our_daemon: Any, greenroom: Any, home: Path
) -> None:
    """All of it can be read at `/livez` by every user of the machine."""
    public = {"instance_id": "our own", "home": str(home), "proof": "0" * 64}
    our_daemon.routes["GET /livez"] = identity(**public)

    outcome = greenroom("run", "smollm2", "my secret")

    assert outcome.code == 5
    assert "another data directory" not in outcome.err
    assert "cannot prove" in outcome.err
    assert {(one.method, one.path) for one in our_daemon.seen} == {("GET", "/livez")}


def test_a_server_that_passes_challenges_on_to_our_daemon_is_not_trusted(
    our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    our_daemon.routes["GET /livez"]["pid"] = 77

    class Between(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = Request(our_daemon.url + self.path, headers=dict(self.headers.items()))
            with urlopen(asked, timeout=10) as answer:
                content = answer.read()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    with QuietServer(("127.0.0.1", 0), Between) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("GREENROOM_PORT", str(server.server_address[1]))
        try:
            with pytest.raises(GreenroomError, match="cannot prove"):
                find(load())
        finally:
            server.shutdown()
            thread.join()
    assert "Greenroom-Challenge" in our_daemon.seen[-1].headers


def test_a_server_that_replaces_our_daemon_after_it_was_found_is_sent_nothing(our_daemon: Any) -> None:
    found = find(load())
    assert found is not None
    our_daemon.routes["GET /livez"] = identity()

    with pytest.raises(Unreachable, match="nothing was sent"):
        found.client().post("/v1/chat/completions", {"messages": "my secret"})

    assert {one.path for one in our_daemon.seen} == {"/livez"}


def test_proofs_belong_to_one_challenge_one_secret_and_one_address(tmp_path: Path) -> None:
    secret = keep_secret(tmp_path)
    proof = prove(secret, "c1", "127.0.0.1:1")
    assert is_proof(proof, secret, "c1", "127.0.0.1:1")
    assert not is_proof(proof, secret, "c2", "127.0.0.1:1")
    assert not is_proof(proof, secret, "c1", "::1:1")
    assert not is_proof(proof, b"another", "c1", "127.0.0.1:1")
    for answer in ("", None, 3, "\udce4", proof.upper()):
        assert not is_proof(answer, secret, "c1", "127.0.0.1:1")
    # Without the secret there is no proof, nor for an invalid challenge.
    assert not is_proof(prove(b"", "c1", "a:1"), b"", "c1", "a:1")
    assert [prove(secret, text, "a:1") for text in ("", "a b", "x" * 129)] == ["", "", ""]


def test_a_secret_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    secret = keep_secret(tmp_path)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert keep_secret(tmp_path) == read_secret(tmp_path) == secret
    (tmp_path / "secret").chmod(0o644)
    assert keep_secret(tmp_path) != secret
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_daemon_is_found_where_it_says_it_listens(
    our_daemon: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))
    assert find(load()) is None

    (home / "daemon.json").write_text(json.dumps({"url": our_daemon.url, "pid": 1}))

    found = find(load())
    assert found is not None
    assert found.url == our_daemon.url


def test_a_stale_note_is_passed_over(our_daemon: Any, home: Path, unused_port: int) -> None:
    (home / "daemon.json").write_text(json.dumps({"url": f"http://127.0.0.1:{unused_port}"}))
    assert find(load()) is not None

    for text in ("not json", "[]", '{"url": 3}', '{"url": "nonsense"}'):
        (home / "daemon.json").write_text(text)
        assert find(load()) is not None


def test_the_daemon_of_another_data_directory_is_named(our_daemon: Any, home: Path) -> None:
    our_daemon.routes["GET /livez"] = identity()

    with pytest.raises(GreenroomError) as caught:
        find(load())

    assert caught.value.code == "address_taken"
    assert "(process 77) uses another data directory: /elsewhere" in str(caught.value)
    assert "GREENROOM_HOME=/elsewhere" in str(caught.value)


def test_a_program_on_the_port_is_named_with_its_process(our_daemon: Any) -> None:
    our_daemon.routes["GET /livez"] = "Hello"

    with pytest.raises(GreenroomError) as caught:
        find(load())

    assert caught.value.code == "address_taken"
    assert "calling itself 'Fake/1', saying 'Hello'" in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert "GREENROOM_PORT=" in str(caught.value)


def test_a_data_directory_without_a_daemon_trusts_no_server(our_daemon: Any, home: Path) -> None:
    (home / "secret").unlink()
    our_daemon.routes["GET /livez"]["pid"] = 77

    with pytest.raises(GreenroomError, match="cannot prove"):
        find(load())


def test_a_loopback_host_must_prove_itself_unless_the_user_names_its_instance(
    our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    our_daemon.routes["GET /livez"] = identity()
    monkeypatch.setenv("GREENROOM_HOST", our_daemon.url)
    with pytest.raises(GreenroomError, match="GREENROOM_INSTANCE=other"):
        find(load())

    monkeypatch.setenv("GREENROOM_INSTANCE", "other")

    assert find(load()) is not None


def test_a_host_elsewhere_need_not_have_this_data_directory(
    our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import greenroom.runner.client.daemons as module

    our_daemon.routes["GET /livez"] = identity()
    monkeypatch.setenv("GREENROOM_HOST", our_daemon.url)
    monkeypatch.setattr(module, "is_on_this_machine", lambda url: False)

    assert find(load()) is not None


def test_a_host_beats_port_and_note(our_daemon: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "daemon.json").write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    monkeypatch.setenv("GREENROOM_PORT", "1")
    monkeypatch.setenv("GREENROOM_HOST", our_daemon.url)

    assert find(load()) is not None


HOLD = """
import sys
from pathlib import Path
from greenroom.runner.daemon_lock import DaemonLock
lock = DaemonLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a data directory, with these words on its command line."""
    argv = [sys.executable, "-c", HOLD, str(home), *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_our_own_daemon_that_says_nothing_is_no_stranger(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(home=home, port=listener.getsockname()[1])
        with held(home, "serve") as daemon, pytest.raises(Unresponsive) as caught:
            find(settings, patience=0.05)
        assert f"process {daemon.pid}) does not answer: it is starting, stopping" in str(caught.value)
        # Its name stays in the file, and means nothing any more.
        assert (home / "daemon.lock").read_text() == str(daemon.pid)
        with pytest.raises(GreenroomError, match="accepts connections but sends nothing"):
            find(settings, patience=0.05)


def test_a_suspended_daemon_is_reported_with_the_remedy(home: Path, unused_port: int) -> None:
    with held(home, "serve") as daemon:
        daemon.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)  # type: ignore[attr-defined, unused-ignore]
        with pytest.raises(Unresponsive, match=f"is suspended, by SIGSTOP.* kill -CONT {daemon.pid}"):
            find(Settings(home=home, port=unused_port))


def test_a_suspended_daemon_is_the_one_that_is_meant_though_another_has_the_usual_port(
    our_daemon: Any, home: Path
) -> None:
    our_daemon.routes["GET /livez"] = identity()
    with held(home, "serve") as daemon:
        suspend(daemon.pid)
        with pytest.raises(Unresponsive, match=f"kill -CONT {daemon.pid}"):
            find(load())


@pytest.mark.parametrize("command", [["status"], ["stop"], ["ps"], ["run", "smollm2", "hi"], ["pull", "x"]])
def test_a_program_with_greenroom_inside_it_is_named_and_no_daemon_is_started(
    home: Path, greenroom: Any, unused_port: int, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))
    with held(home) as program:
        outcome = greenroom(*command)
    assert outcome.code == 4
    assert "in use by another program that embeds Greenroom" in outcome.err
    assert f"process {program.pid} ({sys.executable} -c" in outcome.err
    assert not (home / "daemon.log").exists()


def test_a_data_directory_can_be_taken_while_others_check_who_holds_it(home: Path) -> None:
    stop = Event()

    def look() -> None:
        while not stop.is_set():
            holder_of(home)

    (home / "daemon.lock").write_text(str(os.getpid()))
    threads = [Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        DaemonLock(home).release()
    stop.set()
    for thread in threads:
        thread.join()
    assert holder_of(home) is None


def test_a_data_directory_is_taken_as_soon_as_a_slow_check_ends(home: Path) -> None:
    (home / "daemon.lock").write_text(str(os.getpid()))
    with (home / "daemon.lock").open() as check:
        fcntl.flock(check, fcntl.LOCK_SH)
        ends = Timer(0.5, fcntl.flock, (check, fcntl.LOCK_UN))
        ends.start()
        DaemonLock(home).release()
        ends.join()


def test_a_check_that_never_ends_is_not_waited_for_without_a_limit(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "PATIENCE", 0.1)
    with (home / "daemon.lock").open("w") as check:
        fcntl.flock(check, fcntl.LOCK_SH)
        with pytest.raises(HomeLocked):
            DaemonLock(home)


def test_a_lock_on_a_full_disk_holds_without_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = DaemonLock(home)
    assert holder_of(home) == DaemonHolder(0)
    with pytest.raises(HomeLocked, match="in use by another process"):
        DaemonLock(home)
    lock.release()


def test_a_listener_elsewhere_is_not_looked_for() -> None:
    assert listener_at("http://192.0.2.1:80") == ""
