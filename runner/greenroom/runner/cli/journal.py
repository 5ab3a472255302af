"""`greenroom journal`, and how commands open the journal they read."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from greenroom.actors.journal.files import JournalFiles
from greenroom.actors.journal.fsync import force
from greenroom.actors.journal.port import (
    EventChanged,
    JournalBusy,
    JournalDamaged,
    JournalError,
    JournalFull,
    JournalTooNew,
    NotAJournal,
)
from greenroom.actors.journal.reader import JournalReader
from greenroom.runner import exit_codes
from greenroom.runner.cli.main import Subcommands, settings_of
from greenroom.runner.cli.output import announce, say, table, terminal_width, wrapped
from greenroom.runner.cli.problem import Problem
from greenroom.runner.diagnosis.host_actors import INSTALLED
from greenroom.runner.diagnosis.times import parse_time
from greenroom.runner.units import format_size

if TYPE_CHECKING:
    from greenroom.runner.cli.remote_journal import RemoteJournal

journal_option = click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read this journal.db, or the one in this data directory.",
)


def journal_path(ctx: click.Context, given: Path | None) -> Path:
    if given is None:
        return settings_of(ctx).home / "journal.db"
    return given / "journal.db" if given.is_dir() else given


def journal_elsewhere(ctx: click.Context, journal: Path | None) -> RemoteJournal | None:
    """The journal of the daemon that GREENROOM_HOST names.

    None where a file is meant, or where that daemon's journal is the one in this data directory. Raises
    Problem when no daemon answers.
    """
    settings = settings_of(ctx)
    if journal is not None or not settings.host:
        return None
    # Rarely needed, and not quick to import.
    from greenroom.runner.cli.remote_journal import RemoteJournal, daemon_elsewhere

    daemon = daemon_elsewhere(settings)
    return RemoteJournal(daemon) if daemon is not None else None


def time_option(name: str, text: str | None) -> float | None:
    """The wall-clock second an option means. Raises click.BadParameter."""
    if text is None:
        return None
    try:
        return parse_time(text, time.time())
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint=name) from error


@contextlib.contextmanager
def reading(path: Path, *, ours: bool = True) -> Iterator[JournalReader]:
    """A reader of the journal at `path`; what is odd about it is said on stderr.

    `ours` says that it is the one of the settings' data directory, which may not have begun yet.
    """
    try:
        with JournalReader(path, strict=False) as reader:
            for notice in reader.notices:
                click.echo(f"Note: {notice}", err=True)
            yield reader
        for problem in INSTALLED.problems:
            announce(f"Note: {problem}")
    except FileNotFoundError as error:
        if not ours:
            raise Problem(f"There is no journal at {path}.", "Name a journal.db.") from error
        if earlier := JournalFiles(path).put_aside():
            raise Problem(
                f"There is no journal at {path} yet: the last one was set aside as {earlier[-1]}.",
                f"To read it: greenroom log --journal {earlier[-1]}",
            ) from error
        raise Problem(
            f"There is no journal at {path}: no daemon has used this data directory yet.",
            "To start: greenroom run smollm2",
        ) from error
    except (JournalDamaged, JournalTooNew, EventChanged, NotAJournal) as error:
        raise Problem(_sentence(error), code=exit_codes.JOURNAL) from error
    except JournalError as error:
        raise Problem(_sentence(error)) from error
    except OSError as error:
        if error.filename is None or Path(error.filename) != path:
            raise
        raise Problem(f"The journal at {path} cannot be read: {error.strerror}.") from error


def set_aside_note(path: Path) -> None:
    """Say where the journal is that this one has replaced, if there is one."""
    if earlier := JournalFiles(path).put_aside():
        announce(
            f"Note: An earlier journal was set aside: {earlier[-1]}. To read it: greenroom log --journal FILE"
        )


def _sentence(error: object) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


_TYPES_SHOWN = 12


@click.group("journal", cls=Subcommands)
def journal_command() -> None:
    """Verify, count, back up, export, import or set aside the journal.

    To read it, see `greenroom log` and `greenroom why`.
    """


@journal_command.command("verify")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, journal: Path | None, as_json: bool) -> int:
    """Check every event, every stream, the end of the journal and the database. Changes nothing."""
    from greenroom.actors.journal import maintenance

    path = journal_path(ctx, journal)
    with _in_sentences(path):
        found = maintenance.verify(path)
    if as_json:
        _print_json(found)
    else:
        for notice in found.notices:
            click.echo(f"Note: {notice}", err=True)
        for problem in found.problems:
            click.echo(f"Problem: {_sentence(problem)}")
        state = "sound" if found.is_sound else "damaged"
        counted = f"{_count(found.events, 'good event')} in {_count(found.streams, 'stream')}"
        click.echo(wrapped(f"{path} is {state}: {counted}.", terminal_width()))
    if found.is_sound:
        return exit_codes.OK
    if not as_json:
        click.echo(
            "Set it aside with `greenroom journal set-aside`; --keep keeps the good events. Backends and "
            "models are found again on disk.",
            err=True,
        )
    return exit_codes.JOURNAL


@journal_command.command("stats")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def stats(ctx: click.Context, journal: Path | None, as_json: bool) -> None:
    """Show the number of events by stream and type, their period and the journal's size."""
    from greenroom.actors.journal import maintenance

    path = journal_path(ctx, journal)
    with _in_sentences(path):
        found = maintenance.stats(path)
    if as_json:
        _print_json(found)
        return
    say(f"{path}, journal {found.id}, log format {found.format}")
    span = f", {_moment(found.first_at)} to {_moment(found.last_at)}" if found.events else ""
    say(f"{_count(found.events, 'event')} in {format_size(found.bytes)}{span}\n")
    click.echo(
        table(
            ("STREAM", "EVENTS"),
            ((name, f"{n:,}") for name, n in found.streams.items()),
            width=terminal_width(),
        )
    )
    click.echo()
    rows = [(name, f"{n:,}") for name, n in found.types.items()]
    click.echo(table(("TYPE", "EVENTS"), rows[:_TYPES_SHOWN], width=terminal_width()))
    if len(rows) > _TYPES_SHOWN:
        click.echo(f"and {len(rows) - _TYPES_SHOWN} more types; --json has them all")


@journal_command.command("export")
@click.argument("file", type=click.Path(path_type=Path), default=Path("-"))
@journal_option
@click.pass_context
def export(ctx: click.Context, file: Path, journal: Path | None) -> None:
    """Write the journal as lines of JSON to FILE (default: standard output), for `import`."""
    from greenroom.actors.journal import maintenance

    path = journal_path(ctx, journal)
    with _in_sentences(path):
        if str(file) == "-":
            count = maintenance.export(path, sys.stdout.buffer)
        else:
            with _fresh_file(file) as out:
                count = maintenance.export(path, out)
    click.echo(f"Exported {_count(count, 'event')}.", err=True)


@journal_command.command("import")
@click.argument("file", type=click.File("rb"))
@click.pass_context
def import_(ctx: click.Context, file: IO[bytes]) -> None:
    """Create this data directory's journal from an export FILE (`-` for standard input), all or nothing."""
    from greenroom.actors.journal import maintenance

    home = settings_of(ctx).home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / "journal.db"
    with _in_sentences(path):
        count = maintenance.import_(path, file)
    click.echo(f"Imported {_count(count, 'event')} into {path}.")


@journal_command.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@journal_option
@click.pass_context
def backup(ctx: click.Context, file: Path, journal: Path | None) -> None:
    """Copy the journal to FILE. Works while a daemon is writing to it."""
    from greenroom.actors.journal import maintenance

    path = journal_path(ctx, journal)
    with _in_sentences(path):
        count = maintenance.backup(path, file)
    click.echo(f"Copied {_count(count, 'event')} to {file}.")


@journal_command.command("set-aside")
@click.option("--keep", is_flag=True, help="Start the new journal with the good events of the old one.")
@click.pass_context
def set_aside(ctx: click.Context, keep: bool) -> None:
    """Rename a journal that cannot be used, so that the daemon can start a new one. Deletes nothing.

    Backends and models are found again on disk; only history is lost (with --keep, only damaged events).
    """
    from greenroom.actors.journal import maintenance

    path = settings_of(ctx).home / "journal.db"
    with _in_sentences(path):
        done = maintenance.set_aside(path, keep=keep)
    if done.reason:
        click.echo(f"Problem: {_sentence(done.reason)}")
    click.echo(f"The journal is now {done.path}, with {_count(done.events, 'good event')}.")
    if done.kept:
        click.echo(f"The new journal starts with {_count(done.kept, 'event')} of it.")
    else:
        click.echo("The next daemon starts a new one and finds backends and models on disk.")


@contextlib.contextmanager
def _in_sentences(path: Path) -> Iterator[None]:
    """Whatever a journal or its place is up to, as a sentence, advice and exit code."""
    try:
        yield
    except JournalBusy as error:
        advice = "Stop it first: greenroom stop"
        raise Problem(_sentence(error), advice, code=exit_codes.ALREADY_RUNNING) from error
    except JournalDamaged as error:
        advice = "To see more: greenroom journal verify. To set it aside: greenroom journal set-aside"
        raise Problem(_sentence(error), advice, code=exit_codes.JOURNAL) from error
    except (JournalTooNew, NotAJournal) as error:
        raise Problem(_sentence(error), code=exit_codes.JOURNAL) from error
    except (JournalFull, JournalError) as error:
        raise Problem(_sentence(error)) from error
    except FileNotFoundError as error:
        missing = error.filename or path
        raise Problem(
            f"There is no journal at {missing}: no daemon has used this data directory yet."
        ) from error
    except FileExistsError as error:
        raise Problem(_sentence(error), "Choose a file that does not exist yet.") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Problem(f"{error.filename or path} cannot be used: {error.strerror or error}.") from error


@contextlib.contextmanager
def _fresh_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that is gone again if it does not become whole."""
    with path.open("xb") as out:
        try:
            yield out
            out.flush()
            force(out.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
