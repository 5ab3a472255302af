"""`greenroom log`: the journal, readably. Needs no daemon and never changes anything."""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Iterable, Iterator

import click
from greenroom.actors.journal.port import JournalDamaged, JournalError, JournalTooNew, NotAJournal, Record
from greenroom.actors.journal.reader import JournalReader
from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.diagnosis.sentences import Narrator


@click.command("log")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each event, as it is stored.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("-n", "--last", type=click.IntRange(min=0), metavar="N", help="Only the last N events.")
@click.option("--kind", metavar="TYPE", help="Only events of this type, such as install_failed.")
@click.option("--stream", metavar="NAME", help="Only this stream, such as install/mlx.")
@click.pass_context
def command(
    ctx: click.Context, as_json: bool, follow: bool, last: int | None, kind: str | None, stream: str | None
) -> None:
    """Show what has happened, from the beginning: an event a line, with its time, its id and its cause.

    A cause is the id of another event (`install/mlx/1`), or that of a request (`r-…`).
    """
    path = settings_of(ctx).home / "journal.db"
    narrator, printer = Narrator(), Printer(sys.stdout.isatty())

    def wanted(record: Record) -> bool:
        return kind in (None, record.type) and stream in (None, record.stream)

    seq = 0

    def told(records: Iterable[Record]) -> Iterator[str]:
        nonlocal seq
        # The narrator hears all of it: events that are not shown name what later ones are about.
        for record in records:
            seq = record.seq
            sentence = "" if as_json else narrator.tell(record)
            if wanted(record):
                yield _json(record) if as_json else printer.line(record, sentence)

    try:
        with JournalReader(path) as reader:
            for notice in reader.notices:
                click.echo(f"Note: {notice}", err=True)
            for line in _tail(told(reader.read()), last):
                click.echo(line)
            if follow:
                for line in told(reader.follow(after=seq)):
                    click.echo(line)
                    sys.stdout.flush()
    except FileNotFoundError as error:
        raise Problem(
            f"There is no journal at {path}: nothing has happened here yet.", "Begin: greenroom run smollm2"
        ) from error
    except (JournalDamaged, JournalTooNew, NotAJournal) as error:
        raise Problem(_sentence(error), code=exit_codes.JOURNAL) from error
    except JournalError as error:
        raise Problem(_sentence(error)) from error


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
        return click.style(text, dim=True) if self._colours else text


def _tail(lines: Iterator[str], last: int | None) -> Iterable[str]:
    return lines if last is None else collections.deque(lines, maxlen=last)


def _json(record: Record) -> str:
    fields = {
        "seq": record.seq,
        "at": record.at,
        "id": record.id,
        "type": record.type,
        "schema": record.schema,
        "cause": record.cause,
    }
    return json.dumps(fields | {"data": json.loads(record.data)}, ensure_ascii=False)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
