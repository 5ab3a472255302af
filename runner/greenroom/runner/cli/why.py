"""`greenroom why`: why a model, backend, engine or request is as it is. From the journal alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click
import msgspec

from greenroom.actors.journal.port import JournalDamaged, Record
from greenroom.runner.cli import exit_codes, journal_file
from greenroom.runner.cli.problem import Problem

_NEEDS_A_DAEMON = (
    "loaded loading installing waiting_to_retry pulling retiring ready starting stopping running".split()
)
_JOBS = "installing waiting_to_retry pulling".split()
_DOWN = "No daemon runs at the moment: this is how it was when the last one ended."
_GOES_ON = "The next one goes on with what a person asked for."


@click.command("why")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON: bytes and seconds.")
@journal_file.option
@click.pass_context
def command(ctx: click.Context, name: str, as_json: bool, journal: Path | None) -> int:
    """Say why NAME is as it is: a model, a backend, an engine, a request (`r-…`), or the daemon.

    Why it is not loaded, was unloaded, takes long, was refused or failed, runs on this backend and not on
    that one; what led to it, with the numbers that decided; and what would change it. Needs no daemon.
    """
    from greenroom.runner.diagnosis.explain import UnknownName, explain

    now = time.time()
    path = journal_file.path_of(ctx, journal)
    damage: list[JournalDamaged] = []
    with journal_file.reading(path, ours=journal is None) as reader:
        try:
            # What happened on another machine has nothing to do with what this one can run.
            known = _backends() if journal is None else {}
            found = explain(_noting(reader.read(), damage), name, now, backends=known)
        except UnknownName as error:
            if damage:
                raise damage[0] from error
            raise Problem(str(error), "" if error.near else "Try: greenroom list, ps, backends.") from error
        if journal is None and found.state in _NEEDS_A_DAEMON and not _runs(path.parent):
            then = f"{_DOWN} {_GOES_ON}" if found.state in _JOBS else _DOWN
            found = msgspec.structs.replace(found, notices=(*found.notices, then))
        click.echo(msgspec.json.encode(found).decode() if as_json else found.text(now))
    return exit_codes.JOURNAL if damage else exit_codes.OK


def _noting(records: Iterable[Record], damage: list[JournalDamaged]) -> Iterator[Record]:
    """The records; damage ends them as it should, and is remembered for the exit code."""
    try:
        yield from records
    except JournalDamaged as error:
        damage.append(error)
        raise


def _runs(home: Path) -> bool:
    """Whether a daemon holds the data directory, as far as can be told without disturbing it."""
    try:
        os.kill(int((home / "daemon.lock").read_text("utf-8")), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _backends() -> Mapping[str, str]:
    from greenroom.runner.backends.base import Platform
    from greenroom.runner.backends.catalog import BACKENDS

    here = Platform.here()
    return {name: one.on(here).verdict(here) for name, one in BACKENDS.items()}
