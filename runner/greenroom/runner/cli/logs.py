"""`greenroom logs`: what the daemon has written, or an engine. Works without a daemon."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.config import Settings

_LOOK_EVERY = 0.2


@click.command("logs")
@click.argument("engine", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.pass_context
def command(ctx: click.Context, engine: str | None, follow: bool, lines: int | None) -> None:
    """Show the daemon's log, or that of ENGINE: the beginning of its id, its model or its backend.

    Of several engines that fit, the latest is shown. What has happened, in sentences: greenroom log.
    """
    settings = settings_of(ctx)
    files = _engine_files(settings, engine) if engine else _daemon_files(settings)
    _print("".join(_read(file) for file in files if file.exists()), lines)
    if follow:
        for text in _follow(files[-1] if not engine else _growing(files)):
            sys.stdout.write(text)
            sys.stdout.flush()


def _daemon_files(settings: Settings) -> list[Path]:
    log = settings.home / "daemon.log"
    if not log.exists():
        raise Problem(f"There is no log at {log}: no daemon has run on this data directory yet.")
    return [log.with_name("daemon.log.1"), log]


def _engine_files(settings: Settings, wanted: str) -> list[Path]:
    """The head of an engine's output and, once that is full, its tail in two halves."""
    folders = sorted(
        (folder for folder in (settings.home / "engines").glob("*") if folder.is_dir()),
        key=lambda folder: folder.stat().st_mtime,
    )
    fitting = [folder for folder in folders if _fits(folder, wanted)]
    if not fitting:
        known = ", ".join(folder.name for folder in folders) or "none"
        raise Problem(f"There is no engine {wanted!r}.", f"Engines with a log: {known}")
    return [fitting[-1] / name for name in ("log", "log.tail.old", "log.tail")]


def _fits(folder: Path, wanted: str) -> bool:
    if folder.name.startswith(wanted):
        return True
    from greenroom.runner.models.references import familiar

    spec = _spec(folder)
    return wanted == spec.get("backend") or familiar(wanted) == familiar(str(spec.get("model_ref") or ""))


def _spec(folder: Path) -> dict[str, Any]:
    """What the engine was to be, as its folder has it: in the claim while it runs, then in its capsule."""
    for name in ("capsule.json", "claim"):
        with contextlib.suppress(OSError, ValueError):
            fields = json.loads((folder / name).read_text("utf-8"))
            for holder in (fields, fields.get("about") or {}):
                if isinstance(holder.get("spec"), dict):
                    return dict(holder["spec"])
    return {}


def _growing(files: list[Path]) -> Path:
    return files[2] if files[2].exists() else files[0]


def _read(file: Path) -> str:
    return file.read_text("utf-8", "replace")


def _print(text: str, lines: int | None) -> None:
    if lines is not None:
        text = "".join(text.splitlines(keepends=True)[len(text.splitlines()) - lines :]) if lines else ""
    if text:
        click.echo(text.rstrip("\n"))


def _follow(file: Path) -> Iterator[str]:
    """What is appended to a file, also after it has been rotated away and begun anew."""
    position = file.stat().st_size if file.exists() else 0
    inode = file.stat().st_ino if file.exists() else 0
    while True:
        with contextlib.suppress(FileNotFoundError):
            now = file.stat()
            if now.st_ino != inode or now.st_size < position:
                inode, position = now.st_ino, 0
            if now.st_size > position:
                with file.open("rb") as opened:
                    opened.seek(position)
                    content = opened.read()
                position += len(content)
                yield content.decode("utf-8", "replace")
        time.sleep(_LOOK_EVERY)  # files tell nobody that they grow; ends with Ctrl-C
