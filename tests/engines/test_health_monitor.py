"""Memory, processor and graphics time of engines, and how one that does nothing is found out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine_stage import Stage
from greenroom.actors.gates import GateReading
from greenroom.actors.values import Measured
from greenroom.runner.engines import gpu_time
from greenroom.runner.engines.health_monitor import ReportedMemory
from greenroom.runner.systems import processes
from waiting import until

MIB = 2**20


def inside(count: int = 1, quiet_since: float = 0.0) -> GateReading:
    return GateReading(True, count, 0.0, 0, quiet_since)


def test_memory_is_reported_with_its_peak_when_it_has_changed_noticeably() -> None:
    memory = ReportedMemory()
    assert memory.measure(100 * MIB) == Measured(now=100 * MIB, peak=100 * MIB)
    assert memory.measure(100 * MIB - 10) is None
    assert memory.measure(40 * MIB) == Measured(now=40 * MIB, peak=100 * MIB)


def test_a_process_group_has_members_memory_and_processor_time() -> None:
    child = "x = bytearray(30_000_000)\nimport time\nprint('up', flush=True)\ntime.sleep(60)"
    parent = (
        f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', {child!r}])\nchild.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        found = processes.groups({process.pid, 2**22 + 1})
        assert len(found[process.pid]) == 2
        assert found[2**22 + 1] == []
        assert processes.memory_of(found[process.pid]) > 30_000_000
        assert processes.cpu_seconds(found[process.pid]) > 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_process_group_that_has_gone_uses_nothing() -> None:
    assert processes.memory_of([2**22 + 1]) == 0
    assert processes.cpu_seconds([2**22 + 1]) == 0.0


def test_files_of_one_drm_client_count_once_and_capacities_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_time, "PROC", tmp_path)
    folder = tmp_path / "7" / "fdinfo"
    folder.mkdir(parents=True)
    client = (
        "pos:\t0\ndrm-driver:\ti915\ndrm-client-id:\t39\ndrm-pdev:\t0000:00:02.0\n"
        "drm-engine-render:\t2000000000 ns\n"
        "drm-engine-capacity-video:\t2\ndrm-engine-video:\t500000000 ns\n"
    )
    (folder / "3").write_text(client)
    (folder / "4").write_text(client)
    (folder / "5").write_text(client.replace("39", "40"))
    (folder / "6").write_text("pos:\t0\nflags:\t02\n")
    assert gpu_time.drm_seconds([7, 8]) == 5.0


def test_cycles_of_a_graphics_processor_count_where_there_are_no_nanoseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_time, "PROC", tmp_path)
    folder = tmp_path / "7" / "fdinfo"
    folder.mkdir(parents=True)
    (folder / "3").write_text(
        "drm-driver:\txe\ndrm-client-id:\t3\ndrm-cycles-ccs:\t28257900\ndrm-total-cycles-ccs:\t7655183225\n"
    )
    assert gpu_time.drm_seconds([7]) == pytest.approx(0.0282579)


def test_clients_in_the_io_registry_count_for_their_process() -> None:
    told = """
+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x100000466>
    {
      "PerformanceStatistics" = {"Device Utilization %"=12}
    }
    +-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x1000007a2>
    |   {
    |     "IOUserClientCreator" = "pid 4242, python3.12"
    |     "AppUsage" = ({"API"="Metal","lastSubmittedTime"=9,"accumulatedGPUTime"=1500000000},\
{"API"="Metal","accumulatedGPUTime"=500000000})
    |   }
    +-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x1000007a3>
        {
          "AppUsage" = ({"API"="Metal","accumulatedGPUTime"=7000000000})
          "IOUserClientCreator" = "pid 533, WindowServer"
        }
"""
    assert gpu_time.registry_seconds(told, {4242}) == 2.0
    assert gpu_time.registry_seconds(told, {1}) == 0.0


def test_nvidias_driver_is_asked_for_the_load_of_this_moment() -> None:
    told = (
        "# gpu        pid  type    sm   mem   enc   dec   command\n"
        "# Idx          #   C/G     %     %     %     %   name\n"
        "    0       4242     C    87    30     -     -   python\n"
        "    0        533     G     -     -     -     -   Xorg\n"
    )
    assert gpu_time.pmon_busy(told, {4242})
    assert not gpu_time.pmon_busy(told, {533, 1})


def test_the_graphics_processors_of_this_machine_can_be_asked() -> None:
    used = gpu_time.gpu_seconds([os.getpid()])
    assert used is None or used >= 0.0
    assert gpu_time.gpu_busy([os.getpid()]) in (True, False)


def test_a_host_reports_the_memory_of_an_engine(stage: Stage) -> None:
    host, spec = stage.host(stall_after=4.0), stage.spec()
    host.start(spec)
    stage.heard.wait("ready")
    until(lambda: any(name == "measured" for name, *_ in stage.heard.calls))
    size = next(rest[0] for name, _, rest in stage.heard.calls if name == "measured")
    assert size.now > 5 * MIB


def test_a_host_finds_an_engine_that_does_nothing_and_does_not_end_it(stage: Stage) -> None:
    began = time.monotonic()
    spec = stage.spec()
    readings = {spec.engine_id: inside(quiet_since=began)}
    host = stage.host("--healthy-but-dead", stall_after=1.0, readings=lambda: readings)
    host.start(spec)
    pid, *_ = stage.heard.wait("spawned")
    (failure,) = stage.heard.wait("stalled")
    assert "sent nothing and used no processor" in failure.message
    assert (failure.code, failure.blame) == ("engine_stalled", "engine")
    assert stage.alive(pid)
    assert "exited" not in stage.heard.names()


def test_a_host_leaves_an_engine_alone_whose_bytes_come(stage: Stage) -> None:
    class Streaming(dict[str, Any]):
        def get(self, _engine_id: Any, default: Any = None) -> Any:
            return inside(quiet_since=time.monotonic())

    host = stage.host("--healthy-but-dead", stall_after=1.0, readings=Streaming)
    host.start(stage.spec())
    stage.heard.wait("ready")
    with pytest.raises(AssertionError):
        stage.heard.wait("stalled", bound=3.0)
