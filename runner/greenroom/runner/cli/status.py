"""`greenroom status`: is the daemon running, and how are its backends?"""

from __future__ import annotations

import json

import click

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Client, Refused
from greenroom.runner.cli.identity import Daemon, find, not_running
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.table import table, terminal_width

_ORDER = ("Running", "Error", "Installing", "Not Installed")


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON; exits 0 also when nothing runs.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """Say whether the daemon runs and is ready, what it is doing, and how its backends are.

    In the table, `Running` means installed and usable, as Docker Model Runner has it.
    """
    settings = settings_of(ctx)
    daemon = find(settings)
    if daemon is None:
        if as_json:
            click.echo(json.dumps({"running": False, "backends": {}, "endpoint": settings.url}))
            return exit_codes.OK
        raise not_running(settings)
    client = daemon.client()
    backends: dict[str, str] = client.get("/engines/status") or {}
    reason = _not_ready(client)
    if as_json:
        click.echo(json.dumps(_fields(daemon, backends, reason), ensure_ascii=False))
        return exit_codes.OK
    click.echo(f"Greenroom is running at {daemon.url} (pid {daemon.pid}, version {daemon.version}).")
    click.echo(f"Data directory: {daemon.home}")
    if reason:
        click.echo(f"It is not ready: {reason}")
    from greenroom.runner.cli.display import describe, title_of

    for job in client.get("/jobs") or ():
        click.echo(f"{title_of(str(job.get('job', '')))}: {describe(job)}")
    click.echo()
    click.echo(table(("BACKEND", "STATUS", "DETAILS"), rows(backends), width=terminal_width()))
    return exit_codes.OK


def rows(backends: dict[str, str]) -> list[tuple[str, str, str]]:
    """The table of Docker's command: usable ones first, then by name."""
    split = [(name, *_split(text)) for name, text in backends.items()]
    return sorted(split, key=lambda row: (_ORDER.index(row[1]), row[0]))


def _split(text: str) -> tuple[str, str]:
    status, _, details = text.partition(": ")
    if not status:
        return "Not Installed", details
    return (status, details) if status in _ORDER else ("Error", text)


def _not_ready(client: Client) -> str:
    try:
        client.get("/readyz")
    except Refused as refused:
        return refused.message
    return ""


def _fields(daemon: Daemon, backends: dict[str, str], reason: str) -> dict[str, object]:
    return {
        "running": True,
        "ready": not reason,
        "backends": backends,
        "kind": "Greenroom",
        "endpoint": f"{daemon.url}/v1/",
        "pid": daemon.pid,
        "version": daemon.version,
        "home": daemon.home,
    }
