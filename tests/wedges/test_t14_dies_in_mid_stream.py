"""T14: the engine dies in mid-stream (lemonade: error JSON without `data:`; mistral.rs: never closed)."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest


@pytest.mark.parametrize("by", ["SIGKILL", "SIGSEGV", "1"])
async def test_the_stream_ends_with_one_error_frame_and_a_close(make_daemon: Any, by: str) -> None:
    daemon = await make_daemon("--tokens", "20", "--die-after-tokens", "5", "--die-by", by)
    await daemon.add("tiny")
    answer = await daemon.chat("tiny", stream=True)
    assert answer.status == 200
    assert "[DONE]" not in answer.frames
    errors = [one["error"] for one in answer.frames if "error" in one]
    assert len(errors) == 1
    assert errors[0] == answer.frames[-1]["error"]
    assert (by if by.startswith("SIG") else "code 1") in errors[0]["message"]
    assert len(answer.text.split()) == 5


async def test_every_stream_of_a_killed_engine_ends_so_and_the_next_is_served(make_daemon: Any) -> None:
    daemon = await make_daemon("--tokens", "500", "--token-delay", "0.02")
    await daemon.add("tiny")
    async with daemon.streaming("tiny") as first, daemon.streaming("tiny") as second:
        engine = await daemon.engine("tiny")
        os.kill(engine["pid"], signal.SIGKILL)
        ends = [(await one.text()).splitlines() for one in (first, second)]
    for lines in ends:
        data = [line for line in lines if line.startswith("data: ")]
        assert "data: [DONE]" not in data
        assert "SIGKILL" in data[-1]
        assert sum('"error"' in line for line in data) == 1
    assert (await daemon.chat("tiny", max_tokens=2)).status == 200
    await daemon.at_rest()
