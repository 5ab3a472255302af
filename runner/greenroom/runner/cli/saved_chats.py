"""Chats that were saved: one JSON file each, for its owner only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from greenroom.runner.cli.problem import Problem
from greenroom.runner.user_home import expanded

FOLDER = "chats"
_MOST = 50_000_000
"""Bytes of a file that is read; images are in it."""
_OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "temperature": (int, float),
    "seed": int,
    "max_tokens": int,
    "keep_alive": str,
    "context": int,
    "response_format": dict,
}
_ROLES = ("system", "user", "assistant")
_IMAGE = "(image)"


@dataclass(frozen=True)
class SavedChat:
    model: str
    options: dict[str, Any]
    messages: list[dict[str, Any]]


def path_of(name: str, home: Path) -> Path:
    """A name is a file of the data directory's `chats`; what has a slash or ends in `.json` is a path."""
    if "/" in name or name.endswith(".json"):
        return expanded(name)
    return home / FOLDER / f"{name}.json"


def names(home: Path) -> list[str]:
    """Those in the data directory."""
    return sorted(one.stem for one in (home / FOLDER).glob("*.json"))


def save(path: Path, chat: SavedChat) -> None:
    """Write it. Raises Problem if that cannot be."""
    try:
        if path.parent.name == FOLDER:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps(asdict(chat), indent=1, ensure_ascii=False)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}.") from error


def load(path: Path) -> SavedChat:
    """Read one. Raises Problem for what is not a saved chat."""
    try:
        if path.stat().st_size > _MOST:
            raise _no_chat(path)
        fields = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise _no_chat(path) from error
    if not isinstance(fields, dict):
        raise _no_chat(path)
    model, options, messages = (fields.get(name) for name in ("model", "options", "messages"))
    if not (isinstance(model, str) and isinstance(options, dict) and isinstance(messages, list)):
        raise _no_chat(path)
    kept = {name: value for name, value in options.items() if value is not None}
    if not all(name in _OPTIONS and isinstance(value, _OPTIONS[name]) for name, value in kept.items()):
        raise _no_chat(path)
    if not all(map(_is_message, messages)):
        raise _no_chat(path)
    return SavedChat(model, kept, messages)


def text_of(message: dict[str, Any]) -> str:
    """The words of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text") or _IMAGE) for part in content or ())


def _is_message(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and one.get("role") in _ROLES
        and (
            isinstance(one.get("content"), str)
            or (
                isinstance(one.get("content"), list)
                and all(isinstance(part, dict) for part in one["content"])
            )
        )
    )


def _no_chat(path: Path) -> Problem:
    return Problem(f"{path} is not a saved chat.", "Save one with /save.")
