"""Ollama's embeddings over OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from greenroom.runner.http.embedding_dimensions import shortened
from greenroom.runner.http.ollama.answer import OllamaTranslation
from greenroom.runner.http.sampling import PARAMETERS

_encode = msgspec.json.Encoder().encode


class Embed(OllamaTranslation):
    """`/api/embed`. It has no streams."""

    answers = "data"

    @property
    def ignored(self) -> Sequence[str]:
        return [f"options.{name}" for name in self._options if name in PARAMETERS and name != "num_ctx"]

    @property
    def cuts(self) -> bool:
        return bool(self._fields.get("truncate", True))

    @property
    def chat(self) -> dict[str, Any]:
        return {"model": self._model, "input": self._input(), "encoding_format": "float"}

    def _input(self) -> Any:
        return self._fields["input"]

    def event(self, chunk: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - there is none
        return b""

    def end(self) -> bytes:
        return b""

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        self._watch.note(completion)
        figures = self._watch.metrics()
        told = ("total_duration", "load_duration", "prompt_eval_count")
        return _encode(
            {
                "model": self._model,
                "embeddings": self._vectors(completion),
                **{name: figures[name] for name in told if name in figures},
            }
        )

    def _vectors(self, completion: Mapping[str, Any]) -> list[list[float]]:
        most = self._fields.get("dimensions")
        rows = sorted(completion["data"], key=lambda one: one.get("index", 0))
        return [shortened(one["embedding"], most) if most else one["embedding"] for one in rows]


class Embedding(Embed):
    """`/api/embeddings`, the older form: one prompt, one vector."""

    def _input(self) -> Any:
        return self._fields["prompt"]

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        return _encode({"embedding": self._vectors(completion)[0]})
