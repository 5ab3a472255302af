"""Streams: unbuffered, and with an end that says what happened."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from waiting import until_async


async def test_the_first_token_is_not_held_back(open_server: Any, tmp_path: Path, frames: Any) -> None:
    # The engine does not go on before the client has its first token.
    go_on = tmp_path / "go-on"
    server = await open_server("--tokens", "3", "--hold-after-tokens", "1", "--until", str(go_on))
    async with server.chat(stream=True) as response:
        assert response.content_type == "text/event-stream"
        async with asyncio.timeout(30):
            first = await response.content.readuntil(b"word0 ")
        assert b"word1" not in first
        go_on.touch()
        rest = await response.text()
    assert "word2 " in rest
    assert frames(rest.splitlines())[-1] == "[DONE]"


async def test_a_stream_passes_byte_for_byte(open_server: Any, frames: Any) -> None:
    server = await open_server("--echo")
    text = 'é ünï "quotes" \\n data: [DONE] {"model": "x"}'
    status, lines = await server.stream(
        messages=[{"role": "user", "content": text}], stream_options={"include_usage": True}
    )
    *chunks, usage, done = frames(lines)
    words = [c["choices"][0]["delta"].get("content", "") for c in chunks]
    assert status == 200
    assert "".join(words).split() == text.split()
    assert chunks[0]["model"] == "tiny"
    assert usage["usage"]["completion_tokens"] == len(text.split())
    assert done == "[DONE]"


async def test_comments_tell_a_client_that_it_waits_for_a_load(
    open_server: Any, short_path: Path, frames: Any
) -> None:
    loads = short_path / "loads"
    server = await open_server("--load-until", str(loads), progress_after=0.2)
    async with server.chat(stream=True) as response:
        assert response.status == 200
        async with asyncio.timeout(60):
            comments = [(await response.content.readuntil(b"\n\n")).decode() for _ in range(2)]
        assert all(line.startswith(":") for line in comments)
        loads.touch()
        lines = (await response.text()).splitlines()
    assert "tiny" in comments[0]
    assert frames(lines)[-1] == "[DONE]"
    # Comments come before the answer and never between its tokens.
    first = next(index for index, line in enumerate(lines) if line.startswith("data:"))
    assert not any(line.startswith(":") for line in lines[first:])


async def test_a_waiting_client_sees_its_place_and_the_queue_can_be_listed(open_server: Any) -> None:
    server = await open_server("--load-forever", progress_after=0.1)
    first = asyncio.create_task(server.stream())
    await until_async(lambda: server.waiting() == 1)
    async with server.chat(stream=True) as second:
        line = await second.content.readline()
        assert b": waiting for tiny: number 2 in the queue, loading" in line
        rows: list[Any] = [{"progress": ""}]
        async with asyncio.timeout(30):
            # What the engine prints may be read in pieces.
            while rows[0]["progress"] != "loading ...":
                async with server.get("/engines/queue") as response:
                    rows = await response.json()
        assert [(row["place"], row["phase"], row["mode"]) for row in rows] == [
            *((1, "loading", "completion"), (2, "loading", "completion")),
        ]
        # The first one leaves, and the second moves up.
        first.cancel()
        while b"number 1 in the queue" not in line:
            line = await second.content.readline()


async def test_comments_tell_a_client_that_it_waits_for_the_first_token(
    open_server: Any, short_path: Path, frames: Any
) -> None:
    talks = short_path / "talks"
    server = await open_server("--first-token-after", str(talks), progress_after=0.2)
    talks.touch()
    await server.stream(max_tokens=1)
    talks.unlink()
    async with server.chat(stream=True) as response:
        async with asyncio.timeout(60):
            comment = await response.content.readuntil(b"\n\n")
        assert comment.startswith(b":")
        talks.touch()
        assert frames((await response.text()).splitlines())[-1] == "[DONE]"


async def test_a_client_that_does_not_stream_gets_no_comments(open_server: Any) -> None:
    server = await open_server("--load-seconds", "0.6", progress_after=0.1)
    async with server.chat() as response:
        assert response.status == 200
        assert (await response.json())["object"] == "chat.completion"


async def test_a_load_that_fails_at_once_is_refused_with_its_status(open_server: Any) -> None:
    server = await open_server("--die-in-load", "3")
    status, error = await server.error(server.chat(stream=True))
    assert status >= 500
    assert error["message"]
    assert "Traceback" not in error["message"]
    await server.nothing_is_held()


async def test_a_load_that_fails_after_comments_is_one_error_frame(
    open_server: Any, short_path: Path, frames: Any
) -> None:
    fails = short_path / "fails"
    server = await open_server("--die-in-load", "3", "--load-until", str(fails), progress_after=0.2)
    async with server.chat(stream=True) as response:
        assert response.status == 200
        async with asyncio.timeout(60):
            comment = await response.content.readuntil(b"\n\n")
        assert comment.startswith(b": ")
        fails.touch()
        (error,) = frames((await response.text()).splitlines())
    assert error["error"]["message"]
    await server.nothing_is_held()


async def test_an_engine_that_dies_in_mid_stream_is_one_error_frame_with_the_reason(
    open_server: Any, frames: Any
) -> None:
    server = await open_server("--tokens", "8", "--token-delay", "0.01", "--die-after-tokens", "4")
    status, lines = await server.stream()
    *chunks, error = frames(lines)
    assert status == 200
    assert len(chunks) == 4
    assert error["error"]["code"] == "engine_died"
    assert "SIGKILL" in error["error"]["message"]
    assert "in mid-stream" in error["error"]["message"]
    await server.nothing_is_held()


async def test_after_an_engine_has_died_the_next_request_is_served_by_a_fresh_one(
    open_server: Any, frames: Any
) -> None:
    server = await open_server("--tokens", "3", "--die-after-requests", "1")
    for _ in range(3):
        status, lines = await server.stream()
        assert status == 200, lines
        assert frames(lines)[-1] == "[DONE]"
        assert "error" not in "".join(lines)
    assert len({engine.spec.engine_id for engine in server.greenroom.engines()}) == 3
    await server.nothing_is_held()


async def test_an_engine_that_dies_before_its_first_byte_is_replaced_and_the_client_notices_nothing(
    open_server: Any, frames: Any
) -> None:
    server = await open_server("--first-token-delay", "0.5", "--tokens", "2")
    await server.stream(max_tokens=1)
    task = asyncio.create_task(server.stream())
    await until_async(lambda: server.inside() == 1)
    (engine,) = server.engines("ready")
    os.kill(engine.pid, signal.SIGKILL)
    status, lines = await task
    assert status == 200
    assert len(frames(lines)) == 4
    assert "error" not in "".join(lines)
    assert len(server.greenroom.engines()) == 2
    await server.nothing_is_held()


async def test_a_whole_answer_is_retried_too(open_server: Any) -> None:
    server = await open_server("--tokens", "5", "--token-delay", "0.1")
    await server.stream(max_tokens=1)

    async def ask() -> Any:
        async with server.chat() as response:
            return response.status, await response.json()

    task = asyncio.create_task(ask())
    await until_async(lambda: server.inside() == 1)
    (engine,) = server.engines("ready")
    os.kill(engine.pid, signal.SIGKILL)
    status, body = await task
    assert status == 200
    assert body["choices"][0]["message"]["content"]


async def test_engines_that_die_twice_before_their_first_byte_are_an_error_with_the_reason(
    open_server: Any,
) -> None:
    server = await open_server("--first-token-delay", "30")
    task = asyncio.create_task(server.error(server.chat(stream=True)))
    killed: set[int] = set()
    for _ in range(2):
        (engine,) = await until_async(
            lambda: [e for e in server.engines("ready") if e.pid not in killed and server.inside() == 1]
        )
        killed.add(engine.pid)
        os.kill(engine.pid, signal.SIGKILL)
    status, error = await task
    assert (status, error["code"]) == (502, "engine_died")
    assert "SIGKILL" in error["message"]
    await server.nothing_is_held()
