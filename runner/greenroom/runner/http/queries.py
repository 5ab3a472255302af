"""The query parameters of each route: one table, applied to all of them.

On Greenroom's own routes an unknown parameter is refused, because the request would not do what was meant. On
routes of other families it passes and is reported as ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from greenroom.runner.http.bodies import IGNORED, invalid
from greenroom.runner.models.references import shown

_KNOWN: Mapping[tuple[str, str], frozenset[str]] = {
    ("GET", "/engines/ps"): frozenset({"all"}),
    ("GET", "/engines/_configure"): frozenset({"model"}),
    ("GET", "/engines/{backend}/_configure"): frozenset({"model"}),
    ("DELETE", "/engines/{name}"): frozenset({"force", "version"}),
    ("GET", "/models/{reference}"): frozenset({"remote"}),
    ("POST", "/models/{reference}/tag"): frozenset({"repo", "tag"}),
    ("DELETE", "/models/{reference}"): frozenset({"force"}),
    ("DELETE", "/models/purge"): frozenset({"force"}),
}
_OURS = frozenset(
    {
        "/engines",
        "/engines/{name}",
        "/engines/activate-backend",
        "/engines/verify-backend",
        "/engines/cancel-install",
        "/engines/queue",
        "/engines/ledger",
        "/models/cancel",
        "/models/prune",
        "/models/{reference}/verify",
        "/why/{name}",
        "/jobs",
        "/daemon/stop",
    }
)
"""Routes that no other family has."""
_TO_ENGINES = tuple(
    "/v1/chat/completions /v1/completions /v1/embeddings /v1/messages /v1/messages/count_tokens"
    " /rerank /score".split()
)
"""Routes whose query goes to the engine as it is."""
_NO = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_YES = frozenset({"", "1", "t", "T", "TRUE", "true", "True"})
"""A query's yes and no, in all the forms Go knows."""


class Queries:
    """The table, for the routes of one application."""

    def __init__(self, app: web.Application) -> None:
        """Learn the routes as they are before the application is mounted under a prefix."""
        self._known: dict[tuple[str, object], tuple[frozenset[str], bool]] = {}
        for route in app.router.routes():
            resource = route.resource
            if resource is None or resource.canonical.endswith(_TO_ENGINES):
                continue  # what follows there is the engine's
            path = resource.canonical
            known = _KNOWN.get((route.method, path), frozenset())
            self._known[route.method, resource] = (known, path in _OURS)

    def check(self, request: web.Request) -> None:
        """Raise HttpRefusal, 400, for a name that is not known; note it where it passes."""
        if not request.query_string:
            return
        found = self._known.get((request.method, request.match_info.route.resource))
        if found is None:
            return
        known, ours = found
        unknown = [name for name in request.query if name not in known]
        if not unknown:
            return
        if ours:
            only = f"only {' and '.join(sorted(known))}" if known else "nothing is"
            raise invalid(f'"{shown(unknown[0])}" is not known here; {only}')
        request.setdefault(IGNORED, []).extend(unknown)


def is_true(request: web.Request, name: str) -> bool:
    """Whether the query says yes. Raises HttpRefusal: 400 for what is neither yes nor no."""
    text = request.query.get(name)
    if text is None or text in _NO:
        return False
    if text in _YES:
        return True
    raise invalid(f"{name} is true or false", param=name)
