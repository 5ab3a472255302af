"""Loading, ready, dead; and patience."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.base import Readiness
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.engines.handle import (
    Probe,
    ProbeResult,
    ProgressDeadline,
    Pulse,
    judge,
    take_pulse,
)
from greenroom.runner.engines.reachability import belongs_to
from greenroom.runner.systems import here


@pytest.mark.parametrize(
    ("backend", "status", "health"),
    [
        (LlamaCpp, None, ProbeResult.SILENT),
        (LlamaCpp, 503, ProbeResult.LOADING),
        (LlamaCpp, 200, ProbeResult.READY),
        (LlamaCpp, 404, ProbeResult.LOADING),
        (Mlx, 200, ProbeResult.READY),
        (Mlx, 503, ProbeResult.DEAD),
    ],
)
def test_the_same_status_means_different_things_to_different_backends(
    backend: Any, status: int | None, health: Any
) -> None:
    assert judge(backend.readiness, status) is health


def pulse(log: int = 0, cpu: float = 0.0, read: int = 0) -> Pulse:
    return Pulse(log_size=log, cpu_seconds=cpu, bytes_read=read)


@pytest.mark.parametrize("life", [{"log": 1}, {"cpu": 0.5}, {"read": 1}])
def test_any_sign_of_life_restarts_the_wait(life: Any) -> None:
    patience = ProgressDeadline(now=0)
    assert patience.moved(pulse(), 0)
    assert not patience.moved(pulse(), 9)
    assert patience.silent_for(9) == 9
    assert patience.moved(pulse(**life), 10)
    assert not patience.moved(pulse(**life), 19)
    assert patience.silent_for(20) == 10


def test_the_processor_time_of_an_idle_server_is_no_sign_of_life() -> None:
    patience = ProgressDeadline(now=0)
    assert [patience.moved(pulse(cpu=now * 0.01), now) for now in (0, 5, 9, 10)] == [
        True,
        False,
        False,
        False,
    ]


def test_the_pulse_counts_descendants_and_survives_the_death_of_the_process() -> None:
    busy = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy + 'input()'!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        for _ in range(2000):
            if take_pulse(process.pid, 0).cpu_seconds >= 0.2:
                break
            os.sched_yield()
        else:
            pytest.fail("the child's processor time was not seen")
    finally:
        process.communicate(b"\n")
    assert take_pulse(process.pid, 5) == pulse(log=5)


def test_a_stranger_on_the_socket_is_never_taken_for_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        stranger = Probe(path, Readiness(), leader=1)
        assert stranger.look() is ProbeResult.SILENT
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert here.peer_pid(client) == os.getpid()
    assert belongs_to(os.getpid(), os.getpgid(0))
    assert not belongs_to(os.getpid(), 1)


def test_a_socket_that_no_process_listens_on_is_silence(tmp_path: Path) -> None:
    assert Probe(tmp_path / "none", Readiness()).look() is ProbeResult.SILENT
