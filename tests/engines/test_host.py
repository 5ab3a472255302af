"""Starting, watching and stopping engines, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from engine_stage import Stage
from greenroom.actors.engine_runner.effects import EndEngine
from greenroom.actors.values import EngineSpec, Failure
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.errors import JobFailed
from waiting import until


def test_an_engine_is_spawned_becomes_ready_answers_and_is_stopped(stage: Stage) -> None:
    host, spec = stage.host("--echo"), stage.spec()
    host.start(spec)
    pid, started, endpoint = stage.heard.wait("spawned")
    assert started > 0
    assert stage.alive(pid)
    stage.heard.wait("ready")
    body = {"messages": [{"role": "user", "content": "the sea"}]}
    status, reply = stage.request(endpoint, "/v1/chat/completions", body)
    assert status == 200
    assert reply["choices"][0]["message"]["content"] == "the sea "
    host.stop(spec.engine_id)
    (end,) = stage.heard.wait("exited")
    assert end.expected
    assert end.code == 0
    assert not stage.alive(pid)
    assert stage.heard.names() == ["spawned", "ready", "exited"]


def test_a_spare_keeper_serves_the_next_start_and_ends_with_the_host(stage: Stage) -> None:
    host, spec = stage.host(spare_keeper=True), stage.spec()
    spare = until(lambda: host.spare.pid)
    host.start(spec)
    stage.heard.wait("ready")
    assert stage.claim(spec.engine_id)["keeper_pid"] == spare
    other = until(lambda: host.spare.pid)
    host.shutdown()
    assert not stage.alive(spare)
    assert not stage.alive(other)


def test_the_folder_and_everything_in_it_is_private(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    folder = stage.folder / spec.engine_id
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        # A draft may have got its name meanwhile.
        with contextlib.suppress(FileNotFoundError):
            assert path.lstat().st_mode & 0o077 == 0, path.name


def test_the_exit_of_an_engine_is_noticed_within_tens_of_milliseconds(stage: Stage) -> None:
    import time

    host = stage.host()
    took: list[float] = []
    end: Any = None
    # On a busy machine each attempt measures the others' work too: one that had the processor counts.
    while min(took, default=1.0) >= 0.1:
        assert len(took) < 20, took
        heard, spec = stage.heard, stage.spec()
        host.start(spec)
        pid, _, _ = heard.wait("spawned", engine_id=spec.engine_id)
        heard.wait("ready", engine_id=spec.engine_id)
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        (end,) = heard.wait("exited", engine_id=spec.engine_id)
        took.append(heard.at[-1] - begun)
    assert (end.signal, end.code, end.expected) == ("SIGKILL", None, False)
    assert end.summary == "The fake engine for m was killed by SIGKILL."
    assert end.memory > 0


def test_an_engine_that_dies_while_it_loads_says_why(stage: Stage) -> None:
    host, spec = stage.host("--die-in-load", "3"), stage.spec()
    host.start(spec)
    (end,) = stage.heard.wait("exited")
    assert end.code == 3
    assert "exited with code 3 while it loaded" in end.summary
    assert "could not load the model" in end.summary
    assert "ready" not in stage.heard.names()


def test_an_engine_deaf_to_sigint_and_sigterm_is_killed_with_its_children(stage: Stage) -> None:
    host = stage.host(
        "--deaf-to-sigterm", "--child", ladder=[("SIGINT", 0.2), ("SIGTERM", 0.2), ("SIGKILL", 0)]
    )
    spec = stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    until(lambda: len(stage.pids()) == 2)
    host.stop(spec.engine_id)
    (end,) = stage.heard.wait("exited")
    assert (end.signal, end.expected) == ("SIGKILL", True)
    until(lambda: not stage.pids())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_a_child_that_left_the_process_group_is_ended_too(stage: Stage) -> None:
    host, spec = stage.host("--child", "--child-escapes"), stage.spec()
    host.start(spec)
    pid, *_ = stage.heard.wait("spawned")
    stage.heard.wait("ready")
    until(lambda: len(stage.pids()) == 2)
    os.kill(pid, signal.SIGKILL)
    stage.heard.wait("exited")
    until(lambda: not stage.pids())


def test_stopping_before_the_spawn_ends_the_start(stage: Stage) -> None:
    host, spec = stage.host("--load-forever"), stage.spec()
    host.start(spec)
    host.stop(spec.engine_id)
    (end,) = stage.heard.wait("exited")
    assert end.expected
    until(lambda: not stage.pids())
    assert "ready" not in stage.heard.names()


def test_stopping_what_is_not_there_answers_lost(stage: Stage) -> None:
    stage.host().perform(EndEngine(backend="fake", engine_id="e-unknown", reason="x"), "cause")
    assert stage.heard.wait("lost") == ("there is no such engine",)


def test_a_second_start_of_the_same_engine_is_the_same_start(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    host.start(spec)
    stage.heard.wait("ready")
    assert len(stage.pids()) == 1
    assert stage.heard.names() == ["spawned", "ready"]


def test_a_program_that_does_not_exist_fails_with_its_name(stage: Stage) -> None:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        return PreparedEngine(CommandLine(argv=("/nowhere/llama-server",)), Readiness())

    host = stage.host(prepare=prepare)
    host.start(stage.spec())
    (failure,) = stage.heard.wait("failed")
    assert failure.code == "cannot_start"
    assert failure.message == "/nowhere/llama-server cannot be started: No such file or directory."


def test_what_prepare_refuses_reaches_the_listener_as_it_is(stage: Stage) -> None:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        raise JobFailed.permanent("broken", "The installation is broken.", advice="Reinstall it.")

    stage.host(prepare=prepare).start(stage.spec())
    expected = Failure(
        kind="permanent",
        code="broken",
        message="The installation is broken.",
        advice="Reinstall it.",
        blame="ours",
    )
    assert stage.heard.wait("failed") == (expected,)


def test_an_engine_that_is_silent_in_every_way_is_given_up(stage: Stage) -> None:
    host = stage.host("--load-forever", "--load-quietly", stall_after=1.5)
    host.start(stage.spec())
    (end,) = stage.heard.wait("exited")
    assert not end.expected
    assert "wrote nothing and used no processor" in end.summary


def test_an_engine_that_burns_processor_while_it_loads_is_waited_for(stage: Stage) -> None:
    host = stage.host("--load-seconds", "4", "--load-burning", stall_after=1.5)
    host.start(stage.spec())
    stage.heard.wait("ready")
    assert stage.heard.names() == ["spawned", "ready"]


def test_an_engine_whose_health_tells_of_a_dead_load_is_ended(stage: Stage) -> None:
    stage.readiness = Readiness(loading=frozenset(), dead=frozenset({503}))
    host = stage.host("--health-503-when-dead", "--lie-while-loading")
    host.start(stage.spec())
    (end,) = stage.heard.wait("exited")
    assert not end.expected
    assert "its model could not be loaded" in end.summary


def test_where_health_lies_only_a_proof_makes_it_ready(stage: Stage) -> None:
    stage.readiness = Readiness(loading=frozenset(), dead=frozenset({503}), proof=True)
    host = stage.host("--lie-while-loading", "--load-seconds", "0.5")
    host.start(stage.spec())
    stage.heard.wait("ready")
    assert stage.heard.moment("ready") - stage.heard.moment("spawned") > 0.5


def test_progress_tells_the_engines_own_last_line(stage: Stage) -> None:
    host = stage.host("--load-seconds", "1.5")
    host.start(stage.spec())
    assert stage.heard.wait("progress") == ("loading", "loading ...")


def test_shutdown_stops_all_engines_at_once(stage: Stage) -> None:
    host = stage.host("--deaf", "SIGINT", ladder=[("SIGINT", 0.5), ("SIGTERM", 5), ("SIGKILL", 0)])
    for _ in range(3):
        host.start(stage.spec())
    until(lambda: stage.heard.names().count("ready") == 3)
    host.shutdown()
    assert stage.heard.names().count("exited") == 3
    assert not stage.pids()


def test_no_zombie_and_no_socket_is_left_behind(stage: Stage) -> None:
    import psutil

    before = set(psutil.Process().children())
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    host.stop(spec.engine_id)
    stage.heard.wait("exited")
    until(lambda: not set(psutil.Process().children()) - before)
    assert not list((stage.folder / spec.engine_id).glob("*.sock"))


def test_many_engines_come_and_go_and_leave_nothing_behind(stage: Stage) -> None:
    import threading

    import psutil

    here = psutil.Process()
    before = set(here.children())
    host = stage.host(spare_keeper=True)
    until(lambda: host.spare.pid)
    threads, descriptors = threading.active_count(), here.num_fds()
    specs = [stage.spec() for _ in range(12)]
    for spec in specs:
        host.start(spec)
    until(lambda: stage.heard.names().count("ready") == len(specs), bound=60)
    for spec in specs[:6]:
        host.stop(spec.engine_id)
    for spec in specs[6:]:
        os.kill(stage.claim(spec.engine_id)["pid"], signal.SIGKILL)
    until(lambda: stage.heard.names().count("exited") == len(specs))
    until(lambda: host.spare.pid and len(set(here.children()) - before) == 1)
    until(lambda: (threading.active_count(), here.num_fds()) == (threads, descriptors))
    assert not host.engine_ids


def test_folders_of_ended_engines_do_not_pile_up_while_a_daemon_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from greenroom.runner.engines import folders as module

    monkeypatch.setattr(module, "KEPT_MEANWHILE", 3)
    monkeypatch.setattr(module, "PRUNED_EVERY", 4)

    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        return PreparedEngine(CommandLine(argv=("/nowhere/llama-server",)), Readiness())

    host, living = stage.host(prepare=prepare), stage.spec()
    stage.host().start(living)
    stage.heard.wait("ready")
    specs = [stage.spec() for _ in range(8)]
    for spec in specs:
        host.start(spec)
        stage.heard.wait("failed", engine_id=spec.engine_id)
    until(
        lambda: (
            {one.name for one in stage.folder.iterdir() if one.is_dir()}
            == {living.engine_id, *(spec.engine_id for spec in specs[-3:])}
        )
    )
    assert stage.alive(stage.claim(living.engine_id)["pid"])


def test_an_id_that_would_leave_the_folder_is_refused(stage: Stage) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        stage.host().start(stage.spec("../evil"))
