"""`greenroom backends export` and `import`: a backend for a machine without a network."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.identity import find
from greenroom.runner.cli.install_runner import report
from greenroom.runner.cli.jobs import install
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.config import Settings


@click.command("export")
@click.argument("backend")
@click.option("--version", default="", metavar="VERSION", help="Not the one in use, but this one.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; otherwise standard output.")
@click.pass_context
def export_command(ctx: click.Context, backend: str, version: str, output: Path | None) -> None:
    """Write an installed BACKEND into one file: greenroom backends export mlx > mlx.tar

    It fits machines of the same kind with the same Python. Needs no daemon.
    """
    from greenroom.runner.backends.base import Environment, Platform
    from greenroom.runner.backends.catalog import BACKENDS
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.installations import archive
    from greenroom.runner.installations.disk import InstallationStore

    if output is None and sys.stdout.isatty():
        raise click.UsageError(f"It is not for reading. Write it to a file: -o {backend}.tar")
    settings = settings_of(ctx)
    current = _current(settings, backend)
    found = [one for one in InstallationStore(settings.home).records() if one.backend == backend]
    if version:
        found = [one for one in found if one.version == version]
    if not found:
        what = f"{backend} {version}".strip()
        raise Problem(f"{what} is not installed in {settings.home}.", "See: greenroom backends")
    chosen = max(found, key=lambda one: (one.id == current, one.built_at))
    source = BACKENDS[backend].on(Platform.here()).source if backend in BACKENDS else None
    distribution = source.distribution if isinstance(source, Environment) else backend
    with ExitStack() as stack:
        draft = output.with_name(f"{output.name}.part") if output is not None else None
        out: IO[bytes] = stack.enter_context(draft.open("wb")) if draft is not None else sys.stdout.buffer
        try:
            archive.write(settings.home, chosen, distribution, out)
        except BaseException as error:
            if draft is not None:
                draft.unlink(missing_ok=True)
            if isinstance(error, JobFailed):
                raise Problem(error.failure.message, error.failure.advice) from error
            raise
    if draft is not None and output is not None:
        draft.replace(output)
    click.echo(f"Exported {backend} {chosen.version}: {len(chosen.wheels)} packages.", err=True)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.pass_context
def import_command(ctx: click.Context, file: IO[bytes]) -> None:
    """Install a backend from FILE (`-`: standard input), without a network."""
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.installations import archive

    settings = settings_of(ctx)
    client = ensure_daemon(settings, announce)
    daemon = find(settings)
    if daemon is None or Path(daemon.home).resolve() != settings.home.resolve():
        raise Problem(
            "The daemon that answers has another data directory.",
            "Import where the daemon runs, with its GREENROOM_HOME.",
        )
    try:
        manifest = archive.read(settings.home, file)
    except JobFailed as failed:
        raise Problem(failed.failure.message, failed.failure.advice) from failed
    report(manifest.backend, install(client, manifest.backend, version=manifest.version, announce=click.echo))


def _current(settings: Settings, backend: str) -> str:
    """The id of the installation in use, where a daemon can tell."""
    try:
        daemon = find(settings)
        known = (daemon.client().get("/engines") or ()) if daemon is not None else ()
    except Problem:
        known = ()  # another program holds the data directory, or the daemon hangs: what is there can be read
    return next(
        (
            one["id"]
            for found in known
            if found["name"] == backend
            for one in found["installations"]
            if one["current"]
        ),
        "",
    )
