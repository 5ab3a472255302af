"""The few changes to what passes between a client and an engine: headers, fields, and the model's name.

Only listed headers pass: an unknown one may carry a client's secret to an engine, or make a browser do what
the engine says. A body passes byte for byte, but for the fields a backend's dialect must not see and the name
that it has for the model. Answers are changed back without parsing them: inside a JSON string every quote is
escaped, so `"model":"…"` with bare quotes can only be a key and its value.
"""

from __future__ import annotations

import re

import msgspec
from multidict import CIMultiDict

from greenroom.runner.backends.base import Dialect
from greenroom.runner.http.port import Request
from greenroom.runner.http.upstream import Answer

_LINE_LIMIT = 4 * 2**20
"""Bytes of one unfinished line that are held back; past it, it passes as it is."""
_FORWARDED = frozenset(
    "accept accept-language anthropic-beta anthropic-version traceparent user-agent".split()
)
_RETURNED = frozenset("cache-control content-encoding content-type".split())
_PLAIN = re.compile(r"[\x20-\x7e\t]*")
"""A value that can be sent on: an engine's may hold anything."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def forwarded(request: Request) -> CIMultiDict[str]:
    """A request's headers, as the engine gets them.

    What comes to an engine has been read as JSON. Clients that call it a form (`curl -d` by itself does) are
    understood here, but vLLM would refuse them.
    """
    headers = CIMultiDict(
        [(name, value) for name, value in request.headers.items() if name.lower() in _FORWARDED]
    )
    headers["Content-Type"] = "application/json"
    return headers


def returned(answer: Answer) -> CIMultiDict[str]:
    """An answer's headers, as the client gets them."""
    return CIMultiDict(
        [
            (name, value)
            for name, value in answer.headers.items()
            if name.lower() in _RETURNED and _PLAIN.fullmatch(value)
        ]
    )


def translate(body: bytes, dialect: Dialect, name: str | None, ours: frozenset[str] = frozenset()) -> bytes:
    """The body as the engine may see it, without what is `ours`; `name` is what it calls the model."""
    dropped = dialect.dropped | ours if ours else dialect.dropped
    if name is None and not dropped:
        return body
    fields = _fields.decode(body)
    for field in dropped:
        fields.pop(field, None)
    if name is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


def dropped_of(body: bytes, dialect: Dialect) -> list[str]:
    """The fields of a body that the engine does not see, whose client is told so."""
    return sorted(dialect.dropped & _fields.decode(body).keys()) if dialect.dropped else []


class Renaming:
    """Gives the model in an answer the name the client knows it by."""

    def __init__(self, spoken: str, asked: str) -> None:
        self._pattern = re.compile(rb'"model"(\s*:\s*)' + re.escape(msgspec.json.encode(spoken)))
        self._name = msgspec.json.encode(asked)

    def __call__(self, body: bytes) -> bytes:
        """Whole lines, or a whole body."""
        return self._pattern.sub(lambda match: b'"model"' + match.group(1) + self._name, body)


class Lines:
    """Passes whole lines on and holds back the beginning of one.

    A client can do nothing with half a line, and if the engine dies there, an error frame must not be
    glued to it.
    """

    __slots__ = ("_rename", "_rest")

    def __init__(self, rename: Renaming | None = None) -> None:
        self._rename = rename
        self._rest = b""

    @property
    def held(self) -> bytes:
        """The beginning of a line that is held back."""
        return self._rest

    def feed(self, chunk: bytes) -> bytes:
        """The whole lines there are now."""
        if self._rest or not chunk.endswith(b"\n"):
            data = self._rest + chunk
            end = len(data) if len(data) > _LINE_LIMIT else data.rfind(b"\n") + 1
            chunk, self._rest = data[:end], data[end:]
        return chunk if self._rename is None else self._rename(chunk)

    def flush(self) -> bytes:
        """What was held back, at the end."""
        rest, self._rest = self._rest, b""
        return rest if self._rename is None else self._rename(rest)
