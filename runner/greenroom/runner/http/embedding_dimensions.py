"""Embeddings that are shorter than the model makes them: no engine here does that for every model."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import HttpRefusal, error_object
from greenroom.runner.http.translation import Translation


def shortened(vector: Sequence[float], most: int) -> list[float]:
    """The first numbers of a vector, with a length of one again."""
    kept = vector[:most]
    length = math.hypot(*kept)
    return [one / length for one in kept] if length else list(kept)


class Shortened(Translation):
    """OpenAI's embeddings with `dimensions`."""

    answers = "data"

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._most: int = fields["dimensions"]

    @property
    def chat(self) -> dict[str, Any]:
        known = ("model", "input", "user")
        return {name: self._fields[name] for name in known if name in self._fields} | {
            "encoding_format": "float"
        }

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        length = len(completion["data"][0]["embedding"])
        if self._most > length:
            raise HttpRefusal(
                400,
                "invalid_value",
                f"dimensions is {self._most}, and this model's vectors have {length} numbers.",
                advice="Ask for fewer, or leave it out.",
                param="dimensions",
            )
        encode = _base64 if self._fields.get("encoding_format") == "base64" else list
        rows = [
            {**one, "embedding": encode(shortened(one["embedding"], self._most))}
            for one in completion["data"]
        ]
        return msgspec.json.encode({**completion, "data": rows})

    # It has no streams.

    def begin(self) -> bytes:
        return b""

    def event(self, chunk: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - see above
        return b""

    def end(self) -> bytes:
        return b""

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return msgspec.json.encode(error_object(refusal, param, "openai", request_id))


def shortened_if_asked(fields: Mapping[str, Any]) -> Shortened | None:
    """None where an engine's own answer will do."""
    return Shortened(fields) if fields.get("dimensions") else None


def _base64(vector: Sequence[float]) -> str:
    """As OpenAI does: 32-bit floats, the least significant byte first."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
