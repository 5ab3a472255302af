"""What a request and its answer said, bounded, for requests whose bodies are recorded."""

from __future__ import annotations

import re

LIMIT = 256_000
"""Bytes of each that are kept."""
_MEDIA = re.compile(r'("(?:url|data)"\s*:\s*")((?:data:[^",]{0,100},)?[A-Za-z0-9+/=]{100,})(?=")')
_SHOWN = 100
"""Characters of an image or a sound that are kept."""


class Kept:
    """One request's own words and its answer's, as they went over the connection."""

    __slots__ = ("cut", "request", "response")

    def __init__(self, request: bytes) -> None:
        self.request = request[:LIMIT]
        self.response = bytearray()
        self.cut = len(request) > LIMIT
        """There was more than is kept."""

    def add(self, data: bytes) -> None:
        """A piece of the answer, as it is sent."""
        room = LIMIT - len(self.response)
        self.response += data[:room]
        self.cut = self.cut or len(data) > room

    def texts(self) -> tuple[str, str]:
        """Request and answer as text, without the bulk of images and sounds."""
        return _text(self.request), _text(self.response)


def _text(data: bytes | bytearray) -> str:
    return _MEDIA.sub(_shortened, data.decode("utf-8", "replace"))


def _shortened(match: re.Match[str]) -> str:
    media = match[2]
    rest = len(media) - _SHOWN
    return match[0] if rest <= 0 else f"{match[1]}{media[:_SHOWN]}...[truncated {rest} chars]"
