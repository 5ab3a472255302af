"""A daemon that is killed leaves its engines; the next adopts what it can identify and ends the rest."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from engine_stage import Stage
from greenroom.actors.values import Engine, EngineSpec, Reservation
from greenroom.runner.engines import adoption
from greenroom.runner.engines.adoption import distrust, end_processes
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.systems.processes import ProcessIdentity
from waiting import until


def expected_of(spec: EngineSpec, state: Any = "ready", pid: int = 0, started: float = 0.0) -> Engine:
    return Engine(spec=spec, state=state, since=0.0, pid=pid, started=started)


def lines_until(process: subprocess.Popen[str], name: str) -> list[list[str]]:
    """What the daemon process said, up to and including the first line of this name."""
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(json.loads(line))
        if said[-1][0] == name:
            return said
    raise AssertionError(f"the process ended before it said {name}: {said}")


def killed_daemon(stage: Stage, engine_id: str, *flags: str, **options: Any) -> tuple[int, float]:
    """A daemon with one ready engine, killed; the engine's pid and start."""
    with stage.daemon(engine_id, *flags, **options) as process:
        said = lines_until(process, "ready")
        process.send_signal(signal.SIGKILL)
    return int(said[0][2]), float(said[0][3])


def test_the_next_daemon_adopts_the_engine_of_one_that_was_killed(stage: Stage) -> None:
    pid, started = killed_daemon(stage, "e-1", "--echo")
    assert stage.alive(pid)
    host, spec = stage.host(), stage.spec("e-1")
    host.recover([expected_of(spec, pid=pid, started=started)]).result(10)
    adopted_pid, adopted_started, endpoint, ready = stage.heard.wait("adopted")
    assert (adopted_pid, adopted_started, ready) == (pid, started, True)
    status, reply = stage.request(endpoint, "/v1/completions", {"prompt": "again"})
    assert (status, reply["choices"][0]["text"]) == (200, "again ")
    host.stop("e-1")
    (end,) = stage.heard.wait("exited")
    assert end.expected
    assert not stage.alive(pid)


def test_an_engine_with_flags_and_several_reservations_is_the_same_after_a_restart(stage: Stage) -> None:
    """JSON has lists where a spec has tuples: no such engine was ever taken over."""
    reservations = (Reservation(weights=7, cache=3, slots=4), Reservation(device="gpu-1", weights=9))
    spec = msgspec.structs.replace(stage.spec("e-1"), flags=("--echo", "--tokens"), reservations=reservations)
    kept = json.loads(json.dumps({"engine_id": "e-1", "about": {"spec": msgspec.to_builtins(spec)}}))
    assert adoption.distrust(expected_of(spec), kept) == ""
    other = msgspec.structs.replace(spec, reservations=reservations[:1])
    assert "another model or configuration" in adoption.distrust(expected_of(other), kept)
    assert "another model or configuration" in adoption.distrust(expected_of(spec), {"engine_id": "e-1"})


def test_an_adopted_engine_that_dies_is_noticed_like_any_other(stage: Stage) -> None:
    pid, started = killed_daemon(stage, "e-1")
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), pid=pid, started=started)]).result(10)
    os.kill(pid, signal.SIGKILL)
    (end,) = stage.heard.wait("exited")
    assert end.signal == "SIGKILL"


def test_an_engine_still_loading_is_adopted_and_becomes_ready_later(stage: Stage) -> None:
    with stage.daemon("e-1", "--load-seconds", "2") as process:
        lines_until(process, "spawned")
        process.send_signal(signal.SIGKILL)
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), state="starting")]).result(10)
    assert stage.heard.wait("adopted")[3] is False
    stage.heard.wait("ready")


def test_a_full_disk_at_the_next_start_costs_no_engine(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pid, started = killed_daemon(stage, "e-1")
    expected = expected_of(stage.spec("e-1"), pid=pid, started=started)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(adoption, "create_claim", full)
    stage.host().recover([expected]).result(20)
    stage.heard.wait("adopted")
    assert stage.alive(pid)


def test_an_engine_that_cannot_be_looked_at_is_looked_at_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, started = killed_daemon(stage, "e-1")
    expected = expected_of(stage.spec("e-1"), pid=pid, started=started)
    read, refused = adoption.claim_of, iter([True])

    def sometimes(folder: EngineFolder) -> Any:
        if next(refused, False):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read(folder)

    monkeypatch.setattr(adoption, "claim_of", sometimes)
    stage.host().recover([expected]).result(20)
    stage.heard.wait("adopted")
    assert stage.alive(pid)


def test_a_sweep_leaves_alone_what_it_cannot_look_at(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pid, _ = killed_daemon(stage, "e-1")

    def unreadable(_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(adoption, "claim_of", unreadable)
    assert stage.host().sweep([]).result(20) == []
    assert stage.alive(pid)


def test_a_daemon_killed_between_spawn_and_report_leaves_one_engine_not_two(stage: Stage) -> None:
    with stage.daemon("e-1", die_after_claim=True) as process:
        process.wait(10)
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), state="starting")]).result(10)
    stage.heard.wait("adopted", "ready")
    assert len(stage.pids()) == 1


def test_an_unclaimed_start_is_lost_and_can_never_come_late(stage: Stage) -> None:
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), state="starting")]).result(10)
    assert stage.heard.wait("lost") == ("it was never started before the daemon ended",)
    host.start(stage.spec("e-1"))
    (failure,) = stage.heard.wait("failed")
    assert failure.code == "claimed"
    assert not stage.pids()


def test_an_engine_whose_pid_is_not_the_recorded_one_is_ended_not_trusted(stage: Stage) -> None:
    pid, _ = killed_daemon(stage, "e-1")
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), pid=os.getpid(), started=1.0)]).result(20)
    assert f"its process is {pid}, not the recorded {os.getpid()}" in stage.heard.wait("lost")[0]
    assert not stage.alive(pid)
    assert stage.heard.names() == ["lost"]


def test_an_engine_with_flags_slots_and_reservations_is_recognised(stage: Stage) -> None:
    reservation = Reservation(weights=5, cache=2, slots=4)
    spec = stage.spec("e-1", flags=("--threads", "2"), slots=4, reservations=(reservation,), memory=13)
    kept = json.loads(msgspec.json.encode({"engine_id": "e-1", "about": {"spec": spec}}))
    assert distrust(expected_of(spec), kept) == ""
    other = msgspec.structs.replace(spec, flags=("--threads", "3"))
    assert distrust(expected_of(other), kept) == "it was started for another model or configuration"


def test_an_engine_that_serves_another_model_is_ended_not_trusted(stage: Stage) -> None:
    pid, started = killed_daemon(stage, "e-1")
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1", model_id="another"), pid=pid, started=started)]).result(20)
    assert stage.heard.wait("lost") == ("it was started for another model or configuration",)
    assert not stage.alive(pid)


def test_an_engine_that_was_being_stopped_is_stopped_further(stage: Stage) -> None:
    pid, started = killed_daemon(stage, "e-1")
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), state="stopping", pid=pid, started=started)]).result(20)
    (end,) = stage.heard.wait("exited")
    assert end.expected
    assert not stage.alive(pid)


def test_an_engine_that_ended_while_no_daemon_ran_is_reported_with_its_end(stage: Stage) -> None:
    pid, started = killed_daemon(stage, "e-1", "--say", "farewell")
    os.kill(pid, signal.SIGKILL)
    until((stage.folder / "e-1" / "exit.json").exists)
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), pid=pid, started=started)]).result(10)
    (end,) = stage.heard.wait("exited")
    assert (end.signal, end.expected) == ("SIGKILL", False)
    written = json.loads((stage.folder / "e-1" / "exit.json").read_text())
    assert written["first_lines"][0] == "farewell"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_with_daemon_and_keeper_both_killed_nothing_is_left(stage: Stage) -> None:
    with stage.daemon("e-1", "--ignore-keeper", "--child") as process:
        pid = int(lines_until(process, "ready")[0][2])
        until(lambda: len(stage.pids()) == 2)
        process.send_signal(signal.SIGKILL)
        os.kill(stage.claim("e-1")["keeper_pid"], signal.SIGKILL)
    host = stage.host()
    host.recover([expected_of(stage.spec("e-1"), pid=pid)]).result(10)
    assert stage.heard.wait("lost") == ("its keeper had died",)
    assert not stage.pids()


def test_a_claim_of_an_earlier_boot_is_lost_and_no_process_is_signalled(stage: Stage) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = EngineFolder.of(stage.folder, "e-1")
    folder.create()
    identity = ProcessIdentity.of(stranger.pid)
    claim = {"engine_id": "e-1", "boot_id": "earlier", "keeper_pid": stranger.pid, "pid": stranger.pid}
    assert identity is not None
    folder.claim.write_text(
        json.dumps({**claim, "keeper_started": identity.started, "started": identity.started})
    )
    stage.host().recover([expected_of(stage.spec("e-1"), pid=stranger.pid)]).result(10)
    assert stage.heard.wait("lost") == ("the machine was restarted",)
    assert stranger.poll() is None
    stranger.communicate(b"\n")


def test_a_recycled_pid_is_never_signalled(stage: Stage) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, process_group=0)
    real = ProcessIdentity.of(stranger.pid)
    assert real is not None
    recycled = ProcessIdentity(real.pid, real.started - 1, real.boot)
    unknown = ProcessIdentity(real.pid, 0.0, real.boot)
    for identity in (recycled, unknown):
        assert not identity.alive()
        assert not identity.send(signal.SIGKILL)
        assert not identity.send_group(signal.SIGKILL)
        end_processes(identity, EngineFolder.of(stage.folder, "e-none"))
    assert stranger.poll() is None
    assert real.send(signal.SIGKILL)
    assert stranger.wait(5) == -signal.SIGKILL
    assert stranger.stdin is not None
    stranger.stdin.close()


def test_a_host_that_leaves_its_engines_hands_them_to_the_next(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    pid, started, endpoint = stage.heard.wait("spawned")
    stage.heard.wait("ready")
    host.shutdown(keep=math.inf)
    assert stage.heard.names() == ["spawned", "ready"]
    assert stage.alive(pid)
    heard = stage.forget()
    stage.host().recover([expected_of(spec, pid=pid, started=started)]).result(10)
    assert heard.wait("adopted") == (pid, started, endpoint, True)


def test_engines_left_for_a_time_end_when_it_is_over(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec()
    host.start(spec)
    pid, *_ = stage.heard.wait("spawned")
    stage.heard.wait("ready")
    host.shutdown(keep=0.5)
    until(lambda: not stage.alive(pid))


def test_a_sweep_ends_unknown_engines_and_leaves_known_ones(stage: Stage) -> None:
    known, _ = killed_daemon(stage, "e-known")
    unknown, _ = killed_daemon(stage, "e-unknown")
    assert stage.host().sweep({"e-known"}).result(20) == ["e-unknown"]
    assert stage.alive(known)
    assert not stage.alive(unknown)


def test_a_sweep_removes_folders_of_ended_engines_but_the_newest(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.engines.folders.KEPT_AT_SWEEP", 2)
    for index in range(4):
        folder = EngineFolder.of(stage.folder, f"e-{index}")
        folder.create()
        folder.exit.write_text("{}")
        os.utime(folder.path, (index, index))
    assert stage.host().sweep(()).result(10) == []
    assert sorted(path.name for path in stage.folder.iterdir()) == ["e-2", "e-3"]


def test_the_claim_remembers_the_spec_as_it_was(stage: Stage) -> None:
    host, spec = stage.host(), stage.spec(flags=("--tokens", "7"), context_size=512)
    host.start(spec)
    stage.heard.wait("ready")
    about = stage.claim(spec.engine_id)["about"]
    assert msgspec.convert(about["spec"], type(spec)) == spec
