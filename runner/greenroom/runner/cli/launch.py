"""Starts the daemon in the background when a command needs it and it does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Client, Gone, Refused
from greenroom.runner.cli.identity import (
    Daemon,
    InsideAnother,
    Unresponsive,
    find,
    is_on_this_machine,
    not_running,
    note,
)
from greenroom.runner.cli.problem import Problem
from greenroom.runner.config import Settings
from greenroom.runner.home import HomeUnusable, prepare_home

_START_SECONDS = 150.0
"""More than the daemon's own bound for its first look at disk and processes."""
_SAY_AFTER = 10.0
_READY_SECONDS = 30.0
_PORT_PATIENCE = 3.0
_LOOK_EVERY = 0.03
_TRY_AGAIN_EVERY = 1.0
_LOG_LINES = 15


def ensure_daemon(settings: Settings, say: Callable[[str], None]) -> Client:
    """A client of the daemon, which is started if it does not run.

    Args:
        settings: which daemon.
        say: told once when it has to be started.

    Raises:
        Problem: somebody else is at its address, or it could not be started.
    """
    try:
        daemon = find(settings)
    except Unresponsive as silent:
        if silent.holder.is_stopped:
            raise
        say(f"Waiting for the Greenroom daemon (process {silent.holder.pid}), which does not answer yet…")
        daemon = await_answer(settings)
    if daemon is None:
        if settings.host and not is_on_this_machine(settings.host):
            raise not_running(settings)
        say("Starting the Greenroom daemon…")
        daemon = _start(settings, say)
    client = daemon.client()
    _wait_until_ready(client)
    return client


def log_of(home: Path) -> Path:
    """The daemon's log."""
    return home / "daemon.log"


def unusable(error: HomeUnusable) -> Problem:
    """What to tell somebody whose data directory cannot be used."""
    return Problem(error.sentence, error.advice, code=exit_codes.NOT_RUNNING)


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
        raise unusable(HomeUnusable(error, settings.home)) from error
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
            except Problem as problem:
                # So does another program, for a moment, after it has stopped the Greenroom inside it.
                if isinstance(problem, InsideAnother) and time.monotonic() - began_at > _PORT_PATIENCE:
                    raise
            if not has_said and time.monotonic() - began_at > _SAY_AFTER:
                has_said = True
                say("It is checking what is installed and running; on a slow disk that can take minutes…")
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
            raise Problem(
                f"The Greenroom daemon (pid {process.pid}) was started but does not answer after "
                f"{_START_SECONDS:g} seconds; it was stopped again.",
                f"Its log: {log_of(settings.home)}",
                code=exit_codes.NOT_RUNNING,
                detail=_log_since(settings.home, began),
            )
    pid = note(settings.home).get("pid")
    raise Problem(
        f"Another daemon{f' (pid {pid})' if pid else ''} holds {settings.home} but does not answer.",
        f"Stop it{f': kill {pid}' if pid else ''}, then try again. Its log: {log_of(settings.home)}",
        code=exit_codes.ALREADY_RUNNING,
    )


def _spawn(settings: Settings, output: int) -> subprocess.Popen[bytes]:
    """`greenroom serve`, detached; it writes its own log, and its last words go to the same file."""
    arguments = ["--home", str(settings.home)]
    flags = {"bind": settings.bind, "port": settings.port}
    if settings.host:
        # The user named a loopback address: that is where the daemon has to be.
        name, _, port = settings.host.split("://", 1)[1].split("/")[0].rpartition(":")
        flags |= {"bind": "127.0.0.1" if name == "localhost" else name.strip("[]"), "port": int(port)}
    given = [name for name in flags if settings.host or settings.origin(name).startswith("flag")]
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


def _wait_until_ready(client: Client) -> None:
    """The actors look around for a moment after a start. Whoever asks later anyway is told what is wrong."""
    give_up = time.monotonic() + _READY_SECONDS
    while time.monotonic() < give_up:
        try:
            client.get("/readyz")
        except Refused as refused:
            if refused.status != 503:
                return
        except Gone:
            return
        else:
            return
        time.sleep(_LOOK_EVERY)  # waiting on another process, bounded


def _failed(settings: Settings, code: int, began: int) -> Problem:
    said = _log_since(settings.home, began)
    reason = next((line for line in reversed(said.splitlines()) if line.startswith("Error: ")), "")
    reason = reason.removeprefix("Error: ").strip()
    known = (exit_codes.PORT_TAKEN, exit_codes.JOURNAL, exit_codes.USAGE)
    return Problem(
        f"The Greenroom daemon could not be started: {reason or f'it ended with code {code}.'}",
        f"Its log: {log_of(settings.home)}",
        code=code if code in known else exit_codes.NOT_RUNNING,
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
