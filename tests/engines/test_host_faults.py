"""A fault around engines costs only its own engine, and waiting callers learn of it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
from typing import Any

import pytest

from engine_stage import Stage
from greenroom.actors.engine_runner.effects import EndEngine, SpawnEngine
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.values import Engine
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines import adoption, folders, host, keeper_watch
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.handle import Handle, PreparedEngine
from greenroom.runner.engines.keeper_watch import Channel, KeeperWatch


def known(stage: Stage, spec: Any, state: Any = "ready") -> Engine:
    pid, started, endpoint = stage.heard.wait("spawned", engine_id=spec.engine_id)
    return Engine(spec=spec, state=state, since=1.0, pid=pid, started=started, endpoint=endpoint)


def test_a_rebuilt_runner_is_notified_again_of_an_engine_that_kept_running(stage: Stage) -> None:
    engines, spec = stage.host(), stage.spec()
    engines.start(spec)
    stage.heard.wait("ready")
    engine = known(stage, spec)
    engines.recover([engine]).result(10)
    assert stage.heard.wait("adopted") == (engine.pid, engine.started, engine.endpoint, True)
    assert stage.alive(engine.pid)
    engines.stop(spec.engine_id)
    stage.heard.wait("exited")


def test_a_runner_rebuilt_while_an_engine_is_prepared_learns_that_it_is_starting(
    stage: Stage,
) -> None:
    go = threading.Event()
    spec = stage.spec()
    plain = stage.prepares()

    def prepare(*given: Any) -> PreparedEngine:
        assert go.wait(20)
        return plain(*given)

    engines = stage.host(prepare=prepare)
    engines.start(spec)
    engines.recover([Engine(spec=spec, state="starting", since=1.0)]).result(10)
    assert stage.heard.wait("progress") == ("starting", "")
    go.set()
    stage.heard.wait("ready")
    assert stage.heard.names() == ["spawned", "ready"]


@pytest.mark.parametrize("keep", [None, 30.0], ids=["stops", "leaves its engines"])
def test_an_engine_that_is_still_prepared_when_the_host_ends_never_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, keep: Any
) -> None:
    go, prepared = threading.Event(), threading.Event()
    plain = stage.prepares()

    def prepare(*given: Any) -> PreparedEngine:
        assert go.wait(60)
        made = plain(*given)
        prepared.set()
        return made

    monkeypatch.setattr(host, "KEEPER_SECONDS", 0.1)
    engines = stage.host(prepare=prepare, ladder=(("SIGKILL", 0.0),))
    engines.start(stage.spec())
    engines.shutdown(keep=keep)
    go.set()
    assert prepared.wait(10)
    threading.Event().wait(0.5)  # what must not happen has no event
    assert stage.pids() == []
    assert "spawned" not in stage.heard.names()


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EMFILE, "too_many_files"), (errno.ENOSPC, "no_space"), (errno.EAGAIN, "no_process")],
)
def test_a_keeper_that_cannot_be_started_is_the_machines_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    stage.host().start(stage.spec())
    (failure,) = stage.heard.wait("failed")
    assert (failure.kind, failure.code, failure.blame) == ("transient", code, "machine")
    assert os.strerror(number) in failure.message
    assert failure.advice


def test_without_a_thread_left_a_start_fails_and_the_next_one_is_tried(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, spec = stage.host(), stage.spec()

    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", refuse)
        engines.start(spec)
    (failure,) = stage.heard.wait("failed")
    assert (failure.code, failure.blame) == ("no_process", "machine")
    engines.start(stage.spec())
    stage.heard.wait("ready")


def test_a_program_that_is_not_there_is_the_configurations_failure(stage: Stage) -> None:
    def prepare(*_: Any) -> PreparedEngine:
        return PreparedEngine(CommandLine(argv=("/nowhere/llama-server",)), Readiness())

    stage.host(prepare=prepare).start(stage.spec())
    (failure,) = stage.heard.wait("failed")
    assert (failure.code, failure.blame) == ("cannot_start", "configuration")


def test_an_end_that_cannot_be_written_to_a_full_disk_is_still_reported(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, spec = stage.host("--load-forever"), stage.spec()
    engines.start(spec)
    stage.heard.wait("spawned")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(host, "write_end", full)
    os.kill(stage.claim(spec.engine_id)["keeper_pid"], signal.SIGKILL)
    assert stage.heard.wait("exited", "lost", "failed")


def test_a_start_whose_keeper_dies_on_a_full_disk_fails_and_wedges_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(adoption, "create_claim", full)
    send = Channel.send

    def astray(self: Channel, op: str, **fields: Any) -> None:
        send(self, op, **(fields | {"folder": "/nowhere"} if op == "start" else fields))

    monkeypatch.setattr(Channel, "send", astray)
    engines = stage.host()
    engines.start(stage.spec())
    (failure,) = stage.heard.wait("failed")
    assert (failure.code, failure.blame) == ("no_space", "machine")


def test_keepers_that_were_left_are_reaped_by_any_number_of_starts_at_once() -> None:
    problems: list[ValueError] = []
    for _ in range(3):
        left = [subprocess.Popen(["true"]) for _ in range(20)]
        for process in left:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # type: ignore[attr-defined, unused-ignore]
        keeper_watch.DETACHED.extend(left)
        barrier = threading.Barrier(4)

        def reap(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                keeper_watch.reap_detached()
            except ValueError as problem:
                problems.append(problem)

        threads = [threading.Thread(target=reap) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert keeper_watch.DETACHED == []


def test_waking_the_keeper_watch_never_blocks(stage: Stage) -> None:
    heard, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        heard.set()
        assert go_on.wait(30)

    watch = KeeperWatch(hold, lambda _: None, lambda _: None)
    ours, theirs = socket.socketpair()
    handle: Any = Handle(stage.spec(), EngineFolder.of(stage.folder, "e"), lambda *_: None, ProgressBoard())
    handle.channel = Channel(ours)
    watch.add(handle)
    theirs.sendall(b'{"event": "spawned"}\n')
    assert heard.wait(30)
    for _ in range(10_000):  # a watch that reads them all the time would hide it
        watch.wake()
    go_on.set()
    watch.close()
    theirs.close()


def test_folders_of_starts_that_came_to_nothing_are_removed_too_and_those_of_living_engines_are_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "KEPT_MEANWHILE", 2)
    engines, spec = stage.host(), stage.spec()
    engines.start(spec)
    stage.heard.wait("ready")
    engines.sweep([spec.engine_id]).result(10)
    for number in range(10):
        (stage.folder / f"nothing-{number}").mkdir()
    for ours in ({spec.engine_id}, set()):
        folders.Folders(stage.folder, ours.__contains__).prune()
        left = sorted(path.name for path in stage.folder.iterdir())
        assert spec.engine_id in left
        assert len(left) == 3


@pytest.mark.parametrize(
    ("error", "code", "blame"),
    [
        (RuntimeError("can't start new thread"), "no_process", "machine"),
        (OSError(errno.EMFILE, "Too many open files"), "too_many_files", "machine"),
        (ZeroDivisionError("a bug"), "internal", "ours"),
    ],
    ids=["thread", "files", "bug"],
)
def test_a_start_that_cannot_begin_is_reported_as_failed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, blame: str
) -> None:
    def broken(_: Any) -> None:
        raise error

    engines = stage.host()
    monkeypatch.setattr(engines, "start", broken)
    engines.perform(SpawnEngine(spec=stage.spec()), "cause")
    (failure,) = stage.heard.wait("failed")
    assert (failure.code, failure.blame) == (code, blame)


def test_a_stop_that_cannot_begin_is_left_to_the_runner_which_asks_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str, *, reason: str) -> bool:
        raise OSError(errno.EMFILE, f"Too many open files ({reason})")

    engines = stage.host()
    monkeypatch.setattr(engines, "stop", broken)
    with pytest.raises(OSError, match="Too many"):
        engines.perform(EndEngine(backend="fake", engine_id="e1", reason="x"), "cause")
    assert stage.heard.calls == []
