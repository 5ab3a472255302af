"""The description of the API: whole, valid, and made of what the routes use."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.http.fields import CHAT
from greenroom.runner.http.openapi.operation import Fields, Operation
from greenroom.runner.http.openapi.operations import PREFIXES, TAGS, every_operation, keys_of
from greenroom.runner.http.openapi.schemas import request_schema, schema_of
from greenroom.runner.http.port import Route
from greenroom.runner.http.routes import all_routes

HOW = (
    "Describe it: an Operation in the OPERATIONS of its area, in runner/greenroom/runner/http/openapi/ "
    "(inference.py, ollama.py, models.py, engines.py, backends.py or daemon.py), under 'METHOD /path' "
    "without a prefix, with its summary, body, answers, streams and the statuses of its refusals. "
    "CONTRIBUTING.md, 'An API route', says more."
)


def operation_of(route: Route) -> Operation:
    table = every_operation()
    found = [table[key][1] for key in keys_of(route.method, route.path) if key in table]
    assert found, f"{route.method} {route.path} is not described. {HOW}"
    return found[0]


async def test_every_route_is_described(open_server: Any) -> None:
    server = await open_server()
    routes = list(all_routes(server.context))
    undescribed = [
        f"{one.method} {one.path}"
        for one in routes
        if not any(key in every_operation() for key in keys_of(one.method, one.path))
    ]
    assert not undescribed, f"Not described: {', '.join(undescribed)}. {HOW}"
    for route in routes:
        operation = operation_of(route)
        place = f"{route.method} {route.path}"
        assert operation.summary, f"{place} has no summary. {HOW}"
        told = set(operation.query or {})
        assert (route.query or set()) == told, f"The query parameters of {place} are {route.query}. {HOW}"
    known = {key for one in routes for key in keys_of(one.method, one.path)}
    assert not [key for key in every_operation() if key not in known], "These are no routes any more."


async def test_the_document_is_valid_and_has_every_route(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    async with server.get("/openapi.json") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        text = await response.text()
    document = json.loads(text)
    offered = {(route.path, route.method.lower()) for route in all_routes(server.context)}
    assert {(path, method) for path, told in document["paths"].items() for method in told} == offered
    ids = [one["operationId"] for told in document["paths"].values() for one in told.values()]
    assert len(ids) == len(set(ids))
    file = tmp_path / "openapi.json"
    file.write_text(text)
    done = await asyncio.to_thread(validated, file)
    assert done.returncode == 0, done.stdout + done.stderr


def validated(file: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "openapi_spec_validator", "--errors", "all", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


async def test_the_page_loads_nothing_but_the_document(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/docs") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        page = await response.text()
    assert re.findall(r"""(?:src|href)=["']([^"']+)""", page) in ([], ["openapi.json"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
async def test_a_browser_shows_every_area(open_server: Any, tmp_path: Path) -> None:
    server = await open_server()
    argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    argv += ["--virtual-time-budget=10000", "--dump-dom", f"{server.base}/docs"]
    browser = await asyncio.create_subprocess_exec(*argv, stdout=-1, stderr=-3)
    async with asyncio.timeout(100):
        page = (await browser.communicate())[0].decode()
    assert 'data-state="shown"' in page
    for tag in TAGS:
        assert f"<h2>{tag}</h2>" in page
    assert 'id="post_v1_chat_completions"' in page
    assert 'id="post_engines_v1_chat_completions"' not in page, "it is shown with the other"


def test_the_description_is_not_made_while_the_daemon_starts() -> None:
    code = "import greenroom.runner.http.app, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {one for one in done.stdout.split() if ".http.openapi" in one}
    assert loaded == {"greenroom.runner.http.openapi", "greenroom.runner.http.openapi.routes"}


@pytest.mark.parametrize("prefix", ["", "/llm"])
async def test_the_document_names_the_place_where_it_is_served(open_server: Any, prefix: str) -> None:
    server = await open_server()
    async with server.get("/openapi.json") as response:
        (place,) = (await response.json())["servers"]
    assert place["url"] == (prefix or "/")


def test_one_entry_serves_all_prefixes() -> None:
    keys = [key for table in TAGS.values() for key in table]
    assert len(keys) == len(set(keys))
    assert [*keys_of("POST", "/engines/{backend}/rerank")][:2] == [
        "POST /engines/{backend}/rerank",
        "POST /rerank",
    ]
    assert all(prefix.startswith("/") for prefix in PREFIXES)


def test_every_field_of_an_inference_request_is_described() -> None:
    bodies = [one.body for _, one in every_operation().values() if isinstance(one.body, Fields)]
    assert len(bodies) >= 12
    for body in bodies:
        bare = [name for name, check in body.dialogue.fields.items() if not schema_of(check)]
        assert not bare, f"{body.name}: {bare}: give their checks a schema, with `described`."


def test_the_schemas_of_checks_say_what_they_accept() -> None:
    chat = request_schema(CHAT)["properties"]
    assert chat["temperature"] == {"type": ["number", "null"], "minimum": 0, "maximum": 2}
    assert chat["messages"]["minItems"] == 1, "what is required is never null"
    assert {"type": "null"} in chat["tool_choice"]["anyOf"]
    (tool,) = chat["tools"]["items"]["anyOf"]
    assert (tool["required"], tool["properties"]["type"]) == (["type", "function"], {"const": "function"})


def refs_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            if name == "$ref":
                yield one
            else:
                yield from refs_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from refs_in(one)


async def test_every_reference_leads_somewhere(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/openapi.json") as response:
        document = await response.json()
    for ref in set(refs_in(document)):
        at = document
        for step in ref.removeprefix("#/").split("/"):
            at = at[step]
