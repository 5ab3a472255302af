"""Nothing that a model, an engine or a registry says reaches the terminal as a sequence it would obey."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from greenroom.runner.cli.display import Bars
from greenroom.runner.cli.output import Filtered, own, style

HOSTILE = {
    "\x1b[2Jgone": r"\u001b[2Jgone",
    "\x1b]0;title\x07": r"\u001b]0;title\u0007",
    "\x1b]52;c;cm0gLXJm\x1b\\": r"\u001b]52;c;cm0gLXJm\u001b" + "\\",
    "\x1b[31mred": r"\u001b[31mred",
    "\x9b2J": r"\u009b2J",
    "fine\rforged": r"fine\u000dforged",
    "a\x08\x08b": r"a\u0008\u0008b",
    "\u202egpj.exe": r"\u202egpj.exe",
    "half \udc80": r"half \udc80",
}
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("said", "shown"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_what_a_terminal_would_obey_is_shown_instead(said: str, shown: str) -> None:
    terminal = Terminal()
    click.echo(said, file=Filtered(terminal))  # type: ignore[arg-type]
    assert terminal.getvalue() == f"{shown}\n"


def test_a_sequence_in_pieces_is_shown_too() -> None:
    terminal = Terminal()
    stream = Filtered(terminal)
    for letter in "\x1b[2J":
        stream.write(letter)
    assert terminal.getvalue() == r"\u001b[2J"


def test_lines_tabs_and_every_script_pass() -> None:
    terminal = Terminal()
    text = "größer\tals 模型\n👩\u200d👩\u200d👧\r\n"
    stream = Filtered(terminal)
    stream.write(text[:-1])
    stream.write(text[-1:])
    assert terminal.getvalue() == text.replace("\r\n", "\n")


def test_our_own_colours_pass_to_a_terminal_and_vanish_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    coloured = style("Error: \x1b[2J", fg="red")
    for stream in (terminal, pipe):
        Filtered(stream).write(coloured + own("\x1b[H"))
    assert terminal.getvalue() == "\x1b[31mError: \\u001b[2J\x1b[0m\x1b[H"
    assert pipe.getvalue() == "Error: \\u001b[2J"


def test_what_an_encoding_does_not_have_is_written_as_in_json() -> None:
    raw = io.BytesIO()
    stream = Filtered(io.TextIOWrapper(raw, encoding="ascii"))
    click.echo("größer \x9b", file=stream)  # type: ignore[arg-type]
    stream.flush()
    assert raw.getvalue() == b"gr\\xf6\\xdfer \\u009b\n"


def test_bars_show_what_jobs_say_without_obeying() -> None:
    terminal = Terminal()
    with Bars(terminal) as bars:
        bars.update(
            {"job": "pull/\x1b]0;evil\x07", "phase": "downloading", "message": "\x1b[2Jx", "total": 2}
        )
        bars.note("said \x1b]0;evil\x07")
    drawn = terminal.getvalue()
    assert "\x1b]0;" not in drawn
    assert "\x1b[2J" not in drawn
    assert r"\u001b" in drawn


def test_models_and_refusals_reach_the_terminal_harmless(greenroom: Any, our_daemon: Any) -> None:
    evil = "".join(HOSTILE).replace("\udc80", "")
    model = {
        "id": "sha256:" + "a" * 64,
        "tags": [f"docker.io/ai/x:{evil}"],
        "created": 0,
        "config": {
            "format": evil,
            "architecture": evil,
            "parameters": evil,
            "quantization": evil,
            "size": evil,
        },
    }
    our_daemon.routes["GET /models"] = [model]
    our_daemon.routes["GET /models/x"] = {**model, "source": evil, "bytes": 1, "files": [], "serving": []}
    our_daemon.routes["GET /why/x"] = (404, {"error": {"message": evil, "code": "x"}})
    our_daemon.routes["GET /engines/df"] = (500, evil)
    for words in (["list"], ["inspect", "x"], ["list", "--json"], ["why", "x"], ["df"]):
        outcome = greenroom(*words)
        assert not OBEYED.search(outcome.out + outcome.err), words
    assert json.loads(greenroom("list", "--json").out)


def test_an_answer_and_the_daemons_log_reach_the_terminal_harmless(
    greenroom: Any, our_daemon: Any, home: Path
) -> None:
    evil = "".join(HOSTILE)
    lines = [
        "data: " + json.dumps({"choices": [{"delta": {"content": evil, "reasoning_content": evil}}]}),
        f"data: {json.dumps({'choices': []})}",
        "data: [DONE]",
        "",
    ]
    our_daemon.routes["POST /v1/chat/completions"] = lambda seen: (
        "" if seen.headers.get("X-Preload-Only") else [f": loading {evil}".replace("\udc80", ""), "", *lines]
    )
    outcome = greenroom("run", "smollm2", "hello")
    assert outcome.code == 0
    assert r"\u001b]0;title" in outcome.out
    assert not OBEYED.search(outcome.out + outcome.err)
    (home / "daemon.log").write_text(evil, "utf-8", "surrogateescape")
    outcome = greenroom("logs")
    assert r"\u001b]0;title" in outcome.out
    assert not OBEYED.search(outcome.out + outcome.err)


def test_on_a_real_terminal_errors_are_red_and_what_they_quote_is_not_obeyed(home: Path) -> None:
    main, child = pty.openpty()
    words = [sys.executable, "-m", "greenroom.runner.cli", "no\x1b[2Jsuch", "x"]
    process = subprocess.Popen(words, stdout=child, stderr=child, stdin=subprocess.DEVNULL)
    os.close(child)
    said = b""
    try:
        while piece := os.read(main, 65536):
            said += piece
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(main)
    assert process.wait(30) == 2
    assert b"\x1b[2J" not in said
    assert b"There is no command" in said
