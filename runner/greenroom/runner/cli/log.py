"""`greenroom log`: the journal, readably. Needs no daemon and never changes anything."""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from greenroom.actors.journal.port import Record
from greenroom.runner.cli import exit_codes, journal_file
from greenroom.runner.cli.output import style
from greenroom.runner.diagnosis.filters import Filter, unknown_kinds
from greenroom.runner.diagnosis.sentences import Narrator
from greenroom.runner.diagnosis.times import parse_time


@click.command("log")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each event, as it is stored.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("-n", "--last", type=click.IntRange(min=0), metavar="N", help="Only the last N events.")
@click.option("--model", default="", metavar="NAME", help="Only what is about this model.")
@click.option("--backend", default="", metavar="NAME", help="Only what is about this backend.")
@click.option("--engine", default="", metavar="ID", help="Only what is about this engine.")
@click.option(
    "--kind", multiple=True, metavar="TYPE", help="Only events of this type, such as install_failed; load_*."
)
@click.option("--stream", default="", metavar="NAME", help="Only this stream, such as install/mlx.")
@click.option("--cause", default="", metavar="ID", help="Only what this event or request led to.")
@click.option("--since", metavar="TIME", help="Not what was before: 10m (ago), 14:03, 2026-11-22T10:00.")
@click.option("--until", metavar="TIME", help="Not what was after.")
@journal_file.option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    as_json: bool,
    follow: bool,
    last: int | None,
    journal: Path | None,
    since: str | None,
    until: str | None,
    kind: tuple[str, ...],
    **filters: str,
) -> None:
    """Show what has happened, from the beginning: an event a line, with its time, its id and its cause.

    A cause is the id of another event (`install/mlx/1`), or that of a request (`r-…`).
    """
    narrator, printer = Narrator(), Printer(sys.stdout.isatty())
    wanted = Filter(
        kinds=kind, since=time_option("--since", since), until=time_option("--until", until), **filters
    )
    seq = shown = 0

    def told(records: Iterable[Record]) -> Iterator[str]:
        nonlocal seq, shown
        # The narrator hears all of it: events that are not shown name what later ones are about.
        for record in records:
            seq = record.seq
            sentence = "" if as_json else narrator.tell(record)
            if wanted.takes(record):
                shown += 1
                yield _json(record) if as_json else printer.line(record, sentence)

    with journal_file.reading(journal_file.path_of(ctx, journal), ours=journal is None) as reader:
        for line in _tail(told(reader.read()), last):
            click.echo(line)
        if seq and not shown:
            unknown = (*unknown_kinds(kind), *wanted.unknown_names())
            for sentence in unknown or ("No event is like that.",):
                click.echo(sentence, err=True)
            if unknown and not follow:
                ctx.exit(exit_codes.FAILED)
        if follow:
            for line in told(reader.follow(after=seq)):
                click.echo(line)
                sys.stdout.flush()


def time_option(name: str, text: str | None) -> float | None:
    """The wall-clock second an option means. Raises click.BadParameter."""
    if text is None:
        return None
    try:
        return parse_time(text, time.time())
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint=name) from error


class Printer:
    """Lays events out in lines; a new day has a line of its own."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._day = ""

    def line(self, record: Record, sentence: str) -> str:
        """One event."""
        moment = time.localtime(record.at)
        day = time.strftime("%A, %Y-%m-%d", moment)
        heading = "" if day == self._day else f"{self._dim(f'-- {day} --')}\n"
        self._day = day
        at = time.strftime("%H:%M:%S", moment) + f".{int(record.at % 1 * 1000):03d}"
        cause = self._dim(f"  <- {record.cause}") if record.cause else ""
        return f"{heading}{self._dim(at)}  {self._dim(f'{record.id:<22}')}  {sentence}{cause}"

    def _dim(self, text: str) -> str:
        return style(text, dim=True) if self._colours else text


def _tail(lines: Iterator[str], last: int | None) -> Iterable[str]:
    return lines if last is None else collections.deque(lines, maxlen=last)


def _json(record: Record) -> str:
    fields: dict[str, Any] = {
        "seq": record.seq,
        "at": record.at,
        "id": record.id,
        "type": record.type,
        "schema": record.schema,
        "cause": record.cause,
    }
    return json.dumps(fields | {"data": json.loads(record.data)}, ensure_ascii=False)
