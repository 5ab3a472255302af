"""What one client says reaches no other: not in answers, events, `why`, `ps` or a bundle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from greenroom.runner.config import Settings
from greenroom.runner.diagnosis.bundle import Bundle
from greenroom.runner.diagnosis.redaction import Redactor

SECRETS = {
    "prompt": "swordfish-prompt",
    "tool": "swordfish-tool",
    "image": "c3dvcmRmaXNoLWltYWdl",
    "key": "swordfish-key",
}
TOLD = (
    "Traceback (most recent call last):",
    "ValueError: cannot answer {0}",
    "error: Failed to parse tools: {0}",
    "terminate called after throwing an instance of 'std::{0}'",
)


def _request(**fields: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": SECRETS["tool"], "description": SECRETS["tool"]}}
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"{SECRETS['prompt']} poison {SECRETS['image']}"}],
        "tools": [tool],
        **fields,
    }


def _secret_in(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text]


@pytest.mark.parametrize(("by", "stream"), [("SIGSEGV", True), ("7", False), ("SIGKILL", False)])
async def test_a_secret_reaches_only_the_engine(open_server: Any, by: str, stream: bool) -> None:
    quoting = [word for line in TOLD for word in ("--quote", line)]
    server = await open_server("--die-of", "poison", "--die-by", by, *quoting)
    headers = {"Authorization": f"Bearer {SECRETS['key']}", "X-Api-Key": SECRETS["key"]}
    told: list[str] = []

    async def ask(method: str, path: str, body: Any = None) -> None:
        kept = headers if body is not None else {}
        async with server.session.request(method, server.base + path, json=body, headers=kept) as response:
            told.append(f"{path} {response.headers} {await response.text()}")

    await ask("POST", "/v1/chat/completions", _request(stream=stream))
    await ask("POST", "/v1/chat/completions", _request(stream=stream, seed=1))
    ended = [one for one in server.greenroom.engines() if one.state == "gone"]
    assert ended, "the engine died of it"
    log = (server.greenroom.home / "engines" / ended[0].spec.engine_id / "log").read_text()
    assert _secret_in(log), "the engine has printed it, and its owner can read that"

    # Another client, and a user who reads the diagnostics.
    await ask(
        "POST", "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    )
    for path in ("/engines/ps?all=true", "/engines/queue", "/jobs", "/why/tiny", "/engines"):
        await ask("GET", path)
    for engine in ended:
        await ask("GET", f"/why/{engine.spec.engine_id}")
    assert {path.split(" ")[0]: _secret_in(path) for path in told if _secret_in(path)} == {}

    records = await asyncio.to_thread(lambda: list(server.greenroom.system.journal.read()))
    assert [one.type for one in records if _secret_in(str(one.data))] == []
    bundle = Bundle(Settings(home=server.greenroom.home), Redactor())
    texts = {part.name: part.content.decode() for part in await asyncio.to_thread(bundle.parts)}
    assert {name: _secret_in(text) for name, text in texts.items() if _secret_in(text)} == {}


@pytest.mark.parametrize("status", [400, 500])
async def test_what_an_engine_answers_about_a_request_is_not_passed_on(open_server: Any, status: int) -> None:
    body = json.dumps(
        {"error": {"message": f"cannot parse {SECRETS['tool']}", "code": status, "more": SECRETS}}
    )
    server = await open_server("--answer", str(status), body)
    for stream in (False, True):
        got, error = await server.error(server.post("/v1/chat/completions", _request(stream=stream)))
        assert got >= 400
        assert _secret_in(str(error)) == []
        assert isinstance(error["code"], str)
        assert "param" in error
