"""Splits long deltas: aiohttp, Go's scanner and others give up on a stream with a line of 64 KiB.

Engines send a whole call of a tool in one delta. OpenAI sends its arguments piece by piece, and clients add
them up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

LONG = 32 * 1024
"""Bytes of a line from which on it is divided."""
_PIECE = 4096
"""Characters of a piece: some 16 KiB at most, with all of them escaped or outside of ASCII."""
_TEXTS = ("reasoning_content", "reasoning", "content")
_OF_ALL = ("usage", "timings")
"""Fields about the whole answer so far: the last piece has them."""

_encode = msgspec.json.Encoder().encode
_DATA = b"data:"


def with_short_lines(lines: bytes) -> bytes:
    """The same events of a chat's stream, with long deltas in pieces."""
    made: list[bytes] = []
    for line in lines.splitlines(keepends=True):
        pieces: list[Mapping[str, Any]] = []
        if len(line) > LONG and line.startswith(_DATA):
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                pieces = [*in_pieces(msgspec.json.decode(line[len(_DATA) :], type=dict[str, Any]))]
        if len(pieces) > 1:
            made.append(b"\n\n".join(b"data: " + _encode(one) for one in pieces) + b"\n")
        else:
            made.append(line)
    return b"".join(made)


def in_pieces(chunk: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A `chat.completion.chunk` as one or more, none of which has a long delta."""
    choices = chunk.get("choices") or ()
    deltas = [_deltas(choice.get("delta") or {}) for choice in choices]
    if all(len(one) == 1 for one in deltas):
        yield chunk
        return
    begun = {name: value for name, value in chunk.items() if name not in _OF_ALL}
    last = len(choices) - 1
    for at, (choice, pieces) in enumerate(zip(choices, deltas, strict=True)):
        index = choice.get("index") or 0
        for delta in pieces[:-1]:
            yield {**begun, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        yield {**(chunk if at == last else begun), "choices": [{**choice, "delta": pieces[-1]}]}


def _deltas(delta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    texts = {name: delta[name] for name in _TEXTS if isinstance(delta.get(name), str)}
    calls = [(call, call.get("function") or {}) for call in delta.get("tool_calls") or ()]
    arguments = [str(function.get("arguments") or "") for _, function in calls]
    if all(len(text) <= _PIECE for text in (*texts.values(), *arguments)):
        return [delta]
    others = {name: value for name, value in delta.items() if name not in (*texts, "tool_calls")}
    pieces: list[Mapping[str, Any]] = [others] if others else []
    pieces += [{name: piece} for name, text in texts.items() for piece in _cut(text)]
    for (call, function), text in zip(calls, arguments, strict=True):
        first, *more = _cut(text) or [""]
        pieces.append({"tool_calls": [{**call, "function": {**function, "arguments": first}}]})
        index = call.get("index") or 0
        pieces += [{"tool_calls": [{"index": index, "function": {"arguments": one}}]} for one in more]
    return pieces


def _cut(text: str) -> list[str]:
    return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
