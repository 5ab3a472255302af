"""Every route, and every field of every body, with what no client should say.

Each is refused with a sentence; nothing of it is stored, cached or logged as it came; the daemon stays ready.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib
import io
import json
import logging
import pkgutil
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

import greenroom.runner.http
from greenroom.actors.installer.messages import Ensure
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.scheduler.messages import Configure
from greenroom.runner.backends.base import Dialect
from greenroom.runner.http.engine_requests import Routing
from greenroom.runner.http.routes import all_routes

MARK = "gr0tesque"
"""Stands in all that is hostile and could be stored."""
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")

TEXTS = {
    "nine megabytes": b'"%s"' % (MARK.encode() * 2**20),
    "a NUL": b'"%s\\u0000b"' % MARK.encode(),
    "what a terminal obeys": b'"%s\\u001b[2J"' % MARK.encode(),
    "a forged line": b'"%s\\r\\n2026-01-01 INFO forged"' % MARK.encode(),
    "half a character": b'"%s\\ud800"' % MARK.encode(),
    "no UTF-8": b'"%s\xff\xfe"' % MARK.encode(),
    "a way out": b'"../../%s/etc/passwd\\u0000"' % MARK.encode(),
    "a number": b"17",
}
NUMBERS = {
    "10^320": b"1" + b"0" * 320,
    "2^70": str(2**70).encode(),
    "minus 5": b"-5",
    "NaN": b"NaN",
    "infinity": b"1e400",
    "minus infinity": b"-Infinity",
    "400 nines": b"9" * 400,
    "a text": b'"many"',
}
ANY = {
    "a deep list": b"[" * 50_000 + b"]" * 50_000,
    "a deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
}
LISTS = {"a long list": b"[" + b'"x",' * 200_000 + b'"x"]', "a list of nulls": b"[null]"}

PATHS = {
    "a NUL": "%00" + MARK,
    "a forged line": f"{MARK}%0D%0A2026-01-01 INFO forged".replace(" ", "%20"),
    "what a terminal obeys": f"{MARK}%1b[2J",
    "C1": f"{MARK}%C2%9b2J",
    "no UTF-8": f"{MARK}%ff%fe",
    "writing turned round": f"{MARK}%E2%80%AE",
    "a way out": f"..%2f..%2f{MARK}%2fetc%2fpasswd",
    "five thousand letters": MARK * 600,
}
MODEL_IN_BODY = (
    *("/chat/completions", "/completions", "/embeddings", "/rerank", "/score"),
    *("/messages", "/count_tokens", "/responses", "/input_tokens"),
    *("/chat", "/generate", "/embed"),
)
"""How the routes end that ask something of an engine."""
HEADERS = {
    "no UTF-8": b"X-Anything: \xff\xfe" + MARK.encode(),
    "C1": b"User-Agent: \xc2\x9b2J" + MARK.encode(),
    "a NUL": b"X-Anything: a\x00" + MARK.encode(),
    "too long": b"X-Anything: " + MARK.encode() * 2000,
    "a page from elsewhere": b"Origin: https://" + MARK.encode() + b".example",
    "an extension": b"Origin: chrome-extension://localhost",
    "another host": b"Host: " + MARK.encode() + b".example",
    "an image elsewhere": b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors",
    "packed": b"Content-Encoding: gzip",
}


class Answer(NamedTuple):
    status: int
    text: str


async def ask(
    server: Any, method: str, path: str, body: bytes = b"", header: bytes = b"", target: str = ""
) -> Answer:
    """Over a bare connection: clients' libraries do not send such things."""
    reader, writer = await asyncio.open_connection(*server.root.split(":"))
    host = b"" if header.lower().startswith(b"host:") else b"Host: localhost\r\n"
    head = f"{method} {target or path} HTTP/1.1\r\n".encode() + host
    head += b"Connection: close\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    head += (header + b"\r\n" if header else b"") + b"Content-Length: %d\r\n\r\n" % len(body)
    try:
        writer.write(head + body)
        async with asyncio.timeout(20):
            answer = await reader.read()
    finally:
        writer.close()
    status, _, rest = answer.partition(b"\r\n")
    return Answer(int(status.split()[1]), rest.partition(b"\r\n\r\n")[2].decode())


def refused(answer: Answer, what: str) -> None:
    """A 4xx with a sentence, that repeats little of what was said, and nothing a terminal obeys."""
    assert 400 <= answer.status < 500, f"{what}: {answer}"
    if what.startswith("HEAD "):
        return  # its answers have no body
    error = json.loads(answer.text)["error"]
    sentence = error if isinstance(error, str) else error["message"]
    assert len(sentence.split()) >= 3, f"{what}: {sentence}"
    assert len(sentence) < 700, f"{what}: {len(sentence)} characters"
    assert not UNPRINTABLE.search(sentence), f"{what}: {sentence!r}"


def routes(server: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route there is."""
    yield from ((route.method, route.path) for route in all_routes(server.context))


def sensible(path: str) -> str:
    """The path with names that exist, or harmless ones."""
    for name, value in (
        ("backend", "fake"),
        ("reference", "absent"),
        ("name", "absent"),
        ("action", "dance"),
        ("digest", "sha256:absent"),
        ("id", "r-absent"),
    ):
        path = path.replace(f"{{{name}}}", value)
    return path


def bodies() -> dict[tuple[str, str], type[msgspec.Struct]]:
    """The struct of each route's body, which says in its text whose it is."""
    found: dict[tuple[str, str], type[msgspec.Struct]] = {}
    for module in pkgutil.walk_packages(greenroom.runner.http.__path__, "greenroom.runner.http."):
        loaded = importlib.import_module(module.name)
        for name, kind in vars(loaded).items():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and name.endswith("Body"):
                for method, path in re.findall(r"`(POST|DELETE) (/[^`]*)`", kind.__doc__ or ""):
                    found[method, path] = kind
    return found


def hostile_values(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, bytes]]:
    """Field, what it is, and the value as JSON."""
    hints = typing.get_type_hints(kind)
    # Of a body that is too long no field is read: one is enough.
    texts = TEXTS
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        options = {hint, *typing.get_args(hint)}
        values = dict(ANY)
        if str in options:
            values |= texts
            texts = {what: value for what, value in TEXTS.items() if what != "nine megabytes"}
        if {int, float} & options:
            values |= NUMBERS
        if bool in options:
            values |= {"perhaps": b'"perhaps"', "two": b"2"}
        if any(typing.get_origin(one) is tuple for one in options):
            values |= LISTS
        for what, value in values.items():
            if (field.encode_name, what) != ("keep_alive", "minus 5"):
                yield field.encode_name, what, value


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "greenroom")
    return caplog


async def nothing_has_stuck(server: Any, log: pytest.LogCaptureFixture, before: str) -> None:
    """Nothing of it is in the journal, the log or a cache, and the daemon is ready."""
    stored = await stored_by(server)
    assert MARK not in stored
    assert not UNPRINTABLE.search(stored)
    assert len(stored) - len(before) < 20_000
    lines = [record.getMessage() for record in log.records]
    assert not [line for line in lines if UNPRINTABLE.search(line) or len(line) > 2_000]
    assert not [record for record in log.records if record.exc_info and record.levelno >= logging.ERROR]
    assert (await ask(server, "GET", "/readyz")).status == 200
    async with server.chat() as response:
        assert response.status == 200


async def stored_by(server: Any) -> str:
    """All that is in the journal."""

    def read() -> str:
        return "\n".join(f"{one.data}{one.cause}" for one in server.greenroom.system.journal.read())

    return await asyncio.to_thread(read)


def test_every_body_is_known_to_this_test() -> None:
    known = bodies()
    assert len(known) >= 13
    named = {
        kind.__name__
        for module in (
            *("backends", "configuring", "engines", "daemon", "models", "transfers"),
            *("ollama.models", "ollama.transfers"),
        )
        for kind in vars(importlib.import_module(f"greenroom.runner.http.{module}")).values()
        if isinstance(kind, type) and kind.__name__.endswith("Body")
    }
    inner = {"LlamaCppBody", "VllmBody", "OllamaBody"}
    assert named - inner <= {kind.__name__ for kind in known.values()}


async def test_every_field_of_every_body_refuses_what_no_client_should_say(
    open_server: Any, log: pytest.LogCaptureFixture
) -> None:
    server = await open_server()
    before, memory = await stored_by(server), 0
    tried = 0
    for (method, path), kind in bodies().items():
        for field, what, value in hostile_values(kind):
            body = b'{"%s": %s}' % (field.encode(), value)
            answer = await ask(server, method, sensible(path).replace("absent", "tiny"), body)
            refused(answer, f"{method} {path} {field}: {what}")
            tried += 1
        if not memory:
            gc.collect()
            memory = psutil.Process().memory_info().rss
    assert tried > 200
    gc.collect()
    assert psutil.Process().memory_info().rss - memory < 100 * 2**20
    await nothing_has_stuck(server, log, before)


async def test_every_inference_route_refuses_a_hostile_name_or_keep_alive(
    open_server: Any, log: pytest.LogCaptureFixture
) -> None:
    server = await open_server()
    before = await stored_by(server)
    seen: set[str] = set()
    for method, path in routes(server):
        if method != "POST" or not path.endswith(MODEL_IN_BODY):
            continue
        # One of a route's paths gets the long ones, which take time to read.
        is_first = (ending := path.rpartition("/")[2]) not in seen
        seen.add(ending)
        for field, what, value in hostile_values(Routing):
            if len(value) > 10_000 and not is_first:
                continue
            rest = b"" if field == "model" else b'"model": "tiny", '
            body = b'{%s"messages": [], "prompt": "", "input": "", "%s": %s}' % (rest, field.encode(), value)
            if field == "keep_alive" and what == "a number":
                continue
            refused(await ask(server, method, sensible(path), body), f"{path} {field}: {what}")
    await nothing_has_stuck(server, log, before)


async def test_every_route_refuses_a_hostile_path(open_server: Any, log: pytest.LogCaptureFixture) -> None:
    server = await open_server()
    before = await stored_by(server)
    tried = 0
    for method, path in routes(server):
        for name in re.findall(r"\{(\w+)\}", path):
            for what, value in PATHS.items():
                hostile = sensible(path.replace(f"{{{name}}}", value))
                refused(await ask(server, method, hostile), f"{method} {path} {name}: {what}")
                tried += 1
    assert tried > 200
    await nothing_has_stuck(server, log, before)


async def test_every_route_refuses_a_hostile_query(open_server: Any, log: pytest.LogCaptureFixture) -> None:
    server = await open_server()
    before = await stored_by(server)
    known = {(route.method, route.path): route for route in all_routes(server.context)}
    for method, path in routes(server):
        whole = sensible(path)
        for what in ("a NUL", "a forged line", "what a terminal obeys", "writing turned round"):
            refused(await ask(server, method, f"{whole}?x={PATHS[what]}"), f"{method} {path}: {what}")
        many = "&".join(f"x{number}=1" for number in range(100))
        refused(await ask(server, method, f"{whole}?{many}"), f"{method} {path}: a hundred names")
        for name in known[method, path].query or ():
            if name in ("force", "remote", "all"):
                refused(await ask(server, method, f"{whole}?{name}={MARK}"), f"{method} {path} {name}")
        if known[method, path].strict:
            answer = await ask(server, method, f"{whole}?{MARK}=1")
            refused(answer, f"{method} {path}")
            assert MARK in answer.text
    await nothing_has_stuck(server, log, before)


async def test_every_route_refuses_a_hostile_header(open_server: Any, log: pytest.LogCaptureFixture) -> None:
    server = await open_server()
    before = await stored_by(server)
    for method, path in routes(server):
        for what, header in HEADERS.items():
            refused(await ask(server, method, sensible(path), header=header), f"{method} {path}: {what}")
        elsewhere = f"http://{MARK}.example{sensible(path)}"
        refused(await ask(server, method, path, target=elsewhere), f"{method} {path}: another authority")
    await nothing_has_stuck(server, log, before)


async def test_what_is_not_http_is_answered_in_a_line_and_logged_in_one(
    open_server: Any, log: pytest.LogCaptureFixture
) -> None:
    server = await open_server()
    for raw in (
        b"\x16\x03\x01" + MARK.encode(),
        f"GET / HTTP/1.1\r\nHost: localhost\r\nBad header {MARK}\r\n\r\n".encode(),
        f"GET /{MARK * 2000} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        f"GET / HTTP/9.{MARK}\r\n\r\n".encode(),
    ):
        reader, writer = await asyncio.open_connection(*server.root.split(":"))
        writer.write(raw)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1] == b"400"
        error = json.loads(body)["error"]
        assert error["code"] == "malformed_request"
        assert MARK.encode() not in answer
    told = [record for record in log.records if record.name.endswith("aiohttp_adapter")]
    assert len(told) == 4
    assert not [one for one in log.records if one.exc_info or MARK in one.getMessage()]


async def test_a_command_of_a_host_is_bounded_by_the_same_table(open_server: Any) -> None:
    server = await open_server()
    (model,) = server.greenroom.models()
    poison = Configure(model_id=model.id, model_ref="tiny", context_size=10**320)
    with pytest.raises(Refused) as caught:
        await server.greenroom.system.ask(poison)
    assert caught.value.refusal.kind == "invalid"
    with pytest.raises(Refused):
        await server.greenroom.system.ask(Ensure(backend="fake", version="9" * 5000))
    assert (await ask(server, "GET", "/readyz")).status == 200


async def test_a_page_of_this_machine_and_a_link_from_elsewhere_are_let_in(open_server: Any) -> None:
    server = await open_server()
    link = b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document"
    assert (await ask(server, "GET", "/", header=link)).status == 200
    refused(await ask(server, "GET", "/models/absent?remote=true", header=link), "a link that calls out")
    assert (await ask(server, "GET", "/livez", header=b"Origin: http://localhost:3000")).status == 200
    assert (await ask(server, "GET", "/livez", header=b"Sec-Fetch-Site: same-origin")).status == 200
    assert (await ask(server, "GET", "", target="http://localhost/livez")).status == 200


@pytest.mark.parametrize("prefix", ["/llm"], ids=["mounted"])
async def test_a_mounted_front_door_is_bounded_in_the_same_way(open_server: Any) -> None:
    server = await open_server()
    for path in (f"/llm/jobs?{MARK}=1", f"/llm/models/{PATHS['a NUL']}", f"/llm/engines/ps?all={MARK}"):
        refused(await ask(server, "GET", path), path)
    packed = await ask(server, "POST", "/llm/models/load", b"x" * 1000, b"Content-Encoding: gzip")
    assert packed.status == 415
    # Of one that is still coming nothing more is read: the host's aiohttp would unpack all of it.
    reader, writer = await asyncio.open_connection(*server.root.split(":"))
    head = "POST /llm/models/load HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
    bomb = gzip.compress(b"\0" * 2**20)
    writer.write(f"{head}Content-Length: {4 * 2**20}\r\n\r\n".encode() + bomb)
    async with asyncio.timeout(5):
        assert b" 415 " in await reader.readline()
        await reader.read()
    writer.close()
    assert (await ask(server, "GET", "/llm/readyz")).status == 200


async def test_fields_that_an_engine_must_not_see_are_reported_as_ignored(open_server: Any) -> None:
    server = await open_server(backend={"dialect": Dialect(dropped=frozenset({"adapters", "draft_model"}))})
    async with server.chat(adapters="x", temperature=0.5) as response:
        assert response.status == 200
        assert response.headers["X-Greenroom-Ignored"] == "adapters"
    async with server.chat(temperature=0.5) as response:
        assert "X-Greenroom-Ignored" not in response.headers


async def test_a_body_that_only_names_things_has_a_megabyte_at_most(open_server: Any) -> None:
    server = await open_server()
    body = b'{"backend": "fake", "x": "' + b"y" * 2**20 + b'"}'
    for header in (b"", b"Idempotency-Key: one"):
        answer = await ask(server, "POST", "/engines/verify-backend", body, header)
        assert answer.status == 413
        assert "1.00 MB" in answer.text


def nested(levels: int) -> str:
    """A schema with a reference at so many levels' end."""
    begin, end = '{"$defs": {"a": {"type": "null"}}, "properties": {"a": ', "}}"
    return begin * levels + '{"$ref": "#/$defs/a"}' + end * levels


async def test_schemas_of_any_depth_are_served_or_refused_in_every_family(open_server: Any) -> None:
    server = await open_server()
    hello = {"messages": [{"role": "user", "content": "hi"}]}
    form = {"type": "json_schema", "name": "n", "schema": "SCHEMA"}
    function = {"name": "w", "parameters": "SCHEMA"}
    tools = [{"type": "function", "function": function}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {**hello, "response_format": {"type": "json_schema", "json_schema": form}}),
        ("chat/completions", {**hello, "json_schema": "SCHEMA"}),
        ("chat/completions", {**hello, "tools": tools, "tool_choice": "required"}),
        ("responses", {"input": "hi", "text": {"format": form}}),
        (
            "responses",
            {"input": "hi", "tools": [{"type": "function", **function}], "tool_choice": "required"},
        ),
        ("messages", {**hello, "max_tokens": 9, "output_config": {"format": form}}),
        (
            "messages",
            {
                **hello,
                "max_tokens": 9,
                "tools": [{"name": "w", "input_schema": "SCHEMA"}],
                "tool_choice": {"type": "any"},
            },
        ),
        ("/api/chat", {**hello, "format": "SCHEMA", "stream": False}),
    ]
    for levels, served in ((100, True), (130, False), (480, False), (20_000, False)):
        for name, body in bodies:
            text = json.dumps({"model": "tiny", **body}).replace('"SCHEMA"', nested(levels))
            path = name if name.startswith("/") else f"/v1/{name}"
            async with server.session.post(server.base + path, data=io.BytesIO(text.encode())) as response:
                said = await response.text()
                assert response.status == (200 if served else 400), (levels, path, said)
            assert served or "deep" in said
