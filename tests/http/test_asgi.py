"""The front door as an ASGI application: what a server calls it with, and what it must send."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from yarl import URL

from fake_greenroom import fake_greenroom
from greenroom.actors.library.messages import Pull, TagModel
from greenroom.runner import Greenroom
from greenroom.runner.http.app import asgi
from greenroom.runner.http.asgi_adapter import AnswerCut, AsgiApplication
from greenroom.runner.http.context import Context
from greenroom.runner.http.matching import RouteTable, decoded
from greenroom.runner.http.port import Request
from greenroom.runner.http.routes import all_routes
from greenroom.runner.testing import tiny_gguf
from waiting import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

TESTS = Path(__file__).parents[1]
CHAT = b'{"model": "tiny", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


class Exchange:
    """One request as a server gives it to an application, in which the test decides what arrives when."""

    def __init__(self, method: str = "GET", path: str = "/livez", **scope: Any) -> None:
        headers = {"host": "localhost", **scope.pop("headers", {})}
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 80),
            **scope,
        }
        self.arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received = self.received_before = 0
        """Messages in all, and before the answer began."""
        self.sent: list[Any] = []
        self.takes = asyncio.Event()
        """The client reads what it is sent."""
        self.takes.set()

    def arrives(self, body: bytes = b"", *, more: bool = False) -> Exchange:
        self.arrived.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def leaves(self) -> None:
        self.arrived.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        return await self.arrived.get()

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        self.received_before = self.received_before if self.sent else self.received
        self.sent.append(message)

    async def through(self, app: AsgiApplication) -> Exchange:
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    def header(self, name: str) -> str:
        return str(dict(self.sent[0]["headers"]).get(name.encode(), b""), "ascii")

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


Opened = tuple[Greenroom, AsgiApplication]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> Any:
    """A Greenroom with a model, and its application in its lifespan."""
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:
        async with open_asgi(Path(folder)) as opened:
            yield opened


@contextlib.asynccontextmanager
async def open_asgi(folder: Path) -> AsyncIterator[Opened]:
    tokens = ("--tokens", "10000", "--token-delay", "0.01")
    greenroom = await asyncio.to_thread(fake_greenroom, folder / "home", *tokens)
    app = asgi(greenroom)
    async with app.lifespan():
        file = await asyncio.to_thread(tiny_gguf, folder / "tiny.gguf")
        pulled = await greenroom.system.ask(Pull(reference=f"file:{file}"))
        await greenroom.system.ask(TagModel(model_id=pulled.model.id, tag="docker.io/ai/tiny:latest"))
        yield greenroom, app
    assert not greenroom.is_running


def inside(greenroom: Greenroom) -> int:
    return sum(one.inside for one in greenroom.gates.readings().values())


async def test_every_route_is_found_as_aiohttp_finds_it(short_path: Path) -> None:
    greenroom = await asyncio.to_thread(fake_greenroom, short_path)
    routes = list(all_routes(Context(greenroom)))
    table, router = RouteTable(routes), web.UrlDispatcher()

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response()

    for route in routes:
        for method in ("HEAD", "GET") if route.method == "GET" else (route.method,):
            router.add_route(method, route.pattern, handler)
    names = ("x", "a/b", "a%2Fb", "%C3%A9", "a%25b", "push")
    paths = {re.sub(r"\{\w+\}", name, route.path) for route in routes for name in names} | {"/", "/a"}
    paths |= {f"{path}{more}" for path in paths - {"/"} for more in ("/", "/more")}
    found: set[str] = set()
    for path in sorted(paths):
        for method in ("GET", "POST", "PUT"):
            request: Any = SimpleNamespace(method=method, rel_url=URL(path, encoded=True))
            meant, ours = await router.resolve(request), table.find(method, decoded(path))
            known = getattr(getattr(meant.route, "resource", None), "canonical", "")
            place = ours.route.path if ours.route is not None else ""
            assert (place, ours.params if place else {}) == (known, dict(meant)), (method, path)
            error = meant.http_exception
            allowed = sorted(error.allowed_methods) if isinstance(error, web.HTTPMethodNotAllowed) else []
            assert list(ours.allowed) == allowed, (method, path)
            found.add(place)
    assert found >= {route.path for route in routes if route.method in ("GET", "POST")}


@pytest.mark.parametrize(
    "scope",
    [
        {"path": "/ai/v1/models/no/a", "root_path": "/ai", "raw_path": b"/ai/v1/models/%6Eo%2Fa"},
        {"path": "/ai/v1/models/no/a", "root_path": "/ai", "raw_path": None},
        {"path": "/v1/models/no/a", "root_path": "/ai", "raw_path": b"/v1/models/%6Eo%2Fa"},
        {"path": "/v1/models/no/a", "root_path": "/ai", "raw_path": b"/ai/v1/models/%6Eo%2Fa"},
        {"path": "/v1//models/no/a", "raw_path": b"/v1//models/%6Eo/a"},
    ],
    ids=["whole", "without the raw path", "stripped", "raw path whole", "with a slash too many"],
)
async def test_a_route_is_found_however_a_framework_mounts_it(opened: Opened, scope: dict[str, Any]) -> None:
    asked = await Exchange(**scope).arrives().through(opened[1])
    assert asked.status == 404
    assert b"no/a" in asked.body
    assert b"model_not_found" in asked.body


async def test_an_escaped_slash_is_part_of_a_name(opened: Opened) -> None:
    path, raw = "/engines/llama/cpp/v1/completions", b"/engines/llama%2Fcpp/v1/completions"
    asked = await Exchange("POST", path, raw_path=raw).arrives(b"{}").through(opened[1])
    assert b"backend_not_found" in asked.body
    asked = await Exchange("POST", path).arrives(b"{}").through(opened[1])
    assert b"no_such_path" in asked.body


async def test_head_has_the_length_and_no_body(opened: Opened) -> None:
    get = await Exchange().arrives().through(opened[1])
    head = await Exchange("HEAD").arrives().through(opened[1])
    assert (head.status, head.body) == (200, b"")
    assert head.header("content-length") == get.header("content-length") == str(len(get.body))
    assert not head.sent[-1].get("more_body")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"x": "a" * 8_200}, 400, b"malformed_request"),
        ({f"x-{number}": "" for number in range(128)}, 400, b"malformed_request"),
        ({"expect": "a-pony"}, 417, b"expectation_failed"),
        ({"content-encoding": "gzip"}, 415, b"encoded_body"),
        ({"content-length": "9" * 5_000}, 413, b"request_too_large"),
        ({"host": "evil.example"}, 403, b"host_not_allowed"),
    ],
)
async def test_what_arrives_is_bounded_as_at_the_daemons_own_door(
    opened: Opened, headers: dict[str, str], status: int, code: bytes
) -> None:
    asked = Exchange("POST", "/v1/chat/completions", headers=headers)
    await asked.arrives(b"{", more=True).arrives().through(opened[1])
    assert asked.status == status
    assert b'"%b"' % code in asked.body


async def test_a_body_that_is_refused_by_its_length_is_not_asked_for(opened: Opened) -> None:
    length = {"expect": "100-continue", "content-length": str(2**40)}
    asked = await Exchange("POST", "/v1/chat/completions", headers=length).through(opened[1])
    # A server sends `100 Continue` when the first piece of the body is received.
    assert (asked.status, asked.received) == (413, 0)


async def test_a_body_without_a_length_is_read_up_to_the_limit_and_no_further(opened: Opened) -> None:
    asked = Exchange("POST", "/v1/chat/completions")
    for _ in range(300):
        asked.arrives(b" " * 2**20, more=True)
    await asked.through(opened[1])
    assert asked.status == 413
    assert asked.received_before < 40, "MB"


async def test_a_client_that_is_refused_while_it_sends_has_the_answer_before_its_connection_ends(
    opened: Opened,
) -> None:
    asked = Exchange("POST", "/engines/unload", headers={"content-length": str(2**24)})
    serving = asyncio.create_task(asked.arrives(b" ", more=True).through(opened[1]))
    await until_async(lambda: len(asked.sent) == 2)
    assert asked.status == 413
    assert len(asked.body) == int(asked.header("content-length"))
    assert not serving.done()
    asked.arrives(b" ")
    await serving
    assert asked.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_leaves_ends_its_request_and_gives_its_slot_back(opened: Opened) -> None:
    greenroom, app = opened
    asked = Exchange("POST", "/v1/chat/completions").arrives(CHAT[:20], more=True).arrives(CHAT[20:])
    serving = asyncio.create_task(asked.through(app))
    await until_async(lambda: b"word2" in asked.body)
    assert inside(greenroom) == 1
    asked.leaves()
    await serving
    await until_async(lambda: inside(greenroom) == 0)


async def test_a_client_that_left_is_told_by_a_failing_send_too(opened: Opened) -> None:
    greenroom, app = opened
    asked = Exchange("POST", "/v1/chat/completions").arrives(CHAT)

    async def send(message: Any) -> None:
        await asked.send(message)
        if len(asked.sent) > 3:
            raise OSError("the client has left")

    await app(asked.scope, asked.receive, send)
    await until_async(lambda: inside(greenroom) == 0)


async def test_an_answer_that_is_cut_raises_so_that_no_server_ends_it_in_order(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened[1]
    asked = Exchange("POST", "/v1/chat/completions").arrives(CHAT)
    attend, inside = app.held.clients.attend, list[Request]()

    async def noting(request: Request, *rest: Any) -> Any:
        inside.append(request)
        return await attend(request, *rest)

    monkeypatch.setattr(app.held.clients, "attend", noting)
    serving = asyncio.create_task(asked.through(app))
    await until_async(lambda: b"word2" in asked.body)
    asked.takes.clear()
    inside[0].abort()
    with pytest.raises(AnswerCut):
        await serving
    assert asked.sent[-1]["more_body"]


async def test_a_hundred_streams_go_on_side_by_side(opened: Opened) -> None:
    greenroom, app = opened
    many = [Exchange("POST", "/v1/chat/completions").arrives(CHAT) for _ in range(100)]
    serving = [asyncio.create_task(one.through(app)) for one in many]
    await until_async(lambda: all(b"word1" in one.body for one in many))
    for one in many:
        one.leaves()
    await asyncio.gather(*serving)
    await until_async(lambda: inside(greenroom) == 0)
    assert not len(app.held.clients)


async def test_requests_under_way_get_a_sentence_when_the_greenroom_stops(short_path: Path) -> None:
    async with open_asgi(short_path) as (greenroom, app):
        asked = Exchange("POST", "/v1/chat/completions").arrives(CHAT)
        serving = asyncio.create_task(asked.through(app))
        await until_async(lambda: b"word2" in asked.body)
        await asyncio.to_thread(greenroom.stop)  # its host stops it, and knows nothing of the application
        await serving
        assert b"shutting down" in asked.body
        assert not asked.sent[-1].get("more_body")
        late = await Exchange().arrives().through(app)
        assert late.status == 503
        assert b"Serve the application with its lifespan" in late.body


async def through_lifespan(app: AsgiApplication, between: Callable[[], None]) -> list[Any]:
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "lifespan.startup.complete":
            between()
            arrived.put_nowait({"type": "lifespan.shutdown"})

    arrived.put_nowait({"type": "lifespan.startup"})
    await app({"type": "lifespan"}, arrived.get, send)
    return sent


async def test_the_lifespan_starts_and_stops_and_says_why_it_cannot(short_path: Path) -> None:
    greenroom = await asyncio.to_thread(fake_greenroom, short_path)
    seen: list[bool] = []
    for _ in range(2):
        sent = await through_lifespan(asgi(greenroom), lambda: seen.append(greenroom.is_running))
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]
    assert seen == [True, True]
    assert not greenroom.is_running
    async with greenroom:
        await through_lifespan(asgi(greenroom), lambda: None)
        assert greenroom.is_running, "its owner stops it"
        other = await asyncio.to_thread(fake_greenroom, short_path)
        (failed,) = await through_lifespan(asgi(other), lambda: None)
    assert failed["type"] == "lifespan.startup.failed"
    assert str(short_path) in failed["message"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("area", ["streams", "disconnects", "hostile", "ollama", "slots", "timeouts"])
async def test_what_holds_at_the_daemons_own_door_holds_behind_uvicorn(area: str) -> None:
    env = {**os.environ, "GREENROOM_TEST_ADAPTER": "asgi"}
    argv = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", str(TESTS / "http" / f"test_{area}.py")]
    # uvicorn answers what is not HTTP itself.
    argv += ["-k", "not not_http and not hostile_header"]
    done = await asyncio.to_thread(
        subprocess.run, argv, env=env, capture_output=True, text=True, timeout=1700
    )
    assert done.returncode == 0, done.stdout[-8_000:]
