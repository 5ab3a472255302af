"""Shows how far jobs are: bars on a terminal, now and then a line elsewhere. Always on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from greenroom.actors.characters import visible
from greenroom.runner.cli.output import shortened, unfiltered
from greenroom.runner.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY = 2.0
"""Seconds between two lines about the same phase of a job."""

_PARTS = 6
"""Bars of files at once."""
_TITLE = 36
"""Characters of a name beside a bar, where there is room."""
_WIDE = 120
"""Columns with room for everything. In fewer, names, bars and sentences are shorter."""

_PHASES = {
    "resolving": "Looking up",
    "downloading": "Downloading",
    "uploading": "Uploading",
    "committing": "Storing",
    "importing": "Importing",
    "waiting": "Waiting",
    "unpacking": "Unpacking",
    "compiling": "Compiling",
    "installing": "Installing",
    "verifying": "Verifying",
    "loading": "Loading",
    "queued": "Waiting for its turn",
    "waiting_to_retry": "Waiting to try again",
}


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")


class Display(Protocol):
    """Shows jobs. Thread-safe. A context manager, so that the terminal is whole again afterwards."""

    def update(self, job: Mapping[str, Any]) -> None:
        """A job is this far; the fields are those of a `Progress`."""

    def finish(self, job: str) -> None:
        """A job has ended, one way or another."""

    def note(self, text: str) -> None:
        """Say something that is no progress, above whatever is shown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def display(stream: TextIO | None = None) -> Display:
    """The display that suits a stream (stderr)."""
    target = stream or sys.stderr
    # Bars draw with sequences of their own; lines need none.
    return Bars(unfiltered(target)) if target.isatty() else ProgressLines(target)


def title_of(job: str) -> str:
    """`install/mlx` is `mlx`, `pull/docker.io/ai/smollm2:latest` is `smollm2`, `load/…` is nothing."""
    kind, _, subject = job.partition("/")
    if kind in ("load", "request"):
        # Their message names the model already.
        return ""
    if kind in ("pull", "push", "verify"):
        from greenroom.runner.models.references import familiar

        return familiar(subject)
    return subject or job


def describe(job: Mapping[str, Any], *, short: bool = False) -> str:
    """One line: `Downloading 45.1 MB of 93.2 MB (48%), 12.3 MB/s, 4s left`; if short, `48% of 93.2 MB, …`."""
    phase = str(job.get("phase") or "")
    word, message = _PHASES.get(phase, phase.replace("_", " ").capitalize()), str(job.get("message") or "")
    done, total, rate = (float(job.get(name) or 0) for name in ("done", "total", "rate"))
    if message.lower().startswith(word.lower()):
        # It says the phase itself, and of what; a name that ends in a version needs a comma before a number.
        word, _, message = message.partition(": ")
        word += ","
    elif message and done >= total > 0 and job.get("percent") is None:
        return message  # all of it is there: what is done with it is the news
    if (percent := job.get("percent")) is not None:
        word += f" {percent}%"
    elif total:
        # Rounded down: what is not all here is not 100%.
        part = f"{100 * min(done, total) // total:.0f}%"
        if short:
            word = f"{'' if phase == 'downloading' else f'{word} '}{part} of {format_size(total)}"
        else:
            word += f" {format_size(done)} of {format_size(total)} ({part})"
    elif done:
        word += f" {format_size(done)}"
    word = word.removesuffix(",")
    if rate and done < (total or done + 1):
        word += f", {format_size(rate)}/s"
        if total:
            word += f", {format_duration(math.ceil((total - done) / rate))} left"
    return f"{word}: {message}" if message else word


class ProgressLines:
    """For pipes and logs: a line when the phase changes, and every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, tuple[str, float, str]] = {}

    def update(self, job: Mapping[str, Any]) -> None:
        """Print it, unless the last line about it is recent."""
        name, phase, now = str(job.get("job", "")), str(job.get("phase", "")), time.monotonic()
        text = describe(job)
        last_phase, at, last_text = self._shown.get(name, ("", 0.0, ""))
        if text == last_text or (phase == last_phase and now - at < _LINE_EVERY):
            return
        self._shown[name] = (phase, now, text)
        title = title_of(name)
        self.note(f"  {title}: {text}" if title else f"  {text}")

    def finish(self, job: str) -> None:
        self._shown.pop(job, None)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.clear()


class JsonProgress:
    """For programs: one JSON object a line, with the fields of a `Progress` and a `type`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, job: Mapping[str, Any]) -> None:
        self._write("progress", {name: value for name, value in job.items() if name != "type"})

    def finish(self, job: str) -> None:
        """What follows is said by the caller, who knows how it has ended."""

    def note(self, text: str) -> None:
        self._write("note", {"message": text})

    def end(self, message: str, **more: Any) -> None:
        """The last line of what has succeeded."""
        self._write("success", {"message": message, **more})

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        print(json.dumps({"type": kind, **fields}, ensure_ascii=False), file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is drawn that would have to go."""


class Bars:
    """For terminals; the bars go when their jobs end. Nothing is drawn or imported before the first job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._columns = _columns(stream)
        self._title = _TITLE if self._columns >= _WIDE else self._columns // 4
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        # A job of our own is shown from the main thread, the daemon's other jobs from the watching one.
        self._lock = threading.Lock()

    def update(self, job: Mapping[str, Any]) -> None:
        name = str(job.get("job", ""))
        # Without a total the bar pulses.
        total, done = int(job.get("total") or 0) or None, int(job.get("done") or 0)
        if (percent := job.get("percent")) is not None:
            total, done = 100, int(percent)
        with self._lock:
            text = visible(describe(job, short=self._columns < _WIDE))
            self._draw(name, text, total, done, visible(title_of(name)))
            self._draw_parts(name, job.get("parts") or ())

    def finish(self, job: str) -> None:
        with self._lock:
            self._draw_parts(job, ())
            self._take_away(job)

    def _draw(self, name: str, text: str, total: int | None, done: int, title: str) -> None:
        progress = self._progress = self._progress or _progress(self._stream, self._columns)
        task, title = self._tasks.get(name), shortened(title, self._title)
        if task is None:
            self._tasks[name] = progress.add_task(text, total=total, completed=done, title=title)
        else:
            progress.update(task, description=text, total=total, completed=done)

    def _draw_parts(self, name: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """A bar for each file that moves at this moment, below the job's; one file alone is the job."""
        shown: dict[str, Mapping[str, Any]] = {}
        if len(parts) > 1:
            moving = [part for part in parts if 0 < part["done"] < part["size"]]
            shown = {f"{name} {part['id']}": part for part in moving[:_PARTS]}
        for gone in [one for one in self._tasks if one.startswith(f"{name} ") and one not in shown]:
            self._take_away(gone)
        for key, part in shown.items():
            text = f"{format_size(part['done'])} of {format_size(part['size'])}"
            self._draw(
                key, text, part["size"], part["done"], f"  {visible(_part_title(part, self._title - 2))}"
            )

    def _take_away(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None and self._progress is not None:
            self._progress.remove_task(task)

    def note(self, text: str) -> None:
        text = visible(text, lines=True)
        with self._lock:
            if self._progress is None:
                print(text, file=self._stream, flush=True)
            else:
                self._progress.console.print(text, markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
            self._progress = None
            self._tasks.clear()


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return _WIDE


def _part_title(part: Mapping[str, Any], longest: int) -> str:
    """`model-00001-of-00004.safetensors`; of a long name what tells it from the others: its end, or its
    number.
    """
    name = str(part.get("name") or part["id"][7:19]).rpartition("/")[2]
    if len(name) <= longest:
        return name
    shard = _SHARD.search(name)
    if shard is not None and len(shard[0]) >= longest:
        return f"part {int(shard[1])} of {int(shard[2])}"
    return f"…{name[1 - longest :]}"


def _progress(stream: TextIO, columns: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[title]}", markup=False),
        BarColumn(bar_width=20 if columns >= _WIDE else columns // 10),
        TextColumn("{task.description}", markup=False),
        console=Console(file=stream, highlight=False, soft_wrap=True),
        transient=True,
    )
    progress.start()
    return progress
