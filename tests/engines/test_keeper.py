"""The keeper: claims, life lines, its own death, the bounded log."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine_stage import Stage
from greenroom.runner.engines import host as host_module
from greenroom.runner.engines import keeper, keeper_log
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.keeper_watch import Channel, KeeperGone
from greenroom.runner.errors import JobFailed
from greenroom.runner.systems import here
from waiting import suspend, until

BOUND = 30.0
"""For what takes milliseconds, on a machine that does much else."""


def start_keeper(stage: Stage, engine_id: str, *flags: str, **fields: Any) -> Channel:
    """A keeper driven by hand, without a host."""
    folder = EngineFolder.of(stage.folder, engine_id)
    sockets = folder.create()
    program = str(stage.programs / "fake_engine.py")
    channel = Channel.spawn()
    channel.send(
        "start",
        **{
            "engine_id": engine_id,
            "folder": str(folder.path),
            "keeper_socket": str(sockets.keeper),
            "engine_socket": str(sockets.engine),
            "argv": [sys.executable, "-I", program, "--socket", str(sockets.engine), *flags],
            "env": dict(os.environ),
            "grace": 30.0,
            **fields,
        },
    )
    return channel


def test_a_keeper_is_up_and_has_spawned_within_a_moment(stage: Stage) -> None:
    took = []
    for attempt in range(5):  # the best of some: a busy machine says nothing of the keeper
        begun = time.monotonic()
        channel = start_keeper(stage, f"e-{attempt}")
        state = channel.await_event("spawned", BOUND)
        took.append(time.monotonic() - begun)
        assert state["pid"] > 0
        channel.send("stop")
        channel.await_event("exited", BOUND)
        channel.close()
        if took[-1] < 0.5:
            return
    pytest.fail(f"{took} s")


def test_the_second_keeper_to_claim_an_engine_gives_up(stage: Stage) -> None:
    first = start_keeper(stage, "e-1")
    pid = first.await_event("spawned", BOUND)["pid"]
    second = start_keeper(stage, "e-1")
    assert second.await_event("failed", BOUND)["code"] == "claimed"
    second.close()
    assert stage.pids() == [pid]
    first.send("stop")
    first.await_event("exited", BOUND)
    first.close()


def test_a_late_keeper_gives_up_once_recovery_has_claimed_the_start(stage: Stage) -> None:
    folder = EngineFolder.of(stage.folder, "e-1")
    folder.create()
    assert keeper.create_claim(str(folder.claim), {"settled_by": 1})
    channel = start_keeper(stage, "e-1")
    assert channel.await_event("failed", BOUND)["code"] == "claimed"
    channel.close()
    assert not stage.pids()


def test_a_claim_is_exclusive_on_disks_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    claim = str(tmp_path / "claim")
    assert keeper.create_claim(claim, {"by": 1})
    assert not keeper.create_claim(claim, {"by": 2})
    assert os.listdir(tmp_path) == ["claim"]
    assert json.loads((tmp_path / "claim").read_text()) == {"by": 1}


def _connects(one: socket.socket, path: str) -> bool:
    return one.connect_ex(path) == 0


def test_excess_connections_are_closed(stage: Stage) -> None:
    channel = start_keeper(stage, "e-1")
    channel.await_event("spawned", BOUND)
    path = stage.claim("e-1")["keeper_socket"]
    many = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for one in many:
        until(partial(_connects, one, path))
        one.settimeout(BOUND)
    assert many[-1].recv(1) == b""
    channel.send("hold", grace=30.0)
    channel.await_event("state", BOUND)
    for one in many:
        one.close()
    channel.send("stop")
    channel.await_event("exited", BOUND)
    channel.close()


def test_a_keeper_whose_daemon_dies_before_the_start_message_ends(stage: Stage) -> None:
    channel = Channel.spawn()
    pid = channel.pid
    channel.close(reap=False)
    until(lambda: not stage.alive(pid))


def test_a_spare_keeper_that_has_died_is_replaced(stage: Stage) -> None:
    host, spec = stage.host(spare_keeper=True), stage.spec()
    spare = until(lambda: host.spare.pid)
    os.kill(spare, signal.SIGKILL)
    until(lambda: not stage.alive(spare))
    host.start(spec)
    stage.heard.wait("ready")
    assert stage.claim(spec.engine_id)["keeper_pid"] != spare


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a keeper has been sent something."""
    send, sent = Channel.send, threading.Event()

    def noted(self: Channel, op: str, **fields: Any) -> None:
        send(self, op, **fields)
        sent.set()

    monkeypatch.setattr(Channel, "send", noted)
    return sent


def test_a_keeper_that_dies_before_it_has_claimed_the_start_is_a_transient_failure(
    stage: Stage, sent: threading.Event
) -> None:
    host, spec = stage.host(spare_keeper=True), stage.spec()
    spare = until(lambda: host.spare.pid)
    suspend(spare)
    host.start(spec)
    assert sent.wait(BOUND)
    os.kill(spare, signal.SIGKILL)
    (failure,) = stage.heard.wait("failed")
    assert (failure.kind, failure.code) == ("transient", "keeper")
    assert not stage.pids()
    assert stage.claim(spec.engine_id)["settled_by"] == os.getpid()


@pytest.mark.parametrize(
    "message",
    [
        {"op": "stop", "ladder": [["SIGFOO", 1]]},
        {"op": "stop", "ladder": [["SIGINT", -1]]},
        {"op": "stop", "ladder": [["SIGINT", 1e400]]},
        {"op": "stop", "ladder": [7]},
        {"op": "stop", "ladder": 7},
        {"op": "hold", "grace": "soon"},
        {"op": "hold", "grace": 10**400},
        {"op": "leave", "grace": []},
        {"op": "start"},
        {"op": "start", "engine_id": 1},
        {"op": None},
        {},
    ],
)
def test_what_a_keeper_cannot_follow_is_refused_and_its_engine_kept(stage: Stage, message: Any) -> None:
    channel = start_keeper(stage, "e-1")
    pid = channel.await_event("spawned", BOUND)["pid"]
    os.write(channel.fileno(), json.dumps(message).encode() + b"\n")
    assert "cannot do that" in channel.await_event("refused", BOUND)["message"]
    channel.send("hold", grace=30.0)
    assert channel.await_event("state", BOUND)["pid"] == pid
    channel.send("stop")
    channel.await_event("exited", BOUND)
    channel.close()


def test_a_nested_message_closes_its_connection_and_nothing_else(stage: Stage) -> None:
    channel = start_keeper(stage, "e-1")
    channel.await_event("spawned", BOUND)
    claim = stage.claim("e-1")
    other = Channel.connect(claim["keeper_socket"], claim["keeper_pid"])
    os.write(other.fileno(), b'{"op":' + b"[" * 100_000 + b"\n")
    with pytest.raises(KeeperGone):
        other.await_event("state", BOUND)
    other.close()
    channel.send("hold", grace=30.0)
    channel.await_event("state", BOUND)
    channel.send("stop")
    channel.await_event("exited", BOUND)
    channel.close()


def test_a_malformed_start_is_reported_as_failed(stage: Stage) -> None:
    channel = start_keeper(stage, "e-1", argv=[])
    assert channel.await_event("failed", BOUND)["code"] == "refused"
    channel.close()


def test_flags_of_a_megabyte_are_passed_on_and_far_longer_ones_refused_before_a_keeper_breaks(
    stage: Stage,
) -> None:
    channel = start_keeper(stage, "e-1", *["x" * 100_000] * 12)
    channel.await_event("spawned", BOUND)
    channel.send("stop")
    channel.await_event("exited", BOUND)
    channel.close()
    with pytest.raises(JobFailed, match="more than the system can pass"):
        start_keeper(stage, "e-2", "x" * 5_000_000)


def test_a_keeper_sees_nothing_of_its_environment_that_is_not_its_business(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, "hush")
    channel = start_keeper(stage, "e-1", env={})
    state = channel.await_event("spawned", BOUND)
    for pid in (state["keeper_pid"], state["pid"]):
        assert b"hush" not in Path(f"/proc/{pid}/environ").read_bytes()
    channel.send("stop")
    channel.await_event("exited", BOUND)
    channel.close()


def test_a_keeper_whose_socket_was_cleaned_away_makes_it_again(stage: Stage) -> None:
    (stage.folder / "e-1").mkdir()
    path = str(stage.folder / "e-1" / "k.sock")
    with selectors.DefaultSelector() as selector:
        listener = keeper.Listener(selector)
        listener.open(path)
        os.utime(path, (1, 1))
        listener.keep(path + "-engine")
        assert time.time() - os.stat(path).st_mtime < 60, "cleaners of temporary folders look for what is old"
        os.unlink(path)
        listener.keep(path + "-engine")
        with socket.socket(socket.AF_UNIX) as caller, listener.socket:
            caller.connect(path)
            assert selector.select(BOUND)


def test_a_keeper_that_hangs_before_it_has_claimed_is_killed_and_the_start_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "SPAWN_SECONDS", 0.3)
    host, spec = stage.host(spare_keeper=True), stage.spec()
    spare = until(lambda: host.spare.pid)
    suspend(spare)
    host.start(spec)
    (failure,) = stage.heard.wait("failed")
    assert (failure.kind, failure.code) == ("transient", "keeper")
    assert not stage.alive(spare)
    assert not stage.pids()


def test_a_keeper_that_hangs_before_its_claim_and_is_asked_to_stop_is_killed_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, sent: threading.Event
) -> None:
    monkeypatch.setattr(host_module, "KEEPER_SECONDS", 0.3)
    host, spec = stage.host(spare_keeper=True, ladder=[("SIGKILL", 0.0)]), stage.spec()
    spare = until(lambda: host.spare.pid)
    suspend(spare)
    host.start(spec)
    assert sent.wait(BOUND)
    until(lambda: not host.stop(spec.engine_id))
    stage.heard.wait("failed", "exited", "lost")
    assert not stage.alive(spare)


def test_the_death_of_the_keeper_ends_the_engine(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    pid, *_ = stage.heard.wait("spawned")
    stage.heard.wait("ready")
    until(lambda: EngineFolder.of(stage.folder, spec.engine_id).last_line() == "model loaded")
    os.kill(stage.claim(spec.engine_id)["keeper_pid"], signal.SIGKILL)
    (end,) = stage.heard.wait("exited")
    assert not stage.alive(pid)
    assert not end.expected
    assert end.summary == "The fake engine for m was ended: its keeper process had died."
    written = json.loads((stage.folder / spec.engine_id / "exit.json").read_text())
    assert written["keeper_died"]
    assert written["last_lines"] == ["model loaded"]


def test_a_deaf_engine_with_a_child_does_not_outlive_its_keeper_either(stage: Stage) -> None:
    host, spec = stage.host("--deaf-to-sigterm", "--ignore-keeper", "--child"), stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    until(lambda: len(stage.pids()) == 2)
    os.kill(stage.claim(spec.engine_id)["keeper_pid"], signal.SIGKILL)
    stage.heard.wait("exited")
    assert not stage.pids()


def test_a_hanging_keeper_is_bypassed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "KEEPER_SECONDS", 0.3)
    host = stage.host(ladder=[("SIGINT", 0.1), ("SIGTERM", 0.1), ("SIGKILL", 0)])
    spec = stage.spec()
    host.start(spec)
    pid, *_ = stage.heard.wait("spawned")
    stage.heard.wait("ready")
    suspend(stage.claim(spec.engine_id)["keeper_pid"])
    host.stop(spec.engine_id)
    stage.heard.wait("exited")
    assert not stage.alive(pid)


def test_an_engine_ends_after_the_grace_when_its_daemon_is_lost(stage: Stage) -> None:
    channel = start_keeper(stage, "e-1", grace=0.5)
    pid = channel.await_event("spawned", BOUND)["pid"]
    begun = time.monotonic()
    channel.close(reap=False)
    until(lambda: not stage.alive(pid))
    assert time.monotonic() - begun >= 0.4
    end = until(lambda: _read(stage.folder / "e-1" / "exit.json"))
    assert end["stop_reason"] == "no daemon came back within 0.5s"


def test_a_new_daemon_within_the_grace_keeps_the_engine(stage: Stage) -> None:
    first = start_keeper(stage, "e-1", grace=1.0)
    pid = first.await_event("spawned", BOUND)["pid"]
    claim = stage.claim("e-1")
    first.close(reap=False)
    second = Channel.connect(claim["keeper_socket"], claim["keeper_pid"])
    second.send("hold", grace=1.0)
    assert second.await_event("state", BOUND)["pid"] == pid
    with pytest.raises(KeeperGone, match="timed out"):
        second.await_event("stopping", 1.5)  # past the first grace: nothing happens
    assert stage.alive(pid)
    second.send("stop", reason="enough")
    assert second.await_event("exited", BOUND)["stop_reason"] == "enough"
    second.close()


def test_the_engine_is_never_run_with_its_pid_missing_from_the_claim(stage: Stage) -> None:
    channel = start_keeper(stage, "e-1")
    state = channel.await_event("spawned", BOUND)
    claim = stage.claim("e-1")
    assert (claim["pid"], claim["started"]) == (state["pid"], state["started"])
    assert claim["boot_id"] == here.boot_id()
    channel.send("stop")
    channel.await_event("exited", BOUND)
    channel.close()


def test_sigterm_to_the_keeper_ends_the_engine_in_order(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    os.kill(stage.claim(spec.engine_id)["keeper_pid"], signal.SIGTERM)
    (end,) = stage.heard.wait("exited")
    assert end.code == 0
    assert "told to end" in end.summary


def test_output_is_kept_at_head_and_tail_and_bounded_between(stage: Stage) -> None:
    host, spec = stage.host("--say", "the very first line", "--flood", "4000000"), stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    host.stop(spec.engine_id)
    (end,) = stage.heard.wait("exited")
    folder = EngineFolder.of(stage.folder, spec.engine_id)
    assert folder.log_size() <= keeper_log.HEAD_BYTES + 2 * keeper_log.TAIL_BYTES
    text = folder.read_log()
    assert text.startswith("the very first line\n")
    assert text.endswith("model loaded\n")
    assert "older output is not kept" in text
    written = json.loads((stage.folder / spec.engine_id / "exit.json").read_text())
    assert written["first_lines"][0] == "the very first line"
    assert written["last_lines"][-1] == "model loaded"
    assert (end.first_lines, end.last_lines) == ((), ()), "it was ready, so these may be clients' words"


def test_a_bounded_log_keeps_the_first_bytes_and_the_last(tmp_path: Path) -> None:
    log = keeper_log.BoundedLog(str(tmp_path / "log"), head=100, tail=50)
    for index in range(1000):
        log.write(f"line {index}\r\n".encode())
    log.write(b"10%\r50%\r100%")
    log.close()
    assert (tmp_path / "log").stat().st_size == 100
    assert sum((tmp_path / name).stat().st_size for name in ("log.tail", "log.tail.old")) <= 100
    assert log.first[0] == "line 0"
    assert len(log.first) == keeper_log.FIRST_LINES
    assert log.last[-2:] == ["line 999", "100%"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
