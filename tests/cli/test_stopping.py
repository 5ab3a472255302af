"""What `greenroom stop` takes for the end of a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from greenroom.runner.cli import daemon as stop
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import Daemon
from greenroom.runner.daemon_lock import DaemonLock


def test_a_daemon_that_has_released_its_data_directory_has_ended_even_if_its_pid_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(stop, "LET_GO", 0.1)
    daemon = Daemon(
        url="http://127.0.0.1:1",
        instance_id="i",
        pid=os.getpid(),
        version="1",
        home=str(tmp_path),
        secret=b"known",
    )
    lock = DaemonLock(tmp_path)
    with pytest.raises(Problem, match="still running"):
        stop.await_end(daemon, tmp_path)
    lock.release()
    stop.await_end(daemon, tmp_path)
