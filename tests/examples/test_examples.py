"""Each example is run as it stands."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from greenroom.actors.journal.reader import JournalReader
from greenroom.runner import pytest_plugin

EXAMPLES = Path(__file__).parents[2] / "examples"
PLUGIN = pytest_plugin.__name__
NAMED = """
import asyncio
import pytest

@pytest.fixture
def greenroom_models():
    return ("smollm2", "minilm")

def test_both(greenroom, fake_engine):
    fake_engine.says("one two")
    asyncio.run(both(greenroom.in_asyncio(), fake_engine))

async def both(client, fake_engine):
    assert [piece async for piece in client.chat("smollm2", "Hello", stream=True)] == ["one", " two"]
    assert (await client.complete("smollm2", "Once")).answer_tokens == 2
    assert len(await client.embed("minilm", ["a", "b"])) == 2
    assert [one["model"] for one in fake_engine.requests].count("minilm") == 1
"""


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
    # The plug-in by its module: an older installation of these sources does not know its name yet.
    plugins = [word for name in ("no:cacheprovider", "no:greenroom", PLUGIN) for word in ("-p", name)]
    said = run("-m", "pytest", "-q", *plugins, "test_service.py", folder=EXAMPLES)
    assert "3 passed" in said


def test_fixtures_give_models_the_names_that_a_program_uses(tmp_path: Path) -> None:
    (tmp_path / "test_names.py").write_text(NAMED)
    plugins = [word for name in ("no:cacheprovider", "no:greenroom", PLUGIN) for word in ("-p", name)]
    assert "1 passed" in run("-m", "pytest", "-q", *plugins, folder=tmp_path)


def test_the_fixtures_are_those_of_the_cookbook() -> None:
    fixtures = {
        name for name, value in vars(pytest_plugin).items() if "fixture" in type(value).__name__.lower()
    }
    page = (
        (EXAMPLES.parent / "docs" / "cookbook.md")
        .read_text()
        .partition("| fixture |")[2]
        .partition("\n\n")[0]
    )
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == fixtures


def test_pytest_finds_the_plug_in_and_imports_nothing_else_for_it() -> None:
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"greenroom": PLUGIN}
    said = run(
        "-c",
        f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(set(sys.modules) - before)",
    )
    assert "aiohttp" not in said
    assert "greenroom.runner.client" not in said


def test_no_example_is_longer_than_a_page() -> None:
    for example in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("web/*.py")):
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


@pytest.mark.slow
def test_a_tool_is_installed_from_the_real_index_once(tmp_path: Path) -> None:
    said = [run("examples/tools.py", str(tmp_path)) for _ in range(2)]
    assert "Downloading black" in said[0]
    assert "Downloading" not in said[1]
    assert all(one.splitlines()[-2].startswith("black, 2") for one in said)
