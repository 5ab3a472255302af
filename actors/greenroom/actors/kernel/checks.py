"""Checks the fields of a command against its types before an actor sees it; Python itself does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from greenroom.actors.kernel.core import Command

_PLACE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)

Explain = Callable[[Exception], tuple[str, str]]
"""From a `msgspec.ValidationError`: the field, and what is wrong as a sentence without its full stop; both
empty when it has no better words."""


def no_words(_error: Exception) -> tuple[str, str]:
    return "", ""


def complaint(command: Command[Any], explain: Explain = no_words) -> str:
    """What is wrong with the fields of a command; empty when nothing is.

    Types, limits in annotations (`msgspec.Meta`) and nested structs are checked. A field whose type msgspec
    cannot check is taken as it is.
    """
    kind = type(command)
    if kind in _unchecked:
        return ""
    try:
        fields = msgspec.to_builtins(command, builtin_types=_PLAIN)
    except (TypeError, ValueError, RecursionError, OverflowError):
        # Something that is no data, such as a function: its insides are not looked at.
        fields = msgspec.structs.asdict(command)
    try:
        msgspec.convert(fields, kind, builtin_types=_PLAIN, from_attributes=True)
    except msgspec.ValidationError as error:
        _, said = explain(error)
        return said or _in_words(str(error))
    except (TypeError, NameError):
        # Its annotations are none that can be checked.
        _unchecked.add(kind)
    except (ValueError, RecursionError, OverflowError) as error:
        return str(error)
    return ""


_PLAIN = (bytes, bytearray)
_unchecked: set[type[Command[Any]]] = set()


def _in_words(said: str) -> str:
    found = _PLACE.search(said)
    if found is None:
        return said
    return f'"{found[1]}": {said[: found.start()]}'
