"""Finds the stop sequence that ends an answer, for engines that do not say which it was.

The engine does not get them: its text is watched instead, and it is left at the first. Until then it counts
the tokens in every chunk, since its last one, which counts them all, does not come any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from greenroom.runner.http.answer_filters import Chunk, ChunkFilter, overlap


class StopSequences(ChunkFilter):
    def __init__(self, sequences: Sequence[str]) -> None:
        """`sequences`: none of them empty."""
        self._sequences = sequences
        self._held = ""
        """The end of the text, while it may be the beginning of a sequence."""
        self._pieces = 0
        self._timings: Mapping[str, Any] = {}
        self._counted: Mapping[str, Any] = {}

    def chat(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        changed = {name: value for name, value in chat.items() if name != "stop"}
        # The first is llama.cpp's name for it, the second that of vllm, and of mlx as we launch it.
        counts = {"include_usage": True, "continuous_usage_stats": True}
        return {**changed, "stream": True, "timings_per_token": True, "stream_options": counts}

    def chunk(self, chunk: Chunk) -> Iterator[Chunk]:
        self._timings = chunk.get("timings") or self._timings
        self._counted = chunk.get("usage") or self._counted
        choices = []
        for choice in chunk.get("choices") or ():
            delta = dict(choice.get("delta") or {})
            self._pieces += bool(delta)
            text, found = self._read(delta.pop("content", None) or "")
            ending = {}
            if found:
                self.done = True
                ending = {"finish_reason": "stop", "stop_reason": found}
            elif choice.get("finish_reason"):
                text, self._held = text + self._held, ""
            choices.append({**choice, "delta": delta | ({"content": text} if text else {}), **ending})
        yield {**chunk, "choices": choices} if choices else chunk
        if self.done:
            yield {**chunk, "choices": [], "usage": self._usage()}

    def completion(self, completion: Mapping[str, Any]) -> Mapping[str, Any]:
        return completion  # there are only streams

    def _read(self, text: str) -> tuple[str, str]:
        """The text that can be passed on, and the sequence that ends it; empty while there is none."""
        self._held += text
        found = [(at, one) for one in self._sequences if (at := self._held.find(one)) >= 0]
        if found:
            at, sequence = min(found, key=lambda one: (one[0], -len(one[1])))
            text, self._held = self._held[:at], ""
            return text, sequence
        keep = max(overlap(self._held, one) for one in self._sequences)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text, ""

    def _usage(self) -> Mapping[str, Any]:
        if self._counted:
            return self._counted
        told = {name: int(self._timings.get(name) or 0) for name in ("prompt_n", "cache_n", "predicted_n")}
        return {
            "prompt_tokens": told["prompt_n"] + told["cache_n"],
            "completion_tokens": told["predicted_n"] or self._pieces,
            "prompt_tokens_details": {"cached_tokens": told["cache_n"]},
        }
