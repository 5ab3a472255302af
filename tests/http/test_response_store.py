"""What is kept of responses, how long, and who may read it."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.values import Caller
from greenroom.runner.http.admission import Callers, owner_of
from greenroom.runner.http.responses.store import (
    FILE,
    KEPT,
    NotYetEnded,
    ResponseStore,
    StoredResponse,
    StoreUnusable,
    Unlinked,
)

Make = Callable[..., ResponseStore]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[ResponseStore] = []

    def make_one(**settings: Any) -> ResponseStore:
        made.append(ResponseStore(tmp_path, **settings))
        return made[-1]

    yield make_one
    for one in made:
        await one.close()


def stored(name: str, owner: str = "me", previous: str | None = None, text: str = "x") -> StoredResponse:
    def item(kind: str) -> dict[str, Any]:
        return {"id": f"{kind}-{name}", "text": f"{text} {kind}"}

    response = {"id": name, "previous_response_id": previous, "output": [item("out")]}
    return StoredResponse(owner, [item("in")], response)


def unfinished(name: str) -> StoredResponse:
    made = stored(name)
    return StoredResponse(made.owner, made.input, {**made.response, "status": "queued", "output": []})


async def test_a_response_survives_a_restart_and_is_its_owners_alone(make: Make, tmp_path: Path) -> None:
    store = make()
    assert await store.get("a", "me") is None
    assert not (tmp_path / FILE).exists()
    store.put(stored("a"))
    await store.close()
    again = make()
    assert await again.get("a", "me") == stored("a")
    assert await again.get("a", "you") is None
    assert not await again.delete("a", "you")
    assert await again.items(["in-a"], "you") == {}
    with pytest.raises(Unlinked):
        await again.conversation("a", "you")
    assert (await again.items(["in-a", "none"], "me")).keys() == {"in-a"}
    assert await again.delete("a", "me")
    assert await again.get("a", "me") is None
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


async def test_a_conversation_is_all_items_in_order(make: Make) -> None:
    store = make()
    for name, previous in (("a", None), ("b", "a"), ("c", "b")):
        store.put(stored(name, previous=previous))
    ids = [one["id"] for one in await store.conversation("c", "me")]
    assert ids == ["in-a", "out-a", "in-b", "out-b", "in-c", "out-c"]
    await store.delete("a", "me")
    with pytest.raises(Unlinked):
        await store.conversation("c", "me")


async def test_what_an_earlier_life_left_unfinished_has_failed(make: Make) -> None:
    store = make(life="one")
    for name in "abc":
        await store.begin(unfinished(name))
    with pytest.raises(NotYetEnded):
        await store.conversation("a", "me")
    store.finish(stored("a"))
    await store.delete("b", "me")
    store.finish(stored("b"))
    await store.close()
    again = make(life="two")
    assert await again.get("a", "me") == stored("a")
    assert (await again.items(["out-a"], "me")).keys() == {"out-a"}
    assert await again.get("b", "me") is None
    failed = await again.get("c", "me")
    assert failed is not None
    assert failed.response["status"] == "failed"
    assert "Greenroom ended" in failed.response["error"]["message"]
    await again.begin(unfinished("d"))
    same = make(life="two")
    assert await same.get("d", "me") == unfinished("d")


async def test_the_oldest_go_when_there_are_too_many_bytes_or_rows_or_days(
    make: Make, tmp_path: Path
) -> None:
    now = 1000.0
    store = make(clock=lambda: now, most=3, most_bytes=10_000)
    for name in "abcd":
        store.put(stored(name))
    assert [await store.get(name, "me") is not None for name in "abcd"] == [False, True, True, True]
    store.put(stored("e", text="y" * 4900))
    assert [await store.get(name, "me") is not None for name in "bcde"] == [False, False, False, True]
    now += KEPT + 1
    assert await store.get("e", "me") is None
    store.put(stored("f"))
    assert await store.get("f", "me") is not None
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (2,)


async def test_what_cannot_be_kept_is_logged_and_asking_for_it_raises(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(b"This is no database, but long enough to be taken for one." * 100)
    store = make()
    store.put(stored("a"))
    with pytest.raises(StoreUnusable):
        await store.get("a", "me")
    assert "could not be kept" in caplog.text


def full_disk(connection: sqlite3.Connection, full: bool) -> None:
    """SQLite itself refuses to make the file larger, as on a full disk; by a limit of this connection."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages if full else 100_000}")


async def test_an_end_that_a_full_disk_cannot_keep_is_told_and_kept_as_soon_as_there_is_room(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, connections = sqlite3.connect, list[sqlite3.Connection]()

    def noting(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **more))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", noting)
    store = make(life="one")
    long = {name: stored(name, text="y" * 40_000).response for name in "ab"}
    ended = {name: StoredResponse("me", stored(name).input, one) for name, one in long.items()}
    for name in ended:
        await store.begin(unfinished(name))
    (connection,) = connections
    full_disk(connection, True)
    for one in ended.values():
        store.finish(one)
    assert await store.get("a", "me") == ended["a"]
    assert await store.get("a", "you") is None
    assert await store.conversation("b", "me") == [*ended["b"].input, *ended["b"].response["output"]]
    assert "is full" in caplog.text
    assert await store.delete("b", "me")
    assert await store.get("b", "me") is None
    full_disk(connection, False)
    await store.close()
    again = make(life="two")
    assert await again.get("a", "me") == ended["a"]
    assert (await again.items(["out-a"], "me")).keys() == {"out-a"}
    assert await again.get("b", "me") is None


class Asked:
    """A request on one end of a connection, as far as it tells who asks."""

    def __init__(self, peer: tuple[str, int], local: tuple[str, int]) -> None:
        self.connection = self
        self.peer, self.local, self.remote = peer, local, peer[0]


@pytest.mark.skipif(sys.platform == "darwin", reason="only the processes tell there whose a connection is")
async def test_a_client_that_has_left_owns_nothing_unless_it_was_known_before() -> None:
    callers: Any = Callers()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, address = server.accept()
        with accepted:
            known, late = (Asked(address, accepted.getsockname()) for _ in range(2))
            mine = await callers.owner(known)
            client.close()
            assert mine == await callers.owner(known) == f"user:{os.getuid()}"
            assert await callers.owner(late) == ""
        # What a proxy says of a client has no port, and so no process here.
        told = Asked(("127.0.0.1", 0), server.getsockname())
        assert await callers.owner(told) == "address:127.0.0.1"


def test_a_response_belongs_to_a_key_or_a_user_or_an_address() -> None:
    assert owner_of(Caller(kind="process", id="1000/4711")) == owner_of(
        Caller(kind="process", id="1000/4712")
    )
    owners = {
        owner_of(Caller(kind="process", id="1000/1")),
        owner_of(Caller(kind="process", id="1001/1")),
        owner_of(Caller(kind="address", id="10.0.0.1", share="5")),
        owner_of(Caller(kind="key", id="10.0.0.1")),
    }
    assert len(owners) == 4
