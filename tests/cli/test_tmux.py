"""Whole screens of the chat and of run, pull and install-runner, as tmux shows them.

The screens are in `screens/`, with numbers of time and speed as `N` and without empty lines.
`KEEP_SCREENS=1` writes them again:
look at them as a person does before they are committed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tmux import Tmux
from waiting import BOUND

SCREENS = Path(__file__).parent / "screens"
WIDTHS = (60, 80)
CHAT = "POST /v1/chat/completions"
_MOVING = (
    (re.compile(r"\d+:\d\d(?::\d\d)?"), "N:NN"),
    (re.compile(r"\d+(?:\.\d+)?(?= tokens/s|s\b| ms| [kMG]?B/s)"), "N"),
    (re.compile(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]"), "⠋"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:PORT"),
)


@pytest.fixture(params=WIDTHS, ids=lambda width: f"{width} columns")
def terminal(request: pytest.FixtureRequest, our_daemon: Any, home: Path, tmp_path: Path) -> Iterator[Tmux]:
    """A shell in which `greenroom` is the command, and talks to the fake daemon."""
    program = tmp_path / "bin" / "greenroom"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m greenroom.runner.cli "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    our_daemon.routes |= {"GET /engines": [], "GET /engines/ps?all=true": []}
    with Tmux(env, columns=request.param) as tmux:
        tmux.is_done()
        yield tmux


def is_as_kept(tmux: Tmux, name: str, screen: str) -> None:
    """The screen is the one that was kept; every line fits."""
    shape = "".join(line for line in screen.splitlines(keepends=True) if line.strip())
    for pattern, put in _MOVING:
        shape = pattern.sub(put, shape)
    kept = SCREENS / f"{name}-{tmux.width}.txt"
    if os.environ.get("KEEP_SCREENS"):
        kept.write_text(shape, encoding="utf-8")
    assert max(map(len, screen.splitlines())) <= tmux.width
    assert shape == kept.read_text("utf-8"), f"{kept} is another screen"


def words(text: str) -> list[str]:
    """A streamed answer."""
    events: list[Any] = [{"choices": [{"delta": {"content": f"{word} "}}]} for word in text.split()]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    events.append({"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": len(text.split())}})
    return [line for event in events for line in (f"data: {json.dumps(event)}", "")] + ["data: [DONE]", ""]


LONG = (
    "The sea is a wide and restless place, and anyone who looks at it long enough begins to think that it "
    "looks back. At night it is as black as the sky, and only the lights of ships tell them apart."
)


def test_a_chat_from_the_first_question_to_the_last(terminal: Tmux, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = lambda seen: "" if "X-Preload-Only" in seen.headers else words(LONG)
    terminal.type("greenroom run smollm2")
    _say(terminal, "What is the sea?", "/bye or Ctrl-D")
    _say(terminal, "/set temperature 0.2", "apart.")
    _say(terminal, "/set system You are brief.", "temperature is 0.2.")
    _say(terminal, "/show", "prompt is set.")
    _say(terminal, "/nope", "stats: no")
    _say(terminal, "/bye", "lists them.")
    is_as_kept(terminal, "chat", terminal.is_done())


def _say(terminal: Tmux, line: str, after: str) -> None:
    """Type a line when the chat asks for one, after this answer to the last."""
    terminal.shows(after)
    terminal.waits_at(">")
    terminal.type(line)


def test_run_asks_once_and_tells_what_it_cost(terminal: Tmux, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = lambda seen: "" if "X-Preload-Only" in seen.headers else words(LONG)
    terminal.type('greenroom run --stats smollm2 "What is the sea?"')
    terminal.shows("tokens/s")
    terminal.is_done()
    terminal.type("greenroom run smollm2 hi --max-token 3")
    terminal.shows("Did you mean")
    is_as_kept(terminal, "run", terminal.is_done())


def held(lines: list[Any], *, until_then: int, gate: threading.Event) -> Callable[[Any], Iterator[str]]:
    """Lines of JSON; those after the first few come once the gate is open."""

    def answer(_: Any) -> Iterator[str]:
        for at, line in enumerate(lines):
            if at == until_then:
                gate.wait(BOUND)
            yield json.dumps(line)

    return answer


def test_pull_shows_how_far_each_file_is_and_leaves_one_line(terminal: Tmux, our_daemon: Any) -> None:
    def part(name: str, current: int, done: int, size: int = 400_000_000) -> dict[str, Any]:
        layer = {"id": f"sha256:{name}", "name": name, "size": size, "current": current}
        progress = {"type": "progress", "message": "", "total": 2 * size, "layer": layer, "mode": "pull"}
        return {**progress, "phase": "downloading", "rate": 12_000_000, "done": done, "of": 2 * size}

    first, second = "gemma-3-4b-it-Q4_K_M-00001-of-00002.gguf", "gemma-3-4b-it-Q4_K_M-00002-of-00002.gguf"
    lines = [part(first, 300_000_000, 300_000_000), part(second, 100_000_000, 400_000_000)]
    gate = threading.Event()
    lines.append({"type": "success", "message": "Model pulled successfully"})
    our_daemon.routes["POST /models/create"] = held(lines, until_then=2, gate=gate)
    terminal.type("greenroom pull hf.co/ggml-org/gemma-3-4b-it-GGUF")
    terminal.shows("50%")
    is_as_kept(terminal, "pull-half", terminal.screen())
    gate.set()
    is_as_kept(terminal, "pull", terminal.is_done())


def test_install_runner_shows_one_bar_and_then_the_outcome(terminal: Tmux, our_daemon: Any) -> None:
    progress: dict[str, Any] = {"type": "progress", "phase": "downloading", "message": "3 packages"}
    progress |= {"done": 30_000_000, "total": 60_000_000, "rate": 5_000_000}
    done = {"type": "success", "message": "llama.cpp backend installed successfully", "installation": {}}
    gate = threading.Event()
    our_daemon.routes["POST /engines/install-backend"] = held([progress, done], until_then=1, gate=gate)
    our_daemon.routes["GET /engines/llama.cpp"] = {}
    terminal.type("greenroom install-runner llama.cpp")
    terminal.shows("50%")
    is_as_kept(terminal, "install-runner-half", terminal.screen())
    gate.set()
    is_as_kept(terminal, "install-runner", terminal.is_done())
