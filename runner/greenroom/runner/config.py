"""The settings of one Greenroom, and the origin of each value.

Flags come before the environment, the environment before `<home>/config.toml` (or the file that
`GREENROOM_CONFIG` names), that file before the defaults. Nothing is read at import time.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from greenroom.actors.characters import visible
from greenroom.runner.home import HomeUnusable
from greenroom.runner.units import parse_duration, parse_keep_alive, parse_size
from greenroom.runner.user_home import NO_HOME, expanded, user_home

if TYPE_CHECKING:
    from greenroom.actors.values import InstallPolicy

_LONGEST = 4_096
"""Maximum characters of a text or path."""
_MOST = 10**6
"""Maximum integer: queued requests, or a port."""
_SAID = 400
"""Characters of an error message about a value."""
DEFAULT_PORT = 12400
DEFAULT_HEADROOM = 500_000_000
INSTALL_POLICIES = ("ask", "auto", "never")
RESTORE = ("pinned", "all", "never")
CONVERSATIONS = ("disk", "memory", "off")
LOG_LEVELS = ("debug", "info", "warning", "error")


class BadSetting(ValueError):
    """A setting cannot be used; the text names the file or variable, the key, and a valid value."""


class ToleratedMistake(BadSetting):
    """A mistake in the config file that was tolerated, and keeps a daemon from being started."""


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


@dataclass(frozen=True)
class Settings:
    home: Path
    """The data directory."""
    bind: str = "127.0.0.1"
    """The address the daemon listens on."""
    port: int = DEFAULT_PORT
    """The port the daemon listens on; 0 lets the system choose."""
    host: str = ""
    """URL for clients; empty means the daemon of this data directory, at `bind` and `port`."""
    instance: str = ""
    """Instance id expected by clients; empty means the data directory's."""
    install_policy: InstallPolicy = "ask"
    """Whether a request may install a deferred backend: `ask`, `auto`, `never`."""
    keep_alive: float = 300.0
    """How long a model stays loaded after its last request; negative means forever."""
    memory_budget: int | None = None
    """What all engines together may use; None means 90 % of the memory less the headroom.

    The memory is the machine's, or the limit of a container's or service's control group.
    """
    headroom: int = DEFAULT_HEADROOM
    """Memory left to the rest of the machine; by default at most an eighth of it."""
    gpu_headroom: int = 500_000_000
    """Memory of each graphics device left to others."""
    engine_memory_limit: float = 1.5
    """An engine that takes more than so many times its reserved memory, plus 1 GiB, is ended; 0: never."""
    max_wait: float = 300.0
    """How long a request may wait for its engine."""
    max_queued: float = 3600.0
    """How long a request may be queued for a slot of a ready engine while nothing ahead of it moves."""
    progress_after: float = 5.0
    """After this a streaming client receives progress messages."""
    unread_for: float = 30.0
    """While others wait, a client that reads nothing of its response for this long is disconnected; 0:
    never.
    """
    store_responses: bool = True
    """Keep responses of OpenAI's Responses API, for clients that refer to them later."""
    conversations: Literal["disk", "memory", "off"] = "disk"
    """What engines have read is kept for the next turn after they end, only while they run, or not at all."""
    conversation_cache: int | None = None
    """Bytes of it on the disk; None means the smaller of 10 GB and a tenth of what is free."""
    conversation_expiry: float = 86_400.0
    """How long it stays there after it was last used."""
    conversation_writes: int | None = None
    """Bytes of it written in 24 hours; None means ten times `conversation_cache`."""
    record_for: float = 7 * 86_400.0
    """How long a request stays in the record of requests; 0: none are recorded."""
    record_rows: int = 100_000
    """Requests that are in that record at most; 0: none are recorded."""
    queue_limit: int = 256
    """Maximum requests waiting at the same time."""
    slots: int | None = None
    """Requests an engine answers at once, each with the whole context; None for the backend's default, or
    fewer if memory is short."""
    prompt_cache: int | None = None
    """Memory an engine may use for prompts it has read before; None lets the ledger decide, 0 is none."""
    require_device: bool = False
    """Refuse models that do not lie on graphics devices as a whole, rather than let the processor compute."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients may call, such as a proxy's, and origins of web pages, beside this machine's."""
    allowed_origins: tuple[str, ...] = ()
    max_body: int = 10_000_000
    """The largest request body."""
    engine_grace: float = 120.0
    """How long engines outlive a daemon that was killed."""
    stall_after: float = 60.0
    """How long an engine may show no sign of life before it is suspected to be dead."""
    warm: tuple[str, ...] = ()
    """Models loaded whenever the daemon starts."""
    restore: Literal["pinned", "all", "never"] = "pinned"
    """Which of the models loaded when the daemon ended are loaded again when it starts."""
    log_level: str = "info"
    models: Mapping[str, Any] = field(default_factory=dict)
    """The user's short names and their sources, from `[models]`."""
    backends: Mapping[str, ExternalBackend] = field(default_factory=dict)
    """The user's own installations, by backend."""
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    """How container registries are reached, by `host[:port]`; Docker Hub is `docker.io`."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where values that are not defaults come from."""
    config_file: Path | None = field(default=None, compare=False)
    """The file that was read, if any."""
    problems: tuple[str, ...] = field(default=(), compare=False)
    """What is wrong with the file, as far as that was tolerated: a sentence each."""

    def __post_init__(self) -> None:
        # A program may give text, and a relative path would mean another folder after a change of folder.
        object.__setattr__(self, "home", _path(self.home))

    def require(self) -> None:
        """Raise ToleratedMistake if something is wrong with the file."""
        if self.problems:
            raise ToleratedMistake(self.problems[0])

    def origin(self, name: str) -> str:
        """`flag --port`, `environment GREENROOM_PORT`, the file's path, or `default`."""
        return self.origins.get(name, "default")

    def changed(self, origin: str, **values: Any) -> Settings:
        """A copy with other values of this origin."""
        return replace(self, **values, origins={**self.origins, **dict.fromkeys(values, origin)})

    @property
    def url(self) -> str:
        if self.host:
            return self.host
        # A wildcard is an address to listen on, not to connect to.
        address = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind, self.bind)  # noqa: S104
        return f"http://{f'[{address}]' if ':' in address else address}:{self.port}"


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    tolerant: bool = False,
) -> Settings:
    """Collect the settings.

    Args:
        flags: Command-line flags by setting; None counts as absent.
        environment: Instead of the process's own.
        tolerant: Go on without what is wrong in the file; `Settings.problems` says what that is.

    Raises:
        BadSetting: A value or a key cannot be used.
        HomeUnusable: The data directory cannot be read.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    variables = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(name: str, raw: Any, origin: str) -> None:
        try:
            values[name] = _READERS[name](raw)
        except (TypeError, ValueError) as error:
            raise BadSetting(f"{origin}: {name} cannot be used: {_bounded(str(error))}.") from error
        origins[name] = origin

    home_flag = given.pop("home", None)
    if home_flag is not None:
        take("home", home_flag, "flag --home")
    elif variables.get("GREENROOM_HOME"):
        take("home", variables["GREENROOM_HOME"], "environment GREENROOM_HOME")
    else:
        values["home"] = _default_home()

    file = _config_file(values["home"], variables)
    problems: list[str] = []
    for read in _in_file(file) if file is not None else ():
        try:
            take(*read())
        except BadSetting as error:
            if not tolerant:
                raise
            problems.append(str(error))
    for name, raw, origin in _from_environment(variables):
        take(name, raw, origin)
    for name, raw in given.items():
        if name not in _READERS:
            raise BadSetting(f"There is no setting {name!r}. {_suggestion(name, list(NAMES))}")
        take(name, raw, f"flag --{name.replace('_', '-')}")
    return Settings(**values, origins=origins, config_file=file, problems=tuple(problems))


def _default_home() -> Path:
    import platformdirs

    if not os.environ.get("HOME", "").strip() and not os.environ.get("XDG_DATA_HOME", "").strip():
        home = user_home()
        if home == NO_HOME:
            raise BadSetting(
                f"There is no default data directory: HOME is not set, and user {os.getuid()} has "
                "no home directory. Set GREENROOM_HOME, or use --home, with a folder you may write to."
            )
        shared = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
        return home / shared / "greenroom"
    return Path(platformdirs.user_data_dir("greenroom", appauthor=False))


def _config_file(home: Path, variables: Mapping[str, str]) -> Path | None:
    named = variables.get("GREENROOM_CONFIG")
    if named:
        file = expanded(named).absolute()
        if not file.is_file():
            raise BadSetting(f"environment GREENROOM_CONFIG: there is no file {file}.")
        return file
    file = home / "config.toml"
    try:
        return file if file.is_file() else None
    except OSError as error:
        raise HomeUnusable(error, home) from error


_Setting = tuple[str, Any, str]


def _in_file(file: Path) -> list[Callable[[], _Setting]]:
    """One function for each setting in the file, or one for all if it cannot be read; raises BadSetting."""
    try:
        content = _content(file)
    except BadSetting as error:
        return [partial(_refuse, error)]
    return [partial(_setting, file, key, value) for key, value in content.items()]


def _refuse(error: BadSetting) -> _Setting:
    raise error


def _setting(file: Path, key: str, value: Any) -> _Setting:
    known = [name for name in _READERS if name != "home"]
    if key == "home":
        raise BadSetting(
            f"{file}: home cannot be set in the data directory itself; set GREENROOM_HOME or use --home."
        )
    if key not in known:
        raise BadSetting(f"{file}: there is no setting {key!r}. {_suggestion(key, known)}")
    return key, value, str(file)


def _content(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{file} cannot be read: {error}.") from error
    except RecursionError as error:
        raise BadSetting(f"{file} is nested too deeply.") from error
    except ValueError as error:
        # `TOMLDecodeError`, or a number that is too long to be read.
        raise BadSetting(f"{file} is not valid TOML: {_bounded(str(error))}.") from error


def _suggestion(key: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known settings: {', '.join(known)}."


def _from_environment(variables: Mapping[str, str]) -> list[tuple[str, str, str]]:
    found = []
    for name in _READERS:
        if name in ("home", "models", "backends", "registries"):
            continue
        # Docker Model Runner's own names are accepted; ours take precedence.
        for variable in (f"GREENROOM_{name.upper()}", f"MODEL_RUNNER_{name.upper()}"):
            if variable.startswith("MODEL_RUNNER_") and name not in ("host", "port"):
                continue
            text = variables.get(variable, "").strip().strip("\"'")
            if text:
                found.append((name, text, f"environment {variable}"))
                break
    return found


def _bounded(text: str) -> str:
    """An error as one bounded line: it may quote a value of any length."""
    text = visible(text)
    return text if len(text) <= _SAID else f"{text[: _SAID // 2]} … {text[-_SAID // 2 :]}"


def _path(raw: Any) -> Path:
    if not isinstance(raw, str | os.PathLike):
        raise TypeError(f"{raw!r} is not a path")
    text = str(raw).strip()
    if "\0" in text:
        raise ValueError("a path must not contain NUL")
    if not text:
        raise ValueError("a path must not be empty")
    return expanded(text).absolute()


def _absolute_path(raw: Any) -> Path:
    path = expanded(_text(raw))
    if not path.is_absolute():
        raise ValueError(f"{raw!r} is not an absolute path")
    return path


def _address(raw: Any) -> str:
    text = _text(raw).strip("[]")
    if not text or "/" in text or any(letter.isspace() for letter in text):
        raise ValueError(f"{raw!r} is not an address to listen on; write 127.0.0.1")
    return text


def _port(raw: Any) -> int:
    port = _whole(raw)
    if port > 65535:
        raise ValueError(f"{port} is not a port; the highest is 65535")
    return port


def _url(raw: Any) -> str:
    text = _text(raw)
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
        text = _text(raw).lower()
        if text not in words:
            raise ValueError(f"{raw!r} is not one of {', '.join(words)}")
        return text

    return read


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"{raw!r} must be text")
    if len(raw) > _LONGEST or visible(raw) != raw:
        raise ValueError(f"{raw!r} must be one line of at most {_LONGEST} printable characters")
    return raw.strip()


def _whole(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (int, str)) or not str(raw).strip().isdigit():
        raise ValueError(f"{raw!r} is not a whole number")
    # Python refuses to read very long ones; this says so in a sentence.
    if len(str(raw).strip()) > len(str(_MOST)) or int(raw) > _MOST:
        raise ValueError(f"that is too large; the limit is {_MOST}")
    return int(raw)


def _names(raw: Any) -> tuple[str, ...]:
    words = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(words, (list, tuple)):
        raise TypeError(f"{raw!r} must be a list of names")
    return tuple(name for name in (_text(word) for word in words) if name)


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
    slots = _whole(raw)
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


def _yes_or_no(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise TypeError(f"{raw!r} must be true or false")
    return raw


def _switch(raw: Any) -> bool:
    """Yes or no, from a file or as text."""
    if isinstance(raw, str) and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    return _yes_or_no(raw)


def _indexes(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise TypeError("indexes must be a list of package index URLs")
    for one in raw:
        if urlsplit(_text(one)).scheme not in ("http", "https", "file"):
            raise ValueError(f"{one!r} is not a package index URL; write https://host/path")
    return tuple(raw)


_BACKEND_KEYS: Mapping[str, Callable[[Any], Any]] = {
    "binary": _absolute_path,
    "python": _absolute_path,
    "image": _text,
    "gpu": _yes_or_no,
    "indexes": _indexes,
    "variant": _text,
}


def _backends(raw: Any) -> Mapping[str, ExternalBackend]:
    known = set(_BACKEND_KEYS)
    found = {}
    for name, table in _table(raw, "[backends]").items():
        entries = _table(table, f'[backends."{name}"]')
        strange = [key for key in entries if key not in known]
        if strange:
            raise ValueError(
                f'[backends."{name}"] has no key {strange[0]!r}, only {", ".join(sorted(known))}'
            )
        values: dict[str, Any] = {key: _BACKEND_KEYS[key](value) for key, value in entries.items()}
        found[name] = ExternalBackend(**values)
    return found


def _registries(raw: Any) -> Mapping[str, RegistrySettings]:
    found = {}
    for name, table in _table(raw, "[registries]").items():
        entries = dict(_table(table, f'[registries."{name}"]'))
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
            parts = urlsplit(mirror if "://" in _text(mirror) else f"//{mirror}")
            if (
                parts.scheme not in ("", "http", "https")
                or not parts.hostname
                or parts.username
                or parts.query
            ):
                raise ValueError(f"{mirror!r} is not a mirror; write host:port or https://host/path")
        found[name] = RegistrySettings(mirrors=tuple(mirrors), insecure=insecure)
    return found


def _table(raw: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise TypeError(f"{name} must be a table")
    return raw


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "home": _path,
    "host": _url,
    "instance": _text,
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
    "record_rows": _whole,
    "queue_limit": _whole,
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
    "models": lambda raw: _table(raw, "[models]"),
    "backends": _backends,
    "registries": _registries,
}
"""The reader of each setting, from any source, in display order."""

NAMES = tuple(_READERS)
