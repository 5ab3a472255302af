"""`Idempotency-Key` over HTTP: sent twice, carried out once; and many who ask for the same without one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from builds import Builds
from greenroom.actors.idempotency import IDEMPOTENCY
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.progress import install_job
from greenroom.actors.values import Failure, Progress
from greenroom.actors.waiters import count
from waiting import until_async

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
NDJSON = {"Accept": "application/x-ndjson"}
EVENTS = {"Accept": "text/event-stream"}
ASKERS = 200


@pytest.fixture
async def server(open_server: Any) -> Any:
    return await open_server()


def answered(server: Any) -> int:
    keys = server.greenroom.system.state(IDEMPOTENCY).keys.values()
    return sum(one.outcome is not None for one in keys)


def install(server: Any, headers: dict[str, str], **more: Any) -> Any:
    return server.post("/engines/install-backend", {"backend": "absent", **more}, headers=headers)


def waiting(server: Any) -> int:
    volatile = server.greenroom.system.volatile(INSTALLER)
    return count(volatile.waiting, *volatile.waiting)


async def test_a_second_repeat_waits_for_the_first_and_a_third_gets_the_same_answer(server: Any) -> None:
    builds = Builds(server)
    first = asyncio.ensure_future(_text(install(server, KEY)))
    await until_async(lambda: builds.jobs)
    second = asyncio.ensure_future(_text(install(server, KEY)))
    # Not carried out again: only one waits for the installer.
    async with install(server, KEY, version="2") as response:
        assert response.status == 422
        assert "was already used for another command" in await response.text()
    assert waiting(server) == 1
    builds.fail("absent.1", Failure(kind="permanent", code="no_space", message="No space is left."))
    one, other = await first, await second
    assert one[0] == other[0] == 507
    assert one[1] == other[1]
    assert (await _text(install(server, KEY))) == other
    assert other[2] == "true"
    assert len(builds.jobs) == 1
    # Another key is another wish.
    again = asyncio.ensure_future(_text(install(server, {"Idempotency-Key": "another"})))
    await until_async(lambda: len(builds.jobs) == 2)
    builds.commit("absent.2", "1")
    assert (await again)[0] == 200


async def test_the_outcome_of_a_client_that_left_is_kept_for_its_return(server: Any) -> None:
    builds = Builds(server)
    for headers in (KEY, KEY | NDJSON):
        await _leaves(server, builds, headers)
        await until_async(lambda: not len(server.context.clients))
    assert len(builds.jobs) == 1
    builds.commit("absent.1", "1")
    await until_async(lambda: answered(server) == 1)
    assert await _text(install(server, KEY)) == (200, "", "true")


async def test_a_stream_is_answered_again_by_its_last_line(server: Any) -> None:
    builds = Builds(server)
    first = asyncio.ensure_future(_text(install(server, KEY | NDJSON)))
    await until_async(lambda: builds.jobs)
    builds.commit("absent.1", "1")
    lines = (await first)[1].splitlines()
    again = await _text(install(server, KEY | NDJSON))
    assert again == (200, lines[-1] + "\n", "true")


async def test_a_client_that_repeats_a_command_sees_its_progress_and_gets_the_same_result(
    server: Any,
) -> None:
    builds = Builds(server)
    board = server.greenroom.board
    first = asyncio.ensure_future(_text(install(server, KEY | NDJSON)))
    await until_async(lambda: builds.jobs)
    board.publish(
        Progress(job=install_job("absent"), phase="downloading", done=1, total=3, message="Downloading")
    )
    async with asyncio.timeout(10), install(server, KEY | NDJSON) as again:
        assert again.headers["Idempotency-Replayed"] == "true"
        line = json.loads(await again.content.readline())
        assert (line["type"], line["done"], line["total"]) == ("progress", 1, 3)
        board.publish(Progress(job=install_job("absent"), phase="verifying", done=3, total=3))
        line = json.loads(await again.content.readline())
        assert (line["phase"], line["done"]) == ("verifying", 3)
        # A plain one among them waits for the end, and so does one who leaves.
        plain = asyncio.ensure_future(_text(install(server, KEY)))
        await _leaves(server, builds, KEY | NDJSON)
        builds.commit("absent.1", "1")
        rest = await again.text()
    said = (await first)[1].splitlines()
    assert rest.splitlines()[-1] == said[-1]
    assert json.loads(said[-1])["type"] == "success"
    assert (await plain)[1] == said[-1] + "\n"
    assert len(builds.jobs) == 1


async def test_a_client_that_left_sees_the_progress_when_it_returns(server: Any) -> None:
    builds = Builds(server)
    await _leaves(server, builds, KEY | EVENTS)
    await until_async(lambda: not len(server.context.clients))
    progress = Progress(job=install_job("absent"), phase="downloading", done=2, total=3)
    server.greenroom.board.publish(progress)
    async with asyncio.timeout(10), install(server, KEY | EVENTS) as again:
        assert again.content_type == "text/event-stream"
        assert b'"done":2' in await again.content.readline()
        builds.fail("absent.1", Failure(kind="permanent", code="no_space", message="No space is left."))
        assert "No space is left." in await again.text()
    # A command that ended before anything was sent keeps its status.
    other = {"Idempotency-Key": "other"} | EVENTS
    waits = [asyncio.ensure_future(_text(install(server, other))) for _ in range(2)]
    await until_async(lambda: len(builds.jobs) == 2)
    # The first is attended to twice, by the middleware and by the handler.
    await until_async(lambda: len(server.context.clients) == 3)
    builds.fail("absent.2", Failure(kind="permanent", code="no_space", message="No space is left."))
    ends = [await one for one in waits]
    assert ends[0][:2] == ends[1][:2]


async def test_an_answer_is_the_same_although_the_world_has_changed(server: Any) -> None:
    builds = Builds(server)
    async with server.post("/engines", {"name": "absent"}, headers=KEY) as response:
        assert (response.status, response.headers["Location"]) == (202, "/engines/absent")
        accepted = await response.text()
    builds.commit("absent.1", "1")
    await until_async(lambda: server.greenroom.statuses()[1].current is not None)
    async with server.post("/engines", {"name": "absent"}, headers=KEY) as response:
        assert (response.status, response.headers["Location"]) == (202, "/engines/absent")
        assert await response.text() == accepted


@pytest.mark.parametrize("wish", [{}, EVENTS])
async def test_waiting_clients_get_a_temporary_failure_and_it_is_not_kept(
    wish: dict[str, str], server: Any
) -> None:
    builds = Builds(server)
    both = [asyncio.ensure_future(_text(install(server, KEY | wish))) for _ in range(2)]
    await until_async(lambda: builds.jobs)
    # The first is attended to twice, by the middleware and by the handler.
    await until_async(lambda: len(server.context.clients) == 3)
    async with server.post("/engines/cancel-install", {"backend": "absent"}) as response:
        assert response.status == 200
    for status, text, _ in [await one for one in both]:
        assert status == 409
        assert "cancelled" in text
    assert not answered(server)
    again = asyncio.ensure_future(_text(install(server, KEY | wish)))
    await until_async(lambda: len(builds.jobs) == 2)
    builds.commit("absent.2", "1")
    assert (await again)[0] == 200
    await until_async(lambda: answered(server) == 1)


@pytest.mark.parametrize("key", ["", " ", "ä", "x" * 256])
async def test_an_invalid_key_is_refused(server: Any, key: str) -> None:
    async with server.post("/engines/unload", {"all": True}, headers={"Idempotency-Key": key}) as response:
        assert response.status == 400
        assert "Idempotency-Key must be" in await response.text()


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/engines/responses", "/engines/llama.cpp/tokenize", "/engines/score"]
)
async def test_inference_routes_ignore_the_key(server: Any, path: str) -> None:
    wanted = {"model": "absent", "content": "x", "input": "x", "text_1": "x", "text_2": "x"}
    async with server.post(path, wanted, headers={"Idempotency-Key": "ä"}) as response:
        assert response.status in (400, 404), await response.text()
        assert "Idempotency" not in await response.text()
    assert not server.greenroom.system.state(IDEMPOTENCY).keys


async def test_hundreds_of_askers_of_one_absent_backend_make_one_installation(server: Any) -> None:
    builds = Builds(server)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        url = f"{server.base}/engines/install-backend"

        async def ask() -> int:
            async with session.post(url, json={"backend": "absent"}) as response:
                await response.read()
                return response.status

        askers = [asyncio.ensure_future(ask()) for _ in range(ASKERS)]
        await until_async(lambda: waiting(server) == ASKERS, bound=60.0)
        builds.commit("absent.1", "1")
        assert await asyncio.gather(*askers) == [200] * ASKERS
    assert builds.jobs == [("absent.1", "")]
    assert server.greenroom.system.state(INSTALLER).of("absent").jobs == 1


async def _text(asked: Any) -> tuple[int, str, str]:
    async with asked as response:
        return response.status, await response.text(), response.headers.get("Idempotency-Replayed", "")


async def _leaves(server: Any, builds: Builds, headers: dict[str, str]) -> None:
    """A client asks, and leaves once its request is being waited for."""
    before = len(server.context.clients)
    asked = asyncio.ensure_future(_text(install(server, headers)))
    await until_async(lambda: builds.jobs and len(server.context.clients) > before)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
