"""`greenroom create`: a model of another one, or of files, with defaults of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import ModelName
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.modelfile import Modelfile, read
from greenroom.runner.cli.models import split
from greenroom.runner.cli.output import announce
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import ensure_daemon
from greenroom.runner.client.errors import RequestRefused
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.units import format_size

_CHUNK = 2**20
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("create")
@click.argument("model")
@click.option("--from", "source", type=ModelName(), help="The model to start from, or a path to its files.")
@click.option("--system", help="The system prompt of chats that have none.")
@click.option("--template", type=_FILE, help="A Jinja template that replaces the model's own.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A default for requests, such as temperature=0. May be repeated.",
)
@click.option("--license", "licenses", type=_FILE, multiple=True, help="A license file. May be repeated.")
@click.option("-f", "--file", "modelfile", type=_FILE, help="A Modelfile; options replace what it says.")
@click.pass_context
def create_command(
    ctx: click.Context,
    model: str,
    source: str | None,
    system: str | None,
    template: Path | None,
    parameters: tuple[str, ...],
    licenses: tuple[Path, ...],
    modelfile: Path | None,
) -> None:
    """Make MODEL from another model or from files, with a system prompt, parameters and a chat template.

    These are defaults: requests can say otherwise. Weights are shared with the other model.

    greenroom create pirate --from smollm2 --system "You are a pirate." --parameter temperature=0
    """
    split(model)
    wanted = read(_text_of(modelfile)) if modelfile is not None else Modelfile()
    if source is not None:
        wanted.sources = [source]
    if not wanted.sources:
        raise click.UsageError("Name the model to start from (--from MODEL), or a Modelfile (-f FILE).")
    if system is not None:
        wanted.fields["system"] = system
    if template is not None:
        wanted.fields["template"] = _text_of(template)
    _set_parameters(wanted, parameters)
    if licenses:
        wanted.fields["license"] = [_text_of(one) for one in licenses]
    base = modelfile.parent if modelfile is not None and source is None else Path()
    client = ensure_daemon(settings_of(ctx), announce)
    paths = [_path_of(one, base) for one in wanted.sources]
    if paths[0] is None:
        if len(paths) > 1:
            raise Problem("Only one FROM may name a model.", code=exit_codes.USAGE)
        body: dict[str, object] = {"from": wanted.sources[0]}
    else:
        body = {"files": _sent(client, [one for one in paths if one is not None])}
    client.post("/api/create", {"model": model, "stream": False, **body, **wanted.fields}, timeout=None)
    click.echo(f"Created {model}.")


def _set_parameters(wanted: Modelfile, parameters: tuple[str, ...]) -> None:
    given = [(one, *one.partition("=")) for one in parameters]
    if any(name == "stop" for _, name, _, _ in given):
        wanted.fields.get("parameters", {}).pop("stop", None)
    for text, name, sign, value in given:
        if not (name and sign and value):
            raise click.UsageError(f"--parameter needs NAME=VALUE, such as temperature=0, not {text!r}.")
        wanted.set_parameter(name, value)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise Problem(f"{path} is not a text in UTF-8.", code=exit_codes.USAGE) from None


def _path_of(source: str, base: Path) -> Path | None:
    """The path that a FROM means; None for a model's name."""
    named = source.removeprefix("file:")
    path = base / Path(named).expanduser()
    if path.exists():
        return path
    if named.startswith(("/", "./", "../", "~")) or source.lower().endswith((".gguf", ".safetensors")):
        raise Problem(f"There is no file {path}.", code=exit_codes.USAGE)
    return None


def _sent(client: HttpClient, paths: list[Path]) -> Mapping[str, str]:
    """Send a model's files, those that the daemon does not have yet; returns their digests by name."""
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.models.manifest import FILEPATH
    from greenroom.runner.models.packing import Ingredients, pack

    if len(paths) > 2:
        raise Problem("FROM may name a model and its projector, and no third file.", code=exit_codes.USAGE)
    announce("Reading the files...")
    try:
        package = pack(Ingredients(paths[0], mmproj=paths[1] if len(paths) > 1 else None))
    except JobFailed as failed:
        raise Problem(failed.failure.message, failed.failure.advice) from None
    for digest, path in package.files.items():
        _send(client, digest, path)
    return {layer.annotations[FILEPATH]: layer.digest for layer in package.artifact.manifest.layers}


def _send(client: HttpClient, digest: str, path: Path) -> None:
    place = path_of("api", "blobs", digest)
    try:
        with client.open("HEAD", place):
            return
    except RequestRefused as refused:
        if refused.status != 404:
            raise
    size = path.stat().st_size
    announce(f"Sending {path.name} ({format_size(size)})...")
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(_CHUNK), b"")
        with client.open("POST", place, content=pieces, headers=headers):
            return
