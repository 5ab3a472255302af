"""`greenroom export`: a model as one file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from greenroom.runner.cli.client import Answer, path_of
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.units import format_size

_CHUNK = 2**20


@click.command("export")
@click.argument("model", type=ModelName())
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; otherwise standard output.")
@click.pass_context
def command(ctx: click.Context, model: str, output: Path | None) -> None:
    """Write MODEL into one file for `greenroom load`: greenroom export smollm2 -o smollm2.tar"""
    if output is None and sys.stdout.isatty():
        raise click.UsageError("It is not for reading. Write it to a file: -o model.tar")
    client = client_for(settings_of(ctx))
    with client.open("GET", path_of("models", model, "export"), accept="application/x-tar") as answer:
        if output is None:
            _copy(answer, sys.stdout.fileno())
            return
        draft = output.with_name(f"{output.name}.part")
        try:
            with draft.open("wb") as file:
                size = _copy(answer, file.fileno())
            draft.replace(output)
        finally:
            draft.unlink(missing_ok=True)
    click.echo(f"Exported {model}: {format_size(float(size))}.", err=True)


def _copy(answer: Answer, target: int) -> int:
    size = 0
    while piece := answer.read(_CHUNK):
        size += len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]
    return size
