"""`greenroom log`: what has happened, from a journal or from the daemon that GREENROOM_HOST names."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from greenroom.actors.journal.port import JournalDamaged
from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import OneOf, backend_names, engine_ids, model_names
from greenroom.runner.cli.journal import (
    journal_elsewhere,
    journal_option,
    journal_path,
    reading,
    set_aside_note,
    time_option,
)
from greenroom.runner.cli.main import uncollected
from greenroom.runner.cli.output import announce, style, terminal_width, wrapped
from greenroom.runner.cli.problem import Problem

if TYPE_CHECKING:
    from greenroom.actors.journal.port import Record
    from greenroom.runner.diagnosis.event_log import Line
    from greenroom.runner.diagnosis.summary import Summary

_A_DAY = 86_400.0


@click.command("log")
@click.argument("about", default="", metavar="[ABOUT]", type=OneOf(model_names, backend_names, engine_ids))
@click.option("--problems", is_flag=True, help="Only what went wrong: failures, crashes, stalls, refusals.")
@click.option("--summary", is_flag=True, help="Count what has happened since --since (24h).")
@click.option("--json", "as_json", is_flag=True, help="Print each stored event as a line of JSON.")
@click.option("-f", "--follow", is_flag=True, help="Keep printing new events.")
@click.option("-n", "--last", type=click.IntRange(min=0), metavar="N", help="Print only the last N events.")
@click.option(
    "--model", default="", type=OneOf(model_names), metavar="NAME", help="Only events about this model."
)
@click.option(
    "--backend", default="", type=OneOf(backend_names), metavar="NAME", help="Only events about this backend."
)
@click.option("--engine", default="", metavar="ID", help="Only events about this engine.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="TYPE",
    help="Only events of this type, such as install_failed or load_*.",
)
@click.option("--stream", default="", metavar="NAME", help="Only this stream, such as install/mlx.")
@click.option("--cause", default="", metavar="ID", help="Only this event or request, and what it led to.")
@click.option(
    "--since", metavar="TIME", help="Only events since 2h (ago), yesterday, 14:03 or 2026-11-22T10:00."
)
@click.option("--until", metavar="TIME", help="Only events until this time.")
@journal_option
@click.pass_context
def log_command(
    ctx: click.Context,
    /,
    summary: bool,
    as_json: bool,
    follow: bool,
    last: int | None,
    journal: Path | None,
    since: str | None,
    until: str | None,
    **wanted: Any,
) -> None:
    """Show what has happened, oldest first. Each line has an event's time, id, sentence and cause.

    ABOUT is the id of an event (`scheduler/8`): what led to it, itself, and what it led to. Or it is a
    request, an engine, a backend or a model. A cause is the id of another event or of a request (`r-…`).
    """
    start, end = time_option("--since", since), time_option("--until", until)
    if summary:
        given = [name for name, value in wanted.items() if value]
        if given or follow or last is not None:
            raise click.UsageError("--summary counts all events: it takes only --since, --until and --json.")
        _summarize(ctx, journal, start, end, as_json=as_json)
        return
    from greenroom.runner.diagnosis.event_log import EventQuery, Line, ToldEvents

    chosen = EventQuery(since=start, until=end, **wanted)
    show = _as_json if as_json else Printer(sys.stdout.isatty(), terminal_width()).line
    elsewhere = journal_elsewhere(ctx, journal)
    if elsewhere is not None:
        found = _print(elsewhere.log(chosen, last=last, follow=follow), show, flush=follow)
        if follow:
            raise elsewhere.has_ended()
        if not found:
            announce("No event matches.")
        return
    path = journal_path(ctx, journal)
    with reading(path, ours=journal is None) as reader:
        try:
            events = ToldEvents(chosen, reader.read)
        except LookupError as error:
            raise Problem(str(error.args[0])) from error
        told = events.lines(reader.read())
        wished = told if last is None else _ending(told, last)
        _print((Line.of(record, sentence) for record, sentence in wished), show)
        if events.seq and not events.shown:
            unknown = events.unknown()
            for sentence in unknown or ("No event matches.",):
                announce(sentence)
            if unknown and not follow:
                ctx.exit(exit_codes.FAILED)
        if last is None and (events.is_first_shown or not events.shown):
            set_aside_note(path)
        if follow:
            news = events.lines(reader.follow(after=events.seq))
            _print((Line.of(record, sentence) for record, sentence in news), show, flush=True)


def _ending(told: Iterator[tuple[Record, str]], last: int) -> Iterator[tuple[Record, str]]:
    """The last so many; what came before damage, and then its error."""
    kept: collections.deque[tuple[Record, str]] = collections.deque(maxlen=last)
    damage = None
    try:
        kept.extend(told)
    except JournalDamaged as error:
        damage = error
    yield from kept
    if damage is not None:
        raise damage


def _print(lines: Iterable[Line], show: Callable[[Line], str], *, flush: bool = False) -> int:
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007 - used after the loop
        click.echo(show(line))
        if flush:
            sys.stdout.flush()
    return count


def _as_json(line: Line) -> str:
    return msgspec.json.encode(line).decode()


class _Columns(NamedTuple):
    clock: int
    """Characters of a time."""
    id: int
    indent: int
    """Characters before an event's sentence; what goes on in further lines is below it."""


_WIDE, _NARROW, _NARROWEST = _Columns(12, 22, 38), _Columns(8, 20, 32), _Columns(8, 0, 10)


class Printer:
    """Lays events out in lines; a new day has a line of its own."""

    def __init__(self, colours: bool, width: int | None) -> None:
        """Without a width, lines are of any length."""
        self._colours = colours
        self._width = width
        self._columns = _WIDE if width is None or width >= 100 else _NARROW if width >= 70 else _NARROWEST
        self._day = ""

    def line(self, line: Line) -> str:
        moment = time.localtime(line.at)
        day = time.strftime("%A, %Y-%m-%d", moment)
        heading = "" if day == self._day else f"{self._dim(f'-- {day} --')}\n"
        self._day = day
        columns = self._columns
        at = f"{time.strftime('%H:%M:%S', moment)}.{int(line.at % 1 * 1000):03d}"[: columns.clock]
        cause = self._dim(f"  <- {line.cause}") if line.cause else ""
        begin = f"{self._dim(at)}  {self._dim(f'{line.id:<{columns.id}}')}"
        if columns is _NARROWEST:
            # The sentence has lines of its own.
            margin = " " * columns.indent
            return f"{heading}{begin}{cause}\n{wrapped(f'{margin}{line.text}', self._width)}"
        return heading + wrapped(f"{begin}  {line.text}{cause}", self._width, columns.indent)

    def _dim(self, text: str) -> str:
        return style(text, dim=True) if self._colours else text


def _summarize(
    ctx: click.Context, journal: Path | None, since: float | None, until: float | None, *, as_json: bool
) -> None:
    now = time.time()
    end = now if until is None else until
    begin = end - _A_DAY if since is None else since
    elsewhere = journal_elsewhere(ctx, journal)
    found = elsewhere.summary(begin, end) if elsewhere is not None else _summary(ctx, journal, begin, end)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        width = terminal_width()
        click.echo("\n".join(wrapped(line, width, 8) for line in found.text(now).split("\n")))


@uncollected()
def _summary(ctx: click.Context, journal: Path | None, since: float, until: float) -> Summary:
    from greenroom.runner.diagnosis.summary import summarize
    from greenroom.runner.record.table import NotUsable, RecordReader

    path = journal_path(ctx, journal)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(reading(path, ours=journal is None))
        try:
            record = stack.enter_context(RecordReader(path.parent))
        except (FileNotFoundError, NotUsable):
            record = None
        return summarize(reader.read(), since, until, record)
