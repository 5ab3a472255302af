"""Models that are created: of other models and of files, with defaults of their own."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from greenroom.runner.models.store import ModelStore
from greenroom.runner.testing import tiny_gguf
from tiny_vision import projector
from waiting import until_async

SYSTEM = "You are Mario."
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
DEFAULTS: dict[str, Any] = {
    "system": SYSTEM,
    "parameters": {"temperature": 0, "stop": "END", "seed": 7, "num_predict": 3, "repeat_penalty": 1.5},
    "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mario."}],
}
FIRST = [{"role": "system", "content": SYSTEM}, *DEFAULTS["messages"]]
HELLO = {"role": "user", "content": "hi"}


async def asked(request: Any) -> tuple[int, Any]:
    async with request as response:
        text = await response.text()
        if response.content_type == "application/x-ndjson":
            return response.status, [json.loads(line) for line in text.splitlines()]
        return response.status, json.loads(text) if text else None


async def created(server: Any, model: str = "mario", **fields: Any) -> list[str]:
    """The lines of a creation that works."""
    status, said = await asked(server.post("/api/create", {"model": model, **fields}))
    assert status == 200, said
    assert said[-1] == {"status": "success"}, said
    return [one["status"] for one in said]


async def shown(server: Any, model: str) -> Any:
    status, said = await asked(server.post("/api/show", {"model": model}))
    assert status == 200, said
    return said


def named(server: Any, name: str) -> Any:
    return server.greenroom.model(name)


async def layers_of(server: Any, model: Any) -> Any:
    return (await asyncio.to_thread(lambda: server.greenroom.store.manifest(model.id))).layers


async def sent(server: Any, path: str, body: Any, **more: Any) -> Any:
    """What the engine gets of a request."""
    async with server.post(path, {"model": "mario", **body}, **more) as response:
        assert response.status == 200, await response.text()
        await response.read()
    return (await server.stats())["last"]


async def upload(server: Any, data: Any, digest: str = "") -> tuple[int, Any]:
    digest = digest or digest_of(data)
    return await asked(server.session.post(f"{server.base}/api/blobs/{digest}", data=data))


async def has(server: Any, digest: str) -> bool:
    async with server.session.head(f"{server.base}/api/blobs/{digest}") as response:
        return bool(response.status == 200)


async def gguf(folder: Path, name: str) -> bytes:
    return (await asyncio.to_thread(tiny_gguf, folder / f"{name}.gguf", name)).read_bytes()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def test_a_model_is_made_of_another_and_shown(open_server: Any) -> None:
    server = await open_server()
    base = named(server, "tiny")
    (weights,) = await layers_of(server, base)
    lines = await created(server, **{"from": "tiny"}, **DEFAULTS, template=TEMPLATE, license=["MIT", "more"])
    model = named(server, "mario")
    assert model.id != base.id
    new = await layers_of(server, model)
    assert lines == [
        "reading model metadata",
        f"using existing layer {weights.digest}",
        *(f"creating new layer {one.digest}" for one in new[1:]),
        "writing manifest",
        "success",
    ]
    assert len(new) == 4
    said = await shown(server, "mario")
    assert (said["system"], said["template"], said["license"]) == (SYSTEM, TEMPLATE, "MIT\nmore")
    assert [line.split(maxsplit=1) for line in said["parameters"].splitlines()] == [
        ["num_predict", "3"],
        ["repeat_penalty", "1.5"],
        ["seed", "7"],
        ["stop", '"END"'],
        ["temperature", "0"],
    ]
    assert said["messages"] == DEFAULTS["messages"]
    for line in (
        "FROM mario:latest",
        f"TEMPLATE {TEMPLATE}",
        f"SYSTEM {SYSTEM}",
        'PARAMETER stop "END"',
        "MESSAGE user Who?",
        'LICENSE """MIT\nmore"""',
    ):
        assert line in said["modelfile"]
    assert "system" not in await shown(server, "tiny")
    _, inspected = await asked(server.get("/models/mario"))
    assert inspected["defaults"]["system"] == SYSTEM
    assert inspected["defaults"]["parameters"]["stop"] == ["END"]
    _, inspected = await asked(server.get("/models/tiny"))
    assert "defaults" not in inspected
    assert await asyncio.to_thread(lambda: server.greenroom.store.problem(model.id)) == ""


async def test_one_that_is_made_of_a_created_one_keeps_what_it_does_not_change(open_server: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS, template=TEMPLATE, license="MIT")
    await created(server, "luigi", **{"from": "mario"}, system="You are Luigi.", parameters={"top_k": 3})
    said = await shown(server, "luigi")
    assert (said["system"], said["template"], said["license"]) == ("You are Luigi.", TEMPLATE, "MIT")
    assert {"top_k", "seed", "temperature"} <= {line.split()[0] for line in said["parameters"].splitlines()}
    assert said["messages"] == DEFAULTS["messages"]
    again = await created(server, "yoshi", **{"from": "luigi"})
    assert not any("new" in line for line in again)
    assert named(server, "yoshi").id == named(server, "luigi").id, "it is the same model"


async def test_a_created_model_outlives_its_base_and_is_like_any_other(open_server: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS)
    for tag in named(server, "tiny").tags:
        gone = server.session.delete(f"{server.base}/api/delete", json={"model": tag})
        assert (await asked(gone))[0] == 200
    _, said = await asked(server.get("/api/tags"))
    assert [one["name"] for one in said["models"]] == ["mario:latest"]
    _, listed = await asked(server.get("/v1/models"))
    assert [one["id"] for one in listed["data"]] == ["docker.io/ai/mario:latest"]
    assert (await asked(server.post("/api/copy", {"source": "mario", "destination": "m2"})))[0] == 200
    assert (await shown(server, "m2"))["system"] == SYSTEM
    assert (await sent(server, "/api/chat", {"messages": [HELLO], "stream": False}))["messages"] == [
        *FIRST,
        HELLO,
    ]
    store, model_id = ModelStore(server.greenroom.store.root), named(server, "mario").id
    await asyncio.to_thread(store.prepare)
    defaults = await asyncio.to_thread(lambda: store.defaults(model_id))
    assert defaults.system == SYSTEM, "as after a restart"
    async with server.get("/models/mario/export") as response:
        archive = await response.read()
    async with server.session.delete(f"{server.base}/models/mario?force=true") as response:
        assert response.status == 200
    async with server.session.post(f"{server.base}/models/load", data=archive) as response:
        model_id = response.headers["X-Model-Id"]
    assert (await shown(server, model_id))["system"] == SYSTEM


FAMILIES = [
    ("/api/chat", {"messages": [HELLO]}),
    ("/api/generate", {"prompt": "hi"}),
    ("/v1/chat/completions", {"messages": [HELLO]}),
    ("/v1/responses", {"input": "hi"}),
    ("/anthropic/v1/messages", {"messages": [HELLO], "max_tokens": 9}),
]


@pytest.mark.parametrize(("path", "body"), FAMILIES)
async def test_defaults_apply_in_every_family(open_server: Any, path: str, body: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS)
    got = await sent(server, path, body)
    assert got["messages"] == [*FIRST, HELLO]
    assert (got["temperature"], got["seed"], got["stop"]) == (0, 7, ["END"])
    assert got["repeat_penalty"] == got["repetition_penalty"] == 1.5
    assert got.get("max_tokens", got.get("max_completion_tokens")) == body.get("max_tokens", 3)


OWN = [
    (
        "/api/chat",
        {"options": {"temperature": 1, "stop": ["x"], "seed": 8, "num_predict": 4}},
    ),
    ("/v1/chat/completions", {"temperature": 1, "stop": "x", "seed": 8, "max_completion_tokens": 4}),
    ("/v1/messages", {"temperature": 1, "stop_sequences": ["x"], "max_tokens": 4}),
]


@pytest.mark.parametrize(("path", "own"), OWN)
async def test_a_request_overrides_the_defaults(open_server: Any, path: str, own: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS)
    system = {"role": "system", "content": "Be brief."}
    messages = {"system": "Be brief.", "messages": [HELLO]}
    if path != "/v1/messages":
        messages = {"messages": [system, HELLO]}
    got = await sent(server, path, {**messages, **own})
    assert got["messages"] == [system, *DEFAULTS["messages"], HELLO]
    assert (got["temperature"], got["seed"]) == (1, own.get("seed", own.get("options", {}).get("seed", 7)))
    assert "END" not in str(got.get("stop"))
    assert got.get("max_tokens", 4) == 4
    assert (await sent(server, path, {"messages": [HELLO], **own}))["messages"] == [*FIRST, HELLO]


async def test_no_limit_and_a_random_seed_are_wishes_too(open_server: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS)
    options = {"num_predict": -1, "seed": -1}
    got = await sent(server, "/api/chat", {"messages": [HELLO], "options": options})
    assert not {"seed", "max_tokens"} & got.keys()


async def test_a_prompt_without_a_template_gets_the_parameters_alone(open_server: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS)
    for path, more in (("/api/generate", {"raw": True}), ("/v1/completions", {})):
        got = await sent(server, path, {"prompt": "hi", **more})
        assert (got["prompt"], got["temperature"], got["max_tokens"]) == ("hi", 0, 3)
        assert "messages" not in got


async def test_what_shows_a_prompt_shows_the_defaults(open_server: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, **DEFAULTS)
    got = await sent(server, "/apply-template", {"messages": [HELLO]})
    assert got["messages"] == [*FIRST, HELLO]
    assert "temperature" not in got


async def test_tools_are_described_beside_the_models_own_system_prompt(open_server: Any) -> None:
    server = await open_server()
    await created(server, **{"from": "tiny"}, system=SYSTEM)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    for path in ("/api/chat", "/v1/chat/completions"):
        got = await sent(server, path, {"messages": [HELLO], "tools": [tool]})
        assert got["messages"][0]["content"].startswith(SYSTEM)
        assert '"add"' in got["messages"][0]["content"]


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"adapters": {"a.gguf": f"sha256:{'0' * 64}"}}, 400, "adapters cannot be stored"),
    ({"quantize": "q4_0"}, 400, "quantize cannot be stored"),
    ({"modelfile": "FROM tiny"}, 400, "modelfile cannot be stored"),
    ({"template": "{{ .Prompt }}"}, 400, "Go's template language"),
    ({"template": "{{- if .System }}x{{ end }}"}, 400, "Go's template language"),
    ({"template": "hello"}, 400, "does not use messages"),
    ({"parameters": {"temperature": "hot"}}, 400, "parameters.temperature must be a number"),
    ({"parameters": {"num_gpu": 1}}, 400, "parameters.num_gpu cannot be stored"),
    ({"parameters": {"num_ctx": 0}}, 400, "num_ctx must be a whole number"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages"),
    ({"system": 1}, 400, "system"),
    ({"files": {"m.gguf": f"sha256:{'0' * 64}"}}, 400, "send either from"),
    ({"from": "", "files": {"m.gguf": "sha256:0"}}, 400, "not a SHA-256 digest"),
    ({"from": "", "files": {"m.gguf": f"sha256:{'0' * 64}"}}, 400, "m.gguf has not been sent"),
    ({"from": "absent"}, 404, "not found"),
    ({"from": ""}, 400, "from is required"),
    ({"model": ""}, 400, "model is required"),
]


async def test_what_a_model_cannot_be_made_with_is_named_and_nothing_is_written(open_server: Any) -> None:
    server = await open_server()
    before = sorted(server.greenroom.store.root.rglob("*"))
    for fields, status, said in REFUSED:
        body = {"model": "x", "from": "tiny", "system": "s", **fields}
        got, error = await asked(server.post("/api/create", body))
        assert (got, said in error["error"]) == (status, True), error
    assert sorted(server.greenroom.store.root.rglob("*")) == before


async def test_a_model_is_made_of_files_that_were_sent(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    data = await gguf(tmp_path, "other")
    digest = digest_of(data)
    assert not await has(server, digest)
    assert await upload(server, data) == (201, None)
    assert await upload(server, data) == (200, None), "again, it is not kept twice"
    assert await has(server, digest)
    # Ollama's clients need not say what a file is.
    lines = await created(server, files={"weights": digest}, **DEFAULTS)
    assert lines == ["parsing GGUF", f"using existing layer {digest}", "writing manifest", "success"]
    model = named(server, "mario")
    assert (model.format, model.architecture) == ("gguf", "llama")
    assert (await shown(server, "mario"))["system"] == SYSTEM
    assert (await sent(server, "/api/chat", {"messages": [HELLO]}))["messages"] == [*FIRST, HELLO]
    assert list((server.greenroom.store.root / "uploads").iterdir()) == [], "it is the model's now"
    assert await has(server, digest)
    # A file of a model can be in another.
    await created(server, "again", files={"m.gguf": digest}, stream=True)
    assert (await shown(server, "again"))["parameters"] == ""


async def test_what_a_projector_says_is_shown(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    digests = {}
    for name, data in (("model.gguf", await gguf(tmp_path, "sees")), ("vision.gguf", projector())):
        assert (await upload(server, data))[0] == 201
        digests[name] = digest_of(data)
    await created(server, files=digests)
    said = await shown(server, "mario")
    assert said["projector_info"]["general.architecture"] == "clip"
    assert said["capabilities"] == ["completion", "vision"]
    assert "projector_info" not in await shown(server, "tiny")


async def test_files_that_are_no_model_are_refused(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    whole, other = await gguf(tmp_path, "a"), await gguf(tmp_path, "b")
    for data in (whole, other, whole[:-20], b"text"):
        assert (await upload(server, data))[0] == 201
    before = named(server, "tiny")
    for files, said in (
        ({"a.gguf": whole, "b.gguf": other}, "several models"),
        ({"a.gguf": whole[:-20]}, "a.gguf"),
        ({"a.py": b"text"}, "a.py cannot be part of a model"),
        ({"../a.gguf": whole}, "not a file name inside a model"),
    ):
        digests = {name: digest_of(data) for name, data in files.items()}
        status, error = await asked(server.post("/api/create", {"model": "tiny", "files": digests}))
        assert (status, said in error["error"]) == (422, True), error
    assert server.greenroom.models() == (before,)
    assert await has(server, digest_of(whole))


async def test_a_file_that_is_another_than_announced_is_not_kept(open_server: Any) -> None:
    server = await open_server()
    status, said = await upload(server, b"data", digest_of(b"other"))
    assert (status, "digest mismatch" in said["error"]) == (400, True)
    assert not await has(server, digest_of(b"other"))
    assert not await has(server, digest_of(b"data"))
    assert list((server.greenroom.store.root / "uploads").iterdir()) == []
    status, said = await asked(server.session.post(f"{server.base}/api/blobs/sha256:x", data=b""))
    assert (status, "SHA-256" in said["error"]) == (400, True)


async def test_an_upload_that_broke_off_is_repeated(open_server: Any) -> None:
    server = await open_server()
    data = bytes(3_000_000)
    folder = server.greenroom.store.root / "uploads"

    def parts() -> list[Path]:
        return list(folder.iterdir()) if folder.is_dir() else []

    async def half() -> Any:
        yield data[:2_000_000]
        await until_async(lambda: any(one.stat().st_size for one in parts()))
        # What is on its way stays.
        async with server.post("/models/prune", {}) as response:
            assert response.status == 200
        assert len(parts()) == 1
        raise ConnectionResetError("the client has gone")

    with pytest.raises(aiohttp.ClientError):
        await upload(server, half(), digest_of(data))
    await until_async(lambda: not parts())
    assert not await has(server, digest_of(data))
    assert await upload(server, io.BytesIO(data), digest_of(data)) == (201, None)
    assert await has(server, digest_of(data))


async def test_uploads_are_bounded(open_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await open_server()
    monkeypatch.setattr("greenroom.runner.models.uploads.MOST", 1)
    assert (await upload(server, b"one"))[0] == 201
    status, said = await upload(server, b"two")
    assert (status, "1 uploaded files wait" in said["error"]) == (503, True)
    monkeypatch.undo()
    monkeypatch.setattr("greenroom.runner.models.uploads.RESERVE", 2**60)
    status, said = await upload(server, b"two")
    assert (status, "free" in said["error"]) == (507, True)


async def test_the_official_client_creates_models(open_server: Any, tmp_path: Path) -> None:
    import ollama

    server = await open_server()
    await gguf(tmp_path, "own")
    client = ollama.AsyncClient(host=server.base)
    digest = await client.create_blob(tmp_path / "own.gguf")
    parts = [
        one
        async for one in await client.create(
            "own", files={"own.gguf": digest}, system=SYSTEM, parameters={"temperature": 0}, stream=True
        )
    ]
    assert parts[-1].status == "success"
    done = await client.create("own2", from_="own", template=TEMPLATE, license="MIT")
    assert done.status == "success"
    about = await client.show("own2")
    assert (about.license, about.template) == ("MIT", TEMPLATE)
    assert about.parameters == "temperature                    0"
    assert f"SYSTEM {SYSTEM}" in (about.modelfile or "")
    with pytest.raises(ollama.ResponseError, match="quantize cannot be stored"):
        await client.create("own3", from_="own", quantize="q4_0")
    listed = await client.list()
    assert {one.model for one in listed.models} == {"tiny:latest", "own:latest", "own2:latest"}
