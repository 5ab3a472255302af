"""Opens the journal a command reads, and turns whatever is wrong with it into a sentence and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from greenroom.actors.journal.port import (
    EventChanged,
    JournalDamaged,
    JournalError,
    JournalTooNew,
    NotAJournal,
)
from greenroom.actors.journal.reader import JournalReader
from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem

option = click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read this journal, or that of this data directory, instead of ours.",
)


def path_of(ctx: click.Context, given: Path | None) -> Path:
    """The journal that is meant."""
    if given is None:
        return settings_of(ctx).home / "journal.db"
    return given / "journal.db" if given.is_dir() else given


@contextlib.contextmanager
def reading(path: Path, *, ours: bool = True) -> Iterator[JournalReader]:
    """A reader of the journal at `path`; what is odd about it is said on stderr.

    `ours` says that it is the one of the settings' data directory, which may not have begun yet.
    """
    try:
        with JournalReader(path) as reader:
            for notice in reader.notices:
                click.echo(f"Note: {notice}", err=True)
            yield reader
    except FileNotFoundError as error:
        if not ours:
            raise Problem(f"There is no journal at {path}.", "Name a journal.db.") from error
        raise Problem(
            f"There is no journal at {path}: nothing has happened here yet.", "Begin: greenroom run smollm2"
        ) from error
    except (JournalDamaged, JournalTooNew, EventChanged, NotAJournal) as error:
        raise Problem(_sentence(error), code=exit_codes.JOURNAL) from error
    except JournalError as error:
        raise Problem(_sentence(error)) from error
    except OSError as error:
        if error.filename is None or Path(error.filename) != path:
            raise
        raise Problem(f"The journal at {path} cannot be read: {error.strerror}.") from error


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
