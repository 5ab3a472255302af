"""Events are followed from anywhere in the journal, each once, through whatever happens in between."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from counting import Add, Counted, Counter
from daemon_process import DaemonProcess
from fake_greenroom import fake_greenroom
from greenroom.actors import Progress, RecordingEffectHandler
from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped
from greenroom.actors.installer.events import InstallationFound
from greenroom.actors.journal import maintenance
from greenroom.actors.library.events import ModelCommitted, PullRequested
from greenroom.runner import (
    AsyncJournalStream,
    Client,
    GreenroomError,
    JournalStream,
    NotAvailable,
    RequestRefused,
    StoredEvent,
    connect,
    read_events,
    tiny_gguf,
)
from waiting import BOUND, until

OpenClient = Callable[..., Client]


@pytest.fixture
def daemon(home: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(home)
    yield daemon
    for process in daemon.started:
        process.kill()
        process.wait(BOUND)


def start(daemon: DaemonProcess) -> None:
    daemon.fork("serve_fake", "0")
    until(daemon.listens)


def kill(daemon: DaemonProcess) -> None:
    daemon.send_kill().wait(BOUND)


def take(stream: JournalStream, count: int) -> list[StoredEvent]:
    return [next(stream) for _ in range(count)]


def test_what_happens_comes_decoded_and_the_start_with_it(home: Path) -> None:
    client = fake_greenroom(home).client()
    with client, client.events() as none_yet:
        pass
    assert list(none_yet) == []
    again = fake_greenroom(home).client()
    stream = again.events(types=[DaemonStarted, "pull_*", ModelCommitted])
    again.pull(str(tiny_gguf(home / "tiny.gguf")))
    started, requested, committed = take(stream, 3)
    assert isinstance(started.event, DaemonStarted)
    assert (started.id, started.event.pid) == ("daemon/3", os.getpid())
    assert isinstance(requested.event, PullRequested)
    assert isinstance(committed.event, ModelCommitted)
    assert str(committed).startswith(f"Pulled {committed.event.model.tags[0]} ")
    again.close()
    assert list(stream) == []
    kept = list(read_events(home))
    assert isinstance(kept[-1].event, DaemonStopped)
    assert [one.seq for one in kept] == [*range(1, len(kept) + 1)]


def test_where_it_begins(open_client: OpenClient) -> None:
    client = open_client()
    all_of_it = list(read_events(client.runner.home if client.runner else None))
    second = all_of_it[1]
    for since, first in (
        (0, 1),
        (1, 2),
        (second.id, 3),
        (second.seq, 3),
        ("1h", 1),
        (all_of_it[0].at - 1, 1),
    ):
        with client.events(since=since) as stream:
            found = take(stream, len(all_of_it) - first + 1)
        assert found == all_of_it[first - 1 :]
    with client.events(since=0, types=["installation_*"]) as stream:
        assert isinstance(next(stream).event, InstallationFound)
    for wrong in (len(all_of_it) + 1, "daemon/77"):
        with pytest.raises(RequestRefused, match="There is no event") as refused:
            client.events(since=wrong)
        assert (refused.value.code, refused.value.kind) == ("no_such_event", "not_found")
    with pytest.raises(TypeError, match="types must be"):
        client.events(types="engine_ready")
    with pytest.raises(ValueError, match="must not be empty"):
        client.in_asyncio().events(types=())


def test_a_program_gets_the_events_of_its_own_actors(home: Path) -> None:
    greenroom = fake_greenroom(home)
    greenroom.register(Counter("counter"), effect_handler=RecordingEffectHandler())
    with greenroom, greenroom.client().events(types=[Counted]) as stream:
        greenroom.system.ask(Add(by=3.0), to="counter").get(timeout=BOUND)
        assert next(stream).event == Counted(by=3.0)
    # Without them they are as they were stored.
    (counted,) = read_events(home, types=["counted"])
    assert (counted.event, counted.data) == (None, {"by": 3.0})


@pytest.mark.parametrize("by", ["itself", "its client"])
def test_a_stream_that_waits_is_ended_by_another_thread(open_client: OpenClient, by: str) -> None:
    client = open_client()
    stream = client.events()
    waits = threading.Event()
    found: list[StoredEvent] = []

    def follow() -> None:
        waits.set()
        found.extend(stream)

    thread = threading.Thread(target=follow)
    thread.start()
    assert waits.wait(BOUND)
    (stream if by == "itself" else client).close()
    thread.join(BOUND)
    assert not thread.is_alive()
    assert found == []
    stream.close()


def sockets() -> int:
    return len(psutil.Process().net_connections("unix"))


def test_a_stream_that_is_dropped_is_followed_no_more(open_client: OpenClient) -> None:
    client = open_client()
    gc.collect()
    before = until(sockets)
    stream = client.events(since=0)
    next(stream)
    assert sockets() > before
    del stream
    gc.collect()
    until(lambda: sockets() <= before)

    async def drop() -> None:
        before = sockets()
        stream = client.in_asyncio().events(since=0)
        await anext(stream)
        assert sockets() > before
        del stream
        gc.collect()
        await asyncio.to_thread(until, lambda: sockets() <= before)

    asyncio.run(drop())


def test_the_same_in_asyncio(open_client: OpenClient, home: Path) -> None:
    client = open_client()
    kept = list(read_events(home))

    async def program() -> None:
        async with client as asking:
            stream = asking.events(since=0)
            found = [await anext(stream) for _ in kept]
            assert found == kept
            # A task that is cancelled while it waits loses nothing.
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.01)
            with pytest.raises(RuntimeError, match="another task is waiting"):
                await asyncio.gather(anext(stream), anext(stream))
            async with asking.events(types=["model_*"]) as news:
                await asking.pull(str(tiny_gguf(home / "other.gguf", name="other")))
                assert isinstance((await anext(news)).event, ModelCommitted)
            with pytest.raises(RequestRefused, match="There is no event"):
                await anext(asking.events(since=4_000))
            ending = asyncio.ensure_future(anext(news := asking.events()))
            await asyncio.sleep(0)
            await news.aclose()
            with pytest.raises(StopAsyncIteration):
                await ending
            waiting = asyncio.create_task(collect(await asking.events().__aenter__()))
            await asyncio.sleep(0)
        assert await waiting == []

    async def collect(stream: AsyncJournalStream) -> list[StoredEvent]:
        return [one async for one in stream]

    asyncio.run(program())


@pytest.mark.slow
def test_nothing_is_lost_or_repeated_through_kills(home: Path, daemon: DaemonProcess) -> None:
    start(daemon)
    client = connect(home, start=False)
    client.pull(str(tiny_gguf(home / "tiny.gguf")))
    tiny = f"file:{home / 'tiny.gguf'}"
    over = threading.Event()

    def make_events() -> None:
        count = 0
        while not over.is_set():
            count += 1
            try:
                client.configure(tiny, keep_alive=f"{count}s")
            except GreenroomError:
                over.wait(0.01)

    kinds = ["daemon_started", "config_changed"]
    found: list[StoredEvent] = []
    in_loop: list[StoredEvent] = []

    def follow(stream: JournalStream) -> None:
        found.extend(stream)

    async def follow_in_loop() -> None:
        async with connect(home, start=False) as asking, asking.events(since=0, types=kinds) as stream:
            async for one in stream:
                in_loop.append(one)
                if over.is_set() and one.type == "daemon_started":
                    return

    stream = client.events(since=0, types=kinds)
    threads = [
        threading.Thread(target=make_events),
        threading.Thread(target=follow, args=(stream,)),
        threading.Thread(target=lambda: asyncio.run(follow_in_loop())),
    ]
    for thread in threads:
        thread.start()
    for _ in range(5):
        seen = len(found)
        until(lambda seen=seen: len(found) > seen + 30)  # type: ignore[misc]
        kill(daemon)
        start(daemon)
    until(lambda: len(found) > 200)
    over.set()
    threads[0].join(BOUND)
    daemon.running.terminate()
    daemon.running.wait(BOUND)
    start(daemon)
    threads[2].join(BOUND)
    kept = list(read_events(home, types=kinds))
    until(lambda: len(found) >= len(kept))
    stream.close()
    threads[1].join(BOUND)
    assert not any(thread.is_alive() for thread in threads)
    assert found == kept == in_loop
    assert len([one for one in kept if one.type == "daemon_started"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_a_journal_that_is_set_aside_goes_on_with_its_successor(
    home: Path, daemon: DaemonProcess, keep: bool
) -> None:
    start(daemon)
    client = connect(home, start=False)
    client.pull(str(tiny_gguf(home / "tiny.gguf")))
    stream = client.events(since=0)
    before = list(read_events(home))
    assert take(stream, len(before)) == before
    kill(daemon)
    maintenance.set_aside(home / "journal.db", keep=keep)
    start(daemon)
    until(lambda: any(one.type == "daemon_started" and one.at > before[-1].at for one in read_events(home)))
    new = [one for one in read_events(home) if one.at > before[-1].at]
    assert new[0].seq == (len(before) + 1 if keep else 1)
    assert take(stream, len(new)) == new
    stream.close()


def told(stream: JournalStream, to: Any) -> None:
    try:
        to.put([next(stream).seq, next(stream).seq])
    except NotAvailable as error:
        to.put(error.code)


def in_a_fork(stream: JournalStream) -> Any:
    making = multiprocessing.get_context("fork")
    answers = making.Queue()
    child = making.Process(target=told, args=(stream, answers))
    child.start()
    found = answers.get(timeout=BOUND)
    child.join(BOUND)
    return found


@pytest.mark.slow
def test_a_fork_has_a_connection_of_its_own(home: Path, daemon: DaemonProcess) -> None:
    start(daemon)
    stream = connect(home, start=False).events(since=0)
    assert next(stream).seq == 1
    assert in_a_fork(stream) == [2, 3]
    assert [one.seq for one in take(stream, 2)] == [2, 3]
    stream.close()


def test_a_fork_of_an_embedding_program_has_no_events(open_client: OpenClient) -> None:
    stream = open_client().events(since=0)
    assert next(stream).seq == 1
    assert in_a_fork(stream) == "forked"
    assert next(stream).seq == 2


def test_progress_of_a_job_that_another_has_asked_for(open_client: OpenClient) -> None:
    client = open_client()
    assert client.runner is not None
    board, job = client.runner.board, "pull/docker.io/ai/big:latest"
    assert list(client.progress("big")) == []
    board.publish(Progress(job=job, phase="downloading", done=1, total=3))
    for name in ("big", "ai/big", "docker.io/ai/big:latest", job):
        assert (next(iter(client.progress(name))).done, list(client.progress("ig"))) == (1, [])
    steps = client.progress("big")
    assert next(steps).total == 3
    board.publish(Progress(job=job, phase="verifying", done=3, total=3))
    assert next(steps).phase == "verifying"
    board.clear(job)
    assert list(steps) == []
    with pytest.raises(TypeError, match="name must be text"):
        client.progress(3)  # type: ignore[arg-type]

    async def in_loop() -> list[str]:
        found = []
        async for step in client.in_asyncio().progress("mlx"):
            found.append(step.phase)
            board.clear("install/mlx")
        return found

    board.publish(Progress(job="install/mlx", phase="resolving"))
    assert asyncio.run(in_loop()) == ["resolving"]
