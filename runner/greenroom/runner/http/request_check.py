"""A request's body, looked at before any engine is: right by its family, and without nulls.

The body an engine gets is the client's, byte for byte, unless something in it had to change.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec

from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.dialogues import Dialogue
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import Wrong, cleaned, missing

_ASIDE = 128 * 1024
"""Bytes of a body from which on it is looked at in a thread: other streams go on meanwhile."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder()


class Checked(NamedTuple):
    """A body that is right as far as can be told without an engine."""

    body: bytes
    fields: dict[str, Any]
    """What of it is known to its family, decoded."""


async def checked(body: bytes, dialogue: Dialogue) -> Checked:
    """Check a body. Raises HttpRefusal: 400 with the field that is wrong."""
    if len(body) > _ASIDE:
        return await asyncio.to_thread(check, body, dialogue)
    return check(body, dialogue)


def check(body: bytes, dialogue: Dialogue) -> Checked:
    """The same at once."""
    try:
        # Engines answer text in another encoding each in a way of its own, and some not at all.
        body.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8: see byte {error.start}") from None
    try:
        given = _fields.decode(body)
        absent = [name for name, raw in given.items() if _stands_for_nothing(name, bytes(raw))]
        known = {
            name: _value.decode(raw)
            for name, raw in given.items()
            if name in dialogue.fields and name not in absent
        }
    except NOT_UNDERSTOOD as error:
        deep = isinstance(error, RecursionError)
        raise _invalid("JSON is nested too deeply" if deep else str(error)) from None
    try:
        fields = cleaned(known, dialogue.fields)
        for name in dialogue.required:
            if name not in fields:
                raise missing(name)
        dialogue.together(fields)
    except Wrong as wrong:
        raise HttpRefusal(400, wrong.code, str(wrong), param=wrong.where) from None
    except RecursionError:
        raise _invalid("JSON is nested too deeply") from None
    if fields is known and not absent:
        return Checked(body, fields)
    passed: dict[str, Any] = {name: raw for name, raw in given.items() if name not in absent}
    passed |= {name: value for name, value in fields.items() if value is not known[name]}
    return Checked(msgspec.json.encode(passed), fields)


def _stands_for_nothing(name: str, raw: bytes) -> bool:
    """A field that might as well be left out. -1 tokens means no limit, in the words of LM Studio."""
    return raw == b"null" or (raw == b"-1" and name in ("max_tokens", "max_completion_tokens"))


def _invalid(what: str) -> HttpRefusal:
    return HttpRefusal(400, "invalid_request", f"invalid request: {what}")
