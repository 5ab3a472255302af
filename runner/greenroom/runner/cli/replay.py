"""`greenroom replay`: the durable state as it was, from the journal alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greenroom.runner.cli import journal_file
from greenroom.runner.cli.problem import Problem

if TYPE_CHECKING:
    from greenroom.actors.journal.port import Record
    from greenroom.actors.journal.reader import JournalReader
    from greenroom.runner.diagnosis.replay import Snapshot, Walk

_KEYS = "n next, p back, NUMBER go there, s whole state, q end"


@click.command("replay")
@click.option("--at", metavar="TIME|NUMBER", help="As of this time or event; without it, of the last one.")
@click.option("--step", is_flag=True, help="Event by event, with what each changed: walk on and back.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with --step a line an event.")
@journal_file.option
@click.pass_context
def command(ctx: click.Context, /, at: str | None, step: bool, as_json: bool, journal: Path | None) -> None:
    """Show what every actor knew once an event was stored: the state a start of the daemon makes of it.

    Needs no daemon and never changes anything. An event's number is the `seq` of greenroom log --json;
    a TIME is 10m (ago), 14:03 or 2026-11-22T10:00. With --step on a terminal: n or Enter, p, a number, q.
    """
    with journal_file.reading(journal_file.path_of(ctx, journal), ours=journal is None) as reader:
        seq = _seq(reader, at)
        if not step:
            _show(reader, seq, as_json)
        elif sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
            _walk(reader, seq)
        else:
            _list(reader, seq or 1, as_json)


def _seq(reader: JournalReader, at: str | None) -> int | None:
    """The event that is meant; None for the last one, whatever that is."""
    if at is None:
        return None
    if at.isdigit() and len(at) < 9:
        seq, last = int(at), reader.last_seq()
        if not 1 <= seq <= last:
            held = f"its events are 1 to {last}" if last else "it has none"
            raise Problem(f"There is no event {seq} in {reader.files.db}: {held}.")
        return seq
    from greenroom.runner.diagnosis.replay import seq_at
    from greenroom.runner.diagnosis.times import parse_time, precise

    try:
        second = parse_time(at, time.time())
    except ValueError as error:
        raise click.BadParameter(f"{error}. A number is an event's.", param_hint="--at") from error
    seq = seq_at(reader.read(), second)
    if not seq:
        first = next(reader.read(), None)
        begun = (
            f"its first event was stored at {precise(first.at)}" if first is not None else "it has no events"
        )
        raise Problem(f"{precise(second)} is before the beginning of {reader.files.db}: {begun}.")
    return seq


def _show(reader: JournalReader, seq: int | None, as_json: bool) -> None:
    from greenroom.runner.diagnosis.overview import overview
    from greenroom.runner.diagnosis.replay import as_builtins, replay

    snapshot = replay(reader.read(), until=seq)
    click.echo(json.dumps(as_builtins(snapshot), ensure_ascii=False) if as_json else overview(snapshot))


def _list(reader: JournalReader, seq: int, as_json: bool) -> None:
    """Every event from one on, with what it changed."""
    from greenroom.runner.diagnosis.replay import Walk

    told = _Told(reader)
    walk = Walk(told.read, seq - 1)
    while (after := walk.forwards()) is not None:
        before = walk.before()
        if as_json:
            click.echo(json.dumps(_as_json(before, after), ensure_ascii=False))
        else:
            click.echo("\n".join(_lines(before, after, told)))


def _walk(reader: JournalReader, seq: int | None) -> None:
    """Interactively. A walk begins with the event that was named, else with the first."""
    from greenroom.runner.diagnosis.overview import overview
    from greenroom.runner.diagnosis.replay import Walk

    told = _Told(reader)
    walk = Walk(told.read, seq or 1)
    click.echo(f"{reader.last_seq()} events. {_KEYS}.")
    _tell(walk, told)
    while True:
        answer = click.prompt(
            f"[{walk.here.seq}]", default="n", show_default=False, prompt_suffix=" "
        ).strip()
        if answer in ("q", "quit"):
            return
        if answer == "s":
            click.echo(overview(walk.here))
            continue
        if answer in ("n", "next", ""):
            moved = walk.forwards()
        elif answer in ("p", "back"):
            moved = walk.back() if walk.here.seq > 1 else None
        elif answer.isdigit() and 1 <= int(answer) <= reader.last_seq():
            moved = walk.go_to(int(answer))
        else:
            click.echo(f"{_KEYS}.")
            continue
        if moved is None:
            click.echo("That is the end." if answer in ("n", "next", "") else "That is the beginning.")
        else:
            _tell(walk, told)


class _Told:
    """The sentence of every event that was read, each told once and in order: a narrator has a memory."""

    def __init__(self, reader: JournalReader) -> None:
        from greenroom.runner.diagnosis.sentences import Narrator

        self._reader = reader
        self._narrator = Narrator()
        self._sentences: dict[int, str] = {}

    def read(self) -> Iterator[Record]:
        """The journal from its beginning."""
        for record in self._reader.read():
            if record.seq not in self._sentences:
                self._sentences[record.seq] = self._narrator.tell(record)
            yield record

    def __getitem__(self, record: Record) -> str:
        return self._sentences[record.seq]


def _tell(walk: Walk, told: _Told) -> None:
    click.echo("\n".join(_lines(walk.before(), walk.here, told)))


def _lines(before: Snapshot, after: Snapshot, told: _Told) -> Iterator[str]:
    from greenroom.runner.diagnosis.overview import told_changes
    from greenroom.runner.diagnosis.times import precise

    record = after.record
    assert record is not None
    cause = f"  <- {record.cause}" if record.cause else ""
    yield f"{record.seq}  {precise(record.at)}  {record.id}  {told[record]}{cause}"
    yield from (f"    {line}" for line in told_changes(before, after))


def _as_json(before: Snapshot, after: Snapshot) -> dict[str, object]:
    from greenroom.runner.diagnosis.replay import changes

    record = after.record
    assert record is not None
    changed = {path: {"was": old, "is": new} for path, (old, new) in changes(before, after).items()}
    return {"seq": record.seq, "at": record.at, "event": record.id, "type": record.type, "changes": changed}
