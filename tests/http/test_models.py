"""The verbs under `/models`, and what they say in the contract's words."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.library.messages import Pull
from waiting import until_async

TINY = "docker.io/ai/tiny:latest"


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


async def pull(server: Any, reference: str, **more: Any) -> tuple[int, list[dict[str, Any]]]:
    headers = {"Accept": "application/json"}
    async with server.post("/models/create", {"from": reference, **more}, headers=headers) as response:
        text = await response.text()
        return response.status, lines_of(text) if response.status == 200 else [{"message": text}]


async def text_of(asked: Any) -> tuple[int, str]:
    async with asked as response:
        return response.status, await response.text()


async def tags(server: Any) -> list[str]:
    async with server.get("/models") as response:
        return [tag for model in await response.json() for tag in model.get("tags", ())]


async def test_a_second_pull_says_that_the_model_is_here_however_it_is_called(
    open_server: Any, make_gguf: Any, short_path: Path
) -> None:
    file = await asyncio.to_thread(make_gguf, short_path / "mine.gguf", "mine")
    server = await open_server(models={"mine": f"file:{file}"})
    status, lines = await pull(server, "mine")
    assert (status, lines[-1]["type"], lines[-1]["message"]) == (200, "success", "Model pulled successfully")
    for name in ("mine", "ai/mine", "docker.io/ai/mine:latest", str(file), f"file:{file}"):
        status, lines = await pull(server, name)
        assert lines[-1]["message"].startswith("Using cached model: "), (name, lines)
    assert set(await tags(server)) >= {"docker.io/ai/mine:latest", f"file:{file}", TINY}


async def test_a_local_file_that_has_changed_is_imported_again(
    open_server: Any, make_gguf: Any, short_path: Path
) -> None:
    server = await open_server()
    file = await asyncio.to_thread(make_gguf, short_path / "mine.gguf", "one")
    await pull(server, str(file))
    first = server.greenroom.find_model(str(file)).id
    file.unlink()
    await asyncio.to_thread(make_gguf, file, "two")
    _, lines = await pull(server, str(file))
    assert lines[-1]["message"] == "Model pulled successfully"
    assert server.greenroom.find_model(str(file)).id != first


async def test_what_is_refused_before_the_first_byte_keeps_its_status(open_server: Any) -> None:
    server = await open_server()
    for reference, status in (
        ("/nowhere.gguf", 404),
        ("", 400),
        ("./here.gguf", 400),
        ("https://x/y", 400),
        ("0123456789ab", 404),
    ):
        found, lines = await pull(server, reference)
        assert found == status, (reference, lines)
        assert "Traceback" not in lines[0]["message"]


async def test_what_cannot_run_here_is_reported_first_and_can_be_overruled(
    open_server: Any, make_gguf: Any, short_path: Path
) -> None:
    server = await open_server(memory_budget=2**20)
    file = await asyncio.to_thread(make_gguf, short_path / "big.gguf", "big")
    status, lines = await pull(server, str(file))
    assert status == 507
    assert "1.05 MB" in lines[0]["message"]
    assert "--force" in lines[0]["message"]
    status, lines = await pull(server, str(file), force=True)
    assert lines[-1]["type"] == "success"


async def test_inspect_says_of_what_a_model_is_made_and_what_would_serve_it(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/models/tiny") as response:
        model = await response.json()
    assert TINY in model["tags"]
    assert model["config"]["gguf"]["general.name"] == "tiny"
    assert [file["name"] for file in model["files"]] == ["tiny1.gguf"]
    assert model["bytes"] == model["files"][0]["size"]
    chat, embedding = model["serving"]
    assert (chat["mode"], chat["backend"], chat["installed"], chat["fits"]) == (
        "completion",
        "fake",
        True,
        True,
    )
    assert chat["memory"] >= model["bytes"] + 2**20
    assert chat["conversations"] == {"saved": False, "reason": "fake keeps nothing of what it has read"}
    assert embedding["mode"] == "embedding"
    assert "conversations" not in embedding
    server.greenroom.conversations.off = 'the setting conversations is "memory"'
    async with server.get("/models/tiny") as response:
        (chat, _) = (await response.json())["serving"]
    assert chat["conversations"]["reason"] == 'the setting conversations is "memory"'
    async with server.get("/v1/models/tiny") as response:
        listed = await response.json()
    assert listed["dmr"]["architecture"] == "llama"


async def test_a_tag_is_given_moved_and_refused_where_it_has_no_meaning(open_server: Any) -> None:
    server = await open_server()
    status, text = await text_of(server.post("/models/tiny/tag?repo=reg.example/me/m&tag=v1"))
    assert status == 201
    assert json.loads(text)["target"] == "reg.example/me/m:v1"
    assert "reg.example/me/m:v1" in await tags(server)
    assert (await text_of(server.post("/models/tiny/tag?repo=x")))[0] == 400
    assert (await text_of(server.post("/models/none/tag?repo=x&tag=y")))[0] == 404
    assert (await text_of(server.post("/models/tiny/tag?repo=/etc/passwd&tag=y")))[0] == 400
    assert await text_of(server.post("/models/a/b/dance")) == (404, 'unknown action "dance"\n')


async def test_another_context_is_another_model_of_the_same_files(open_server: Any) -> None:
    server = await open_server()
    body = {"target": "tiny-long:v1", "context_size": 4096}
    status, text = await text_of(server.post("/models/tiny/repackage", body))
    assert (status, json.loads(text)["target"]) == (201, "tiny-long:v1")
    async with server.get("/models/tiny-long:v1") as response:
        model = await response.json()
    assert model["config"]["context_size"] == 4096
    assert model["serving"][0]["context_size"] == 4096
    assert model["id"] != server.greenroom.find_model("tiny").id
    status, _ = await server.stream(model="tiny-long:v1")
    assert status == 200
    assert server.engines("ready")[0].spec.context_size == 4096
    for wrong in ({}, {"target": "x", "context_size": -1}, {"target": "x", "context_size": 2**40}):
        assert (await text_of(server.post("/models/tiny/repackage", wrong)))[0] == 400
    assert (await text_of(server.post("/models/none/repackage", {"target": "x"})))[0] == 404


async def test_what_lists_a_model_names_the_context_it_was_packaged_with(open_server: Any) -> None:
    server = await open_server()
    body = {"target": "small", "context_size": 128}
    async with server.post("/models/tiny/repackage", body) as response:
        assert response.status == 201
    async with server.get("/v1/models/small") as response:
        about = (await response.json())["dmr"]
    async with server.get("/models/small") as response:
        config = (await response.json())["config"]
    assert (about["context_window"], config["context_size"]) == (128, 128)
    assert about["size"] == config["size"]


async def test_a_model_that_is_exported_and_loaded_again_keeps_its_id(open_server: Any) -> None:
    server = await open_server()
    model_id = server.greenroom.find_model("tiny").id
    async with server.get("/models/tiny/export") as response:
        assert response.status == 200
        assert response.headers["Content-Disposition"] == 'attachment; filename="tiny.tar"'
        archive = await response.read()
        assert response.content_length == len(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = tar.getnames()
        assert names[:2] == ["blobs", "blobs/sha256"]
        assert names[-1] == "manifest.json"
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        assert f"sha256:{hashlib.sha256(manifest.read()).hexdigest()}" == model_id
    await text_of(server.session.delete(f"{server.base}/models/{model_id}?force=true"))
    async with server.session.post(server.base + "/models/load", data=archive) as response:
        assert response.status == 200
        assert lines_of(await response.text()) == [
            {
                "type": "success",
                "message": "Model loaded successfully",
                "total": 0,
                "layer": {"size": 0, "current": 0},
                "mode": "pull",
            }
        ]
    async with server.get(f"/models/{model_id}") as response:
        assert "tags" not in await response.json()
    await text_of(server.post(f"/models/{model_id}/tag?repo=docker.io/ai/back&tag=latest"))
    assert (await server.stream(model="back"))[0] == 200


def _archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"", "not a complete archive: empty"),
        (b"nonsense" * 1000, "archive"),
        (_archive(README=b"x"), "no manifest.json"),
        (_archive(**{"manifest.json": b"{}"}), "not a model"),
        (_archive(**{"../../outside": b"x"}), "outside"),
        (_archive(**{f"blobs/sha256/{'0' * 64}": b"x", "manifest.json": b"{}"}), "does not match its name"),
    ],
)
async def test_what_is_not_an_archive_of_a_model_is_refused(
    open_server: Any, archive: bytes, reason: str
) -> None:
    server = await open_server()
    async with server.session.post(server.base + "/models/load", data=archive) as response:
        assert response.status == 422
        assert reason in await response.text()
    incoming = server.greenroom.home / "models" / "incoming"
    assert not list(incoming.iterdir())


async def test_an_archive_that_is_cut_off_is_refused_and_leaves_nothing(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/models/tiny/export") as response:
        archive = await response.read()
    async with server.session.post(server.base + "/models/load", data=archive[:-2000]) as response:
        assert response.status == 422
    _, writer = await asyncio.open_connection(*server.root.split(":"))
    head = f"POST {server.base.partition(server.root)[2]}/models/load HTTP/1.1\r\nHost: localhost\r\n"
    writer.write(head.encode() + f"Content-Length: {len(archive)}\r\n\r\n".encode() + archive[:1000])
    await writer.drain()
    incoming = server.greenroom.home / "models" / "incoming"
    while not list(incoming.iterdir()):  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.01)
    writer.close()
    while list(incoming.iterdir()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert len(await asyncio.to_thread(server.greenroom.store.models)) == 1


async def test_a_push_by_a_name_that_is_no_place_says_which_names_are(open_server: Any) -> None:
    server = await open_server()
    path = next(tag for tag in await tags(server) if tag.startswith("file:"))
    status, text = await text_of(server.post(f"/models/{path}/push"))
    assert status == 400
    assert text.strip().endswith("Push one of them: tiny")
    await text_of(server.post("/models/tiny/tag?repo=registry.example/me/tiny&tag=v1"))
    model_id = server.greenroom.find_model("tiny").id
    status, text = await text_of(server.post(f"/models/{model_id}/push"))
    assert (status, "has 2 tags on registries" in text) == (400, True)
    assert (await text_of(server.post("/models/absent/push")))[0] == 404


async def test_a_model_is_removed_by_name_and_by_id(open_server: Any) -> None:
    server = await open_server()
    model = server.greenroom.find_model("tiny")
    status, text = await text_of(server.session.delete(server.base + "/models/tiny"))
    assert (status, json.loads(text)) == (200, [{"Untagged": TINY}])
    await text_of(server.post(f"/models/{model.id}/tag?repo=a&tag=b"))
    status, text = await text_of(server.session.delete(f"{server.base}/models/{model.id}"))
    assert status == 409
    assert "must be forced" in text
    status, text = await text_of(server.session.delete(f"{server.base}/models/{model.id[7:19]}?force=true"))
    assert status == 200
    assert json.loads(text)[-1] == {"Deleted": model.id}
    assert (await text_of(server.session.delete(server.base + "/models/tiny")))[0] == 404


async def test_a_model_in_use_is_removed_only_by_force_and_serves_on_to_the_end(open_server: Any) -> None:
    server = await open_server("--tokens", "100", "--token-delay", "0.02")
    model = server.greenroom.find_model("tiny")
    url = f"{server.base}/models/{model.id}"
    async with server.chat(stream=True) as stream:
        await stream.content.readany()
        status, text = await text_of(server.session.delete(f"{url}?force=false"))
        assert status == 409, text
        await text_of(server.session.delete(server.base + f"/models/{TINY}"))
        status, text = await text_of(server.session.delete(url))
        assert status == 409
        assert "in use on fake (1 request: " in text
        assert "--force" in text
        assert (await text_of(server.session.delete(f"{server.base}/models/purge")))[0] == 409
        assert server.greenroom.models()
        assert (await text_of(server.session.delete(f"{url}?force=true")))[0] == 200
        assert (await text_of(server.post("/v1/completions", {"model": TINY})))[0] == 404
        rest = await stream.content.read()
        assert rest.endswith(b"data: [DONE]\n\n")
    await until_async(lambda: not server.engines("ready", "stopping"))


async def test_an_idle_engine_does_not_keep_its_model(open_server: Any) -> None:
    server = await open_server()
    await server.stream()
    await until_async(lambda: server.inside() == 0)
    model = server.greenroom.find_model("tiny")
    assert (await text_of(server.session.delete(f"{server.base}/models/{model.id}?force=true")))[0] == 200
    await until_async(lambda: not server.engines("ready", "stopping"))
    assert (await text_of(server.chat()))[0] == 404


async def test_purging_leaves_an_empty_store(open_server: Any, make_gguf: Any, short_path: Path) -> None:
    server = await open_server()
    await pull(server, str(await asyncio.to_thread(make_gguf, short_path / "two.gguf", "two")))
    await text_of(server.post("/models/tiny/tag?repo=a&tag=b"))
    assert await text_of(server.session.delete(server.base + "/models/purge")) == (200, "")
    assert await text_of(server.get("/models")) == (200, "[]")
    assert not list((server.greenroom.home / "models" / "blobs" / "sha256").iterdir())


async def test_pruning_removes_what_broke_off_and_models_without_a_name_if_asked(
    open_server: Any, make_gguf: Any, short_path: Path
) -> None:
    server = await open_server()
    partial = server.greenroom.home / "models" / "partial"
    partial.mkdir()
    (partial / ("a" * 64)).write_bytes(b"x" * 5000)
    file = await asyncio.to_thread(make_gguf, short_path / "mine.gguf", "one")
    await pull(server, str(file))
    nameless = server.greenroom.find_model(str(file)).id
    file.unlink()
    await pull(server, str(await asyncio.to_thread(make_gguf, file, "two")))
    status, text = await text_of(server.post("/models/prune"))
    assert (status, json.loads(text)) == (200, {"deleted": [], "freed": 5000, "kept_for": []})
    status, text = await text_of(server.post("/models/prune", {"untagged": True}))
    assert json.loads(text)["deleted"] == [nameless]
    assert json.loads(text)["freed"] > 0
    assert server.greenroom.find_model(str(file)) is not None


async def test_df_counts_each_byte_once(open_server: Any) -> None:
    server = await open_server()
    await text_of(server.post("/models/tiny/repackage", {"target": "other", "context_size": 5}))
    async with server.get("/engines/df") as response:
        usage = await response.json()
    weights = server.greenroom.find_model("tiny").size
    assert weights < usage["models_disk_usage"] < 2 * weights + 20_000
    assert usage["models_shared_disk_usage"] == weights  # the user's own file has the same bytes
    assert usage["default_backend_disk_usage"] == 0
    assert usage["journal_disk_usage"] > 0
    parts = {name: size for name, size in usage.items() if name.endswith("_disk_usage")}
    for name in ("total", "models_shared", "default_backend", "backends"):
        parts.pop(f"{name}_disk_usage")
    assert usage["total_disk_usage"] == sum(parts.values()) + sum(usage["backends_disk_usage"].values())


def _damage(store: Any, model_id: str) -> None:
    blob = store.blob(store.manifest(model_id).layers[0].digest)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.unlink()  # its bytes are shared with the user's file, which is as it was
    blob.write_bytes(data)


async def test_verifying_reads_every_byte_and_what_is_damaged_is_repaired_by_the_next_pull(
    open_server: Any,
) -> None:
    server = await open_server()
    headers = {"Accept": "application/json"}
    async with server.post("/models/tiny/verify", headers=headers) as response:
        lines = lines_of(await response.text())
    assert lines[-1]["type"] == "success"
    assert "tiny is whole" in lines[-1]["message"]
    model = server.greenroom.find_model("tiny")
    (source,) = [tag for tag in model.tags if tag.startswith("file:")]
    await asyncio.to_thread(_damage, server.greenroom.store, model.id)
    async with server.post("/models/tiny/verify", headers=headers) as response:
        text = await response.text()
    assert "is damaged" in text
    assert (await text_of(server.get("/models/tiny")))[0] == 404
    _, lines = await pull(server, source)
    assert lines[-1]["message"] == "Model pulled successfully"
    assert (await server.stream())[0] == 200


async def test_what_a_source_has_is_asked_without_fetching_it(
    open_server: Any, make_gguf: Any, short_path: Path
) -> None:
    file = await asyncio.to_thread(make_gguf, short_path / "mine.gguf", "mine")
    server = await open_server()
    async with server.get(f"/models/file:{file}?remote=true") as response:
        model = await response.json()
    assert model["config"]["format"] == "gguf"
    assert model["bytes"] == file.stat().st_size
    assert "tags" not in model
    assert f"file:{file}" not in await tags(server)
    assert (await text_of(server.get("/models/file:/nowhere?remote=1")))[0] == 404


async def test_two_clients_that_pull_the_same_model_fetch_it_once(
    open_server: Any, make_gguf: Any, short_path: Path
) -> None:
    server = await open_server()
    file = await asyncio.to_thread(make_gguf, short_path / "mine.gguf", "mine")
    answers = await asyncio.gather(*(pull(server, str(file)) for _ in range(5)))
    assert {lines[-1]["type"] for _, lines in answers} == {"success"}
    fresh = [lines[-1]["message"] == "Model pulled successfully" for _, lines in answers]
    assert any(fresh)
    assert len([model for model in server.greenroom.models() if f"file:{file}" in model.tags]) == 1


async def test_a_pull_for_a_request_is_answered_at_once_by_a_model_in_the_store(open_server: Any) -> None:
    server = await open_server()
    pulled = await server.greenroom.system.ask(Pull(reference=TINY, wanted_by="request"))
    assert not pulled.fresh
