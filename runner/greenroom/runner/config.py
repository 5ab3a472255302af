"""The settings of one Greenroom, and the origin of each value.

Flags come before the environment, the environment before `<home>/config.toml` (or the file that
`GREENROOM_CONFIG` names), that file before the defaults. Nothing is read at import time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from greenroom.actors.characters import visible
from greenroom.runner.home import HomeUnusable
from greenroom.runner.remote_settings import RemoteBackend, checked
from greenroom.runner.setting_readers import read_path
from greenroom.runner.setting_values import (
    DEFAULT_PORT,
    READERS,
    BackendSettings,
    ExternalBackend,
    RegistrySettings,
)
from greenroom.runner.user_home import NO_HOME, expanded, user_home

if TYPE_CHECKING:
    from greenroom.actors.values import InstallPolicy

_SAID = 400
"""Characters of an error message about a value."""
DEFAULT_HEADROOM = 500_000_000


class BadSetting(ValueError):
    """A setting cannot be used; the text names the file or variable, the key, and a valid value."""


class ToleratedMistake(BadSetting):
    """A mistake in the config file that was tolerated, and keeps a daemon from being started."""


@dataclass(frozen=True)
class Settings:
    """The settings of one Greenroom, with their defaults. It cannot be changed, so any thread may read it.

    Sizes are in bytes, times in seconds. Made by `load`, which also reads the environment and `config.toml`,
    or directly by a program that wants neither; then values are taken as they are.
    """

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
    """`debug`, `info`, `warning` or `error`."""
    models: Mapping[str, Any] = field(default_factory=dict)
    """The user's short names and their sources, from `[models]`."""
    backends: Mapping[str, BackendSettings] = field(default_factory=dict)
    """The user's own installations, by backend, and remote backends, by name."""
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
        object.__setattr__(self, "home", read_path(self.home))
        checked(self.backends)

    @property
    def own_backends(self) -> dict[str, ExternalBackend]:
        """The user's own installations, by backend."""
        return {name: one for name, one in self.backends.items() if isinstance(one, ExternalBackend)}

    @property
    def remote_backends(self) -> dict[str, RemoteBackend]:
        """Remote backends, by name."""
        return {name: one for name, one in self.backends.items() if isinstance(one, RemoteBackend)}

    def require(self) -> None:
        """Raise ToleratedMistake if something is wrong with the file."""
        if self.problems:
            raise ToleratedMistake(self.problems[0])

    def origin(self, name: str) -> str:
        """`flag --port`, `argument port`, `environment GREENROOM_PORT`, the file's path, or `default`."""
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
    in_code: bool = False,
) -> Settings:
    """Collect the settings.

    Args:
        flags: Command-line flags by setting; None counts as absent.
        environment: Instead of the process's own.
        in_code: The flags are arguments of a function, and are called so.
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
            values[name] = READERS[name](raw)
        except (TypeError, ValueError) as error:
            where = "" if origin == f"argument {name}" else f"{origin}: "
            raise BadSetting(f"{where}{name} cannot be used: {_bounded(str(error))}.") from error
        origins[name] = origin

    home_flag = given.pop("home", None)
    if home_flag is not None:
        take("home", home_flag, "argument home" if in_code else "flag --home")
    elif variables.get("GREENROOM_HOME"):
        take("home", variables["GREENROOM_HOME"], "environment GREENROOM_HOME")
    else:
        values["home"] = _default_home()

    file = _config_file(values["home"], origins.get("home", ""), variables)
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
        if name not in READERS:
            raise BadSetting(f"There is no setting {name!r}. {_suggestion(name, list(NAMES))}")
        take(name, raw, f"argument {name}" if in_code else f"flag --{name.replace('_', '-')}")
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


def _config_file(home: Path, origin: str, variables: Mapping[str, str]) -> Path | None:
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
        raise HomeUnusable(error, home, origin) from error


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
    known = [name for name in READERS if name != "home"]
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
    for name in READERS:
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


NAMES = tuple(READERS)
