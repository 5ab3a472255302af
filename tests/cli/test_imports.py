"""Each command imports little, since people wait for it. Modules are counted: their time depends on load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner import exit_codes

SLOW = {
    "aiohttp",
    "asyncio",
    "greenroom.runner.backends.discovery",
    "greenroom.runner.daemon",
    "importlib.metadata",
    "psutil",
    "secrets",
    "ssl",
    "tenacity",
}
"""What takes longest to import; a command imports it only if it uses it."""
OF_STORED_THINGS = {"greenroom.actors.kernel.core", "logging", "msgspec"}
"""What commands that only ask a daemon do not need."""
LIGHT = 108
"""Modules of such a command."""

COUNT = """
import json, sys
before = set(sys.modules)
from greenroom.runner.cli.main import run
code = run(sys.argv[1:])
print()
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""


@pytest.mark.parametrize(
    ("command", "most"),
    [
        pytest.param(("help",), 88, id="help"),
        pytest.param(("ps",), LIGHT, id="ps"),
        pytest.param(("list",), LIGHT, id="list"),
        pytest.param(("queue",), LIGHT, id="queue"),
        pytest.param(("version",), LIGHT, id="version"),
        pytest.param(("inspect", "smollm2"), LIGHT, id="inspect"),
        pytest.param(("config",), 150, id="config"),
        pytest.param(("log", "--journal", "JOURNAL"), 150, id="log"),
        pytest.param(("log", "--summary", "--journal", "JOURNAL"), 168, id="summary"),
        pytest.param(("replay", "--journal", "JOURNAL"), 202, id="replay"),
        pytest.param(("why", "daemon", "--journal", "JOURNAL"), 248, id="why"),
    ],
)
def test_a_command_imports_only_what_it_uses(command: tuple[str, ...], most: int, tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    event = DaemonStarted(pid=1, version="0.1.0", platform="Linux")
    data = msgspec.json.encode(event).decode()
    journal.append([Entry(stream="daemon", version=1, type=event.TAG, schema=1, cause="", data=data, at=1.0)])
    journal.close()
    words = [str(journal.files.db) if one == "JOURNAL" else one for one in command]
    _, modules = imported(words, tmp_path / "home", "1", tmp_path)
    unwanted = SLOW if most > LIGHT else SLOW | OF_STORED_THINGS
    assert sorted(unwanted & set(modules)) == []
    assert len(modules) <= most, modules


def test_garbage_is_collected_while_a_command_runs_and_not_looked_for_at_its_end() -> None:
    program = """
import atexit, gc
from greenroom.runner.cli.__main__ import main
atexit.register(lambda: print(gc.isenabled(), len(gc.get_objects()) < gc.get_freeze_count()))
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "help", "ps"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True True"


def test_backends_imports_no_backend_where_a_daemon_knows_them(
    our_daemon: Any, home: Path, tmp_path: Path
) -> None:
    our_daemon.routes["GET /engines"] = []
    port = our_daemon.url.rsplit(":", 1)[1]
    code, modules = imported(["backends"], home, port, tmp_path)
    assert code == 0
    assert sorted(SLOW & set(modules)) == []
    assert len(modules) <= 155, modules


def imported(words: list[str], home: Path, port: str, cwd: Path) -> tuple[int, list[str]]:
    """How a command ends, and which modules it has imported then."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *words],
        env={"GREENROOM_HOME": str(home), "HOME": str(cwd), "GREENROOM_PORT": port},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, modules


INTERRUPT = """
import os, signal, sys
from greenroom.runner.cli.__main__ import main

class Interrupt:
    at = sys.argv.pop(1)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == cls.at:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
main()
"""


@pytest.mark.parametrize(
    ("module", "code"),
    [("greenroom.runner.cli.main", -signal.SIGINT), ("greenroom.runner.cli.engines", exit_codes.INTERRUPTED)],
)
def test_ctrl_c_while_modules_are_imported_ends_a_command_without_a_traceback(module: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, module, "ps"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (code, "", "")
