"""`greenroom stop`: end the daemon, and its engines unless they shall stay."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from greenroom.runner.cli.client import Gone, Refused
from greenroom.runner.cli.identity import Daemon, Unproven, Unresponsive, find, probe
from greenroom.runner.cli.launch import await_answer
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.daemon_lock import holder_of
from greenroom.runner.units import format_duration, parse_duration

_STOP_SECONDS = 90.0
"""More than a daemon gives itself before it ends whatever hangs."""
_SAY_AFTER = 5.0
_LOOK_EVERY = 0.05
_LET_GO = 2.0
"""Seconds after which a daemon that has let go of its data directory has ended, whatever runs as its pid."""
_CONFIGURED = "configured"


@click.command("stop")
@click.option(
    "--keep-engines",
    is_flag=False,
    flag_value=_CONFIGURED,
    metavar="[DURATION]",
    help="Leave the engines running, so that the next daemon takes them over; for at most this long.",
)
@click.pass_context
def command(ctx: click.Context, keep_engines: str | None) -> None:
    """Stop the daemon in order: no new requests, engines ended, the journal closed.

    Stopping what does not run is no error.
    """
    settings = settings_of(ctx)
    seconds = None
    if keep_engines is not None:
        try:
            seconds = settings.engine_grace if keep_engines == _CONFIGURED else parse_duration(keep_engines)
        except ValueError as error:
            raise click.BadParameter(f"{error}.", param_hint="--keep-engines") from error
    try:
        daemon = find(settings)
    except Unproven as unproven:
        # Its data directory is gone, and with it the secret; but the system says that the process is ours.
        if not unproven.is_own_process:
            raise
        daemon, seconds = unproven.daemon, None
        os.kill(daemon.pid, signal.SIGTERM)
    except Unresponsive as silent:
        if silent.holder.is_stopped:
            raise
        # It is just starting, or being stopped already.
        daemon = await_answer(settings)
        if daemon is None:
            click.echo(f"The Greenroom daemon (pid {silent.holder.pid}) has stopped.")
            return
        daemon.client().post("/daemon/stop", {"keep_engines": seconds})
    else:
        if daemon is None:
            click.echo(f"Greenroom is not running (nothing answers at {settings.url}).")
            return
        daemon.client().post("/daemon/stop", {"keep_engines": seconds})
    _wait(daemon, settings.home)
    if seconds is None:
        click.echo(f"Stopped the Greenroom daemon (pid {daemon.pid}).")
    else:
        click.echo(
            f"Stopped the Greenroom daemon (pid {daemon.pid}); "
            f"its engines stay for {format_duration(seconds)}."
        )


def _wait(daemon: Daemon, home: Path) -> None:
    """Until its process has gone, or until nobody answers when it runs on another machine.

    One that runs in a container has another pid there: as that number some other process runs here.
    """
    began, has_said = time.monotonic(), False
    held_at = began
    while time.monotonic() < began + _STOP_SECONDS:
        if not _is_there(daemon):
            return
        if not daemon.secret or holder_of(home) is not None:
            held_at = time.monotonic()
        elif time.monotonic() > held_at + _LET_GO:
            return
        if not has_said and time.monotonic() > began + _SAY_AFTER:
            has_said = True
            click.echo(f"Waiting for the daemon (pid {daemon.pid}) to finish…", err=True)
        time.sleep(_LOOK_EVERY)  # waiting on another process, bounded
    raise Problem(
        f"The Greenroom daemon (pid {daemon.pid}) has been told to stop but is still there after "
        f"{_STOP_SECONDS:g} seconds.",
        f"See what it waits for: greenroom logs. Kill it: kill -9 {daemon.pid}",
    )


def _is_there(daemon: Daemon) -> bool:
    from greenroom.runner.cli.identity import is_on_this_machine

    if is_on_this_machine(daemon.url):
        return _runs(daemon.pid)
    try:
        found = probe(daemon.url)
    except (Refused, Gone):
        return False
    return isinstance(found, Daemon) and found.instance_id == daemon.instance_id and found.pid == daemon.pid


def _runs(pid: int) -> bool:
    import psutil

    try:
        # A zombie has ended; it only waits for whoever started it.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
