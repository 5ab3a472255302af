"""`greenroom cancel`: end an installation or a pull, whoever waits for it."""

from __future__ import annotations

from typing import Any

import click

from greenroom.runner.cli.client import Client
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem


@click.command("cancel")
@click.argument("job")
@click.pass_context
def command(ctx: click.Context, job: str) -> None:
    """End JOB: a backend that is being installed (`mlx`), one job of it (`mlx.2`), or a pull (`smollm2`).

    `greenroom status` lists what runs. What was fetched stays for the next attempt.
    """
    client = client_for(settings_of(ctx))
    kind, _, subject = job.partition("/")
    wish = None if kind == "pull" and subject else _installation(client, job.removeprefix("install/"))
    if wish is not None:
        ended = (client.post("/engines/cancel-install", wish) or {}).get("ended")
    else:
        reference = subject if kind == "pull" and subject else job
        ended = (client.post("/models/cancel", {"from": reference}) or {}).get("ended")
    if not ended:
        raise Problem(f"There is no job {job!r} to end.", "See what runs: greenroom status")
    click.echo(f"Ended: {job}.")


def _installation(client: Client, name: str) -> dict[str, Any] | None:
    """What ends the installation of that name or id, if it is one."""
    for backend in client.get("/engines") or ():
        job = backend.get("job") or {}
        if name == backend["name"]:
            return {"backend": name}
        if name in (job.get("id"), *job.get("queue", ())):
            return {"backend": backend["name"], "job": name}
    return None
