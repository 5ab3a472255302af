"""A real daemon whose disk is full: what needs an event is refused, what runs goes on, stops are recorded."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from crashing import Life
from greenroom.actors.journal import maintenance
from greenroom.actors.journal.reader import read_journal
from other_process import limit
from waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits another process (Linux)")


LIMIT = 512 * 1024
"""Bytes beyond which no file of the daemon may grow: the journal is full within some hundred events."""


@contextmanager
def small_disk(life: Life) -> Iterator[None]:
    """No file of the daemon's may grow beyond the limit."""
    pid = life.pid
    limits = limit(pid, resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    yield
    with suppress(ProcessLookupError):  # it may have been stopped
        limit(pid, resource.RLIMIT_FSIZE, limits)


def configure(life: Life, number: int) -> int:
    """A command that needs an event and nothing else; its status."""
    status, _ = life.post("/engines/_configure", {"model": "two", "keep_alive": f"{number}m"})
    return status


def refused_when_full(life: Life) -> int:
    """Ask for events until there is no room for one; how many there was room for."""
    for number in range(1, 5000):
        status = configure(life, number)
        if status == 507:
            return number - 1
        assert status in (200, 202), status
    raise AssertionError("it never gets full")


@pytest.mark.slow
def test_on_a_full_disk_engines_serve_stops_are_recorded_and_all_recovers(life: Life) -> None:
    (engine,) = life.engines()
    with small_disk(life):
        refused_when_full(life)
        # What runs goes on, also as a stream.
        life.chat("two")
        body = {"model": "two", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        status, stream = life.post("/v1/chat/completions", body)
        assert (status, stream.split()[-1]) == (200, "[DONE]")
        # What would need an event is refused with a sentence.
        status, answer = life.post(
            "/v1/chat/completions", {"model": "one", "messages": [{"role": "user", "content": "hello"}]}
        )
        assert status == 507, answer
        assert "Loaded models still work. Free space on the disk" in answer["error"]["message"]
        assert life.post("/engines/install-backend", {"backend": "toy"})[0] == 200  # there already
        assert life.get("/readyz")[0] == 200
        # An engine's end is recorded all the same.
        before = {record.id for record in read_journal(life.home / "journal.db")}
        assert life.post("/engines/unload", {"all": True})[0] == 200
        until(lambda: life.engines() == [])
        until(lambda: not os.path.exists(f"/proc/{engine['pid']}"))
        after = [record for record in read_journal(life.home / "journal.db") if record.id not in before]
        types = [record.type for record in after]
        assert types[:1] == ["eviction_decided"]
        assert "engine_exited" in types
        assert configure(life, 1) == 507
    # There is space again, and nothing has to be restarted.
    until(lambda: configure(life, 77) in (200, 202))
    life.chat("one")
    life.chat("two")
    life.uninstall()
    life.stop()
    assert maintenance.verify(life.home / "journal.db").is_sound
    assert [*read_journal(life.home / "journal.db")][-1].type == "daemon_stopped"


@pytest.mark.slow
def test_a_daemon_whose_disk_is_full_stops_in_order_and_says_so_in_its_journal(life: Life) -> None:
    with small_disk(life):
        refused_when_full(life)
        life.stop()
        types = [record.type for record in read_journal(life.home / "journal.db")]
        assert types[-1] == "daemon_stopped"
        assert types.count("engine_exited") == types.count("engine_spawned")
