"""`greenroom launch`: starts another program, such as an agent, set up to use our models."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.client_programs import CLIENTS, LaunchedClient, filled, find
from greenroom.runner.cli.completion import ModelName, OneOf
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import ensure_daemon
from greenroom.runner.client.errors import RequestRefused
from greenroom.runner.client.http_client import HttpClient, path_of

_ROOMY = 16_384
"""Tokens of context with which an agent's instructions leave room for work."""


def _names() -> list[str]:
    return [one.name for one in CLIENTS]


@click.command("launch", context_settings={"ignore_unknown_options": True})
@click.option("--model", type=ModelName(catalogue=True), metavar="MODEL", help="The model to use.")
@click.option(
    "--print", "--config-only", "only_print", is_flag=True, help="Print the settings; start nothing."
)
@click.argument("client", required=False, type=OneOf(_names))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def launch_command(
    ctx: click.Context, model: str | None, only_print: bool, client: str | None, arguments: tuple[str, ...]
) -> None:
    """Start CLIENT, such as codex, claude or opencode, set up to use a local model.

    Its settings are given as environment variables and flags, for this start only; no file is changed.
    ARGUMENTS go to the client; those after -- even if they look like flags of this command. Without a CLIENT,
    they are listed.
    """
    if client is None:
        _list()
        return
    known = find(client)
    if known is None:
        raise Problem(
            f"Greenroom does not know how to set up {client}.",
            f"It knows {', '.join(_names())}. For others, see docs/clients.md.",
            code=exit_codes.USAGE,
        )
    found = shutil.which(known.program)
    if found is None and not only_print:
        raise Problem(f"{known.title} is not installed.", f"Install it: {known.install}")
    daemon = ensure_daemon(settings_of(ctx), announce)
    name, context, largest = _model(daemon, model)
    environment, words = setup(known, daemon.url, name, arguments)
    if only_print:
        click.echo(as_shell(environment, words))
        return
    if known.agent and 0 < context < _ROOMY:
        more = f"For more: greenroom configure {name} --context max"
        announce(
            f"The context of {name} has {context} tokens, of which {known.title} needs thousands for its own "
            f"instructions. {more if largest > context else 'For long tasks choose a model that has more.'}"
        )
    assert found is not None, "it was looked for"
    _start(known, found, environment, words)


def setup(
    client: LaunchedClient, url: str, model: str, arguments: Sequence[str] = ()
) -> tuple[Mapping[str, str], list[str]]:
    """The variables that are set, and the command line."""
    environment = {name: filled(value, url, model) for name, value in client.environment.items()}
    return environment, [client.program, *(filled(one, url, model) for one in client.arguments), *arguments]


def as_shell(environment: Mapping[str, str], words: Sequence[str]) -> str:
    """What a shell runs to the same effect."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join([*lines, shlex.join(words)])


def _start(
    client: LaunchedClient, program: str, environment: Mapping[str, str], words: Sequence[str]
) -> NoReturn:
    """Become the client: the terminal is its own from now on."""
    announce(f"Starting {client.title}, with these settings for this start only:")
    for line in as_shell(environment, words).splitlines():
        announce(f"  {line}")
    if client.serves:
        announce(f"Open it at {client.serves} once it runs. Ctrl-C stops it.")
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(program, list(words), {**os.environ, **environment})  # noqa: S606 - what was asked for
    except OSError as error:
        raise Problem(f"{client.title} could not be started: {error.strerror}.") from error


def _model(client: HttpClient, wanted: str | None) -> tuple[str, int, int]:
    """The model's name for the client, and its configured and maximum context in tokens; 0 if unknown."""
    name = wanted if wanted is not None else _only_model(client)
    try:
        found = client.get(path_of("models", name))
    except RequestRefused as refused:
        if refused.code == "not_ours":
            return name, 0, 0  # a model of a remote backend
        if refused.status != 404:
            raise
        raise Problem(
            f"There is no model {name} in the store.", f"Pull it: greenroom pull {name}"
        ) from refused
    rows = (one for one in found.get("settings") or () if one["setting"] == "context-size")
    row: Mapping[str, Any] = next((one for one in rows if one["mode"] == "completion"), {})
    size = int(row.get("value") or 0)
    return name, size, int(row.get("trained") or size)


def _only_model(client: HttpClient) -> str:
    from greenroom.runner.models.references import familiar

    models = client.get("/models") or []
    names = sorted(familiar(min(one["tags"], key=len)) for one in models if one.get("tags"))
    if len(names) != 1:
        raise Problem(
            "Name the model to use." if names else "The store has no models yet.",
            f"Add --model with one of: {', '.join(names[:12])}"
            if names
            else "Pull one: greenroom pull smollm2",
            code=exit_codes.USAGE,
        )
    return names[0]


def _list() -> None:
    rows = [
        (one.name, one.title, "yes" if shutil.which(one.program) else "no", one.install) for one in CLIENTS
    ]
    click.echo(table(("CLIENT", "PROGRAM", "INSTALLED", "TO INSTALL"), rows, width=terminal_width()))
    announce("\nStart one: greenroom launch CLIENT --model MODEL")
