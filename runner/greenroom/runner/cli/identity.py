"""Who answers at an address: our daemon, another Greenroom, a stranger, or nobody.

A daemon proves that it is ours by the secret of this data directory, which it never says. An address on
another machine that the user named cannot have it; there, any Greenroom is believed. A daemon of somebody
else on this machine is believed when the user names its instance.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Client
from greenroom.runner.cli.exchange import BrokenOff, Exchange, NobodyThere, NotHttp
from greenroom.runner.cli.problem import Problem
from greenroom.runner.config import Settings
from greenroom.runner.daemon_lock import Holder, holder_of
from greenroom.runner.proof import CHALLENGE, is_proof, make_challenge, read_secret

_PATIENCE = 3.0
"""Seconds for a probe. A daemon answers `/livez` within milliseconds, whatever its actors do."""

_LIVEZ_LIMIT = 65_536

_LOOPBACK = ("localhost", "::1")


@dataclass(frozen=True)
class Daemon:
    """A Greenroom daemon that answers."""

    url: str
    instance_id: str
    pid: int
    version: str
    home: str
    secret: bytes = field(default=b"", repr=False)
    """The secret of our data directory, if the daemon has proved to know it."""

    def client(self) -> Client:
        """Talks to this daemon, and to nobody who has taken its place."""
        return Client(self.url, self.secret)


@dataclass(frozen=True)
class Stranger:
    """Something else answers."""

    url: str
    description: str
    silent: bool = False
    """True for one that has accepted the connection and says nothing, as a daemon does while it starts."""


class Unresponsive(Problem):
    """Our daemon is there and says nothing: it has only just been started, or it is stuck."""

    def __init__(self, holder: Holder) -> None:
        pid = holder.pid
        if holder.is_stopped:
            said = f"The Greenroom daemon (process {pid}) is stopped, by SIGSTOP, Ctrl-Z or a debugger."
            advice = f"Resume it: kill -CONT {pid}"
        else:
            said = (
                f"The Greenroom daemon (process {pid}) does not answer: it is starting, stopping, or stuck."
            )
            advice = f"See its last lines: greenroom logs. Kill it: kill -9 {pid}"
        super().__init__(said, advice, code=exit_codes.NOT_RUNNING)
        self.holder = holder


class InsideAnother(Problem):
    """The data directory is in use by a program that has Greenroom inside it and listens nowhere we know."""

    def __init__(self, settings: Settings, holder: Holder) -> None:
        super().__init__(
            f"The data directory {settings.home} is in use by another program that embeds Greenroom: "
            f"{holder}. It does not listen for commands at {settings.url}.",
            "Stop that program, or choose another data directory with GREENROOM_HOME.",
            code=exit_codes.ALREADY_RUNNING,
        )


class Unproven(Problem):
    """Somebody says that it serves our data directory, and does not know the secret in it."""

    def __init__(self, settings: Settings, daemon: Daemon) -> None:
        self.daemon = daemon
        self.is_own_process = is_own_listener(daemon.pid, daemon.url)
        """Whether a process of this user listens there, as the system says: then it may be stopped."""
        where, home = urlsplit(daemon.url).netloc, settings.home
        if not self.is_own_process:
            super().__init__(
                f"A Greenroom daemon answers at {where} but does not prove that it is the one of {home}; "
                "nothing was sent to it.",
                f"If you trust it, set GREENROOM_INSTANCE={daemon.instance_id}; otherwise give this data "
                "directory a port of its own: GREENROOM_PORT=12401.",
                code=exit_codes.PORT_TAKEN,
            )
        elif not (home / "daemon.lock").exists():
            super().__init__(
                f"The data directory {home} is gone: it was removed or unmounted while its daemon (process "
                f"{daemon.pid} at {where}) was running, which can store nothing any more.",
                "Put it back, or stop that daemon: greenroom stop",
                code=exit_codes.NOT_RUNNING,
            )
        else:
            super().__init__(
                f"A Greenroom daemon (process {daemon.pid}, version {daemon.version}) answers at {where} "
                f"but does not prove that it is the one of {home}: the directory was replaced, or the "
                "daemon is of an older version.",
                "Stop it: greenroom stop",
                code=exit_codes.PORT_TAKEN,
            )


def probe(url: str, secret: bytes = b"", *, patience: float = _PATIENCE) -> Daemon | Stranger | None:
    """Who answers at this address; None when nobody does. Daemons are asked to prove the secret."""
    challenge = make_challenge()
    headers = {"Accept": "application/json", CHALLENGE: challenge}
    try:
        exchange = Exchange(url, "GET", "/livez", headers=headers, timeout=patience)
        with contextlib.closing(exchange):
            peer = exchange.peer
            content = exchange.read(_LIVEZ_LIMIT)
    except NobodyThere:
        return None
    except TimeoutError:
        return Stranger(url, "something that accepts connections and does not answer them", silent=True)
    except NotHttp:
        return Stranger(url, "a program that does not speak HTTP")
    except (BrokenOff, OSError) as error:
        # A daemon that is just ending does this too, but not for long.
        return Stranger(url, f"something that closes connections without an answer ({error})")
    found = _daemon(url, content, lambda proof: secret if is_proof(proof, secret, challenge, peer) else b"")
    return found or Stranger(url, _describe(exchange, content))


def find(settings: Settings, *, patience: float = _PATIENCE) -> Daemon | None:
    """The daemon these settings mean, wherever it listens; None when it does not run.

    Raises:
        Unresponsive: it has the address, or the data directory, and does not answer.
        InsideAnother: the data directory is another program's.
        Problem: somebody else answers at its address.
    """
    addresses = [settings.url]
    if not settings.host and (noted := noted_url(settings.home)) is not None and noted not in addresses:
        # It was started with another port; the note in the data directory knows.
        addresses.insert(0, noted)
    found, secret = None, read_secret(settings.home)
    for url in addresses:
        found = probe(url, secret, patience=patience)
        if isinstance(found, Daemon) and is_ours(settings, found):
            return found
    if found is not None and not (isinstance(found, Stranger) and found.silent):
        raise taken(settings, found)
    holder = None if settings.host else holder_of(settings.home)
    if holder is not None:
        raise Unresponsive(holder) if holder.is_daemon else InsideAnother(settings, holder)
    if found is not None:
        raise taken(settings, found)
    return None


def is_ours(settings: Settings, daemon: Daemon) -> bool:
    """Whether a daemon proves to be the one these settings mean."""
    if settings.instance:
        return daemon.instance_id == settings.instance
    if settings.host and not is_on_this_machine(settings.host):
        return True
    return bool(daemon.secret)


def is_on_this_machine(url: str) -> bool:
    """Whether an address is a loopback one."""
    host = urlsplit(url).hostname or ""
    return host in _LOOPBACK or host.startswith("127.")


def noted_url(home: Path) -> str | None:
    """Where the daemon of a data directory says it listens; stale when it was killed."""
    url = note(home).get("url")
    return url.rstrip("/") if isinstance(url, str) and urlsplit(url).hostname else None


def note(home: Path) -> dict[str, Any]:
    """What the daemon of a data directory has written down about itself; empty when it has not."""
    try:
        fields = json.loads((home / "daemon.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def taken(settings: Settings, found: Daemon | Stranger) -> Problem:
    """What to tell somebody whose address is somebody else's."""
    where = urlsplit(found.url).netloc
    if isinstance(found, Daemon) and found.home == str(settings.home) and not settings.instance:
        return Unproven(settings, found)
    if isinstance(found, Daemon):
        advice = f"Use it with GREENROOM_HOME={found.home}" if found.home else f"Set {_wanted(found)}"
        if settings.host:
            advice += (
                f" or GREENROOM_INSTANCE={found.instance_id}, or set GREENROOM_HOST to the right address."
            )
        else:
            advice += ", or give this data directory a port of its own: GREENROOM_PORT=12401."
        return Problem(
            f"The Greenroom daemon at {where} is that of another data directory "
            f"({found.home or 'unknown'}, pid {found.pid}), not of {settings.home}.",
            advice,
            code=exit_codes.PORT_TAKEN,
        )
    holder = listener_at(found.url)
    return Problem(
        f"Not Greenroom but {found.description} answers at {where}{f' ({holder})' if holder else ''}.",
        "Set GREENROOM_HOST to the right address."
        if settings.host
        else "Stop it, or give Greenroom another port: GREENROOM_PORT=12401.",
        code=exit_codes.PORT_TAKEN,
    )


def is_own_listener(pid: int, url: str) -> bool:
    """Whether a process is of this user and listens at a local address, as the system says."""
    if not is_on_this_machine(url):
        return False
    import psutil

    port = urlsplit(url).port
    try:
        process = psutil.Process(pid)
        return process.uids().real == os.getuid() and any(
            one.status == psutil.CONN_LISTEN and tuple(one.laddr)[1:2] == (port,)
            for one in process.net_connections("tcp")
        )
    except (psutil.Error, OSError):
        return False


def listener_at(url: str) -> str:
    """Name and pid of the process that listens at a local address; empty when the system does not say."""
    if not is_on_this_machine(url):
        return ""
    import psutil

    port = urlsplit(url).port
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and tuple(connection.laddr)[1:2] == (port,)
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    except (psutil.Error, OSError):
        # macOS tells root only.
        return ""
    return ""


def client_for(settings: Settings) -> Client:
    """A client of the daemon these settings mean. Raises Problem when there is none."""
    daemon = find(settings)
    if daemon is None:
        raise not_running(settings)
    return daemon.client()


def not_running(settings: Settings) -> Problem:
    """What to tell somebody whose daemon does not run."""
    if settings.host:
        return Problem(
            f"No Greenroom daemon answers at {settings.host}.",
            "Start it there, or unset GREENROOM_HOST to use one on this machine.",
            code=exit_codes.NOT_RUNNING,
        )
    return Problem(
        f"Greenroom is not running (nothing answers at {settings.url}).",
        "Start it: greenroom serve, or let greenroom run start it.",
        code=exit_codes.NOT_RUNNING,
    )


def _wanted(found: Daemon) -> str:
    return f"GREENROOM_INSTANCE={found.instance_id}"


def _daemon(url: str, content: bytes, known: Callable[[object], bytes]) -> Daemon | None:
    """The daemon that says so; `known` gives the secret that its proof shows it to know."""
    try:
        fields = json.loads(content)
        return Daemon(
            url=url,
            instance_id=str(fields["instance_id"]),
            pid=int(fields["pid"]),
            version=str(fields["version"]),
            home=str(fields.get("home", "")),
            secret=known(fields.get("proof")),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _describe(exchange: Exchange, content: bytes) -> str:
    server = exchange.headers.get("server", "")
    text = " ".join(content.decode("utf-8", "replace").split())
    if "<" in text or not text.isprintable():
        text = ""
    parts = [f"calling itself {server[:60]!r}"] if server else []
    parts.append(f"saying {text[:60]!r}" if text else f"with status {exchange.status}")
    return f"a web server {', '.join(parts)}"
