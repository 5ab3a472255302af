"""Finds a model's chat templates.

Engines of safetensors models look for `chat_template.jinja`, then in `tokenizer_config.json`. Models are also
published with a `chat_template.json` (as processors write it), or a template under another name: these are
copied to the name that engines know, or chats would be formatted wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from greenroom.runner.models.metadata import Readable

JINJA = "chat_template.jinja"
"""The name that engines know."""
_KEY = "tokenizer.chat_template"
_LIMIT = 8 * 2**20
_NAMES = 32


@dataclass(frozen=True)
class Templates:
    file: str
    """Where they are: a file's name, or the header's key."""
    names: tuple[str, ...] = ()
    """The named ones; `default` is for plain chats."""
    text: str = field(default="", repr=False)
    """The default one, if an engine does not find it by itself."""


def of_folder(files: Sequence[Readable]) -> Templates | None:
    """The templates beside safetensors, from the place where engines would look."""
    named = {file.name: file for file in files}
    if JINJA in named:
        return Templates(JINJA)
    others = sorted(name for name in named if name.endswith(".jinja"))
    if others:
        return Templates(others[0], text=_read(named[others[0]]).decode("utf-8", "replace"))
    config = _by_name(_table(named.get("tokenizer_config.json")).get("chat_template"))
    if config:
        return Templates("tokenizer_config.json", _several(config))
    own = _table(named.get("chat_template.json"))
    found = _by_name(own.get("chat_template") or own)
    text = found.get("default") or next(iter(found.values()), "")
    return Templates("chat_template.json", _several(found), text) if text else None


def text_of_folder(files: Sequence[Readable]) -> str:
    """The template for plain chats beside safetensors; empty where there is none."""
    found = of_folder(files)
    if found is None or found.text:
        return found.text if found is not None else ""
    (file,) = (file for file in files if file.name == found.file)
    if found.file == JINJA:
        return _read(file).decode("utf-8", "replace")
    config = _by_name(_table(file).get("chat_template"))
    return config.get("default") or next(iter(config.values()), "")


def of_header(keys: Sequence[str]) -> Templates | None:
    names = tuple(key.removeprefix(f"{_KEY}.") for key in keys if key.startswith(f"{_KEY}."))[:_NAMES]
    if _KEY not in keys and not names:
        return None
    return Templates(_KEY, ("default", *names) if names else ())


def text_of_header(header: Mapping[str, Any]) -> str:
    return "\n".join(str(value) for key, value in header.items() if key == _KEY or key.startswith(f"{_KEY}."))


def text_of_files(files: Sequence[Readable]) -> str:
    """The templates among these files, those of them that an engine would use."""
    own = [file for file in files if file.suffix == ".jinja"]
    if own:
        return "\n".join(_read(file).decode("utf-8", "replace") for file in own)
    named = {file.name: file for file in files}
    config = _table(named.get("tokenizer_config.json"))
    return "\n".join(_by_name(config.get("chat_template")).values())


def _by_name(templates: Any) -> dict[str, str]:
    """One template, a list of `{name, template}`, or a table of them."""
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, list):
        pairs = [(one.get("name"), one.get("template")) for one in templates if isinstance(one, dict)]
    elif isinstance(templates, dict):
        pairs = list(templates.items())
    else:
        return {}
    return {k: v for k, v in pairs[:_NAMES] if isinstance(k, str) and isinstance(v, str) and len(k) <= 100}


def _several(templates: dict[str, str]) -> tuple[str, ...]:
    return tuple(templates) if len(templates) > 1 else ()


def _table(file: Readable | None) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(_read(file)) if file is not None else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(file: Readable) -> bytes:
    return file.read_bytes() if file.stat().st_size <= _LIMIT else b""
