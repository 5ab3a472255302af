"""Requests for models of a remote backend."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.remote_log import REMOTES
from greenroom.runner.remote_settings import RemoteBackend
from stand_in_remote import KEY, TOKENS, StandInRemote, serving
from waiting import until_async

TEXT = "".join(TOKENS)
LLAMA = "lab/llama-3"


@pytest.fixture
async def remote() -> AsyncIterator[StandInRemote]:
    async with serving(StandInRemote()) as remote:
        yield remote


@pytest.fixture
async def server(open_server: Any, remote: StandInRemote) -> Any:
    lab = RemoteBackend(url=remote.url, api_key=KEY, slots=2, timeout=1)
    server = await open_server(remotes={"lab": lab})
    await answers(server)
    return server


async def answers(server: Any, state: str = "answers", name: str = "lab") -> None:
    await until_async(lambda: server.greenroom.remotes.get(name).now.state == state)


async def test_every_family_is_answered_by_it_under_the_name_that_the_client_used(
    server: Any, remote: StandInRemote
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    async with server.chat(model=LLAMA) as answer:
        told = await answer.json()
    assert (told["model"], told["choices"][0]["message"]["content"]) == (LLAMA, TEXT)
    status, lines = await server.stream(model=LLAMA)
    assert (status, lines[-2]) == (200, "data: [DONE]")
    assert all(f'"{LLAMA}"' in line for line in lines if line.startswith("data: {"))
    body = {"model": LLAMA, "max_tokens": 9, "messages": messages}
    async with server.post("/v1/messages", body) as answer:
        told = await answer.json()
    assert (told["content"][0]["text"], told["usage"]["output_tokens"]) == (TEXT, 3)
    async with server.post("/api/chat", {"model": LLAMA, "messages": messages}) as answer:
        lines = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert "".join(one["message"]["content"] for one in lines) == TEXT
    assert (lines[-1]["done"], lines[-1]["eval_count"]) == (True, 3)
    async with server.post("/v1/responses", {"model": LLAMA, "input": "hi"}) as answer:
        told = await answer.json()
    assert told["output"][0]["content"][0]["text"] == TEXT
    async with server.post("/v1/embeddings", {"model": "lab/org/mistral:7b", "input": "hi"}) as answer:
        told = await answer.json()
    assert (told["model"], told["data"][0]["embedding"]) == ("lab/org/mistral:7b", [0.5, 0.25])
    names = [json.loads(body)["model"] for _, _, body in remote.asked]
    assert names == [*["llama-3"] * 5, "org/mistral:7b"]
    assert {path for path, _, _ in remote.asked} == {"/v1/chat/completions", "/v1/embeddings"}


async def test_only_what_is_needed_of_a_request_goes_to_it_and_its_key_comes_back_nowhere(
    server: Any, remote: StandInRemote
) -> None:
    secrets = {"Authorization": "Bearer mine", "Cookie": "a=b", "X-Api-Key": "mine", "User-Agent": "mine"}
    body = {"model": LLAMA, "messages": [{"role": "user", "content": "hi"}], "keep_alive": "5m"}
    async with server.post("/v1/chat/completions", {**body, "stream": True}, headers=secrets) as answer:
        assert "X-Own" not in answer.headers
        assert KEY not in f"{answer.headers}{await answer.text()}"
    ((_, headers, sent),) = remote.asked
    assert set(headers) <= {
        *("Host", "Accept", "Content-Type", "Content-Length", "Authorization", "User-Agent"),
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Host"] == remote.url.split("/")[2]
    assert b"mine" not in str(headers).encode() + sent
    assert "keep_alive" not in json.loads(sent)
    for how in ("refuses", "busy", "wants another key"):
        remote.how = how
        status, error = await server.error(server.chat(model=LLAMA))
        assert status >= 400
        assert KEY not in json.dumps(error)
        assert "\x1b" not in error["message"]


async def test_it_has_no_slots_for_programs_here(server: Any) -> None:
    async with server.post("/engines/slots", {"model": "tiny", "backend": "lab"}) as answer:
        assert answer.status == 400
        assert "lab/MODEL" in await answer.text()


WRONG = (
    ("html", 502, "backend_failed", "text/html"),
    ("garbage", 502, "backend_failed", "answered without choices"),
    ("redirects", 502, "backend_redirected", "which is not followed"),
    ("refuses", 400, "backend_refused", "no, ***"),
    ("wants another key", 502, "backend_key_refused", "it refused the key"),
    ("fails", 502, "backend_failed", "kaputt"),
    ("says nothing", 504, "backend_timeout", "sent nothing for 1s"),
)


async def test_what_goes_wrong_there_is_told_in_a_sentence(server: Any, remote: StandInRemote) -> None:
    for how, status, code, said in WRONG:
        remote.how = how
        found, error = await server.error(server.chat(model=LLAMA))
        assert (found, error["code"]) == (status, code), how
        assert said in error["message"]
    assert len(remote.asked) == len(WRONG), "it is not asked twice"
    await server.nothing_is_held()


async def test_its_wish_to_be_asked_later_is_passed_on(server: Any, remote: StandInRemote) -> None:
    remote.how = "busy"
    async with server.chat(model=LLAMA) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "17")
        assert (await answer.json())["error"]["code"] == "backend_busy"


async def test_a_stream_that_breaks_off_ends_with_an_error(
    server: Any, remote: StandInRemote, frames: Any
) -> None:
    for how, code in (
        ("dies", "backend_broke_off"),
        ("errs", "backend_failed"),
        ("stalls", "backend_timeout"),
    ):
        remote.how = how
        body = {"model": LLAMA, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        # The connection ends with such an answer, and this client would use it again.
        async with server.post("/v1/chat/completions", body, headers={"Connection": "close"}) as answer:
            assert answer.status == 200
            *told, last = frames((await answer.text()).splitlines())
        assert "".join(one["choices"][0]["delta"]["content"] for one in told) == TEXT
        assert last["error"]["code"] == code
    await server.nothing_is_held()


async def test_a_client_that_leaves_ends_the_request_there(server: Any, remote: StandInRemote) -> None:
    remote.how = "stalls"
    async with server.chat(model=LLAMA, stream=True) as answer:
        await answer.content.readuntil(b"there")
    await asyncio.wait_for(remote.left.wait(), 5)
    await server.nothing_is_held()


async def test_it_gets_as_many_requests_at_once_as_configured_and_the_others_are_queued(
    server: Any, remote: StandInRemote
) -> None:
    remote.go_on.clear()
    asked = [asyncio.create_task(server.stream(model=LLAMA)) for _ in range(5)]
    await until_async(lambda: remote.inside == 2 and server.waiting() == 3)
    async with server.get("/engines/queue") as answer:
        queue = await answer.json()
    assert [one["message"] for one in queue] == [f"queued for a slot of {LLAMA}, which has 2"] * 3
    async with server.get("/engines/remotes") as answer:
        assert (await answer.json())[0]["inside"] == 2
    remote.go_on.set()
    assert all(lines[-2] == "data: [DONE]" for _, lines in await asyncio.gather(*asked))
    assert remote.most_inside == 2
    await server.nothing_is_held()


async def test_its_models_are_listed_beside_our_own_and_nothing_of_them_is_here(server: Any) -> None:
    async with server.get("/v1/models") as answer:
        entries = {one["id"]: one["owned_by"] for one in (await answer.json())["data"]}
    assert entries[LLAMA] == entries["lab/org/mistral:7b"] == "lab"
    async with server.get("/v1/models", headers={"User-Agent": "greenroom-remote/9"}) as answer:
        # Two that ask each other would list their own models.
        assert [one["id"] for one in (await answer.json())["data"]] == ["tiny"]
    async with server.get("/api/tags") as answer:
        tags = {one["name"]: one for one in (await answer.json())["models"]}
    assert (tags[LLAMA]["size"], tags[LLAMA]["remote_model"]) == (0, "llama-3")
    async with server.post("/api/show", {"model": LLAMA}) as answer:
        assert (await answer.json())["remote_model"] == "llama-3"
    async with server.get(f"/v1/models/{LLAMA}:latest") as answer:
        assert (await answer.json())["owned_by"] == "lab"
    async with server.get("/engines/ledger") as answer:
        assert (await answer.json())["engines"] == []
    status, error = await server.error(server.chat(model="lab/none"))
    assert (status, error["code"]) == (404, "model_not_listed")
    assert "lab/llama-3, lab/org/mistral:7b" in error["message"]
    async with server.post("/api/chat", {"model": LLAMA, "messages": [], "keep_alive": 0}) as answer:
        assert (await answer.json())["done_reason"] == "load"


COMMANDS: tuple[tuple[str, str, Any], ...] = (
    ("DELETE", f"/models/{LLAMA}", None),
    ("POST", "/engines/unload", {"models": [LLAMA]}),
    ("POST", "/engines/unload", {"backend": "lab", "all": True}),
    ("POST", "/engines/install-backend", {"backend": "lab"}),
    ("POST", "/engines/uninstall-backend", {"backend": "lab"}),
    ("DELETE", "/engines/lab", None),
    ("POST", "/engines/_configure", {"model": LLAMA, "context-size": 9}),
    ("POST", "/models/create", {"from": "lab/other"}),
    ("POST", "/api/pull", {"model": "lab/other"}),
    ("POST", "/tokenize", {"model": LLAMA, "content": "a"}),
    ("POST", "/engines/lab/v1/chat/completions", {"model": "llama-3", "messages": []}),
)


async def test_it_is_never_installed_unloaded_or_removed(server: Any) -> None:
    for method, path, body in COMMANDS:
        async with server.session.request(method, server.base + path, json=body) as answer:
            assert (answer.status, "remote backend" in await answer.text()) == (409, True), path
    assert server.greenroom.remotes.get("lab").now.state == "answers"


async def test_one_that_is_down_delays_nothing_and_is_asked_again_for_a_request(
    open_server: Any, remote: StandInRemote
) -> None:
    remote.how = "down"
    lab = RemoteBackend(url=remote.url, api_key=KEY)
    server = await open_server(remotes={"lab": lab, "dead": RemoteBackend(url="http://127.0.0.1:1")})
    await answers(server, "silent")
    async with server.chat() as answer:
        assert answer.status == 200, "our own models do not notice"
    async with server.chat(model=LLAMA) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (503, "backend_unreachable")
        assert int(answer.headers["Retry-After"]) >= 1
    remote.how = "well"

    async def served() -> bool:
        async with server.chat(model=LLAMA) as answer:
            return bool(answer.status == 200)

    for _ in range(40):  # it is asked once a second at most
        if await served():
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("it is not asked again")
    await until_async(lambda: server.greenroom.system.state(REMOTES).backends["lab"].failure is None)
    async with server.get("/log?backend=lab") as answer:
        kinds = [one["type"] for one in map(json.loads, (await answer.text()).splitlines())]
    assert kinds == ["remote_failed", "remote_answered"]
    async with server.get("/engines/status") as answer:
        states = await answer.json()
    assert states["lab"].startswith("Running: 2 models at http://127.0.0.1:")
    assert states["dead"] == "Error: Connection refused."


def certified(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of its own making, and what a server that has it needs."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *made.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


async def test_it_is_reached_over_tls_with_a_certificate_that_is_trusted_and_on_a_unix_socket(
    open_server: Any, short_path: Path
) -> None:
    certificate, tls = await asyncio.to_thread(certified, short_path)
    over_tls, on_a_socket = StandInRemote(), StandInRemote()
    async with serving(over_tls, tls=tls), serving(on_a_socket, file=str(short_path / "r.sock")):
        server = await open_server(
            remotes={
                "lab": RemoteBackend(url=over_tls.url, api_key=KEY, ca=certificate),
                "near": RemoteBackend(url=on_a_socket.url, api_key=KEY),
                "foreign": RemoteBackend(url=over_tls.url, api_key=KEY),
            }
        )
        await answers(server)
        await answers(server, name="near")
        await answers(server, "silent", name="foreign")
        for model in (LLAMA, "near/llama-3"):
            async with server.chat(model=model) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"] == TEXT
            status, lines = await server.stream(model=model)
            assert (status, lines[-2]) == (200, "data: [DONE]")
        large = [{"role": "user", "content": "x" * 400_000}]
        async with server.chat(model=LLAMA, messages=large) as answer:
            assert answer.status == 200, await answer.text()
        status, error = await server.error(server.chat(model="foreign/llama-3"))
        assert (status, error["code"]) == (503, "backend_not_trusted")
        assert "certificate is not trusted: self" in error["message"]
        assert len(over_tls.asked) == 3


async def test_why_tells_of_the_backend_of_its_model_and_of_a_request(
    server: Any, remote: StandInRemote
) -> None:
    async with server.chat(model=LLAMA) as answer:
        request_id = answer.headers["X-Request-ID"]

    async def why(name: str) -> dict[str, Any]:
        async with server.get(f"/why/{name}") as answer:
            return dict(await answer.json())

    assert f"lab has answered at {remote.url} since" in (await why("lab"))["answer"]
    assert (await why(LLAMA))["answer"].startswith(f"{LLAMA} is served by lab.")
    assert (await why("lab/none"))["cause"] == "model_not_listed"
    told = await why(request_id)
    assert f"It was sent to the remote backend lab at {remote.url}." in told["also"]
    async with server.get(f"/requests/{request_id}") as answer:
        row = await answer.json()
    assert (row["backend"], row["model"], row["tokens_in"], row["tokens_out"]) == ("lab", LLAMA, 7, 3)
