"""The store and what is loaded, as Ollama's clients see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.values import Part, Progress
from greenroom.runner.http.ollama.transfers import StatusLines

NAME = "tiny:latest"


async def asked(request: Any) -> tuple[int, Any]:
    async with request as response:
        text = await response.text()
        if response.content_type == "application/x-ndjson":
            return response.status, [json.loads(line) for line in text.splitlines()]
        return response.status, json.loads(text) if text else None


async def names(server: Any) -> list[str]:
    _, said = await asked(server.get("/api/tags"))
    assert [one["name"] for one in said["models"]] == [one["model"] for one in said["models"]]
    return [one["name"] for one in said["models"]]


def deleted(server: Any, **body: Any) -> Any:
    return asked(server.session.delete(server.base + "/api/delete", json=body))


async def test_every_name_that_is_listed_can_be_asked_for(open_server: Any) -> None:
    server = await open_server()
    assert await names(server) == [NAME], "not by its file"
    copied = {"source": "tiny", "destination": "registry.example:5000/org/m:v1"}
    assert await asked(server.post("/api/copy", copied)) == (200, None)
    assert await asked(server.post("/api/copy", {"source": "tiny", "destination": "hf.co/o/m:Q4"})) == (
        200,
        None,
    )
    listed = await names(server)
    assert listed == [NAME, "registry.example:5000/org/m:v1", "hf.co/o/m:Q4"]
    for name in listed:
        status, said = await asked(
            server.post("/api/generate", {"model": name, "prompt": "x", "stream": False})
        )
        assert (status, said["model"]) == (200, name)
    _, said = await asked(server.get("/api/tags"))
    (model,) = server.greenroom.models()
    row = said["models"][0]
    assert row["digest"] == model.id.removeprefix("sha256:")
    assert row["size"] == model.size > 0
    assert datetime.fromisoformat(row["modified_at"]) <= datetime.now(UTC)
    assert row["details"]["format"] == "gguf"
    assert (row["details"]["family"], row["details"]["families"]) == ("llama", ["llama"])


async def test_what_is_loaded_is_told_with_its_end(open_server: Any) -> None:
    server = await open_server()
    assert await asked(server.get("/api/ps")) == (200, {"models": []})
    await asked(server.post("/api/generate", {"model": "tiny", "keep_alive": "10m"}))
    (row,) = (await asked(server.get("/api/ps")))[1]["models"]
    assert (row["name"], row["model"], row["details"]["family"]) == (NAME, NAME, "llama")
    assert row["size"] > 0
    left = datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)
    assert 500 < left.total_seconds() <= 600
    await asked(server.post("/api/generate", {"model": "tiny", "keep_alive": -1}))
    (row,) = (await asked(server.get("/api/ps")))[1]["models"]
    assert datetime.fromisoformat(row["expires_at"]).year > 2300


async def test_a_model_is_shown_with_its_header(open_server: Any) -> None:
    server = await open_server()
    for body in ({"model": "tiny"}, {"name": "tiny", "model": "", "verbose": True}):
        status, said = await asked(server.post("/api/show", body))
        assert status == 200
        assert said["model_info"]["general.architecture"] == "llama"
        assert said["details"]["family"] == "llama"
        assert said["capabilities"] == ["completion"]
        assert f"FROM {NAME}" in said["modelfile"]
    assert (await asked(server.post("/api/show", {})))[0] == 400


async def test_a_name_is_deleted_and_with_the_last_one_the_model(open_server: Any) -> None:
    server = await open_server()
    await asked(server.post("/api/copy", {"source": "tiny", "destination": "other"}))
    assert await deleted(server, model="other") == (200, None)
    assert await names(server) == [NAME]
    assert (await deleted(server, name="other"))[0] == 404
    (model,) = server.greenroom.models()
    for tag in model.tags:
        assert (await deleted(server, model=tag))[0] == 200
    assert server.greenroom.models() == ()


async def test_a_model_is_made_of_another_with_a_context(open_server: Any) -> None:
    server = await open_server()
    made = {"model": "long", "from": "tiny", "parameters": {"num_ctx": 99}}
    status, said = await asked(server.post("/api/create", made))
    assert (status, said[-1]) == (200, {"status": "success"})
    same = {"model": "same", "from": "tiny", "stream": False}
    assert await asked(server.post("/api/create", same)) == (200, {"status": "success"})
    sizes = {tag: one.context_size for one in server.greenroom.models() for tag in one.tags}
    assert sizes["docker.io/ai/long:latest"] == 99
    assert sizes["docker.io/ai/same:latest"] == sizes["docker.io/ai/tiny:latest"] == 0
    _, said = await asked(server.post("/api/show", {"model": "long"}))
    assert said["parameters"].split() == ["num_ctx", "99"]


async def test_a_pull_tells_its_steps_and_ends_with_success(
    open_server: Any, make_gguf: Callable[[Path], Path], tmp_path: Path
) -> None:
    server = await open_server()
    file = await asyncio.to_thread(make_gguf, tmp_path / "another.gguf")
    status, said = await asked(server.post("/api/pull", {"model": str(file)}))
    assert status == 200
    assert said[0] == {"status": "pulling manifest"}
    assert said[-1] == {"status": "success"}
    once = await asked(server.post("/api/pull", {"name": str(file), "stream": False}))
    assert once == (200, {"status": "success"})
    status, said = await asked(server.post("/api/pull", {"model": "/not/there.gguf", "stream": False}))
    assert (status >= 400, "there.gguf" in said["error"]) == (True, True)
    status, said = await asked(server.post("/api/pull", {"model": "registry.ollama.ai/library/x"}))
    assert "Ollama" in (said if isinstance(said, dict) else said[-1])["error"]
    status, said = await asked(server.post("/api/push", {"model": str(file)}))
    assert (status, "registry" in said["error"]) == (400, True)


def test_a_transferring_file_is_reported_until_it_is_complete() -> None:
    lines = StatusLines("pull")
    said: list[Any] = []

    def note(data: bytes) -> None:
        said.extend(json.loads(line) for line in data.splitlines())

    digest = f"sha256:{'ab' * 32}"
    for done in (0, 4, 3, 4):
        part = Part(id=digest, name="x", size=9, done=done)
        note(lines.progress(Progress(job="j", phase="downloading", parts=(part,))))
    note(lines.heartbeat())
    note(lines.success(None))
    file = {"status": "pulling abababababab", "digest": digest, "total": 9}
    four = file | {"completed": 4}
    assert said == [
        {"status": "pulling manifest"},
        *(file, four, four),
        file | {"completed": 9},
        *({"status": one} for one in ("verifying sha256 digest", "writing manifest", "success")),
    ]
    note(lines.again().error(Refusal(code="x", message="It broke.")))
    assert said[-1] == {"error": "It broke."}


async def test_the_version_is_one_of_ollamas(open_server: Any) -> None:
    server = await open_server()
    _, said = await asked(server.get("/api/version"))
    assert [part.isdigit() for part in said["version"].split(".")] == [True] * 3
