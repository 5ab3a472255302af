"""`greenroom why`, `replay`, `log` and their bad input, with no daemon anywhere."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.installer.events import InstallRequested
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.library.events import PullRequested
from greenroom.actors.scheduler.events import ConfigChanged
from greenroom.runner.daemon_lock import DaemonLock

COMMANDS = (["why", "smollm2"], ["replay"], ["replay", "--step"], ["log"])


@pytest.fixture
def journal(script: Any, home: Path) -> Path:
    """A journal in the data directory: smollm2 was loaded, and unloaded for lack of use."""
    script.evict(script.load(), "idle", idle_seconds=300.0)
    path: Path = script.write(home / "journal.db")
    return path


def test_why_says_it_and_exits_with_zero(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("why", "smollm2")

    assert outcome.code == 0
    assert outcome.out.startswith("smollm2 is not loaded: it was unloaded at 2023-11-14 12:00:07")
    assert outcome.out.rstrip().endswith("greenroom stop && greenroom serve --keep-alive 30m")


def test_why_prints_json_on_request(greenroom: Any, journal: Path) -> None:
    fields = json.loads(greenroom("why", "smollm2", "--json").out)

    assert (fields["kind"], fields["state"], fields["cause"]) == ("model", "unloaded", "idle")
    assert fields["numbers"]["idle_seconds"] == 300.0
    assert fields["steps"][0]["event"] == "scheduler/1"
    assert fields["remedies"][0] == {"aim": "To load it again", "command": "greenroom run smollm2"}


def test_why_says_when_no_daemon_runs_that_could_go_on(greenroom: Any, script: Any, home: Path) -> None:
    script.load()
    script.write(home / "journal.db")
    told = "Note: The daemon is not running; this was the state when it ended."

    assert told in greenroom("why", "smollm2").out
    assert told not in greenroom("why", "smollm2", "--journal", str(home)).out
    held = DaemonLock(home)
    told_by_none = greenroom("why", "smollm2").out
    held.release()
    assert told not in told_by_none


def test_why_says_that_the_next_daemon_goes_on_with_a_job(greenroom: Any, script: Any, home: Path) -> None:
    script.add(InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    script.write(home / "journal.db")

    told = " ".join(greenroom("why", "mlx").out.split())

    assert "ended. The next daemon resumes what was requested by a command." in told


def test_why_knows_the_backends_of_this_machine(greenroom: Any, journal: Path) -> None:
    assert "it has never been requested" in greenroom("why", "mlx").out
    if sys.platform == "linux":
        assert "cannot be installed on this machine" in greenroom("why", "vllm-metal").out


def test_a_journal_copied_from_another_machine_can_be_read(
    greenroom: Any, journal: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / "journal.db"
    copy.parent.mkdir()
    shutil.copy(journal, copy)
    journal.unlink()

    for named in (copy, copy.parent):
        assert greenroom("why", "smollm2", "--journal", str(named)).code == 0
        assert greenroom("replay", "--journal", str(named)).code == 0
        assert greenroom("log", "--journal", str(named)).code == 0
    # Which backends this machine can run is no matter of that one.
    assert greenroom("why", "vllm-metal", "--journal", str(copy)).code == 1


def test_an_unknown_name_is_a_sentence_with_near_names(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("why", "smolm2")

    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.splitlines() == [
        'Error: The journal has no model, backend, engine or request "smolm2". Did you mean smollm2?'
    ]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_without_a_journal_nothing_has_happened(greenroom: Any, home: Path, arguments: list[str]) -> None:
    outcome = greenroom(*arguments)

    assert outcome.code == 1
    assert (
        f"There is no journal at {home}/journal.db: no daemon has used this data directory yet."
        in outcome.err
    )


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_missing_file_is_reported(greenroom: Any, home: Path, arguments: list[str]) -> None:
    outcome = greenroom(*arguments, "--journal", str(home / "no.db"))

    assert outcome.code == 1
    assert f"There is no journal at {home}/no.db." in outcome.err


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_database_of_another_program_is_refused(
    greenroom: Any, tmp_path: Path, arguments: list[str]
) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events(seq INTEGER PRIMARY KEY, data TEXT)")
    connection.close()

    outcome = greenroom(*arguments, "--journal", str(path))

    assert outcome.code == 6
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_file_that_is_not_a_database_is_reported(
    greenroom: Any, tmp_path: Path, arguments: list[str]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 500)

    outcome = greenroom(*arguments, "--journal", str(path))

    assert outcome.code == 6
    assert outcome.err.count("\n") == 1


def flip(journal: Path, event: bytes) -> None:
    content = bytearray(journal.read_bytes())
    at = content.index(event)
    content[at] ^= 1
    journal.write_bytes(content)


def test_a_damaged_journal_tells_what_came_before_and_exits_with_six(greenroom: Any, journal: Path) -> None:
    flip(journal, b'"reason":"idle"')

    why = greenroom("why", "smollm2")
    replay = greenroom("replay")
    log = greenroom("log")

    assert why.code == replay.code == log.code == 6
    assert "Until then: smollm2 is loaded: " in why.out, "as far as can be read"
    assert "The journal is damaged from event" in why.out
    assert "is damaged" in replay.err
    assert "is ready after 0.8s" in log.out
    before = greenroom("replay", "--at", "8")
    assert before.code == 0, "what is whole can be replayed"


def test_a_name_that_might_be_in_the_damaged_part_is_refused_for_the_damage(
    greenroom: Any, journal: Path
) -> None:
    flip(journal, b'"reason":"idle"')

    outcome = greenroom("why", "gemma3")

    assert outcome.code == 6
    assert "is damaged" in outcome.err


def test_an_event_of_a_newer_version_is_reported(greenroom: Any, script: Any, home: Path) -> None:
    script.raw("scheduler", "load_moved", "{}")
    script.write(home / "journal.db")

    replay = greenroom("replay")
    why = greenroom("why", "smollm2")

    assert replay.code == 6
    assert "'load_moved', which this version does not know" in replay.err
    assert why.code == 0
    assert "Note: Part of the journal could not be read" in why.out
    assert greenroom("replay", "--at", "5").code == 0


# replay


def test_replay_shows_the_state_at_an_event(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("replay", "--at", "10")

    assert outcome.code == 0
    assert outcome.out.startswith(
        "After event 10, runner/llama.cpp/3 (engine_ready), stored at 2023-11-14 12:00:07"
    )
    assert "  18bd0f5a2c0-1 (smollm2): ready for 0s, process 4711" in outcome.out
    assert (
        "  load 18bd0f5a2c0-1: smollm2 on llama.cpp (completion), 444 MB, for 1s, by scheduler/2"
        in outcome.out
    )


def test_replay_as_json_is_the_cores_own_state(greenroom: Any, journal: Path) -> None:
    fields = json.loads(greenroom("replay", "--at", "10", "--json").out)

    assert fields["seq"] == 10
    assert fields["event"] == "runner/llama.cpp/3"
    assert fields["states"]["runner/llama.cpp"]["engines"]["18bd0f5a2c0-1"]["state"] == "ready"
    assert fields["states"]["scheduler"]["loads"]["18bd0f5a2c0-1"]["spec"]["memory"] == 444_000_000


def test_replay_shows_the_state_at_a_time(greenroom: Any, journal: Path) -> None:
    assert greenroom("replay", "--at", "2023-11-14T12:00:05.5").out.startswith("After event 4, library/1 ")
    assert greenroom("replay", "--at", "now").out.startswith("After event 13, ")


@pytest.mark.parametrize(
    ("at", "code", "sentence"),
    [
        ("2023-11-14T11:59", 1, "2023-11-14 11:59:00.000 is before the first event of"),
        ("0", 1, "There is no event 0 in"),
        ("14", 1, "its events are 1 to 13."),
        ("soon", 2, "'soon' is not a time; write 10m (ago)"),
    ],
)
def test_replay_refuses_an_event_that_does_not_exist(
    greenroom: Any, journal: Path, at: str, code: int, sentence: str
) -> None:
    outcome = greenroom("replay", "--at", at)

    assert outcome.code == code
    assert sentence in outcome.err


def test_a_time_before_the_first_event_names_it(greenroom: Any, journal: Path) -> None:
    assert "its first event was stored at 2023-11-14 12:00:00.000." in (
        greenroom("replay", "--at", "2020-01-01").err
    )


def test_steps_without_a_terminal_are_all_printed(greenroom: Any, journal: Path) -> None:
    lines = greenroom("replay", "--step").out.splitlines()

    assert lines[0] == "1  2023-11-14 12:00:00.000  daemon/1  Greenroom 0.1.0 started (process 100, Linux)."
    assert lines[1] == "    + daemon starts = 1"
    ready = next(n for n, line in enumerate(lines) if "is ready after" in line)
    assert lines[ready + 1] == '    ~ runner/llama.cpp engines 18bd0f5a2c0-1 state = "ready" (was "starting")'


def test_steps_from_an_event_are_printed_as_json(greenroom: Any, journal: Path) -> None:
    lines = [
        json.loads(line) for line in greenroom("replay", "--step", "--at", "10", "--json").out.splitlines()
    ]

    assert [one["seq"] for one in lines] == [10, 11, 12, 13]
    assert lines[0]["changes"]["runner/llama.cpp engines 18bd0f5a2c0-1 state"] == {
        "was": "starting",
        "is": "ready",
    }


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.fd, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "greenroom.runner.cli", *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
        )
        os.close(inner)

    def until(self, text: str) -> str:
        """What it writes, up to a text."""
        said = ""
        while text not in said:
            ready, _, _ = select.select([self.fd], [], [], 20.0)
            assert ready, f"it said only {said!r}"
            said += os.read(self.fd, 4096).decode()
        return said

    def say(self, text: str) -> None:
        os.write(self.fd, f"{text}\n".encode())


def test_ctrl_c_ends_a_log_that_is_followed(journal: Path) -> None:
    terminal = Terminal("log", "-f", "-n", "1")
    try:
        terminal.until("stopped as requested")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(20) == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)


def test_a_walk_on_a_terminal_goes_on_and_back(journal: Path) -> None:
    terminal = Terminal("replay", "--step", "--at", "9")
    try:
        assert "is loading its model as process 4711" in terminal.until("[9]")
        terminal.say("")
        assert "is ready after 0.8s" in terminal.until("[10]")
        terminal.say("p")
        assert "is loading its model as process 4711" in terminal.until("[9]")
        terminal.say("1")
        assert "Greenroom 0.1.0 started" in terminal.until("[1]")
        terminal.say("p")
        assert "This is the first event." in terminal.until("[1]")
        terminal.say("13")
        terminal.until("[13]")
        terminal.say("n")
        assert "This is the last event." in terminal.until("[13]")
        terminal.say("s")
        assert "After event 13, " in terminal.until("[13]")
        terminal.say("what")
        assert "NUMBER or ID: go to event" in terminal.until("[13]")
        terminal.say("runner/llama.cpp/1")
        assert "Starting engine" in terminal.until("[8]")
        terminal.say("99")
        assert "There is no event 99" in terminal.until("[8]")
        terminal.say("q")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)


# log


def test_log_shows_only_what_its_filters_match(greenroom: Any, journal: Path) -> None:
    assert greenroom("log", "--kind", "engine_ready").out.count("is ready") == 1
    assert greenroom("log", "--model", "smollm2", "--kind", "pull_requested").out.count("Pulling") == 1
    assert "library/1" not in greenroom("log", "--backend", "llama.cpp").out
    assert greenroom("log", "--engine", "18bd", "--json").out.count("\n") == 7
    assert greenroom("log", "--cause", "r-0a1b2c3d-1", "-n", "1").out.count("stopped as requested") == 1
    assert greenroom("log", "--since", "2023-11-14T12:00:07.9", "--json").out.count("\n") == 1
    assert greenroom("log", "--until", "2023-11-14T12:00:00", "--json").out.count("\n") == 2
    assert greenroom("log", "--stream", "daemon", "--json").out.count("\n") == 1


def test_for_an_unknown_kind_a_similar_one_is_suggested(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("log", "--kind", "engine_redy")

    assert (outcome.code, outcome.out) == (1, "")
    assert "Did you mean engine_ready?" in outcome.err


def test_an_unknown_name_and_an_empty_answer_are_reported(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("log", "--backend", "llama.cp")
    assert (outcome.code, outcome.out) == (1, "")
    assert "Did you mean llama.cpp?" in outcome.err

    outcome = greenroom("log", "--since", "2100-01-01")
    assert (outcome.code, outcome.out) == (0, "")
    assert "No event matches." in outcome.err


def test_a_bad_time_is_a_usage_error(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("log", "--since", "soon")

    assert outcome.code == 2
    assert "Invalid value for --since: 'soon' is not a time" in outcome.err


def test_what_a_host_stored_is_shown_as_it_is(greenroom: Any, script: Any, home: Path) -> None:
    script.raw("host/orders", "order_placed", '{"total":7}')
    script.write(home / "journal.db")

    assert 'order_placed: {"total":7}' in greenroom("log", "--kind", "order_placed").out
    assert "host/orders (1)" in greenroom("replay").out


def test_an_overview_shows_every_actor(greenroom: Any, script: Any, home: Path) -> None:
    script.add(
        ConfigChanged(
            model_id=f"sha256:{b'smollm2'.hex():0<64}",
            model_ref="docker.io/ai/smollm2:latest",
            mode="completion",
            context_size=4096,
        )
    )
    script.add(InstallRequested(job="mlx.9", backend="mlx", version="", wanted_by="explicit"))
    script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.refuse("smollm2", "does_not_fit", "It does not fit.")
    engine = script.admit()
    script.die(engine, "It died.", was_ready=False, code=1)
    script.write(home / "journal.db")

    told = greenroom("replay").out

    for line in (
        "  running as process 100; start 1",
        "  llama.cpp: installed, 1.0",
        "    1.0-ab12cd34.1 (1.0, 106 MB, in use for new engines)",
        "  mlx: job mlx.9 (explicit) for 0s, attempt 1",
        "  pull pull.9 of gemma3 for 0s, attempt 1",
        "  smollm2: 736d6f6c6c6d (gguf, Q4_1, 98.0 MB)",
        "  configured 736d6f6c6c6d|completion: context_size 4096",
        "  736d6f6c6c6d|llama.cpp|1.0-ab12cd34.1 failed 1 time: It died.",
        f"  {engine} (smollm2): gone for 0s: It died.",
    ):
        assert line in told.splitlines(), told


def test_log_shows_what_led_to_an_event_and_what_it_led_to(greenroom: Any, journal: Path) -> None:
    def ids(*arguments: str) -> list[str]:
        outcome = greenroom("log", "--json", *arguments)
        assert outcome.code == 0, outcome.err
        return [json.loads(line)["id"] for line in outcome.out.splitlines()]

    started = [f"runner/llama.cpp/{number}" for number in (1, 2, 3, 5)]
    assert ids("runner/llama.cpp/1") == ["scheduler/2", *started]
    assert ids("runner/llama.cpp/2") == ["scheduler/2", *started[:2]]
    assert ids("8") == ids("runner/llama.cpp/1"), "its number"
    assert ids("r-0a1b2c3d-1") == ids("0a1b2c3d-1") == ["scheduler/1", "scheduler/2", *started]
    assert ids("18bd0f5a2c0-1")[0] == "scheduler/2"
    assert ids("llama.cpp") == ids("--backend", "llama.cpp")
    assert ids("smollm2") == ids("--model", "smollm2")
    outcome = greenroom("log", "smolm2")
    assert outcome.code == 1
    assert "no event, request, engine, backend or model smolm2. Did you mean smollm2?" in outcome.err


def test_log_shows_only_what_went_wrong(greenroom: Any, script: Any, home: Path) -> None:
    script.die(script.load(), "It was killed by SIGKILL.", was_ready=True)
    script.write(home / "journal.db")

    outcome = greenroom("log", "--problems", "--json")

    assert [json.loads(line)["type"] for line in outcome.out.splitlines()] == ["engine_exited", "load_failed"]


def test_log_counts_what_has_happened(greenroom: Any, journal: Path) -> None:
    since = ("--since", "2023-11-14", "--until", "2023-11-15")

    told, fields = greenroom("log", "--summary", *since), greenroom("log", "--summary", "--json", *since)

    assert told.out.startswith("13 events since 2023-11-14 00:00:00 (1d).\n")
    assert "\nUnloaded: 1\n" in told.out
    assert json.loads(fields.out)["evictions"][0]["about"] == "smollm2"
    assert greenroom("log", "--summary", "--follow").code == 2


def test_a_lone_copy_of_a_journal_in_use_is_read_with_a_note(
    greenroom: Any, script: Any, tmp_path: Path
) -> None:
    script.load()
    writer = SqliteJournal(tmp_path / "journal.db")
    fields = [{name: getattr(one, name) for name in Entry.__struct_fields__} for one in script.records]
    writer.append([Entry(**one) for one in fields])
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.close()
    copy = tmp_path / "copy.db"
    shutil.copy(tmp_path / "journal.db", copy)
    writer.close()

    outcome = greenroom("log", "-n", "3", "--json", "--journal", str(copy))

    assert [json.loads(line)["seq"] for line in outcome.out.splitlines()] == [8, 9, 10]
    assert outcome.code == 0
    assert outcome.err.startswith("Note: copy.db was copied without copy.db-wal while it was in use")
    assert "damaged" not in greenroom("why", "smollm2", "--journal", str(copy)).out


def test_the_last_events_before_damage_are_shown(greenroom: Any, journal: Path) -> None:
    flip(journal, b"engine_exited")

    outcome = greenroom("log", "-n", "2", "--json")

    assert outcome.code == 6
    assert [json.loads(line)["seq"] for line in outcome.out.splitlines()] == [11, 12]


def test_log_and_why_say_where_a_journal_was_set_aside(greenroom: Any, script: Any, journal: Path) -> None:
    assert greenroom("journal", "set-aside").code == 0
    (aside,) = journal.parent.glob("journal.*Z.db")

    for command in (["log"], ["why", "smollm2"], ["replay"]):
        assert f"greenroom log --journal {aside}" in greenroom(*command).err

    script.write(journal)
    assert f"Note: An earlier journal was set aside: {aside}." in greenroom("log").err
    assert "set aside" not in greenroom("log", "-n", "1").err
    assert f"set aside: {aside}" in greenroom("why", "daemon").err


def test_replay_takes_the_id_of_an_event(greenroom: Any, journal: Path) -> None:
    fields = json.loads(greenroom("replay", "--json", "--at", "runner/llama.cpp/1").out)

    assert (fields["seq"], fields["event"]) == (8, "runner/llama.cpp/1")
    outcome = greenroom("replay", "--at", "runner/llama.cpp/99")
    assert (outcome.code, "There is no event runner/llama.cpp/99" in outcome.err) == (1, True)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_what_has_happened_fits_the_terminal(
    greenroom: Any, script: Any, home: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.evict(script.load(), "room", in_favour_of="docker.io/ai/poet:latest", needed=350 * 10**6, free=1)
    script.die(script.load(), "It was killed by SIGKILL.", was_ready=True)
    script.write(home / "journal.db")
    for module in ("log", "diagnosis", "output"):
        monkeypatch.setattr(f"greenroom.runner.cli.{module}.terminal_width", lambda *_: width)

    day = ("--since", "2023-11-14", "--until", "2023-11-15")
    for command in (
        ["log"],
        ["log", "--problems"],
        ["log", "--summary", *day],
        ["replay"],
        ["replay", "--step"],
    ):
        lines = greenroom(*command).out.splitlines()
        long = [line for line in lines if len(line) > width and len(max(line.split(), key=len)) < width // 2]
        assert lines, command
        assert not long, command
