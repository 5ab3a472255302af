"""What the answers of all of Ollama's inference have in common: times, counts, the form of errors.

Times are in nanoseconds: the engine's own where it tells them, as llama.cpp does, else measured here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import error_object
from greenroom.runner.http.sampling import left_out
from greenroom.runner.http.translation import Translation

NDJSON = "application/x-ndjson"

_encode = msgspec.json.Encoder().encode


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339, as Go writes a time."""
    moment = time.time() if seconds is None else seconds
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


class Stopwatch:
    """When a request arrived, reached an engine, and got the first token of its answer."""

    def __init__(self) -> None:
        self.begun = time.perf_counter_ns()
        self.entered = 0
        self.first = 0
        self.usage: Mapping[str, Any] = {}
        self.timings: Mapping[str, Any] = {}
        self.frames = 0
        """Pieces of a streamed answer: the tokens, where the engine does not count them."""

    def note(self, said: Mapping[str, Any]) -> None:
        """Take over what an engine says of tokens and times."""
        self.usage = said.get("usage") or self.usage
        self.timings = said.get("timings") or self.timings

    def metrics(self) -> dict[str, int]:
        """Ollama's figures; what is not known is left out."""
        now = time.perf_counter_ns()
        entered = self.entered or self.begun
        figures = {
            "total_duration": now - self.begun,
            "load_duration": entered - self.begun,
            "prompt_eval_count": int(self.usage.get("prompt_tokens") or 0),
            "prompt_eval_duration": self.first - entered if self.first else 0,
            "eval_count": int(self.usage.get("completion_tokens") or self.frames),
            "eval_duration": now - (self.first or entered),
        }
        for name, key in (("prompt_eval_duration", "prompt_ms"), ("eval_duration", "predicted_ms")):
            told = self.timings.get(key)
            if isinstance(told, int | float) and told > 0:
                figures[name] = int(told * 1e6)
        return {name: value for name, value in figures.items() if value > 0}


class OllamaTranslation(Translation):
    """What all of Ollama's requests have in common."""

    content_type = NDJSON

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._model: str = fields["model"]
        self._options: Mapping[str, Any] = fields.get("options") or {}
        self._watch = Stopwatch()

    @property
    def context_size(self) -> int:
        return int(self._options.get("num_ctx") or 0)

    @property
    def settled(self) -> Collection[str]:
        return left_out(self._options)

    def entered(self) -> None:
        self._watch.entered = time.perf_counter_ns()

    def begin(self) -> bytes:
        return b""

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return _encode(error_object(refusal, param, "ollama", request_id)) + b"\n"
