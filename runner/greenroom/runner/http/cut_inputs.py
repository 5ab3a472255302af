"""Cuts the inputs of embeddings to a model's context, for clients that want that.

An engine refuses an input that is too long, with the number of tokens that it accepts. Only then are the
inputs counted, by the engine's own tokenizer, and sent again as tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.upstream import Connection

Send = Callable[[str, bytes], Awaitable[Connection]]
"""Sends a body to a path of the engine, and returns the connection with its answer."""
Post = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""Sends a body to a path of the engine; returns the status and body of its answer."""

_SPECIAL = 8
"""More tokens than any tokenizer adds to an input."""


class _Tokens(msgspec.Struct):
    tokens: list[int]


_decode = msgspec.json.Decoder(_Tokens).decode


class Uncountable(Exception):
    """The engine does not say what the tokens of a text are."""


async def cut(inputs: Sequence[Any], limit: int, name: str, post: Post) -> list[Any]:
    """The inputs, each text or list of tokens cut to `limit` tokens, special ones at its end included.

    `name` is what the engine calls the model. Raises Uncountable, and what `post` raises.
    """
    special: list[int] | None = None
    found: list[Any] = []
    for one in inputs:
        # A token is at least one byte of text.
        if isinstance(one, str) and len(one.encode()) + _SPECIAL <= limit:
            found.append(one)
            continue
        if special is None:
            special = await _tokens("", name, post)
        tokens = await _tokens(one, name, post) if isinstance(one, str) else one
        found.append(shortened(tokens, special, limit))
    return found


def shortened(tokens: Sequence[int], special: Sequence[int], limit: int) -> list[int]:
    """The first tokens, with those that end every text; `special` are the tokens of an empty one."""
    if len(tokens) <= limit:
        return list(tokens)
    last = 0
    while last < len(special) and special[-1 - last] == tokens[-1 - last]:
        last += 1
    return [*tokens[: max(0, limit - last)], *tokens[len(tokens) - last :]]


async def cut_by(engine: Send, inputs: str | Sequence[Any], limit: int, name: str, most: int) -> list[Any]:
    """The same, with an engine of which an answer has at most so many bytes. Raises what `engine` raises."""

    async def post(path: str, body: bytes) -> tuple[int, bytes]:
        answer = await engine(path, body)
        told = await answer.rest(most)
        answer.close()
        return answer.status, told

    return await cut([inputs] if isinstance(inputs, str) else inputs, limit, name, post)


async def _tokens(text: str, name: str, post: Post) -> list[int]:
    # llama-server's fields, and vLLM's: each ignores the other's.
    asked = {"content": text, "add_special": True}
    asked |= {"model": name, "prompt": text, "add_special_tokens": True}
    status, body = await post("/tokenize", msgspec.json.encode(asked))
    if status != 200:
        raise Uncountable
    try:
        return _decode(body).tokens
    except NOT_UNDERSTOOD:
        raise Uncountable from None
