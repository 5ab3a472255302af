"""`greenroom load`: store a model out of an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Client
from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.tag import give_tag, split

_CHUNK = 2**20


@click.command("load")
@click.argument("archive", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-t", "--tag", default="", metavar="NAME", help="A name for the model; else it has only an id.")
@click.pass_context
def command(ctx: click.Context, archive: Path, tag: str) -> None:
    """Store the model in ARCHIVE, which `greenroom export` has made, here or elsewhere."""
    if tag:
        split(tag)
    client = ensure_daemon(settings_of(ctx), announce)
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        model_id = send(client, size, iter(lambda: file.read(_CHUNK), b""))
    if tag:
        give_tag(client, model_id, tag)
    click.echo(f"Loaded {tag or model_id[7:19]}.")


def send(client: Client, size: int, pieces: Iterator[bytes]) -> str:
    """Have the daemon store an archive; returns the model's id. Raises Problem when it cannot."""
    headers = {"Content-Type": "application/x-tar", "Content-Length": str(size)}
    with client.open("POST", "/models/load", content=pieces, headers=headers) as answer:
        lines = list(answer.objects())
        model_id = answer.headers.get("x-model-id", "")
    if not lines or lines[-1].get("type") != "success" or not model_id:
        said = str(lines[-1].get("message") or "") if lines else ""
        raise Problem(said or "The archive was not stored.", code=exit_codes.FAILED)
    return model_id
