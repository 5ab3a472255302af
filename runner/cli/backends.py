"""`greenroom backends`: what there is, what each can do here, and how it is."""

from __future__ import annotations

import click
from greenroom.runner.cli.client import Client
from greenroom.runner.cli.identity import find
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.table import table


@click.command("backends")
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the backends: what each serves, whether this machine can run it, and whether it is installed."""
    from greenroom.runner.backends.catalog import BACKENDS
    from greenroom.runner.backends.declaration import Platform

    daemon = find(settings_of(ctx))
    states: dict[str, str] = (Client(daemon.url).get("/engines/status") or {}) if daemon else {}
    here = Platform.here()
    rows = []
    for backend in BACKENDS.values():
        verdict = backend.verdict(here)
        rows.append(
            (
                backend.name,
                ", ".join(backend.formats),
                ", ".join(backend.modes),
                "when asked for" if backend.deferred else "from the start",
                verdict or states.get(backend.name, "(daemon not running)"),
            )
        )
    click.echo(table(("BACKEND", "FORMATS", "MODES", "INSTALLED", "STATUS"), rows))
    for problem in BACKENDS.problems:
        click.echo(f"Warning: {problem}", err=True)
