"""The contract with Docker Model Runner's own command line and with clients of its API, request by request.

One daemon answers all of a table's rows, in their order; each row says what its client relies on.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

from greenroom.runner.http.engine_errors import engine_error
from greenroom.runner.http.engine_requests import RequestTarget

AGENT = {"User-Agent": "docker-model-cli/v1.2.3"}
HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": HELLO}
MESSAGE = {**CHAT, "max_tokens": 5}
LARGE = b'{"model": "tiny", "messages": "' + b"x" * (10 * 2**20 + 1) + b'"}'
ZERO_TIME = "0001-01-01T00:00:00Z"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
STATUS = re.compile(r"(Running|Error|Not Installed|Installing)(: .+)?")

Check = str | Callable[[Any], object]
"""A part of the answer's text, or what holds of its JSON."""
Row = tuple[str, str, Any, int, Check]
"""Method, path, body, status, and what is in the answer."""


async def differences(server: Any, rows: list[Row], **headers: str) -> list[str]:
    """What is not as the rows have it."""
    found = []
    for method, path, body, status, check in rows:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with server.session.request(
            method, server.base + path, data=data and io.BytesIO(data), headers={**AGENT, **headers}
        ) as response:
            text = await response.text()
        said = f"{method} {path} {str(body)[:80]}: {response.status} {text[:300]}"
        try:
            right = check in text if isinstance(check, str) else bool(check(json.loads(text)))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            right, said = False, f"{said} ({error!r})"
        if response.status != status or not right:
            found.append(f"{said} - not {status}")
    return found


def error_is(code: str | None = None, param: str | None = None, **more: Any) -> Callable[[Any], bool]:
    """OpenAI's error object, with these."""

    def check(body: Any) -> bool:
        error = body["error"]
        assert isinstance(error["message"], str)
        assert {"type", "code", "param"} <= error.keys()
        return (
            code in (None, error["code"])
            and param in (None, error["param"])
            and more.items() <= error.items()
        )

    return check


def anthropic_error(kind: str) -> Callable[[Any], bool]:
    return lambda body: body["type"] == "error" and body["error"]["type"] == kind and body["error"]["message"]


def is_model(found: Any) -> bool:
    return (
        re.fullmatch(r"sha256:[0-9a-f]{64}", found["id"]) is not None
        and isinstance(found["created"], int)
        and isinstance(found["config"], dict)
        and all(isinstance(one, str) for one in found.get("tags", []))
    )


def is_listed(one: Any) -> bool:
    return one["object"] == "model" and isinstance(one["created"], int) and isinstance(one["owned_by"], str)


def is_engine(row: Any) -> bool:
    return (
        {"backend_name", "model_name", "mode", "last_used"} <= row.keys()
        and TIME.fullmatch(row["last_used"]) is not None
        and (not row.get("in_use") or row["last_used"] == ZERO_TIME)
    )


async def test_models_and_inference_answer_as_the_contract_has_it(open_server: Any) -> None:
    server = await open_server()
    lists = ("/engines/v1/models", "/engines/fake/v1/models", "/v1/models")
    chats = ("/engines/v1/chat/completions", "/engines/fake/v1/chat/completions", "/v1/chat/completions")
    rows: list[Row] = []
    for path in lists:
        rows += [
            (
                "GET",
                path,
                None,
                200,
                lambda said: said["object"] == "list" and all(map(is_listed, said["data"])),
            ),
            ("GET", f"{path}/tiny", None, 200, is_listed),
            ("GET", f"{path}/ai/tiny", None, 200, is_listed),
            ("GET", f"{path}/ai%2Ftiny:latest", None, 200, is_listed),
            ("GET", f"{path}/nope", None, 404, "nope"),
        ]
    for path in chats:
        rows += [
            # A wrong body says so whether or not its model is there, an absent model before anything else.
            ("POST", path, b"{", 400, "invalid request"),
            ("POST", path, {"model": 7}, 400, "invalid request"),
            ("POST", path, {}, 400, "model is required"),
            ("POST", path, {"model": ""}, 400, "model is required"),
            ("POST", path, {**CHAT, "model": "nope"}, 404, error_is("model_not_found")),
            ("POST", path, {**CHAT, "model": "nope"}, 404, "model not found"),
            ("POST", path, LARGE, 413, error_is("request_too_large")),
            ("POST", path, CHAT, 200, lambda said: said["usage"]["completion_tokens"] > 0),
            ("POST", path, CHAT, 200, lambda said: said["choices"][0]["message"]["role"] == "assistant"),
        ]
    for path, body in (
        ("chat/completions", CHAT),
        ("completions", {"model": "tiny", "prompt": "a"}),
        ("embeddings", {"model": "tiny", "input": "a"}),
        ("messages", MESSAGE),
        ("responses", {"model": "tiny", "input": "a"}),
    ):
        for prefix in ("/v1", "/engines/v1", "/engines/fake/v1"):
            rows.append(
                ("POST", f"{prefix}/{path}", body, 200, lambda said: said.get("model", "tiny") == "tiny")
            )
        rows.append(("POST", f"/engines/nosuch/v1/{path}", body, 404, "backend not found"))
        # It is said in words, and not by 503: its command line takes that for "not running".
        rows.append(("POST", f"/engines/absent/v1/{path}", body, 412, "install-runner --backend absent"))
    assert await differences(server, rows) == []
    # Loading alone, as `run --detach` asks for it, is neither answered nor recorded.
    body = {"model": "tiny", "messages": [], "stream": False}
    async with server.post(chats[0], body, headers={**AGENT, "X-Preload-Only": "true"}) as response:
        assert (response.status, await response.read()) == (200, b"")
    async with server.post(chats[0], {**CHAT, "stream": True}, headers=AGENT) as response:
        lines = (await response.text()).splitlines()
    assert {line[:6] for line in lines if line} == {"data: "}
    assert lines[-2] == "data: [DONE]"
    assert {
        choice["index"] for line in lines if "{" in line for choice in json.loads(line[6:])["choices"]
    } == {0}


async def test_managing_backends_and_engines_answers_as_the_contract_has_it(open_server: Any) -> None:
    server = await open_server()
    await differences(server, [("POST", "/v1/chat/completions", CHAT, 200, "")])
    await server.nothing_is_held()
    configured = {"Backend", "Model", "ModelID", "Mode", "Config"}
    rows: list[Row] = [
        ("GET", "/", None, 200, " is running"),
        ("HEAD", "/models", None, 200, ""),
        ("HEAD", "/engines/status", None, 200, ""),
        ("GET", "/engines//status", None, 200, "fake"),
        ("GET", "//engines/v1//models", None, 200, "data"),
        ("GET", "/nothing", None, 404, "nothing at"),
        ("POST", "/engines/nothing", {}, 405, "only DELETE, GET, HEAD"),
        ("GET", "/metrics", None, 200, 'model="tiny"'),
        ("GET", "/logs?follow=x", None, 400, "follow"),
        ("GET", "/version", None, 200, lambda said: isinstance(said["version"], str)),
        ("GET", "/engines/status", None, 200, lambda said: all(map(STATUS.fullmatch, said.values()))),
        ("GET", "/engines/status", None, 200, lambda said: said["fake"].startswith("Running")),
        ("GET", "/engines/status", None, 200, lambda said: said["absent"] == "Not Installed"),
        ("GET", "/engines/ps", None, 200, lambda said: len(said) == 1 and is_engine(said[0])),
        ("GET", "/engines/df", None, 200, lambda said: said["models_disk_usage"] > 0),
        ("GET", "/engines/df", None, 200, lambda said: said["default_backend_disk_usage"] >= 0),
        ("GET", "/engines/requests", None, 200, lambda said: said[0]["records"][0]["status_code"] == 200),
        ("GET", "/engines/requests?model=tiny", None, 200, lambda said: said[0]["count"] == 1),
        ("POST", "/engines/unload", b"{", 400, "invalid request"),
        ("POST", "/engines/unload", {"models": ["nope"]}, 200, lambda said: said["unloaded_runners"] == 0),
        ("POST", "/engines/unload", {"all": False, "backend": "", "models": None}, 200, "unloaded_runners"),
        ("POST", "/engines/unload", {"models": ["tiny"]}, 200, lambda said: said["unloaded_runners"] == 1),
        ("GET", "/engines/_configure", None, 200, lambda said: said == []),
        ("POST", "/engines/_configure", {"model": "tiny", "context-size": 512, "keep_alive": "5m"}, 202, ""),
        ("GET", "/engines/_configure", None, 200, lambda said: said[0].keys() == configured),
        (
            "GET",
            "/engines/_configure?model=tiny",
            None,
            200,
            lambda said: said[0]["Config"]["context-size"] == 512,
        ),
        (
            "GET",
            "/engines/_configure?model=tiny",
            None,
            200,
            lambda said: said[0]["Config"]["keep_alive"] == "5m0s",
        ),
        ("POST", "/engines/_configure", {"model": "tiny", "mode": "dancing"}, 400, "mode"),
        ("POST", "/engines/_configure", {"model": "tiny", "keep_alive": "5"}, 400, "is not a duration"),
        ("POST", "/engines/_configure", {"model": "tiny", "keep_alive": "forever"}, 400, "is not a duration"),
        (
            "POST",
            "/engines/_configure",
            {"model": "tiny", "runtime-flags": ["--model=x"]},
            400,
            "not allowed",
        ),
        ("POST", "/engines/_configure", {"model": "tiny", "raw-runtime-flags": "--threads '1"}, 400, "flags"),
        ("POST", "/engines/_configure", b"{", 400, "invalid request"),
        ("POST", "/engines/_configure", {}, 400, "model is required"),
        ("POST", "/engines/nosuch/_configure", {"model": "tiny"}, 404, "backend not found"),
        ("POST", "/engines/fake/_configure", {"model": "tiny", "keep_alive": "-1"}, 202, ""),
        (
            "GET",
            "/engines/_configure?model=tiny",
            None,
            200,
            lambda said: said[0]["Config"]["keep_alive"] == "-1",
        ),
    ]
    for verb in ("install", "uninstall"):
        rows += [
            ("POST", f"/engines/{verb}-backend", b"{", 400, "backend is required"),
            ("POST", f"/engines/{verb}-backend", {}, 400, "invalid request: backend is required"),
            ("POST", f"/engines/{verb}-backend", {"backend": ""}, 400, "backend is required"),
            ("POST", f"/engines/{verb}-backend", {"backend": "nosuch"}, 404, "backend not found"),
        ]
    assert await differences(server, rows) == []


async def test_the_store_answers_as_dockers_command_line_reads_it(open_server: Any) -> None:
    server = await open_server()
    (model,) = server.greenroom.models()
    short = model.id[7:19]
    rows: list[Row] = [
        ("GET", "/models", None, 200, lambda said: len(said) == 1 and is_model(said[0])),
        # Without tags of that registry its own list would find nothing by a short name.
        ("GET", "/models", None, 200, lambda said: "ai/tiny:latest" in said[0]["tags"]),
        ("GET", "/models/tiny", None, 200, is_model),
        ("GET", "/models/ai/tiny:latest", None, 200, is_model),
        ("GET", f"/models/{short}", None, 200, is_model),
        ("GET", f"/models/{model.id}", None, 200, is_model),
        ("GET", "/models/nope", None, 404, "model not found"),
        (
            "POST",
            "/models/tiny/tag?repo=docker.io/ai/second&tag=v1",
            None,
            201,
            lambda said: said["target"] == "docker.io/ai/second:v1",
        ),
        ("POST", "/models/tiny/tag?repo=x", None, 400, "missing repo or tag"),
        ("POST", "/models/nope/tag?repo=x&tag=y", None, 404, "model not found"),
        ("POST", "/models/tiny/dance", None, 404, "dance"),
        ("POST", "/models/tiny/repackage", {"target": "larger", "context_size": 64}, 201, '"source": "tiny"'),
        ("POST", "/models/tiny/repackage", {}, 400, "target is required"),
        ("POST", "/models/create", {"from": "!!"}, 400, "!!"),
        ("POST", "/models/create", b"{", 400, "invalid request"),
        ("POST", "/models/nope/push", None, 404, "model not found"),
        ("DELETE", "/models/nope?force=false", None, 404, "model not found"),
        ("DELETE", f"/models/{model.id}", None, 409, "must be forced"),
        ("DELETE", "/models/second:v1?force=true", None, 200, lambda said: [*said[0]] == ["Untagged"]),
        ("DELETE", "/models/tiny", None, 200, lambda said: [[*one] for one in said] == [["Untagged"]]),
        ("DELETE", f"/models/{model.id}?force=true", None, 200, lambda said: [*said[-1]] == ["Deleted"]),
        ("DELETE", "/models/purge", None, 200, ""),
        ("GET", "/models", None, 200, lambda said: said == []),
        ("GET", "/engines/ps", None, 200, lambda said: said == []),
        ("GET", "/v1/models", None, 200, lambda said: said["data"] == []),
    ]
    assert await differences(server, rows) == []


async def test_other_families_refuse_in_their_own_words(open_server: Any) -> None:
    server = await open_server()
    rows: list[Row] = []
    for prefix in ("/anthropic/v1", "/v1"):
        for path in (f"{prefix}/messages", f"{prefix}/messages/count_tokens"):
            rows += [
                ("POST", path, b"{", 400, anthropic_error("invalid_request_error")),
                (
                    "POST",
                    path,
                    {"messages": HELLO, "max_tokens": 5},
                    400,
                    anthropic_error("invalid_request_error"),
                ),
                ("POST", path, {**MESSAGE, "model": "nope"}, 404, anthropic_error("not_found_error")),
                ("POST", path, LARGE, 413, anthropic_error("request_too_large")),
            ]
        rows.append(("POST", f"{prefix}/messages", MESSAGE, 200, lambda said: said["role"] == "assistant"))
    for path in ("/responses", "/v1/responses", "/engines/v1/responses", "/engines/fake/v1/responses"):
        rows += [
            ("POST", path, b"{", 400, error_is()),
            ("POST", path, {"input": "a"}, 400, "model is required"),
            ("POST", path, {"model": "tiny"}, 400, error_is(param="input")),
            (
                "POST",
                path,
                {"model": "tiny", "input": "a", "conversation": "c"},
                400,
                error_is(param="conversation"),
            ),
            (
                "POST",
                path,
                {"model": "tiny", "input": "a", "previous_response_id": "resp_x"},
                400,
                "resp_x",
            ),
            ("POST", path, LARGE, 413, error_is("request_too_large")),
            ("GET", f"{path}/resp_x", None, 404, error_is()),
            ("GET", f"{path}/resp_x/input_items", None, 404, error_is()),
            ("DELETE", f"{path}/resp_x", None, 404, error_is()),
        ]
    rows += [
        ("GET", "/api/version", None, 200, lambda said: re.fullmatch(r"\d+\.\d+\.\d+", said["version"])),
        ("GET", "/api/tags", None, 200, lambda said: said["models"][0]["name"] == said["models"][0]["model"]),
        ("GET", "/api/tags", None, 200, lambda said: TIME.fullmatch(said["models"][0]["modified_at"])),
        ("GET", "/api/tags", None, 200, lambda said: said["models"][0]["size"] > 0),
        ("GET", "/api/ps", None, 200, lambda said: isinstance(said["models"], list)),
        # In every body `name` is another word for `model`.
        ("POST", "/api/show", {"name": "tiny"}, 200, lambda said: said["details"]["format"] == "gguf"),
        ("POST", "/api/show", {"model": "nope"}, 404, lambda said: "nope" in said["error"]),
        (
            "POST",
            "/api/chat",
            {**CHAT, "keep_alive": ["5m"]},
            400,
            lambda said: "keep_alive" in said["error"],
        ),
        ("POST", "/api/chat", b"{", 400, lambda said: isinstance(said["error"], str)),
        ("POST", "/api/generate", {"model": "tiny"}, 200, lambda said: said["done_reason"] == "load"),
        (
            "POST",
            "/api/generate",
            {"model": "tiny", "keep_alive": 0},
            200,
            lambda said: said["done_reason"] == "unload",
        ),
        ("DELETE", "/api/delete", {"model": "nope"}, 404, lambda said: "nope" in said["error"]),
        (
            "POST",
            "/api/pull",
            {"model": "!!", "stream": False},
            400,
            lambda said: isinstance(said["error"], str),
        ),
        ("DELETE", "/api/delete", {"name": "tiny"}, 200, ""),
        ("GET", "/api/tags", None, 200, lambda said: "ai/tiny" not in said["models"][0]["name"]),
    ]
    assert await differences(server, rows) == []


def test_an_error_of_a_template_says_so_as_its_command_line_then_leaves_tools_out() -> None:
    said = b'{"error": "Conversation roles must alternate"}'
    refused = engine_error(500, said, RequestTarget("llama.cpp", "tiny")).refusal
    assert "template" in refused.message
