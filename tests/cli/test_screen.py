"""What the command line shows at several widths, and what it makes of words that are not its own."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.cli.main import ALIASES, COMMANDS
from greenroom.runner.cli.other_runners import WORDS, meant
from greenroom.runner.cli.output import own, table, wrapped
from terminal import Terminal

GREENROOM = [sys.executable, "-m", "greenroom.runner.cli"]
LONG = "hf.co/an-organization-with-a-long-name/a-model-with-a-longer-name-gguf:Q4_K_M"
SHOWN = (
    "list",
    "ps --all",
    "status",
    "config",
    "backends",
    "df",
    "configure smollm2",
    "memory",
    "unload x",
    "completion --help",
)


@pytest.fixture
def full_daemon(our_daemon: Any) -> Any:
    """Has much to say, with long names and sentences."""
    reason = (
        "The llama.cpp engine was stopped, because it was not used for five minutes, which is its keep-alive."
    )
    engine = {
        "engine_id": "1a22c2dbc49-1",
        "model_name": LONG,
        "backend_name": "llama.cpp",
        "mode": "completion",
        "state": "gone",
        "since": time.time() - 90_000,
        "memory": 123_456_789,
        "exit": {"summary": reason},
    }
    model = {"id": "sha256:" + "ab" * 32, "tags": [LONG, "docker.io/ai/smollm2:latest"], "created": 1}
    row = {"mode": "completion", "setting": "slots", "value": None, "source": "automatic"}
    size = {"mode": "completion", "setting": "context-size", "value": 4096, "source": "configured"}
    our_daemon.routes |= {
        "GET /models": [model],
        "GET /v1/models": {
            "object": "list",
            "data": [{"id": LONG, "dmr": {"context_window": 4096}}],
        },
        "GET /models/smollm2": {**model, "settings": [{**size, "trained": 8192}, row]},
        "GET /engines/ps": [],
        "GET /engines/remotes": [],
        "GET /engines/ps?all=true": [engine],
        "GET /engines/queue": [],
        "GET /engines/status": {"llama.cpp": f"Error: {reason}"},
        "GET /engines/devices": {"devices": [], "problems": []},
        "GET /engines": [],
        "GET /engines/df": {"models_disk_usage": 10**9, "backends_disk_usage": {"llama.cpp": 10**8}},
        "GET /engines/ledger": {"budget": 10**10, "promised": 0, "free": 10**10},
        "POST /engines/unload": {"unloaded_runners": 0, "in_use": [reason], "unknown": []},
    }
    return our_daemon


@pytest.mark.parametrize("columns", [60, 200])
def test_everything_fits_the_terminal(full_daemon: Any, columns: int) -> None:
    for command in SHOWN:
        with Terminal([*GREENROOM, *command.split()], columns=columns) as terminal:
            terminal.ends()
        for line in terminal.text.splitlines():
            # A word that is long by itself, such as a path, stays whole.
            word = max(line.split(), key=len, default="")
            assert len(line) <= columns or len(word) > columns // 2, f"{command}: {line}"
        assert terminal.text.strip(), command


@pytest.mark.parametrize(("columns", "shown"), [(60, "ab" * 6), (200, "sha256:" + "ab" * 32)])
def test_the_id_of_a_model_is_whole_where_it_fits(full_daemon: Any, columns: int, shown: str) -> None:
    with Terminal([*GREENROOM, "inspect", "smollm2"], columns=columns) as terminal:
        terminal.ends()

    assert terminal.text.splitlines()[0].split() == ["Model:", shown]


def test_a_table_that_is_too_wide_shortens_names_and_breaks_sentences() -> None:
    rows = [("hf.co/name/of-a-model:Q4_K_M", "it is kept for a while", "99 MB"), ("short", "no", "1 MB")]

    assert table(("NAME", "WHY", "SIZE"), rows, width=40).splitlines() == [
        "NAME          WHY                  SIZE",
        "hf.co/…4_K_M  it is kept for a     99 MB",
        "              while",
        "short         no                   1 MB",
    ]


def test_sentences_are_broken_between_words_and_go_on_further_in() -> None:
    assert wrapped("one two three\n  four five six", 9, 2) == "one two\n  three\n  four\n    five\n    six"
    assert wrapped("short", 9) == "short"
    assert wrapped("a/path/that/is/long", 9) == "a/path/that/is/long"
    red = own("\x1b[31m")
    assert wrapped(f"{red}one{red} two", 7) == f"{red}one{red} two", "colours take no room"
    assert wrapped("one two three", None) == "one two three"


@pytest.mark.parametrize(
    ("typed", "guess"),
    [
        ("rnu", "run"),
        ("instal-runner", "install-runner"),
        ("download smollm2", "pull"),
        ("top", "ps --watch"),
        ("docker model run smollm2 hi", "greenroom run smollm2 hi"),
        ("model ls", "greenroom ls"),
        ("ollama show smollm2", "greenroom show smollm2"),
        ("lms load smollm2", "greenroom run -d smollm2"),
        ("lms unload smollm2", "greenroom stop smollm2"),
        ("lms server start", "greenroom serve"),
        ("lms log stream", "greenroom logs -f"),
        ("docker model restart-runner", "greenroom restart"),
        ("docker", ""),
        ("xyzzy", ""),
    ],
)
def test_words_of_other_runners_and_typos_are_answered_with_ours(typed: str, guess: str) -> None:
    assert meant(typed.split(), [*COMMANDS, *ALIASES]) == guess


def test_what_is_suggested_exists() -> None:
    commands = {*COMMANDS, *ALIASES}
    assert {one.split()[0] for one in WORDS.values()} <= commands
    assert not commands & set(WORDS), "a command is not translated"


def test_an_unknown_command_says_what_was_meant(greenroom: Any) -> None:
    outcome = greenroom("docker", "model", "pull", "smollm2")

    assert outcome.code == 2
    assert "There is no command 'docker'. Did you mean 'greenroom pull smollm2'?" in outcome.err


def test_a_pull_for_a_program_is_lines_of_json(greenroom: Any, our_daemon: Any) -> None:
    layer = {"id": "sha256:ab", "size": 100, "current": 40}
    our_daemon.routes["POST /models/create"] = [
        json.dumps({"type": "progress", "total": 100, "layer": layer, "message": "", "rate": 7}),
        json.dumps({"type": "warning", "message": "It is large."}),
        json.dumps({"type": "success", "message": "Model pulled successfully"}),
    ]

    outcome = greenroom("pull", "smollm2", "--json")

    progress, note, end = [json.loads(line) for line in outcome.out.splitlines()]
    assert (progress["type"], progress["done"], progress["total"], progress["rate"]) == (
        "progress",
        40,
        100,
        7,
    )
    assert note == {"type": "note", "message": "Warning: It is large."}
    assert end == {"type": "success", "message": "Model pulled successfully", "model": "smollm2"}
    assert outcome.err == ""


def test_an_installation_for_a_program_is_lines_of_json(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = [
        json.dumps({"type": "progress", "phase": "downloading", "done": 1, "total": 2}),
        json.dumps(
            {"type": "success", "message": "done", "installation": {"version": "1", "variant": "cpu"}}
        ),
    ]

    lines = [json.loads(line) for line in greenroom("install-runner", "--json").out.splitlines()]

    assert [one["type"] for one in lines] == ["note", "progress", "success"]
    assert lines[-1] == {
        "type": "success",
        "message": "done",
        "already": False,
        "version": "1",
        "variant": "cpu",
    }


@pytest.mark.parametrize("command", ["backends", "version"])
def test_what_has_data_has_it_as_json(greenroom: Any, full_daemon: Any, command: str) -> None:
    shown = json.loads(greenroom(command, "--json").out)

    assert shown == [] if command == "backends" else shown["server"]["version"] == "9.9"


def test_a_model_that_is_not_listed_is_a_failure(greenroom: Any, full_daemon: Any) -> None:
    assert greenroom("list", "smollm2").code == 0
    outcome = greenroom("list", "nosuch")
    assert (outcome.code, outcome.err.splitlines()[0]) == (1, "There is no model nosuch in the store.")


def test_a_job_without_a_subject_has_no_empty_name_in_status(greenroom: Any, full_daemon: Any) -> None:
    full_daemon.routes["GET /jobs"] = [{"job": "load/e-1", "phase": "loading", "message": "loading poet"}]

    assert "\nloading poet\n" in greenroom("status").out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("why sm", ["smollm2"]),
        ("why llama", ["llama.cpp"]),
        ("why dae", ["daemon"]),
        ("log --model sm", ["smollm2"]),
        ("install-runner ll", ["llama.cpp"]),
        ("cancel ", ["mlx", "qwen"]),
        ("logs e-", ["e-2", "e-1"]),
        ("benc", ["bench"]),
    ],
)
def test_every_name_is_completed(
    full_daemon: Any,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    greenroom_process: Any,
    typed: str,
    completed: list[str],
) -> None:
    pulled = {"job": "pull/docker.io/ai/qwen:latest"}
    full_daemon.routes["GET /jobs"] = [{"job": "install/mlx"}, pulled, {"job": "load/e-1"}]
    for number in (1, 2):
        (home / f"engines/e-{number}").mkdir(parents=True)
        os.utime(home / f"engines/e-{number}", (number, number))
    _type(monkeypatch, typed)

    assert _completed(greenroom_process) == completed


@pytest.mark.parametrize(
    ("missing", "completed"), [("GET /engines/remotes", ["smollm2"]), ("GET /models", ["smart/x"])]
)
def test_names_are_completed_without_those_of_a_list_that_the_daemon_does_not_have(
    full_daemon: Any,
    monkeypatch: pytest.MonkeyPatch,
    greenroom_process: Any,
    missing: str,
    completed: list[str],
) -> None:
    full_daemon.routes["GET /engines/remotes"] = [{"name": "smart", "models": ["x"]}]
    del full_daemon.routes[missing]
    _type(monkeypatch, "why sm")

    assert _completed(greenroom_process) == completed


def _type(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    words = f"greenroom {typed}"
    monkeypatch.setenv("_GREENROOM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))


def _completed(greenroom_process: Any) -> list[str]:
    return [line.removeprefix("plain,") for line in greenroom_process().stdout.splitlines()]


def test_zsh_completion_starts_the_completion_system_if_need_be(greenroom: Any) -> None:
    script = greenroom("completion", "zsh").out

    assert script.startswith("(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n")


def test_an_export_does_not_replace_a_file_by_itself(greenroom: Any, our_daemon: Any, tmp_path: Path) -> None:
    our_daemon.routes["GET /models/smollm2/export"] = "an archive"
    file = tmp_path / "model.tar"
    file.write_text("precious")

    outcome = greenroom("export", "smollm2", "-o", str(file))

    assert (outcome.code, file.read_text()) == (1, "precious")
    assert f"{file} already exists. Choose another file, or replace it with --force." in outcome.err
    assert greenroom("export", "smollm2", "-o", str(file), "--force").code == 0
    assert file.read_text() == "an archive"


def test_loading_what_is_no_file_says_how_a_model_is_loaded(greenroom: Any) -> None:
    outcome = greenroom("load", "smollm2")

    assert outcome.code == 2
    assert "There is no file smollm2. To load a model into memory: greenroom run -d smollm2" in outcome.err
