"""A fork is another process: nothing it does or leaves undone touches its parent's Greenroom."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fake_greenroom import fake_greenroom
from greenroom.actors import Abandon, Forked, NotWritten, Pull, Serve, StartFailed
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner import EngineSlot, Greenroom, HomeLocked, tiny_gguf
from waiting import until


def in_child(what: Callable[[], object], *, within: float = 20.0) -> None:
    """Fork, run it there, and fail here if it fails there or takes too long."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b""
        try:
            what()
        except BaseException:  # noqa: BLE001 - told to the parent
            said = traceback.format_exc().encode()
        finally:
            os.write(write, said or b"fine")
            os._exit(0)
    os.close(write)
    killer = threading.Timer(within, os.kill, (pid, 9))
    killer.start()
    try:
        with os.fdopen(read, "rb") as told:
            said = told.read()
        os.waitpid(pid, 0)
    finally:
        killer.cancel()
    assert said == b"fine", said.decode() or "the child hung"


def loaded(greenroom: Greenroom, home: Path) -> psutil.Process:
    """Have a model loaded, and no request inside."""
    system = greenroom.system
    pulled = system.ask(Pull(reference=str(tiny_gguf(home / "tiny.gguf")))).get(timeout=30)
    serve = Serve(request_id="r", model_id=pulled.model.id, model_ref="tiny")
    system.ask(serve).get(timeout=30)
    system.tell(Abandon(request_id="r"))
    (engine,) = [one for one in greenroom.engines() if one.state == "ready"]
    return psutil.Process(engine.pid)


def test_a_child_can_ask_nothing_and_stop_nothing_and_its_parent_goes_on(home: Path) -> None:
    with fake_greenroom(home) as greenroom:
        engine = loaded(greenroom, home)

        def child() -> None:
            for send in (greenroom.system.ask, greenroom.system.tell):
                with pytest.raises(Forked, match=f"runs in process {os.getppid()}"):
                    send(Abandon(request_id="r"))
            begun = time.monotonic()
            greenroom.stop()
            greenroom.system.stop()
            assert time.monotonic() - begun < 1
            with pytest.raises(StartFailed, match="create another one in this process"):
                greenroom.start()
            with pytest.raises(HomeLocked):
                fake_greenroom(home).start()
            assert greenroom.gates.readings() == {}

        in_child(child)
        assert engine.is_running()
        loaded(greenroom, home)
        with pytest.raises(HomeLocked):
            fake_greenroom(home).start()


def test_a_child_that_leaves_the_with_block_ends_nothing(home: Path) -> None:
    with fake_greenroom(home) as greenroom:
        engine = loaded(greenroom, home)
        in_child(lambda: greenroom.__exit__(None, None, None))
        assert engine.is_running()
        assert greenroom.models()


@pytest.mark.parametrize("in_asyncio", [False, True])
def test_a_request_is_its_own_process_to_end(home: Path, in_asyncio: bool) -> None:
    """A child that was forked meanwhile has the connection too."""

    def inside(greenroom: Greenroom) -> int:
        return sum(one.inside for one in greenroom.gates.readings().values())

    async def held_in_asyncio(slot: EngineSlot, while_held: Callable[[], None]) -> None:
        async with slot:
            while_held()

    with fake_greenroom(home) as greenroom, greenroom.client() as client:
        client.pull(str(tiny_gguf(home / "tiny.gguf")))
        slot = client.engine(f"file:{home / 'tiny.gguf'}")
        children: list[int] = []

        def fork() -> None:
            in_child(partial(slot.__exit__, None, None, None))
            assert inside(greenroom) == 1
            if (pid := os.fork()) == 0:
                signal.pause()
            children.append(pid)

        try:
            if in_asyncio:
                asyncio.run(held_in_asyncio(slot, fork))
            else:
                with slot:
                    fork()
            until(lambda: inside(greenroom) == 0)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def test_a_process_of_multiprocessing_can_have_a_greenroom_of_its_own(home: Path) -> None:
    def child() -> None:
        with fake_greenroom(home / "child") as mine:
            loaded(mine, home / "child")

    with fake_greenroom(home) as greenroom:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        loaded(greenroom, home)


def test_a_greenroom_made_before_a_fork_can_be_started_after_it(home: Path) -> None:
    greenroom = fake_greenroom(home)

    def child() -> None:
        with greenroom:
            loaded(greenroom, home)

    in_child(child, within=60)


def test_a_child_that_lives_on_keeps_neither_the_home_locked_nor_an_engine_alive(home: Path) -> None:
    """As a worker does whose parent was killed."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            greenroom = fake_greenroom(home, engine_grace=0.5)
            greenroom.start()
            engine = loaded(greenroom, home)
            worker = os.fork()
            if worker == 0:
                time.sleep(120)
            else:
                os.write(write, f"{engine.pid} {worker}".encode())
        finally:
            os._exit(9)
    os.close(write)
    engine_pid, worker = map(int, os.read(read, 64).split())
    os.close(read)
    os.waitpid(parent, 0)
    try:
        psutil.Process(engine_pid).wait(timeout=20)
        with fake_greenroom(home) as again:
            assert again.models()
            assert psutil.pid_exists(worker)
    finally:
        os.kill(worker, 9)


def test_a_journal_is_written_by_the_process_that_opened_it(tmp_path: Path) -> None:
    def entry(version: int) -> Entry:
        return Entry(stream="s", version=version, type="t", schema=1, cause="", data="{}", at=1.0)

    journal = SqliteJournal(tmp_path / "journal.db")
    journal.append([entry(1)])

    def child() -> None:
        with pytest.raises(NotWritten, match="this is a fork of it"):
            journal.append([entry(2)])
        journal.close()

    in_child(child)
    journal.append([entry(2)])
    assert len(list(journal.read())) == 2
    journal.close()


def test_a_journal_that_is_being_written_is_waited_for_by_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has locks of its own; in a child that is forked while one is held it never returns."""
    inside, go_on, forked = threading.Event(), threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def executemany(self, *arguments: Any) -> sqlite3.Cursor:
            inside.set()
            assert go_on.wait(20)
            return super().executemany(*arguments)

    def fork() -> None:
        in_child(lambda: None)
        forked.set()

    SqliteJournal(tmp_path / "journal.db").close()
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Slow))
    journal = SqliteJournal(tmp_path / "journal.db")
    entry = Entry(stream="s", version=1, type="t", schema=1, cause="", data="{}", at=1.0)
    threads = [threading.Thread(target=journal.append, args=([entry],)), threading.Thread(target=fork)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    assert not forked.wait(0.2)
    go_on.set()
    assert forked.wait(20)
    for thread in threads:
        thread.join()
    journal.close()


def test_a_reply_that_was_awaited_before_the_fork_raises_in_the_child(home: Path) -> None:
    with fake_greenroom(home) as greenroom:
        reply = greenroom.system.ask(Serve(request_id="r", model_id="no", model_ref="no"))
        pending = greenroom.system.ask(Pull(reference="file:/nowhere"))

        def child() -> None:
            for one in (reply, pending):
                if not one.done():
                    with pytest.raises(Forked):
                        one.get(timeout=5)

        in_child(child)
