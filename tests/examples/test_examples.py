"""Each example is run as it stands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from greenroom.actors.journal.reader import JournalReader

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory whose llama.cpp is the user's own, so that nothing is fetched."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f"[backends.'llama.cpp']\nbinary = '{sys.executable}'\n")
    return home


def run(*arguments: str, folder: Path = EXAMPLES.parent) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_script_remembers_what_it_did_the_last_time(tmp_path: Path) -> None:
    journal = tmp_path / "allowance.db"
    said = [run("examples/script.py", str(journal), "40").strip() for _ in range(3)]
    assert said == ["60 tokens are left.", "20 tokens are left.", "Only 20 tokens are left."]
    with JournalReader(journal) as reader:
        assert [record.type for record in reader.read()] == ["allowance_spent"] * 2


@pytest.mark.parametrize("program", ["service.py", "asgi_service.py"])
def test_a_service_has_greenroom_under_a_prefix(home: Path, program: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = subprocess.Popen(
        [sys.executable, f"examples/{program}", str(port)],
        cwd=EXAMPLES.parent,
        env={**os.environ, "GREENROOM_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert get(f"http://127.0.0.1:{port}/my-models") == {}
        backends = get(f"http://127.0.0.1:{port}/ai/engines/status")
        assert {"llama.cpp", "mlx"} <= set(backends)
    finally:
        service.terminate()
        assert service.wait(30) in (0, -15)
    with JournalReader(home / "journal.db") as reader:
        types = [record.type for record in reader.read()]
    assert (types[0], types[-1]) == ("daemon_started", "daemon_stopped")


def test_a_pytest_fixture_gives_a_whole_greenroom() -> None:
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_service.py", folder=EXAMPLES)
    assert "2 passed" in said


def test_no_example_is_longer_than_a_page() -> None:
    for example in EXAMPLES.glob("*.py"):
        assert len(example.read_text().splitlines()) <= 70, example.name


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("GREENROOM_", "MODEL_RUNNER_")):
            monkeypatch.delenv(name)


def get(url: str) -> dict[str, object]:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.URLError:
            assert time.monotonic() < deadline, f"no server answers at {url}"
            time.sleep(0.05)
