"""Settings as commands meet them: mistakes in the file, values that are not in force, other daemons."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.config import BadSetting, load
from greenroom.runner.daemon_lock import DaemonLock

TYPO = 'keep_alvie = "5m"\nport = "x"\n'


@pytest.mark.parametrize("text", [TYPO, "keep_alive = = 1\n"])
@pytest.mark.parametrize("command", [("ps",), ("list",), ("log", "-n", "1"), ("why", "nothing")])
def test_a_mistake_in_the_file_is_a_warning_for_what_needs_no_new_daemon(
    greenroom: Any, our_daemon: Any, home: Path, text: str, command: tuple[str, ...]
) -> None:
    our_daemon.routes |= {"GET /engines/ps": [], "GET /engines/queue": [], "GET /models": []}
    (home / "config.toml").write_text(text)
    done = greenroom(*command)
    assert done.code != 2, done.err
    assert f"Warning: {home / 'config.toml'}" in done.err


@pytest.mark.parametrize("command", [("serve",), ("run", "smollm2", "hi"), ("restart",)])
def test_no_daemon_is_started_with_a_mistake_in_the_file(
    greenroom: Any, home: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))
    (home / "config.toml").write_text(TYPO)
    done = greenroom(*command)
    assert (done.code, done.err.count("Did you mean 'keep_alive'?")) == (2, 1)
    assert not (home / "daemon.log").exists()


def test_what_is_wrong_in_the_file_is_left_out_and_the_rest_holds(home: Path) -> None:
    (home / "config.toml").write_text(TYPO + 'max_wait = "7s"\n')
    settings = load(tolerant=True)
    assert settings.max_wait == 7.0
    assert ["keep_alvie" in settings.problems[0], "port cannot be used" in settings.problems[1]] == [True] * 2
    with pytest.raises(BadSetting, match="keep_alvie"):
        load()


def test_config_marks_what_the_running_daemon_has_other_values_of(greenroom: Any, home: Path) -> None:
    (home / "config.toml").write_text('keep_alive = "1m"\nwarm = ["tiny"]\n')
    note = {"settings": {"keep_alive": 300.0, "warm": [], "max_wait": 300.0, "models": {}}}
    (home / "daemon.json").write_text(json.dumps(note))
    assert "*" not in greenroom("config").out, "it does not run"
    with ExitStack() as stack:
        stack.callback(DaemonLock(home).release)
        told = greenroom("config")
        values = json.loads(greenroom("config", "--json").out)
    marked = [line.split()[0] for line in told.out.splitlines() if " * " in line]
    assert marked == ["keep_alive", "warm"]
    assert "the running daemon still has keep_alive = 5m, warm = (none)." in told.err
    assert "greenroom restart" in told.err
    assert {name: one["in_force"] for name, one in values.items() if "in_force" in one} == {
        "keep_alive": 300.0,
        "warm": [],
    }


@pytest.mark.parametrize(
    ("freed", "kept", "said"),
    [
        (98_400_000, 0, "Freed 98.4 MB.\n"),
        (1_000, 98_400_000, "Freed 1.00 kB; 98.4 MB stay in use by other models or programs.\n"),
    ],
)
def test_rm_says_what_was_freed_and_what_others_share(
    greenroom: Any, our_daemon: Any, freed: int, kept: int, said: str
) -> None:
    rows = [{"Untagged": "tiny"}, {"Deleted": "sha256:1"}]
    headers = {"X-Freed-Bytes": str(freed), "X-Kept-Bytes": str(kept)}
    our_daemon.routes["DELETE /models/tiny?force=false"] = (200, rows, headers)
    assert greenroom("rm", "tiny").err == said


def test_rm_of_one_of_several_names_frees_nothing(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["DELETE /models/tiny?force=false"] = [{"Untagged": "tiny"}]
    assert greenroom("rm", "tiny").err == "Nothing was freed: the model has other names.\n"


def test_a_file_in_front_of_one_is_meant_by_its_name_alone(
    greenroom: Any, our_daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("mine.gguf", "sub/other.gguf"):
        (tmp_path / name).touch()
        our_daemon.routes["POST /models/create"] = [json.dumps({"type": "success", "message": "ok"})]
        assert greenroom("pull", name).code == 0
        assert our_daemon.bodies("/models/create")[-1]["from"] == f"file:{tmp_path / name}"
    assert greenroom("pull", "absent.gguf").code == 0
    assert our_daemon.bodies("/models/create")[-1]["from"] == "absent.gguf"


def test_no_daemon_of_ours_is_started_for_an_address_with_tls(
    greenroom: Any, home: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENROOM_HOST", f"https://127.0.0.1:{unused_port}")
    done = greenroom("run", "smollm2", "hi")
    assert (done.code, "No Greenroom daemon answers at https://" in done.err) == (3, True)
    assert "Starting" not in done.err


def test_the_client_is_imported_without_the_rest_of_greenroom() -> None:
    program = "import sys, greenroom.runner.client.http_client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"click", "rich", "msgspec", "asyncio", "aiohttp", "ssl", "psutil", "random"}
