"""Restarts: installed backends come back from the journal and the disk, without a download or a network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture
def no_uv(tmp_path: Path) -> str:
    """A uv that must not be called."""
    program = tmp_path / "uv"
    program.write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\necho 'uv was called' >&2\nexit 97\n")
    program.chmod(0o755)
    return str(program)


def _without_network() -> tuple[str, ...]:
    """A network namespace of its own with the loopback up and no routes, where that is allowed."""
    unshare = shutil.which("unshare")
    if sys.platform != "linux" or unshare is None or shutil.which("ip") is None:
        return ()
    wrapper = (
        unshare,
        "--user",
        "--map-root-user",
        "--net",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "sh",
    )
    works = subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0
    return wrapper if works else ()


def test_installed_backends_come_back_without_a_download_and_without_a_network(
    furnished: Path, make_daemon: Callable[..., Any], no_uv: str, tmp_path: Path
) -> None:
    wrapper = _without_network()
    daemon = make_daemon(furnished, wrapper, GREENROOM_UV=no_uv).start()
    before = len(daemon.events())
    until(lambda: daemon.events("daemon_started"))
    # The port is in a namespace of its own, so the journal has to show that nothing was found or built.
    new = [record.type for record, _ in daemon.events()][before - 1 :]
    assert "install_requested" not in new
    assert not (tmp_path / "called").exists()
    if not wrapper:
        until(lambda: daemon.get("/engines/status").json["mlx"].startswith("Running"))


@pytest.mark.slow  # the quick one is crash/test_damaged_journal.py, with a small backend
def test_with_the_journal_deleted_installations_and_models_are_found_on_disk(
    furnished: Path, make_daemon: Callable[..., Any], no_uv: str, tmp_path: Path, smollm2_mlx: Path
) -> None:
    daemon = make_daemon(furnished, GREENROOM_UV=no_uv)
    for file in daemon.home.glob("journal*"):
        file.unlink()
    daemon.start()
    found = {fields["backend"] for _, fields in daemon.events("installation_found")}
    assert found == {"llama.cpp", "mlx"}
    status = daemon.get("/engines/status").json
    assert status["mlx"].startswith("Running")
    assert status["llama.cpp"].startswith("Running")
    assert daemon.chat(str(smollm2_mlx)).status == 200
    assert not (tmp_path / "called").exists()


@pytest.mark.slow
def test_a_file_removed_behind_its_back_is_named_and_the_next_install_repairs_it(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_mlx: Path
) -> None:
    daemon = make_daemon(furnished)
    (file,) = daemon.home.glob("backends/mlx/*/env/lib/python*/site-packages/mlx_lm/server.py")
    file.unlink()
    daemon.start()
    broken = [fields for _, fields in daemon.events("installation_broken")]
    assert [one["backend"] for one in broken] == ["mlx"]
    assert "mlx_lm/server.py" in broken[0]["reason"]
    assert "server.py" in daemon.get("/engines/status").json["mlx"]
    refused = daemon.chat(str(smollm2_mlx))
    assert refused.status == 412
    installed = daemon.post("/engines/install-backend", {"backend": "mlx"})
    assert installed.status == 200, installed.body
    assert daemon.chat(str(smollm2_mlx)).status == 200


@pytest.mark.slow  # the quick one is wedges' T10, with a small backend
def test_a_daemon_killed_while_it_installs_never_believes_half_an_installation(
    make_daemon: Callable[..., Any],
) -> None:
    daemon = make_daemon().start()
    asker = threading.Thread(target=lambda: daemon.post("/engines/install-backend", {"backend": "mlx"}))
    asker.start()
    until(lambda: list(daemon.home.glob("backends/mlx/*/")))
    daemon.kill()
    asker.join()
    assert not list(daemon.home.glob("backends/mlx/*/installation.json"))
    daemon.start()
    # A user typed it, so it goes on; a client that asks now joins it.
    answer = daemon.post("/engines/install-backend", {"backend": "mlx"})
    assert answer.status == 200, answer.body
    assert daemon.get("/engines/status").json["mlx"].startswith("Running")
    committed = [
        fields for _, fields in daemon.events("installation_committed") if fields["backend"] == "mlx"
    ]
    assert len(committed) == 1
    attempts = list(daemon.home.glob("backends/mlx/*/"))
    assert len(attempts) == 1, attempts
    assert json.loads((attempts[0] / "installation.json").read_text())
