"""Commands that explain from the journal: why, replay, bundle."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from greenroom.actors.journal.port import Record
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
from greenroom.runner.cli.main import settings_of, uncollected
from greenroom.runner.cli.output import say, table, terminal_width
from greenroom.runner.cli.problem import Problem
from greenroom.runner.diagnosis.sentences import Narrator
from greenroom.runner.units import format_size

if TYPE_CHECKING:
    from greenroom.actors.journal.reader import JournalReader
    from greenroom.runner.cli.remote_journal import RemoteJournal
    from greenroom.runner.diagnosis.explanation import Explanation
    from greenroom.runner.diagnosis.history import History
    from greenroom.runner.diagnosis.live import Live
    from greenroom.runner.diagnosis.replay import Snapshot, Walk


_RECENT = 7 * 86_400.0
"""Seconds for which an answer from a new journal names the one before it."""
_NEEDS_A_DAEMON = (
    "loaded loading installing waiting_to_retry pulling retiring ready starting stopping running".split()
)
_JOBS = "installing waiting_to_retry pulling".split()
_DOWN = "The daemon is not running; this was the state when it ended."
_TOPICS = ("daemon", "devices", "memory", "queue", "requests")
_GOES_ON = "The next daemon resumes what was requested by a command."


@click.command("why")
@click.argument("name", nargs=-1, type=OneOf(model_names, backend_names, engine_ids, lambda: _TOPICS))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with bytes and seconds.")
@journal_option
@click.pass_context
@uncollected()
def why_command(ctx: click.Context, name: tuple[str, ...], as_json: bool, journal: Path | None) -> int:
    """Explain the state of NAME; without one, list current problems.

    NAME is a model, a backend, an engine or its process, a request (`r-…`), an event (`scheduler/8`), a job,
    a client, or one of `daemon`, `queue`, `memory`, `devices` and `requests`.

    Shows why it is not loaded, was unloaded, is slow, was refused, failed or uses this backend; the events
    that led to it, with the numbers that decided; and commands that would change it. Needs no daemon, but
    only a running one knows who waits and how far jobs are.
    """
    from greenroom.runner.diagnosis.checkpoint import told
    from greenroom.runner.diagnosis.explain import UnknownName, answer
    from greenroom.runner.record.table import recorded_in

    now, question = time.time(), " ".join(name)
    elsewhere = journal_elsewhere(ctx, journal)
    if elsewhere is not None:
        found = elsewhere.why(question)
        _show_why(found, now, as_json=as_json)
        return exit_codes.OK
    path = journal_path(ctx, journal)
    with reading(path, ours=journal is None) as reader:
        histories: list[History] = []

        def tell(history: History) -> Explanation:
            histories.append(history)
            return answer(
                history, question, now, backends=known, recorded=recorded, rows=recorded.latest, live=live
            )

        try:
            # What happened on another machine has nothing to do with what this one can run.
            live = _live(ctx) if journal is None else None
            known: Mapping[str, str] = {}
            if journal is None:
                asked = live.verdicts if live is not None else None
                known = asked if asked is not None else _backends()
            running = {one.id: one for one in live.requests} if live is not None else {}
            with recorded_in(path.parent, running) as recorded:
                found = told(reader, question, tell)
        except UnknownName as error:
            if (damage := histories[-1].damage) is not None:
                raise damage from error
            raise Problem(str(error), error.advice) from error
        if live is not None and not live.running and found.state in _NEEDS_A_DAEMON:
            then = f"{_DOWN} {_GOES_ON}" if found.state in _JOBS else _DOWN
            found = msgspec.structs.replace(found, notices=(*found.notices, then))
        _show_why(found, now, as_json=as_json)
        if reader.created > now - _RECENT:
            set_aside_note(path)
    return exit_codes.OK if histories[-1].damage is None else exit_codes.JOURNAL


def _show_why(found: Explanation, now: float, *, as_json: bool) -> None:
    from greenroom.runner.diagnosis.explanation import WIDTH

    width = terminal_width() or WIDTH
    click.echo(msgspec.json.encode(found).decode() if as_json else found.text(now, width=width))


def _live(ctx: click.Context) -> Live | None:
    """What the daemon says, if one runs; trouble with it must not hide what the journal says."""
    from greenroom.runner.cli.live import live_facts

    return live_facts(settings_of(ctx))


def _backends() -> Mapping[str, str]:
    from greenroom.runner.backends.base import Platform
    from greenroom.runner.backends.discovery import BACKENDS

    here = Platform.here()
    return {name: one.on(here).verdict(here) for name, one in BACKENDS.items()}


_KEYS = "n: next, p: back, NUMBER or ID: go to event, s: whole state, q: quit"


@click.command("replay")
@click.option("--at", metavar="TIME|ID|NUMBER", help="State at this time or event. Default: the last event.")
@click.option("--step", is_flag=True, help="Step through the events and what each changed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --step, a line for each event.")
@journal_option
@click.pass_context
def replay_command(
    ctx: click.Context, /, at: str | None, step: bool, as_json: bool, journal: Path | None
) -> None:
    """Show the state of every actor after an event, rebuilt from the journal.

    Needs no daemon and changes nothing. An event's id is the one that greenroom log shows, its number the
    `seq` of --json; a TIME is 10m (ago), 14:03 or 2026-11-22T10:00. Keys with
    --step on a terminal: n or Enter, p, an id or a number, s, q.
    """
    elsewhere = journal_elsewhere(ctx, journal)
    if elsewhere is not None and not step:
        told = elsewhere.replay(_absolute(at)) if as_json else elsewhere.replay_text(_absolute(at)).rstrip()
        say(json.dumps(told, ensure_ascii=False) if as_json else told)
        return
    local = reading(journal_path(ctx, journal), ours=journal is None)
    with contextlib.nullcontext(elsewhere) if elsewhere is not None else local as reader:
        seq = _seq(reader, at)
        if not step:
            _show(reader, seq, as_json)
        elif sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
            _walk(reader, seq)
        else:
            _list_steps(reader, seq or 1, as_json)


def _absolute(at: str | None) -> str | None:
    """A time as the daemon's machine understands it too, whatever its clock and its zone; else as it is."""
    stream, _, version = (at or "").rpartition("/")
    if at is None or (at.isdigit() and len(at) < 9) or (stream and version.isdigit()):
        return at
    return f"{time_option('--at', at):.3f}"


def _seq(reader: JournalReader | RemoteJournal, at: str | None) -> int | None:
    """The event that is meant; None for the last one, whatever that is."""
    from greenroom.runner.diagnosis.replay import NoSuchEvent, event_at

    try:
        return event_at(at, reader.read, time.time()) if at is not None else None
    except NoSuchEvent as error:
        raise Problem(str(error)) from error
    except ValueError as error:
        raise click.BadParameter(f"{error}. Or an event's id or number.", param_hint="--at") from error


@uncollected()
def _show(reader: JournalReader | RemoteJournal, seq: int | None, as_json: bool) -> None:
    from greenroom.runner.diagnosis.overview import overview
    from greenroom.runner.diagnosis.replay import as_builtins, replay

    snapshot = replay(reader.read(), until=seq)
    if as_json:
        click.echo(json.dumps(as_builtins(snapshot), ensure_ascii=False))
    else:
        say(overview(snapshot))


def _list_steps(reader: JournalReader | RemoteJournal, seq: int, as_json: bool) -> None:
    """Every event from one on, with what it changed."""
    from greenroom.runner.diagnosis.replay import Walk

    told = _Told(reader)
    walk = Walk(told.read, seq - 1)
    while (after := walk.forwards()) is not None:
        before = walk.before()
        if as_json:
            click.echo(json.dumps(_as_json(before, after), ensure_ascii=False))
        else:
            say("\n".join(_step_lines(before, after, told)), 4)


def _walk(reader: JournalReader | RemoteJournal, seq: int | None) -> None:
    """Interactively. A walk begins with the event that was named, else with the first."""
    from greenroom.runner.diagnosis.overview import overview
    from greenroom.runner.diagnosis.replay import NoSuchEvent, Walk, event_at

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
            say(overview(walk.here))
            continue
        if answer in ("n", "next", ""):
            moved = walk.forwards()
        elif answer in ("p", "back"):
            moved = walk.back() if walk.here.seq > 1 else None
        else:
            try:
                moved = walk.go_to(event_at(answer, told.read, time.time()))
            except NoSuchEvent as error:
                say(str(error))
                continue
            except ValueError:
                click.echo(f"{_KEYS}.")
                continue
        if moved is None:
            click.echo(
                "This is the last event." if answer in ("n", "next", "") else "This is the first event."
            )
        else:
            _tell(walk, told)


class _Told:
    """The sentence of every event that was read, each told once and in order: a narrator has a memory."""

    def __init__(self, reader: JournalReader | RemoteJournal) -> None:

        self._reader = reader
        self._narrator = Narrator()
        self._sentences: dict[int, str] = {}

    def read(self) -> Iterator[Record]:
        for record in self._reader.read():
            if record.seq not in self._sentences:
                self._sentences[record.seq] = self._narrator.tell(record)
            yield record

    def __getitem__(self, record: Record) -> str:
        return self._sentences[record.seq]


def _tell(walk: Walk, told: _Told) -> None:
    say("\n".join(_step_lines(walk.before(), walk.here, told)), 4)


def _step_lines(before: Snapshot, after: Snapshot, told: _Told) -> Iterator[str]:
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


@click.command("bundle")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to this file (greenroom-bundle-….tar.gz).",
)
@journal_option
@click.pass_context
def bundle_command(ctx: click.Context, output: Path | None, journal: Path | None) -> None:
    """Collect events, versions, settings, engine reports and the daemon's log in one archive.

    Secrets and prompts are removed, and the contents are listed. Works without a daemon and with a damaged
    journal. With GREENROOM_HOST, the daemon there makes it.
    """
    from greenroom.runner.diagnosis.bundle import Bundle, contents, taken_out, write
    from greenroom.runner.diagnosis.known_secrets import redactor_here

    settings = settings_of(ctx)
    stem = time.strftime("greenroom-bundle-%Y%m%d-%H%M%S")
    target = output if output is not None else Path(f"{stem}.tar.gz")
    if target.is_dir():
        target /= f"{stem}.tar.gz"
    elsewhere = journal_elsewhere(ctx, journal)
    if elsewhere is not None:
        with _writing(target):
            readme, size = elsewhere.bundle(target)
        say(readme.rstrip())
        say(f"Written to {target} ({format_size(size)}). To review it: tar xzOf FILE | less")
        return
    path = journal_path(ctx, journal) if journal is not None else None
    redactor = redactor_here(settings)
    bundle = Bundle(settings, redactor, journal=path)
    parts = bundle.parts()
    with _writing(target):
        size = write(parts, target, stem)
    click.echo(table(("FILE", "SIZE", "CONTENTS"), contents(parts)))
    click.echo()
    for problem in bundle.problems:
        click.echo(f"Not collected: {problem}", err=True)
    click.echo(taken_out(redactor))
    click.echo("It contains names of models, backends, paths and hosts. To review it: tar xzOf FILE | less")
    click.echo(f"Written to {target} ({format_size(size)}).")


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise Problem(f"{target} already exists.", "Choose another file with -o.") from error
    except OSError as error:
        raise Problem(
            f"{target} cannot be written: {error.strerror or error}.", "Choose another file with -o."
        ) from error
