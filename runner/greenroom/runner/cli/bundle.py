"""`greenroom bundle`: one file to attach to a bug report."""

from __future__ import annotations

import time
from pathlib import Path

import click

from greenroom.runner.cli import journal_file
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.table import table
from greenroom.runner.units import format_size


@click.command("bundle")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it here (greenroom-bundle-….tar.gz).",
)
@journal_file.option
@click.pass_context
def command(ctx: click.Context, output: Path | None, journal: Path | None) -> None:
    """Collect what happened, versions, settings, capsules and the daemon's log in one archive.

    Secrets and prompts are taken out, and what is in it is listed. Works without a daemon, and with a damaged
    journal.
    """
    from greenroom.runner.diagnosis.bundle import Bundle, contents, taken_out, write
    from greenroom.runner.diagnosis.known_secrets import redactor_here

    settings = settings_of(ctx)
    stem = time.strftime("greenroom-bundle-%Y%m%d-%H%M%S")
    target = output if output is not None else Path(f"{stem}.tar.gz")
    if target.is_dir():
        target /= f"{stem}.tar.gz"
    path = journal_file.path_of(ctx, journal) if journal is not None else None
    redactor = redactor_here()
    bundle = Bundle(settings, redactor, journal=path)
    parts = bundle.parts()
    try:
        size = write(parts, target, stem)
    except FileExistsError as error:
        raise Problem(f"There is a file {target} already.", "Name another one with -o.") from error
    except OSError as error:
        raise Problem(
            f"{target} cannot be written: {error.strerror or error}.", "Name another file with -o."
        ) from error
    click.echo(table(("FILE", "SIZE", "WHAT IT IS"), contents(parts)))
    click.echo()
    for problem in bundle.problems:
        click.echo(f"Not collected, or odd: {problem}", err=True)
    click.echo(taken_out(redactor))
    click.echo("It names models, backends, paths and hosts. To look through it: tar xzOf FILE | less")
    click.echo(f"Written to {target} ({format_size(size)}).")
