"""`greenroom serve`: the daemon."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greenroom.actors.journal.port import (
    EventChanged,
    JournalBusy,
    JournalDamaged,
    JournalError,
    JournalTooNew,
    NotAJournal,
)
from greenroom.runner import exit_codes
from greenroom.runner.cli.daemon_logging import DaemonLogging
from greenroom.runner.cli.first_process import as_first_process
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import Daemon, is_ours, log_of, probe, taken, unusable
from greenroom.runner.client.errors import GreenroomError
from greenroom.runner.config import Settings
from greenroom.runner.errors import JobFailed
from greenroom.runner.home import HomeUnusable, prepare_home
from greenroom.runner.proof import read_secret
from greenroom.runner.setting_values import INSTALL_POLICIES, LOG_LEVELS

if TYPE_CHECKING:
    from greenroom.runner.http.server import PortTaken


@click.command("serve")
@click.option("--bind", metavar="ADDRESS", help="Listen on this address (127.0.0.1).")
@click.option("--port", metavar="PORT", help="Listen on this port (12400; 0 takes a free one).")
@click.option(
    "--install-policy", type=click.Choice(INSTALL_POLICIES), help="Whether requests may install backends."
)
@click.option(
    "--keep-alive", metavar="DURATION", help="How long models stay loaded after their last request (5m)."
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="The log level (info).")
@click.option(
    "--uds",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Listen on this unix socket too; only its owner may use it.",
)
@click.option("--detached", is_flag=True, hidden=True, help="Log to daemon.log alone.")
@click.pass_context
def serve_command(ctx: click.Context, /, detached: bool, uds: Path | None, **flags: str | None) -> None:
    """Run the daemon in the foreground until Ctrl-C or `greenroom stop`. It logs here and to daemon.log.

    A second Ctrl-C stops it at once.
    """
    settings = settings_of(ctx, strict=True, **flags)
    as_first_process()
    os.umask(0o077)  # whatever the daemon, its engines and its builds write is its owner's
    if detached:
        # It has left its terminal; one that is closed elsewhere is none of its business.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        prepare_home(settings.home)
    except HomeUnusable as error:
        raise unusable(HomeUnusable(error, settings.home, settings.origin("home"))) from error
    log = DaemonLogging(log_of(settings.home), terminal=not detached)
    logging.getLogger("greenroom").setLevel(settings.log_level.upper())
    try:
        _serve(settings, detached, uds)
    finally:
        log.close()


def _serve(settings: Settings, detached: bool, uds: Path | None) -> None:
    from greenroom.runner.daemon import Greenroom
    from greenroom.runner.http.server import BadBind, HomeLocked, PortTaken, SystemStopped, run
    from greenroom.runner.http.unix_socket import SocketUnusable
    from greenroom.runner.models.short_names import BadCatalogue

    def opened(url: str) -> None:
        if not detached:
            also = "" if uds is None else f" and {uds}"
            click.echo(
                f"Greenroom listens on {url}{also} (data directory {settings.home}). Ctrl-C stops it.",
                err=True,
            )

    try:
        run(Greenroom(settings), opened=opened, uds=uds)
    except HomeLocked as error:
        raise Problem(str(error), code=exit_codes.ALREADY_RUNNING) from error
    except PortTaken as error:
        raise _port_taken(settings, error) from error
    except (BadBind, SocketUnusable) as error:
        raise Problem(str(error), code=exit_codes.USAGE) from error
    except BadCatalogue as error:
        raise Problem(f"{settings.config_file}: {error}", code=exit_codes.USAGE) from error
    except JournalError as error:
        raise _journal(error) from error
    except SystemStopped as error:
        raise Problem(
            f"Greenroom stopped because of an error: {error}.",
            "No stored data is lost. Fix the cause, then start it again: greenroom serve",
        ) from error
    except JobFailed as error:
        raise Problem(str(error), code=exit_codes.NOT_RUNNING) from error
    except OSError as error:
        raise unusable(HomeUnusable(error, settings.home, settings.origin("home"))) from error


def _port_taken(settings: Settings, error: PortTaken) -> GreenroomError:
    """Name the process that has the port, where the system says."""
    at = settings.changed("here", host="").url
    found = probe(at, read_secret(settings.home))
    if found is None:
        return Problem(str(error), code=exit_codes.PORT_TAKEN)
    if not isinstance(found, Daemon) or not is_ours(settings, found):
        return taken(settings.changed("here", host=""), found)
    return Problem(
        f"Greenroom is already running as process {found.pid} at {found.url}.",
        "Stop it first: greenroom stop",
        code=exit_codes.ALREADY_RUNNING,
    )


def _journal(error: JournalError) -> Problem:
    text = str(error)
    text = text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
    if isinstance(error, JournalBusy):
        return Problem(text, code=exit_codes.ALREADY_RUNNING)
    if isinstance(error, JournalDamaged):
        return Problem(
            text,
            "To read what is left: greenroom log. To set it aside: greenroom journal set-aside (--keep keeps "
            "the good events); backends and models are found again on disk.",
            code=exit_codes.JOURNAL,
        )
    if isinstance(error, JournalTooNew):
        advice = "Use the version that wrote it, or put the journal away: greenroom journal set-aside."
        return Problem(text, advice, code=exit_codes.JOURNAL)
    if isinstance(error, EventChanged | NotAJournal):
        return Problem(text, code=exit_codes.JOURNAL)
    return Problem(text, code=exit_codes.NOT_RUNNING)
