"""Readers of single settings, whichever file, variable or program they come from. Each raises TypeError or
ValueError with a clause that says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenroom.actors.characters import visible
from greenroom.runner.user_home import expanded

_LONGEST = 4_096
"""Maximum characters of a text or path."""
_MOST = 10**6
"""Maximum integer: queued requests, or a port."""


def read_path(raw: Any) -> Path:
    if not isinstance(raw, str | os.PathLike):
        raise TypeError(f"{raw!r} is not a path")
    text = str(raw).strip()
    if "\0" in text:
        raise ValueError("a path must not contain NUL")
    if not text:
        raise ValueError("a path must not be empty")
    return expanded(text).absolute()


def read_absolute_path(raw: Any) -> Path:
    path = expanded(read_text(raw))
    if not path.is_absolute():
        raise ValueError(f"{raw!r} is not an absolute path")
    return path


def read_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"{raw!r} must be text")
    if len(raw) > _LONGEST or visible(raw) != raw:
        raise ValueError(f"{raw!r} must be one line of at most {_LONGEST} printable characters")
    return raw.strip()


def read_whole(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (int, str)) or not str(raw).strip().isdigit():
        raise ValueError(f"{raw!r} is not a whole number")
    # Python refuses to read very long ones; this says so in a sentence.
    if len(str(raw).strip()) > len(str(_MOST)) or int(raw) > _MOST:
        raise ValueError(f"that is too large; the limit is {_MOST}")
    return int(raw)


def read_yes_or_no(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise TypeError(f"{raw!r} must be true or false")
    return raw


def read_table(raw: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise TypeError(f"{name} must be a table")
    return raw
