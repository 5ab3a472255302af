"""Greenroom inside another program: without HTTP, beside the program's own actors."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from counting import COUNTER, Add, Counter, Total
from fake_greenroom import fake_greenroom
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.kernel.errors import StartFailed
from greenroom.actors.library.messages import Pull
from greenroom.actors.testing import RecordingEffectHandler
from greenroom.runner.testing import tiny_gguf


def types(home: Path) -> list[str]:
    with JournalReader(home / "journal.db") as reader:
        return [record.type for record in reader.read()]


def test_a_hosts_own_actor_shares_the_journal_and_remembers(home: Path) -> None:
    for expected in (2, 4):
        greenroom = fake_greenroom(home)
        greenroom.register(Counter(), effect_handler=RecordingEffectHandler())
        with greenroom:
            assert greenroom.system.ask(Add(by=2), to=COUNTER).get(timeout=5) == expected
    assert types(home).count("counted") == 2
    assert types(home).count("daemon_started") == 2
    with fake_greenroom(home) as without:
        # Its stream is dormant now, and does no harm.
        assert without.models() == ()
    greenroom = fake_greenroom(home)
    greenroom.register(Counter(), effect_handler=RecordingEffectHandler())
    with greenroom:
        assert greenroom.system.ask(Total(), to=COUNTER).get(timeout=5) == 4
        with pytest.raises(StartFailed, match="before the start"):
            greenroom.register(Counter("late"))


async def test_two_greenrooms_live_in_one_asyncio_program(home: Path, tmp_path: Path) -> None:
    with blockbuster_ctx("greenroom"):
        async with fake_greenroom(home / "one") as one, fake_greenroom(home / "two") as two:
            model = await asyncio.to_thread(tiny_gguf, tmp_path / "tiny.gguf")
            pulled = await one.system.ask(Pull(reference=f"file:{model}"))
            assert [model.id for model in one.models()] == [pulled.model.id]
            assert two.models() == ()
            assert one.instance_id != two.instance_id
    assert "model_committed" in types(home / "one")
    assert "model_committed" not in types(home / "two")


def test_an_embedded_greenroom_leaves_nothing_behind_in_its_host(home: Path) -> None:
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    threads, handlers = set(threading.enumerate()), list(logging.getLogger().handlers)
    with fake_greenroom(home) as greenroom:
        assert greenroom.statuses()
    assert {number: signal.getsignal(number) for number in signals} == signals
    assert logging.getLogger().handlers == handlers
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(5)
    assert not [thread.name for thread in left if thread.is_alive()]


async def test_a_start_that_is_cancelled_leaves_the_data_directory_free(home: Path) -> None:
    greenroom = fake_greenroom(home)
    entering = asyncio.ensure_future(greenroom.__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with fake_greenroom(home) as another:
        assert another.statuses()


def test_an_actor_that_cannot_be_registered_leaves_the_data_directory_free(home: Path) -> None:
    greenroom = fake_greenroom(home)
    greenroom.register(Counter("library"), effect_handler=RecordingEffectHandler())
    with pytest.raises(StartFailed, match="there is already an actor library"):
        greenroom.start()
    with fake_greenroom(home) as another:
        assert another.statuses()
