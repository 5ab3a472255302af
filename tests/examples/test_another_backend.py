"""A backend that another distribution adds: the example, installed as a user would, and used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.runner.testing import tiny_gguf

EXAMPLE = Path(__file__).parents[2] / "examples" / "another_backend"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example, and another one that is broken."""
    folder = tmp_path_factory.mktemp("site")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source)  # building leaves things behind
    site = folder / "packages"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    info = site / "half_a_backend-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-a-backend\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[greenroom.backends]\nhalf = half_a_backend:Half\n")
    return site


@pytest.fixture
def environment(site: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a user who has it; the daemon ends with the test."""
    home = tmp_path / "home"
    home.mkdir()
    # Its own llama.cpp is the user's, so that nothing is fetched that is not asked for.
    (home / "config.toml").write_text(f"[backends.'llama.cpp']\nbinary = '{sys.executable}'\n")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GREENROOM_")},
        "PYTHONPATH": str(site),
        "GREENROOM_HOME": str(home),
        "GREENROOM_PORT": "0",
    }
    log = (tmp_path / "serve.log").open("wb")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "greenroom.runner.cli", "serve"], env=environment, stdout=log, stderr=log
    )
    log.close()
    deadline = time.monotonic() + 60
    while not (home / "daemon.json").exists():
        assert daemon.poll() is None, (tmp_path / "serve.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    environment["GREENROOM_HOST"] = json.loads((home / "daemon.json").read_text())["url"]
    try:
        yield environment
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
    said = (tmp_path / "serve.log").read_text()
    assert "The backend 'half' of half-a-backend 2.0 is ignored" in said
    assert "Traceback" not in said


def greenroom(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "greenroom.runner.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_a_backend_of_another_distribution_is_listed_installed_and_serves(
    environment: dict[str, str], tmp_path: Path
) -> None:
    listed = greenroom(environment, "backends")
    assert [line for line in listed.stdout.splitlines() if line.startswith("parrot")]
    assert "The backend 'half' of half-a-backend 2.0 is ignored: ModuleNotFoundError" in listed.stderr

    installed = greenroom(environment, "install-runner", "--backend", "parrot")
    assert installed.returncode == 0, installed.stderr
    assert "parrot backend installed successfully" in installed.stdout

    model = tiny_gguf(tmp_path / "tiny.gguf")
    pulled = greenroom(environment, "pull", str(model))
    assert pulled.returncode == 0, pulled.stderr
    said = greenroom(environment, "run", "--backend", "parrot", str(model), "Polly wants a cracker.")
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "Polly wants a cracker."

    removed = greenroom(environment, "uninstall-runner", "--backend", "parrot")
    assert "Uninstalled parrot backend" in removed.stdout
