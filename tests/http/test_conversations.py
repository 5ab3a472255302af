"""What is saved of conversations is listed and removed over HTTP, and goes with its model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.runner.conversations.entry import SavedConversation
from saved import kept
from waiting import until_async


async def text_of(call: Any) -> tuple[int, Any]:
    async with call as response:
        text = await response.text()
        return response.status, json.loads(text) if response.status == 200 else text


def removed(server: Any, path: str) -> Any:
    return server.session.delete(server.base + path)


async def saved(server: Any, folder: Path, parts: str, **more: Any) -> SavedConversation:
    store = server.greenroom.conversations
    await until_async(lambda: asyncio.to_thread(lambda: not store.may_write(1)))
    fields = {"model_id": server.greenroom.find_model("tiny").id, "model": "tiny", **more}
    return await asyncio.to_thread(lambda: kept(store, folder, parts, **fields))


async def test_they_are_listed_without_what_was_said(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    entry = await saved(server, tmp_path, "abc", reason="evicted", cause="for gemma3")
    status, said = await text_of(server.get("/conversations?model=tiny"))
    assert status == 200
    (row,) = said["conversations"]
    assert (row["id"], row["model"], row["tokens"], row["size"]) == (entry.id, "tiny", 300, 3_000)
    assert (row["reason"], row["cause"], row["owner"]) == ("evicted", "for gemma3", "user:1")
    assert row["expires_at"] == entry.used_at + 86_400
    assert said["bytes"] == said["written_today"] == 3_000 < said["limit"] < said["write_limit"]
    assert not {"chain", "checksum"} & row.keys()
    assert await text_of(server.get(f"/conversations/{entry.id}")) == (200, row)


async def test_one_is_removed_or_those_of_a_model_or_all(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    one = await saved(server, tmp_path, "abc")
    await saved(server, tmp_path, "xyz")
    await saved(server, tmp_path, "xyz", model_id="another", compat="another")
    gone = {"removed": 1, "freed": 3_000, "left": 0}
    assert await text_of(removed(server, f"/conversations/{one.id}")) == (200, gone)
    assert await text_of(removed(server, "/conversations?model=tiny")) == (200, gone)
    assert await text_of(removed(server, "/conversations")) == (200, gone)
    status, said = await text_of(removed(server, f"/conversations/{one.id}"))
    assert status == 404
    assert "There is no saved conversation" in said
    assert (await text_of(server.get("/conversations?model=nope")))[0] == 404


async def test_callers_on_other_machines_get_none_of_it(
    open_server: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    server = await open_server()
    entry = await saved(server, tmp_path, "abc")
    monkeypatch.setattr("greenroom.runner.http.port.Request.is_local", False)
    for call in (server.get, lambda path: removed(server, path)):
        for path in ("/conversations", f"/conversations/{entry.id}"):
            status, said = await text_of(call(path))
            assert status == 403
            assert "only for callers on the daemon's machine" in said
    assert server.greenroom.conversations.entries() == [entry]


async def test_where_none_are_saved_that_is_said(open_server: Any) -> None:
    server = await open_server(conversations="off")
    store = server.greenroom.conversations
    await until_async(lambda: asyncio.to_thread(lambda: store.may_write(1) == store.off))
    _, said = await text_of(server.get("/conversations"))
    assert said["off"] == 'the setting conversations is "off"'


async def test_they_go_with_their_model(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    model = server.greenroom.find_model("tiny")
    await saved(server, tmp_path, "abc")
    other = await saved(server, tmp_path, "abc", model_id="another", compat="another")
    async with removed(server, f"/models/{model.id}?force=true") as response:
        assert response.status == 200
        freed, kept = (int(response.headers[name]) for name in ("X-Freed-Bytes", "X-Kept-Bytes"))
    # Theirs are not bytes of the model.
    assert model.size <= freed < 3_000
    assert kept == 0
    assert server.greenroom.conversations.entries() == [other]


async def test_a_purge_leaves_none(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    await saved(server, tmp_path, "abc")
    await saved(server, tmp_path, "abc", model_id="gone before", compat="another")
    async with removed(server, "/models/purge?force=true") as response:
        assert response.status == 200
    assert server.greenroom.conversations.entries() == []
    assert not await asyncio.to_thread(lambda: list((server.greenroom.home / "conversations").glob("c-*")))


async def test_what_does_not_fit_otherwise_takes_their_place(
    open_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server()
    rooms = (server.greenroom.store.room, server.greenroom.builder.room)
    for room in rooms:
        await saved(server, tmp_path, "abc")
        with monkeypatch.context() as patched:
            patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
            await asyncio.to_thread(room.free, 10**9 + 3_000)
        assert server.greenroom.conversations.entries() == []
