"""What docs/http.md lists is what the front door offers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from greenroom.runner.http.routes import all_routes

DOCS = Path(__file__).parents[2] / "docs" / "http.md"
PREFIXES = ("/engines/{backend}", "/engines", "/anthropic")


async def test_every_route_is_documented_and_no_other(open_server: Any) -> None:
    server = await open_server()
    offered = {(route.method, _plain(route.path)) for route in all_routes(server.context)}
    # That there is no other action is no route of its own.
    offered.discard(("POST", "/models/{model}/{action}"))
    told = set(re.findall(r"`([A-Z]+) (/\S*)`", DOCS.read_text("utf-8")))
    assert told - offered == set()
    assert {one for one in offered - told if not _is_under_a_prefix(one, told)} == set()


def _plain(path: str) -> str:
    """As people write it: the names of variables are ours."""
    path = re.sub(r"^/engines/\{name\}$", "/engines/{backend}", path)
    return path.replace("{reference}", "{model}").replace("/v1/models/{name}", "/v1/models/{model}")


def _is_under_a_prefix(route: tuple[str, str], told: set[tuple[str, str]]) -> bool:
    method, path = route
    bare = [path.removeprefix(one) for one in PREFIXES if path.startswith(one)]
    if (rest := path.removeprefix("/engines")).startswith("/responses"):
        bare.append(f"/v1{rest}")
    return any((method, one) in told or (method, f"/engines{one}") in told for one in bare)
