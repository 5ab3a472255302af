"""Which route a request means, for servers that have no table of routes of their own.

The order is that of aiohttp's: a pattern without variables first, then those with the longest fixed
beginning, then those that come first in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from greenroom.runner.http.port import Route

_VARIABLE = re.compile(r"\{(\w+)(?::(.+?))?\}")
_KEPT = re.compile("(%2F|%25)", re.IGNORECASE)
_NONE: dict[str, str] = {}


@dataclass(frozen=True)
class Match:
    route: Route | None = None
    """None when nothing fits."""
    params: dict[str, str] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    """Methods that the path has, when it is only the method that fits no route."""


class _Place:
    """All routes with one pattern, by method."""

    def __init__(self, pattern: str) -> None:
        self.expression = re.compile(_expression(pattern))
        self.routes: dict[str, Route] = {}


class RouteTable:
    def __init__(self, routes: Iterable[Route]) -> None:
        """A route for GET answers HEAD too."""
        self._plain: dict[str, _Place] = {}
        self._by_beginning: dict[str, dict[str, _Place]] = {}
        for route in routes:
            place = self._place_of(route.pattern)
            for method in ("HEAD", "GET") if route.method == "GET" else (route.method,):
                place.routes.setdefault(method, replace(route, method=method))

    def _place_of(self, pattern: str) -> _Place:
        if "{" not in pattern:
            return self._plain.setdefault(pattern, _Place(pattern))
        beginning = pattern.partition("{")[0].rpartition("/")[0]
        return self._by_beginning.setdefault(beginning, {}).setdefault(pattern, _Place(pattern))

    def find(self, method: str, path: str) -> Match:
        """The route for a path as `decoded` gives it."""
        allowed: set[str] = set()
        for place, params in self._fitting(path):
            if (route := place.routes.get(method)) is not None:
                return Match(route, params)
            allowed.update(place.routes)
        return Match(allowed=tuple(sorted(allowed)))

    def _fitting(self, path: str) -> Iterator[tuple[_Place, dict[str, str]]]:
        if (plain := self._plain.get(path)) is not None:
            yield plain, _NONE
        beginning = path
        while beginning:
            beginning = beginning.rpartition("/")[0]
            for place in self._by_beginning.get(beginning, _NONE_THERE).values():
                if (found := place.expression.fullmatch(path)) is not None:
                    yield place, {name: _decoded(value) for name, value in found.groupdict().items()}


_NONE_THERE: dict[str, _Place] = {}


def decoded(raw: str) -> str:
    """A path without its escapes but `%2F` and `%25`, which are part of a name, no slash and no escape."""
    if "%" not in raw:
        return raw
    pieces = _KEPT.split(raw)
    return "".join(
        piece.upper() if index % 2 else unquote(piece, errors="surrogateescape")
        for index, piece in enumerate(pieces)
    )


def _decoded(value: str) -> str:
    return value.replace("%2F", "/").replace("%25", "%") if "%" in value else value


def tidied(path: str) -> str:
    """Without the slashes that a base URL and what a client appends to it have too many of together.

    And without the prefix that Docker Desktop's clients put before all they ask for.
    """
    return f"/{'/'.join(part for part in path.split('/') if part)}".replace("/exp/vDD4.40/", "/", 1)


def _expression(pattern: str) -> str:
    made, at = "", 0
    for variable in _VARIABLE.finditer(pattern):
        made += re.escape(pattern[at : variable.start()])
        made += f"(?P<{variable[1]}>{variable[2] or '[^{}/]+'})"
        at = variable.end()
    return made + re.escape(pattern[at:])
