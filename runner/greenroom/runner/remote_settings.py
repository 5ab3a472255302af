"""Remote backends, as `[backends]` declares them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from greenroom.runner.setting_readers import (
    read_absolute_path,
    read_path,
    read_text,
    read_whole,
)
from greenroom.runner.units import parse_duration

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_TAKEN = frozenset({"ai", "hf", "library", "v1", "anthropic", "responses", "daemon", "greenroom", "memory"})
"""First parts of names of models and of paths, and what `why` can be asked."""
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_MOST_SLOTS = 256
_LONGEST_SILENCE = 3600.0
_PATTERN = re.compile(r"[^\s]{1,200}")


class NoKey(ValueError):
    """The key of a remote backend cannot be read. The message names its source, never its value."""


@dataclass(frozen=True)
class ApiKey:
    """Where to find the key of a remote backend. The key itself is read when needed, and never stored."""

    env: str = ""
    """A variable of the daemon's environment."""
    file: Path | None = None
    value: str = field(default="", repr=False)
    """The key, given by a program."""

    @property
    def source(self) -> str:
        """Where it is, for people."""
        return f"env {self.env}" if self.env else f"file {self.file}" if self.file else "given by the program"

    def read(self) -> str:
        """The key. Blocks; raises NoKey."""
        if self.env:
            where, found = f"the variable {self.env}", os.environ.get(self.env, "")
        elif self.file is not None:
            where = str(self.file)
            try:
                with self.file.open("rb") as file:
                    found = file.read(8192).decode("ascii", "replace")
            except OSError as error:
                raise NoKey(f"{where} cannot be read: {error.strerror or error}") from error
        else:
            where, found = "the key", self.value
        key = found.strip()
        if not key:
            raise NoKey(f"{where} is {'empty' if self.env in os.environ or not self.env else 'not set'}")
        if not _KEY.fullmatch(key):
            raise NoKey(f"{where} is not a valid key: it must be printable ASCII without spaces")
        return key


@dataclass(frozen=True)
class RemoteBackend:
    """An engine that Greenroom sends requests to but does not run: anything with an OpenAI-compatible API."""

    url: str
    """`http://HOST:PORT/v1`, `https://HOST/v1`, or `unix:/PATH`; `/v1` if there is no path."""
    api_key: ApiKey | str | None = None
    """A program may give the key itself."""
    models: tuple[str, ...] = ("*",)
    """Which of its models to show; `*` and `?` are wildcards."""
    slots: int = 8
    """The maximum number of requests sent to it at once; others are queued."""
    timeout: float = 600.0
    """The maximum number of seconds without a byte from it while it has a request."""
    ca: Path | None = None
    """A file of CA certificates to trust instead of the system's."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for an invalid field."""
        object.__setattr__(self, "url", _url(self.url))
        object.__setattr__(self, "api_key", _key(self.api_key))
        object.__setattr__(self, "models", _patterns(self.models))
        object.__setattr__(self, "slots", _slots(self.slots))
        object.__setattr__(self, "timeout", _timeout(self.timeout))
        if self.ca is not None:
            object.__setattr__(self, "ca", read_path(self.ca))

    def __repr__(self) -> str:
        return f"RemoteBackend(url={self.url!r})"

    @property
    def key(self) -> ApiKey | None:
        """Where its key is; None if it needs none."""
        return self.api_key if isinstance(self.api_key, ApiKey) else None

    @property
    def path(self) -> str:
        """The prefix of its paths, such as `/v1`."""
        return "/v1" if self.url.startswith("unix:") else urlsplit(self.url).path


def _url(raw: Any) -> str:
    url = read_text(raw)
    if url.startswith("unix:"):
        file = Path(url.removeprefix("unix:"))
        if not file.is_absolute():
            raise ValueError("url must have an absolute path after unix:, such as unix:/run/engine.sock")
        return f"unix:{file}"
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("url must not contain a password; use api_key")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("url has no valid port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or " " in url:
        raise ValueError(f"url {url[:200]!r} is not an address; write http://HOST:PORT/v1")
    if parts.query or parts.fragment:
        raise ValueError("url must have only a scheme, a host, a port and a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/') or '/v1'}"


def _key(raw: Any) -> ApiKey | None:
    if raw is None or isinstance(raw, ApiKey):
        return raw
    if isinstance(raw, str):
        if not _KEY.fullmatch(raw):
            raise ValueError("api_key must be printable ASCII without spaces")
        return ApiKey(value=raw)
    raise TypeError("api_key must be an ApiKey or text")


def _named_key(raw: Any) -> ApiKey:
    # What is wrong is not repeated: it may be the key itself.
    form = '{ env = "VARIABLE" } or { file = "/path" }'
    if isinstance(raw, str):
        raise TypeError(f"api_key must not be the key itself; write api_key = {form}")
    if not isinstance(raw, Mapping) or len(raw) != 1 or not {"env", "file"}.issuperset(raw):
        raise ValueError(f"api_key must be {form}")
    if "file" in raw:
        return ApiKey(file=read_absolute_path(raw["file"]))
    if not isinstance(raw["env"], str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,100}", raw["env"]):
        raise ValueError("api_key.env must be the name of an environment variable")
    return ApiKey(env=raw["env"])


def _patterns(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple) or not raw:
        raise TypeError('models must be a list of names, such as ["*"]')
    for one in raw:
        if not _PATTERN.fullmatch(read_text(one)):
            raise ValueError(f"models: {one!r} is not a name")
    return tuple(raw)


def _slots(raw: Any) -> int:
    slots = read_whole(raw)
    if not 1 <= slots <= _MOST_SLOTS:
        raise ValueError(f"slots must be from 1 to {_MOST_SLOTS}: the requests sent to it at once")
    return slots


def _timeout(raw: Any) -> float:
    seconds = parse_duration(raw)
    if not 1 <= seconds <= _LONGEST_SILENCE:
        raise ValueError("timeout must be from 1s to 1h")
    return seconds


REMOTE_KEYS: Mapping[str, Callable[[Any], Any]] = {
    "url": _url,
    "api_key": _named_key,
    "models": _patterns,
    "slots": _slots,
    "timeout": _timeout,
    "ca": read_absolute_path,
}


def read_remote(name: str, entries: Mapping[str, Any]) -> RemoteBackend:
    """A table with a `url`. Raises TypeError or ValueError, which repeat no key."""
    values: dict[str, Any] = {}
    for key, value in entries.items():
        if key not in REMOTE_KEYS:
            known = ", ".join(sorted(REMOTE_KEYS))
            raise ValueError(f'[backends."{name}"] has no key {key!r}, only {known}')
        try:
            values[key] = REMOTE_KEYS[key](value)
        except (TypeError, ValueError) as error:
            raise type(error)(f'[backends."{name}"]: {error}') from None
    return RemoteBackend(**values)


def checked(backends: Mapping[str, object]) -> None:
    """Raise ValueError for a name that a remote backend cannot have."""
    for name, one in backends.items():
        if isinstance(one, RemoteBackend) and (not _NAME.fullmatch(name) or name in _TAKEN):
            raise ValueError(
                f'[backends."{name}"]: a remote backend cannot have this name, which its models get as a '
                "prefix; use lower-case letters, digits and -, such as lab"
            )
