"""What requests for completions and embeddings of OpenAI's API may hold."""

from __future__ import annotations

from typing import Any

from greenroom.runner.http.fields import (
    SAMPLING,
    Check,
    Dialogue,
    array,
    count,
    described,
    either,
    flag,
    grammar,
    json_schema,
    one_of,
    response_format,
    text,
    whole,
)
from greenroom.runner.http.wrong_fields import Wrong, wrong_type

_INT32 = 2**31 - 1
_token = whole(0, _INT32)


def tokens(value: Any, where: str) -> Any:
    """A list of token ids, at least one."""
    if not isinstance(value, list):
        raise wrong_type(where, "a list", value)
    # There may be a hundred thousand: each is looked at more closely only where one is wrong.
    if not value or not all(type(one) is int and 0 <= one <= _INT32 for one in value):
        return array(_token, least=1)(value, where)
    return value


described(tokens, type="array", items=_token, minItems=1)


def _prompts(least: int, most: int | None = None) -> Check:
    """A text, a list of texts, a list of tokens, or a list of lists of tokens; `most` prompts."""
    one = text(least=least)

    def check(value: Any, where: str) -> Any:
        if isinstance(value, str):
            return one(value, where)
        if not isinstance(value, list):
            raise _wrong_prompt(where)
        if not value:
            raise Wrong(where, f"{where} must not be empty.")
        if isinstance(value[0], str):
            return array(one, most=most)(value, where)
        if isinstance(value[0], list):
            return array(tokens, most=most)(value, where)
        return tokens(value, where)

    return described(check, anyOf=[one, array(one, 1), tokens, array(tokens, 1)])


def _wrong_prompt(where: str) -> Wrong:
    """A prompt that is neither text nor tokens."""
    return Wrong(where, f"{where} must be a string, or a list of strings or of tokens.", "invalid_type")


COMPLETION = Dialogue(
    {
        **SAMPLING,
        "prompt": _prompts(least=0),
        "suffix": text(),
        "echo": flag,
        "best_of": whole(1, 128),
        "logprobs": either("a whole number", (bool, flag), (int, whole(0, 20))),
        "response_format": response_format,
        "grammar": grammar,
        "json_schema": json_schema,
    },
    required=("prompt",),
)

_INPUTS = 2048
"""As at OpenAI."""
EMBEDDING = Dialogue(
    {
        "model": text(least=1),
        "input": _prompts(least=1, most=_INPUTS),
        "encoding_format": one_of("float", "base64"),
        "dimensions": count,
        "user": text(),
    },
    required=("input",),
)
