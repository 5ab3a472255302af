"""`greenroom tag`: give a model another name."""

from __future__ import annotations

from urllib.parse import urlencode

import click

from greenroom.runner.cli.client import Client, path_of
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.cli.problem import Problem


@click.command("tag")
@click.argument("source", type=ModelName())
@click.argument("target")
@click.pass_context
def command(ctx: click.Context, source: str, target: str) -> None:
    """Give the model SOURCE the name TARGET too; taken from whichever model had it."""
    give_tag(client_for(settings_of(ctx)), source, target)
    click.echo(f'Model "{source}" tagged successfully with "{target}"')


def give_tag(client: Client, source: str, target: str) -> None:
    """Have the daemon do it. Raises Problem when it cannot be."""
    repository, tag = split(target)
    client.post(f"{path_of('models', source, 'tag')}?{urlencode({'repo': repository, 'tag': tag})}")


def split(target: str) -> tuple[str, str]:
    """The canonical repository and the tag of a name. Raises Problem when it is none that a tag can have."""
    from greenroom.runner.cli import exit_codes
    from greenroom.runner.models.references import BadReference, Reference

    try:
        reference = Reference.parse(target)
    except BadReference as error:
        raise Problem(str(error), code=exit_codes.USAGE) from error
    if reference.scheme not in ("oci", "huggingface") or reference.digest:
        raise Problem(
            f"{target} cannot be a tag.",
            "Write NAME, NAME:TAG or REGISTRY/YOU/NAME:TAG.",
            code=exit_codes.USAGE,
        )
    return reference.name, reference.tag
