"""What a setting may be, and how it is read: from a flag, a variable, the config file or a program.

A reader takes a value as it was given, and raises TypeError or ValueError with a sentence about it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from greenroom.runner.remote_settings import REMOTE_KEYS, RemoteBackend, checked, read_remote
from greenroom.runner.setting_readers import (
    read_absolute_path,
    read_path,
    read_table,
    read_text,
    read_whole,
    read_yes_or_no,
)
from greenroom.runner.units import parse_duration, parse_keep_alive, parse_size

DEFAULT_PORT = 12400
INSTALL_POLICIES = ("ask", "auto", "never")
RESTORE = ("pinned", "all", "never")
CONVERSATIONS = ("disk", "memory", "off")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ExternalBackend:
    """The user's own installation: used as it is, never changed."""

    binary: Path | None = None
    """llama.cpp: a `llama-server`."""
    python: Path | None = None
    """mlx, vllm: the interpreter of an environment with the backend."""
    image: str = ""
    """vllm-metal: the image to install from instead of the vendor's; Greenroom manages that installation."""
    gpu: bool = False
    """llama.cpp: the binary computes on NVIDIA's graphics devices, so memory is reserved there."""
    indexes: tuple[str, ...] | None = None
    """Package indexes in place of the vendor's, beside pip's own; empty for none."""
    variant: str = ""
    """The build to use, such as `cu128` or `cpu`, instead of the best one for the machine's devices."""


@dataclass(frozen=True)
class RegistrySettings:
    mirrors: tuple[str, ...] = ()
    """`[scheme://]host[:port][/path]`, asked before the registry itself, in this order."""
    insecure: bool = False
    """It uses plain HTTP, as registries on this machine do by default."""


def _address(raw: Any) -> str:
    text = read_text(raw).strip("[]")
    if not text or "/" in text or any(letter.isspace() for letter in text):
        raise ValueError(f"{raw!r} is not an address to listen on; write 127.0.0.1")
    return text


def _port(raw: Any) -> int:
    port = read_whole(raw)
    if port > 65535:
        raise ValueError(f"{port} is not a port; the highest is 65535")
    return port


def _url(raw: Any) -> str:
    text = read_text(raw)
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{raw!r} has no valid port") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{raw!r} is not an address; write http://127.0.0.1:{DEFAULT_PORT}")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("an address is scheme, host, port and at most a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme] if "://" in text else DEFAULT_PORT
    return f"{parts.scheme}://{host}:{port or default}{parts.path.rstrip('/')}"


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(raw: Any) -> str:
        text = read_text(raw).lower()
        if text not in words:
            raise ValueError(f"{raw!r} is not one of {', '.join(words)}")
        return text

    return read


def _names(raw: Any) -> tuple[str, ...]:
    words = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(words, (list, tuple)):
        raise TypeError(f"{raw!r} must be a list of names")
    return tuple(name for name in (read_text(word) for word in words) if name)


def _callers(pattern: str, example: str) -> Callable[[Any], tuple[str, ...]]:
    def read(raw: Any) -> tuple[str, ...]:
        names = tuple(one.lower() for one in _names(raw))
        if odd := [one for one in names if one != "*" and not re.fullmatch(pattern, one)]:
            raise ValueError(f"{odd[0][:60]!r} must be like {example}")
        return names

    return read


def _stall(raw: Any) -> float:
    seconds = parse_duration(raw)
    if seconds < 1:
        raise ValueError(f"{raw!r} is too short; an engine may need a second to respond")
    return seconds


def _slots(raw: Any) -> int | None:
    # Imported only if set: most commands do not need it, and it loads slowly.
    from greenroom.actors.limits import SLOTS

    if isinstance(raw, str) and raw.strip().lower() == "auto":
        return None
    slots = read_whole(raw)
    if not 1 <= slots <= SLOTS:
        raise ValueError(
            f"{raw!r} must be from 1 to {SLOTS}: the number of requests an engine serves at once"
        )
    return slots


def _memory_limit(raw: Any) -> float:
    if isinstance(raw, str) and raw.strip().lower() == "off":
        return 0.0
    factor = math.nan if isinstance(raw, bool) or not isinstance(raw, (int, float, str)) else float(raw)
    if not 1 <= factor <= 100:
        raise ValueError(f"{raw!r} must be from 1 to 100 times the reserved memory, or off")
    return factor


def _budget(raw: Any) -> int | None:
    if isinstance(raw, str) and raw.strip().lower() == "auto":
        return None
    return parse_size(raw)


def _true_or_false(raw: Any) -> bool:
    """Also as text, as variables have it."""
    word = str(raw).strip().lower()
    if word not in ("true", "false"):
        raise TypeError(f"{raw!r} must be true or false")
    return word == "true"


def _switch(raw: Any) -> bool:
    """Yes or no, from a file or as text."""
    if isinstance(raw, str) and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    return read_yes_or_no(raw)


def _indexes(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise TypeError("indexes must be a list of package index URLs")
    for one in raw:
        if urlsplit(read_text(one)).scheme not in ("http", "https", "file"):
            raise ValueError(f"{one!r} is not a package index URL; write https://host/path")
    return tuple(raw)


_BACKEND_KEYS: Mapping[str, Callable[[Any], Any]] = {
    "binary": read_absolute_path,
    "python": read_absolute_path,
    "image": read_text,
    "gpu": read_yes_or_no,
    "indexes": _indexes,
    "variant": read_text,
}


BackendSettings = ExternalBackend | RemoteBackend


def _backends(raw: Any) -> Mapping[str, BackendSettings]:
    found: dict[str, BackendSettings] = {}
    for name, given in read_table(raw, "[backends]").items():
        if isinstance(given, ExternalBackend | RemoteBackend):
            found[name] = given
            continue
        entries = read_table(given, f'[backends."{name}"]')
        if "url" in entries:
            found[name] = read_remote(name, entries)
            continue
        for key in entries:
            if key in REMOTE_KEYS and key not in _BACKEND_KEYS:
                raise ValueError(f'[backends."{name}"] has {key}, but no url')
            if key not in _BACKEND_KEYS:
                known = ", ".join(sorted(_BACKEND_KEYS))
                raise ValueError(f'[backends."{name}"] has no key {key!r}, only {known}')
        values: dict[str, Any] = {key: _BACKEND_KEYS[key](value) for key, value in entries.items()}
        found[name] = ExternalBackend(**values)
    checked(found)
    return found


def _registries(raw: Any) -> Mapping[str, RegistrySettings]:
    found = {}
    for name, table in read_table(raw, "[registries]").items():
        entries = dict(read_table(table, f'[registries."{name}"]'))
        mirrors, insecure = entries.pop("mirrors", []), entries.pop("insecure", False)
        if entries:
            raise ValueError(
                f'[registries."{name}"] has no key {next(iter(entries))!r}, only mirrors and insecure'
            )
        if "/" in name or not isinstance(insecure, bool) or not isinstance(mirrors, list):
            raise ValueError(
                f'[registries."{name}"] needs a name like host[:port]; '
                "mirrors must be a list, insecure true or false"
            )
        for mirror in mirrors:
            parts = urlsplit(mirror if "://" in read_text(mirror) else f"//{mirror}")
            if (
                parts.scheme not in ("", "http", "https")
                or not parts.hostname
                or parts.username
                or parts.query
            ):
                raise ValueError(f"{mirror!r} is not a mirror; write host:port or https://host/path")
        found[name] = RegistrySettings(mirrors=tuple(mirrors), insecure=insecure)
    return found


READERS: Mapping[str, Callable[[Any], Any]] = {
    "home": read_path,
    "host": _url,
    "instance": read_text,
    "bind": _address,
    "port": _port,
    "install_policy": _one_of(*INSTALL_POLICIES),
    "keep_alive": parse_keep_alive,
    "memory_budget": _budget,
    "headroom": parse_size,
    "gpu_headroom": parse_size,
    "engine_memory_limit": _memory_limit,
    "max_wait": parse_duration,
    "max_queued": parse_duration,
    "progress_after": parse_duration,
    "unread_for": parse_duration,
    "store_responses": _switch,
    "conversations": _one_of(*CONVERSATIONS),
    "conversation_cache": _budget,
    "conversation_expiry": parse_duration,
    "conversation_writes": _budget,
    "record_for": parse_duration,
    "record_rows": read_whole,
    "queue_limit": read_whole,
    "slots": _slots,
    "prompt_cache": _budget,
    "require_device": _true_or_false,
    "allowed_hosts": _callers(r"[a-z0-9_.-]{1,253}|\[[0-9a-f:.]+\]", "models.example.org"),
    "allowed_origins": _callers(r"[a-z][a-z0-9+.-]*://[^/\s,]{1,253}", "https://chat.example.org"),
    "max_body": parse_size,
    "engine_grace": parse_duration,
    "stall_after": _stall,
    "warm": _names,
    "restore": _one_of(*RESTORE),
    "log_level": _one_of(*LOG_LEVELS),
    "models": lambda raw: read_table(raw, "[models]"),
    "backends": _backends,
    "registries": _registries,
}
"""The reader of each setting, from any source, in display order."""
