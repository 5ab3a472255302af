"""The recorded bodies of a request and its response, limited in length."""

from __future__ import annotations

import re

LIMIT = 256_000
"""Maximum bytes of each body."""
_MEDIA = re.compile(r'("(?:url|data)"\s*:\s*")((?:data:[^",]{0,100},)?[A-Za-z0-9+/=]{100,})(?=")')
_SHOWN = 100
"""Characters of an embedded image or sound that are kept."""


class Kept:
    """The bodies of one request and its response, as sent."""

    __slots__ = ("cut", "request", "response")

    def __init__(self, request: bytes) -> None:
        self.request = request[:LIMIT]
        self.response = bytearray()
        self.cut = len(request) > LIMIT
        """Whether one of them was longer than `LIMIT`."""

    def add(self, data: bytes) -> None:
        """Append a piece of the response."""
        room = LIMIT - len(self.response)
        self.response += data[:room]
        self.cut = self.cut or len(data) > room

    def texts(self) -> tuple[str, str]:
        """Request and response as text, with images and sounds shortened."""
        return _text(self.request), _text(self.response)


def _text(data: bytes | bytearray) -> str:
    return _MEDIA.sub(_shortened, data.decode("utf-8", "replace"))


def _shortened(match: re.Match[str]) -> str:
    media = match[2]
    rest = len(media) - _SHOWN
    return match[0] if rest <= 0 else f"{match[1]}{media[:_SHOWN]}...[truncated {rest} chars]"
