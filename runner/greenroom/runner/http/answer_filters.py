"""What an engine cannot do and is done here in its place: its chats and its answers are changed on the way.

A `ChunkFilter` is one such change, of one request. `FilteredTranslation` puts filters between an engine and
the translation into the client's family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import HttpRefusal, frame
from greenroom.runner.http.port import EVENT_STREAM
from greenroom.runner.http.translation import Translation

Chunk = Mapping[str, Any]
"""A `chat.completion.chunk`."""

_encode = msgspec.json.Encoder().encode


class ChunkFilter(ABC):
    done = False
    """The answer ends here, though the engine has not ended it."""
    names: Mapping[str, str] = {}
    """What fields that it sets are called in the client's chat, for refusals."""

    @abstractmethod
    def chat(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        """The chat as the engine gets it."""

    @abstractmethod
    def chunk(self, chunk: Chunk) -> Iterable[Chunk]:
        """What a chunk of a streamed answer becomes."""

    @abstractmethod
    def completion(self, completion: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a whole answer becomes."""


def overlap(text: str, word: str) -> int:
    """How many characters at the end of a text may be the beginning of a word that is not whole."""
    most = min(len(word) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(word[:size])), 0)


class Completion:
    """The `chat.completion` that a stream of chunks amounts to."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Chunk) -> None:
        self._top |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for piece in chunk.get("choices") or ():
            index = piece.get("index") or 0
            choice = self._choices.setdefault(index, {"index": index, "message": {}})
            for name in ("finish_reason", "stop_reason"):
                choice[name] = piece.get(name) or choice.get(name)
            if told := (piece.get("logprobs") or {}).get("content"):
                choice.setdefault("logprobs", {"content": []})["content"] += told
            self._add(choice["message"], piece.get("delta") or {})

    def _add(self, message: dict[str, Any], delta: Mapping[str, Any]) -> None:
        for call in delta.get("tool_calls") or ():
            self._add_call(message.setdefault("tool_calls", []), call)
        for name, value in delta.items():
            if name == "tool_calls":
                continue
            if isinstance(value, str) and name != "role":
                message[name] = message.get(name, "") + value
            elif value is not None:
                message[name] = value

    def _add_call(self, calls: list[dict[str, Any]], piece: Mapping[str, Any]) -> None:
        known = next((one for one in calls if one["index"] == (piece.get("index") or 0)), None)
        if known is None:
            calls.append({"index": 0, **piece, "function": dict(piece.get("function") or {})})
            return
        function, more = known["function"], (piece.get("function") or {}).get("arguments") or ""
        function["arguments"] = (function.get("arguments") or "") + more

    @property
    def completion(self) -> dict[str, Any]:
        choices = [{"message": {"content": None}, **one} for _, one in sorted(self._choices.items())]
        return {**self._top, "object": "chat.completion", "choices": choices}


class FilteredTranslation(Translation):
    def __init__(self, translation: Translation, filters: Sequence[ChunkFilter]) -> None:
        """The engine's answer passes through the first filter first."""
        self._inner = translation
        self._filters = filters
        self._whole = Completion() if not translation.chat.get("stream") else None
        """Gathers the answer for a client that does not want a stream."""
        self.gathers = self._whole is not None
        self.content_type = translation.content_type
        self.answers = translation.answers

    @property
    def chat(self) -> dict[str, Any]:
        return self.filtered(self._inner.chat)

    def filtered(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        """A chat as the engine gets it."""
        changed = dict(chat)
        for one in reversed(self._filters):
            changed = one.chat(changed)
        return changed

    @property
    def done(self) -> bool:
        return any(one.done for one in self._filters)

    @property
    def context_size(self) -> int:
        return self._inner.context_size

    @property
    def ignored(self) -> Sequence[str]:
        return self._inner.ignored

    def named(self, name: str) -> str:
        return self._inner.named(name)

    def entered(self) -> None:
        self._inner.entered()

    def begin(self) -> bytes:
        return self._inner.opening() if self._whole is None else b""

    def event(self, chunk: Chunk) -> bytes:
        passed = self._passed(chunk, self._filters)
        if self._whole is None:
            return b"".join(map(self._inner.event, passed))
        for one in passed:
            self._whole.add(one)
        return b""

    def _passed(self, chunk: Chunk, filters: Sequence[ChunkFilter]) -> Iterator[Chunk]:
        if not filters:
            yield chunk
            return
        for one in filters[0].chunk(chunk):
            yield from self._passed(one, filters[1:])

    def end(self) -> bytes:
        return self._inner.end() if self._whole is None else self._inner.whole(self._whole.completion)

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        for one in self._filters:
            completion = one.completion(completion)
        return self._inner.whole(completion)

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return self._inner.error(refusal, param, request_id)

    def renamed(self, error: HttpRefusal) -> HttpRefusal:
        for one in self._filters:
            error = error.renamed(one.names)
        return self._inner.renamed(error)


class Untranslated(Translation):
    """A chat completion of a client that speaks this form itself."""

    content_type = EVENT_STREAM

    def __init__(self, body: bytes, asked_as: str, answers: str = "choices") -> None:
        """`asked_as` is the model's name as the client wrote it."""
        self.answers = answers
        self._fields: dict[str, Any] = msgspec.json.decode(body)
        self._model = asked_as

    @property
    def chat(self) -> dict[str, Any]:
        return self._fields

    def begin(self) -> bytes:
        return b""

    def event(self, chunk: Chunk) -> bytes:
        return b"data: " + _encode({**chunk, "model": self._model}) + b"\n\n"

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        return _encode({**completion, "model": self._model} if "model" in completion else completion)

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return frame(refusal, param, "openai", request_id)
