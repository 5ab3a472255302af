from __future__ import annotations

import io
import re
import sys
import threading
from typing import Any

import pytest

import terminal as screen
from greenroom.runner.cli.display import Bars, ProgressLines, describe, display, title_of


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def job(**fields: Any) -> dict[str, Any]:
    return {"job": "install/mlx", "phase": "downloading"} | fields


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "Downloading"),
        ({"done": 5_000_000}, "Downloading 5.00 MB"),
        ({"done": 5_000_000, "total": 10_000_000}, "Downloading 5.00 MB of 10.0 MB (50%)"),
        (
            {"done": 5_000_000, "total": 10_000_000, "rate": 2e6},
            "Downloading 5.00 MB of 10.0 MB (50%), 2.00 MB/s, 3s left",
        ),
        ({"done": 9_999_999, "total": 10_000_000}, "Downloading 10.0 MB of 10.0 MB (99%)"),
        (
            {"message": "Downloading mlx-lm 0.32.0: nothing received for 6s", "done": 5, "total": 10},
            "Downloading mlx-lm 0.32.0, 5 B of 10 B (50%): nothing received for 6s",
        ),
        ({"done": 10, "total": 10, "rate": 2e6}, "Downloading 10 B of 10 B (100%)"),
        ({"message": "mlx-lm"}, "Downloading: mlx-lm"),
        ({"message": "Testing whether it starts", "done": 10, "total": 10}, "Testing whether it starts"),
        ({"message": "Downloading mlx-lm", "done": 3}, "Downloading mlx-lm, 3 B"),
        ({"phase": "waiting_to_retry", "message": "no index"}, "Waiting to try again: no index"),
        ({"phase": "never_heard_of"}, "Never heard of"),
        ({"phase": "", "message": "hm"}, "hm"),
    ],
)
def test_progress_is_one_line(fields: dict[str, Any], text: str) -> None:
    assert describe(job(**fields)) == text


def test_a_job_is_called_by_what_it_is_about() -> None:
    assert title_of("install/llama.cpp") == "llama.cpp"
    assert title_of("pull/docker.io/ai/smollm2:latest") == "smollm2"
    assert title_of("pull/file:/a/b.gguf") == "file:/a/b.gguf"
    assert title_of("load/e1") == title_of("request/r-1") == ""


def test_a_pipe_gets_a_line_for_a_phase_not_one_for_each_step() -> None:
    stream = io.StringIO()
    shown = display(stream)
    assert isinstance(shown, ProgressLines)

    with shown:
        for done in range(0, 100, 10):
            shown.update(job(done=done, total=100))
        shown.update(job(phase="verifying"))
        shown.update(job(phase="verifying"))
        shown.finish("install/mlx")
        shown.note("Done.")

    assert stream.getvalue().splitlines() == [
        "  mlx: Downloading 0 B of 100 B (0%)",
        "  mlx: Verifying",
        "Done.",
    ]


def test_a_terminal_gets_bars_that_go_and_notes_that_stay() -> None:
    stream = Terminal()
    shown = display(stream)
    assert isinstance(shown, Bars)

    with shown:
        shown.note("before")
        assert stream.getvalue() == "before\n", "nothing is drawn before there is something to draw"
        shown.update(job(done=1, total=2))
        shown.update(job(done=2, total=2))
        shown.note("[between]")
        shown.finish("install/mlx")
        shown.finish("install/mlx")

    assert "[between]" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue(), "the cursor is back"


def test_files_that_move_have_bars_of_their_own_below_that_of_all() -> None:
    stream = Terminal()
    name = "a-very-long-name-of-a-model-00001-of-00002.safetensors"
    parts = [
        {"id": "sha256:1", "name": name, "size": 3_000_000, "done": 1_000_000},
        {"id": "sha256:2", "name": "", "size": 5_000_000, "done": 2_000_000},
        {"id": "sha256:3", "name": "whole.json", "size": 9, "done": 9},
        {"id": "sha256:4", "name": "waits.json", "size": 9, "done": 0},
    ]
    with Bars(stream) as shown:
        shown.update(job(done=3_000_009, total=8_000_018, parts=parts))
        drawn = stream.getvalue()
        shown.update(job(done=8_000_018, total=8_000_018, parts=[]))
    assert "…" + name[-33:] in drawn
    assert "1.00 MB of 3.00 MB" in drawn
    assert "2.00 MB of 5.00 MB" in drawn
    assert "whole.json" not in drawn, "it is done"
    assert "waits.json" not in drawn, "it has not begun"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bars_fit_the_terminal_with_their_names_and_numbers(columns: int) -> None:
    script = (
        "import sys; from greenroom.runner.cli.display import Bars\n"
        "with Bars(sys.stderr) as bars:\n"
        "    bars.update({'job': 'pull/hf.co/a-long-organization/a-model-with-a-long-name-gguf:Q4_K_M',"
        " 'phase': 'downloading', 'done': 10**8, 'total': 93 * 10**7, 'rate': 12_300_000})\n"
    )
    with screen.Terminal([sys.executable, "-c", script], columns=columns) as terminal:
        terminal.ends()
    # It is drawn several times, each beginning with its spinner.
    line = re.split("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", terminal.text)[1].strip()
    assert len(line) + 2 <= columns
    assert "━" in line
    assert line.endswith("930 MB, 12.3 MB/s, 1m8s left" if columns < 120 else "(10%), 12.3 MB/s, 1m8s left")
    assert "hf.co/" in line
    assert "_M" in line


def test_one_file_alone_is_the_job() -> None:
    stream = Terminal()
    with Bars(stream) as shown:
        shown.update(job(done=1, total=9, parts=[{"id": "sha256:1", "name": "only", "size": 9, "done": 1}]))
    assert "only" not in stream.getvalue()


def test_bars_may_be_updated_from_two_threads() -> None:
    shown = Bars(Terminal())
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for done in range(200):
                shown.update(job(job=name, done=done, total=200))
                if done % 20 == 0:
                    shown.finish(name)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    with shown:
        threads = [threading.Thread(target=work, args=(f"install/{n}",)) for n in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert failures == []
