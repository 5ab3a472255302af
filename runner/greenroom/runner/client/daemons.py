"""Finds the daemon of a data directory, proves that it is ours, and starts it when it does not run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from greenroom.runner import exit_codes
from greenroom.runner.client.errors import NotAvailable, RequestRefused, Unreachable
from greenroom.runner.client.http_client import DaemonRequest, HttpClient, NobodyThere, NotTrusted
from greenroom.runner.client.wire import BrokenOff, NotHttp
from greenroom.runner.config import Settings
from greenroom.runner.daemon_lock import DaemonHolder, holder_of
from greenroom.runner.home import HomeUnusable, prepare_home
from greenroom.runner.proof import CHALLENGE, is_proof, make_challenge, read_secret

if TYPE_CHECKING:
    import subprocess

_PATIENCE = 3.0
"""Seconds for a probe. A daemon answers `/livez` within milliseconds, whatever its actors do."""

_NOT_TRUSTED = (
    "Trust its certificate with SSL_CERT_FILE=FILE, or write http:// instead of https:// if it has none."
)
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

    def client(self) -> HttpClient:
        """Sends nothing to another program that has taken its address."""
        return HttpClient(self.url, self.secret)


@dataclass(frozen=True)
class Stranger:
    """Something else answers."""

    url: str
    description: str
    advice: str = ""
    """What to do, where that is known."""
    silent: bool = False
    """True for one that has accepted the connection and says nothing, as a daemon does while it starts."""


class Unresponsive(NotAvailable):
    """Our daemon is there and says nothing: it has only just been started, or it is stuck."""

    def __init__(self, holder: DaemonHolder) -> None:
        pid = holder.pid
        if holder.is_stopped:
            said = f"The Greenroom daemon (process {pid}) is suspended, by SIGSTOP, Ctrl-Z or a debugger."
            advice = f"Resume it: kill -CONT {pid}"
        else:
            said = (
                f"The Greenroom daemon (process {pid}) does not answer: it is starting, stopping, or stuck."
            )
            advice = f"See its log: greenroom logs. Kill it: kill -9 {pid}"
        super().__init__(said, advice, code="not_answering")
        self.holder = holder


class InsideAnother(NotAvailable):
    """The data directory is in use by a program that has Greenroom inside it and listens nowhere we know."""

    def __init__(self, settings: Settings, holder: DaemonHolder) -> None:
        if holder.pid == os.getpid():
            super().__init__(
                f"The data directory {settings.home} is open in this very process, by Greenroom.open or "
                "greenroom.runner.Greenroom, and no daemon can use it meanwhile.",
                "Use that Greenroom, or close it first.",
                code="home_in_use",
                kind="conflict",
            )
            return
        at = f" at {settings.url}" if settings.port else ""
        super().__init__(
            f"The data directory {settings.home} is in use by another program that embeds Greenroom: "
            f"{holder}. It does not accept commands{at}.",
            "Stop that program, or choose another data directory with GREENROOM_HOME.",
            code="home_in_use",
            kind="conflict",
        )


class Unproven(NotAvailable):
    """A daemon claims to serve our data directory but does not know its secret."""

    def __init__(self, settings: Settings, daemon: Daemon) -> None:
        self.daemon = daemon
        self.is_own_process = is_own_listener(daemon.pid, daemon.url)
        """Whether a process of this user listens there, as the system says: then it may be stopped."""
        where, home = urlsplit(daemon.url).netloc, settings.home
        if not self.is_own_process:
            super().__init__(
                f"A Greenroom daemon answers at {where} but cannot prove that it uses {home}; "
                "nothing was sent to it.",
                f"If you trust it, set GREENROOM_INSTANCE={daemon.instance_id}; otherwise use another port "
                "for this data directory: GREENROOM_PORT=12401.",
                code="address_taken",
                kind="conflict",
            )
        elif not (home / "daemon.lock").exists():
            super().__init__(
                f"The data directory {home} is gone: it was removed or unmounted while its daemon (process "
                f"{daemon.pid} at {where}) was running, which can no longer store anything.",
                "Restore it, or stop that daemon: greenroom stop",
                code="home_unusable",
            )
        else:
            super().__init__(
                f"A Greenroom daemon (process {daemon.pid}, version {daemon.version}) answers at {where} "
                f"but cannot prove that it uses {home}: the directory was replaced, or the daemon "
                "is an older version.",
                "Stop it: greenroom stop",
                code="address_taken",
                kind="conflict",
            )


def probe(url: str, secret: bytes = b"", *, patience: float = _PATIENCE) -> Daemon | Stranger | None:
    """What answers at this address; None when nothing does. A daemon must prove that it knows the secret."""
    challenge = make_challenge()
    headers = {"Accept": "application/json", CHALLENGE: challenge}
    try:
        exchange = DaemonRequest(url, "GET", "/livez", headers=headers, timeout=patience)
        with contextlib.closing(exchange):
            peer = exchange.peer
            content = exchange.read(_LIVEZ_LIMIT)
    except NobodyThere:
        return None
    except TimeoutError:
        return Stranger(url, "a program that accepts connections but sends nothing", silent=True)
    except NotTrusted as error:
        return Stranger(url, str(error), advice=_NOT_TRUSTED)
    except NotHttp:
        return Stranger(url, "a program that does not speak HTTP")
    except (BrokenOff, OSError) as error:
        # A daemon that is just ending does this too, but not for long.
        return Stranger(url, f"a program that closes connections without answering ({error})")
    found = _daemon(url, content, lambda proof: secret if is_proof(proof, secret, challenge, peer) else b"")
    return found or Stranger(url, _describe(exchange, content))


def find(settings: Settings, *, patience: float = _PATIENCE) -> Daemon | None:
    """The daemon these settings mean, wherever it listens; None when it does not run.

    Raises:
        Unresponsive: it has the address, or the data directory, and does not answer.
        InsideAnother: the data directory is another program's.
        NotAvailable: another program answers at its address.
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
    # Who holds the data directory is the one that is meant; what answers at the usual port is another.
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


def taken(settings: Settings, found: Daemon | Stranger) -> NotAvailable:
    """The daemon's address belongs to another program."""
    where = urlsplit(found.url).netloc
    if isinstance(found, Daemon) and found.home == str(settings.home) and not settings.instance:
        return Unproven(settings, found)
    if isinstance(found, Daemon):
        instance = f"Set GREENROOM_INSTANCE={found.instance_id}"
        advice = f"Use it with GREENROOM_HOME={found.home}" if found.home else instance
        if settings.host:
            advice += f" or GREENROOM_INSTANCE={found.instance_id}. Otherwise: {_right_address(settings)}"
        else:
            advice += ", or use another port for this data directory: GREENROOM_PORT=12401."
        return NotAvailable(
            f"The Greenroom daemon at {where} (process {found.pid}) uses another data directory: "
            f"{found.home or 'unknown'}, not {settings.home}.",
            advice,
            code="address_taken",
            kind="conflict",
        )
    if found.advice:
        said = f"{found.url} is answered by {found.description}."
        return NotAvailable(said, found.advice, code="address_taken", kind="conflict")
    holder = listener_at(found.url)
    return NotAvailable(
        f"{'' if settings.host else 'Port in use: '}{found.description} answers at {where} instead of "
        f"Greenroom{f' ({holder})' if holder else ''}.",
        _right_address(settings)
        if settings.host
        else "Stop it, or use another port for Greenroom: GREENROOM_PORT=12401.",
        code="address_taken",
        kind="conflict",
    )


def _right_address(settings: Settings) -> str:
    """What to do about an address without a daemon."""
    kind, _, name = settings.origin("host").partition(" ")
    if kind == "argument":
        return "Give connect the right address, or the data directory of a daemon on this machine."
    if kind == "flag":
        return "Give --host the right address, or leave it out to use a daemon on this machine."
    return f"Set {name} to the right address, or unset it to use a daemon on this machine."


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
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except (psutil.Error, OSError):
        # macOS tells root only.
        return ""
    return ""


def client_for(settings: Settings) -> HttpClient:
    """A client of the daemon these settings mean. Raises NotAvailable when there is none."""
    daemon = find(settings)
    if daemon is None:
        raise not_running(settings)
    return daemon.client()


def not_running(settings: Settings) -> NotAvailable:
    """The daemon is not running."""
    if settings.host:
        return NotAvailable(
            f"No Greenroom daemon answers at {settings.host}.",
            f"Start it there. Otherwise: {_right_address(settings)}",
            code="not_running",
        )
    if not settings.port:  # the system would choose one
        return NotAvailable(
            f"No Greenroom daemon runs on {settings.home}.",
            f"Start it: greenroom --home {settings.home} serve",
            code="not_running",
        )
    return NotAvailable(
        f"Greenroom is not running (nothing answers at {settings.url}).",
        "Start it: greenroom serve. `greenroom run` starts it automatically.",
        code="not_running",
    )


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


def _describe(exchange: DaemonRequest, content: bytes) -> str:
    server = exchange.headers.get("server", "")
    text = " ".join(content.decode("utf-8", "replace").split())
    if "<" in text or not text.isprintable():
        text = ""
    parts = [f"calling itself {server[:60]!r}"] if server else []
    parts.append(f"saying {text[:60]!r}" if text else f"with status {exchange.status}")
    return f"a web server {', '.join(parts)}"


_START_SECONDS = 150.0
"""More than the daemon's own bound for its first look at disk and processes."""
_SAY_AFTER = 10.0
_READY_SECONDS = 30.0
_PORT_PATIENCE = 3.0
_LOOK_EVERY = 0.03
_TRY_AGAIN_EVERY = 1.0
_LOG_LINES = 15


def ensure_daemon(settings: Settings, say: Callable[[str], None]) -> HttpClient:
    """A client of the daemon, which is started if it does not run.

    Args:
        settings: which daemon.
        say: called once if it has to be started.

    Raises:
        NotAvailable: another program has its address, or it could not be started.
    """
    try:
        daemon = find(settings)
    except Unresponsive as silent:
        if silent.holder.is_stopped:
            raise
        say(f"Waiting for the Greenroom daemon (process {silent.holder.pid}), which is not answering yet…")
        daemon = await_answer(settings)
    if daemon is None:
        if settings.host and (not is_on_this_machine(settings.host) or settings.host.startswith("https:")):
            raise not_running(settings)
        settings.require()
        say("Starting the Greenroom daemon…")
        daemon = _start(settings, say)
    client = daemon.client()
    _wait_until_ready(client)
    return client


def log_of(home: Path) -> Path:
    return home / "daemon.log"


def unusable(error: HomeUnusable) -> NotAvailable:
    """The data directory cannot be used."""
    return NotAvailable(error.sentence, error.advice, code="home_unusable")


def await_answer(settings: Settings) -> Daemon | None:
    """Another client has just started it, perhaps; it answers soon, it ends, or it is stuck."""
    give_up = time.monotonic() + _START_SECONDS
    while True:
        try:
            return find(settings)
        except Unresponsive as silent:
            if silent.holder.is_stopped or time.monotonic() > give_up:
                raise
        time.sleep(_LOOK_EVERY)  # waiting on another process, bounded


def _start(settings: Settings, say: Callable[[str], None]) -> Daemon:
    """Start it and wait until it answers. Of several clients that do this at once, one daemon wins."""
    try:
        prepare_home(settings.home)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        log = os.fdopen(os.open(log_of(settings.home), flags, 0o600), "ab")
    except OSError as error:
        raise unusable(HomeUnusable(error, settings.home, settings.origin("home"))) from error
    with log:
        began = log.tell()
        process = _spawn(settings, log.fileno())
        tried = began_at = time.monotonic()
        give_up, has_said = tried + _START_SECONDS, False
        while time.monotonic() < give_up:
            code = process.poll()
            # It closes connections for a moment while it stops: a stranger is only one who stays.
            try:
                daemon = find(settings)
                if daemon is not None:
                    return daemon
            except NotAvailable as problem:
                # So does another program, for a moment, after it has stopped the Greenroom inside it.
                if isinstance(problem, InsideAnother) and time.monotonic() - began_at > _PORT_PATIENCE:
                    raise
            if not has_said and time.monotonic() - began_at > _SAY_AFTER:
                has_said = True
                say("It is checking installations and engines; on a slow disk this can take minutes…")
            # Of two daemons that start at once, one finds the port taken before the other answers there.
            perhaps_ours = code == exit_codes.PORT_TAKEN and time.monotonic() - tried < _PORT_PATIENCE
            if code is not None and code != exit_codes.ALREADY_RUNNING and not perhaps_ours:
                raise _failed(settings, code, began)
            if code is not None and time.monotonic() - tried > _TRY_AGAIN_EVERY:
                # Another client was quicker, or the last daemon is just stopping: it answers soon, or it
                # lets go of the data directory.
                process, tried = _spawn(settings, log.fileno()), time.monotonic()
            time.sleep(_LOOK_EVERY)  # waiting on another process, bounded
        if process.poll() is None:
            process.terminate()
            raise NotAvailable(
                f"The Greenroom daemon (process {process.pid}) started but did not answer within "
                f"{_START_SECONDS:g}s, so it was stopped.",
                f"Its log: {log_of(settings.home)}",
                code="not_started",
                detail=_log_since(settings.home, began),
            )
    pid = note(settings.home).get("pid")
    raise NotAvailable(
        f"Another daemon{f' (process {pid})' if pid else ''} uses {settings.home} but does not answer.",
        f"Stop it{f': kill {pid}' if pid else ''}, then try again. Its log: {log_of(settings.home)}",
        code="home_in_use",
        kind="conflict",
    )


def _spawn(settings: Settings, output: int) -> subprocess.Popen[bytes]:
    """`greenroom serve`, detached; it writes its own log, and its last words go to the same file."""
    import subprocess

    arguments = ["--home", str(settings.home)]
    flags = {"bind": settings.bind, "port": settings.port}
    if settings.host:
        # The user named a loopback address: that is where the daemon has to be.
        name, _, port = settings.host.split("://", 1)[1].split("/")[0].rpartition(":")
        flags |= {"bind": "127.0.0.1" if name == "localhost" else name.strip("[]"), "port": int(port)}
    given = [
        name for name in flags if settings.host or settings.origin(name).startswith(("flag", "argument"))
    ]
    serve = [word for name in given for word in (f"--{name}", str(flags[name]))]
    environment = dict(os.environ)
    if settings.config_file is not None:
        # It may have been named relative to where the user is; the daemon is elsewhere.
        environment["GREENROOM_CONFIG"] = str(settings.config_file)
    return subprocess.Popen(
        # -P: a folder called `greenroom` where the user happens to be is not to be imported.
        [sys.executable, "-P", "-m", "greenroom.runner.cli", *arguments, "serve", "--detached", *serve],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=settings.home,
        env=environment,
        start_new_session=True,
    )


def _wait_until_ready(client: HttpClient) -> None:
    """Bounded: a request to a daemon that is still not ready gets an error with the reason."""
    give_up = time.monotonic() + _READY_SECONDS
    while time.monotonic() < give_up:
        try:
            client.get("/readyz")
        except RequestRefused as refused:
            if refused.status != 503:
                return
        except Unreachable:
            return
        else:
            return
        time.sleep(_LOOK_EVERY)  # waiting on another process, bounded


def _failed(settings: Settings, code: int, began: int) -> NotAvailable:
    said = _log_since(settings.home, began)
    reason = next((line for line in reversed(said.splitlines()) if line.startswith("Error: ")), "")
    reason = reason.removeprefix("Error: ").strip()
    return NotAvailable(
        f"The Greenroom daemon could not be started: {reason or f'it exited with code {code}.'}",
        f"Its log: {log_of(settings.home)}",
        code=exit_codes.error_code_of(code),
        detail="\n".join(line for line in said.splitlines() if line != f"Error: {reason}"),
    )


def _log_since(home: Path, offset: int) -> str:
    """What the log says since a place, its last lines only."""
    try:
        with log_of(home).open("rb") as file:
            if file.seek(0, 2) >= offset:
                file.seek(offset)
            else:
                file.seek(0)  # it was rotated meanwhile
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LOG_LINES:])
