"""`greenroom package`: make a model out of files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from greenroom.runner.cli.client import Client, path_of
from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.jobs import push as push_model
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.load import send
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.tag import give_tag, split

# Links are not resolved: in Hugging Face's cache they bear the names, and what they lead to is a bare hash.
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command("package")
@click.argument("model")
@click.option("--gguf", type=_FILE, help="The weights: a GGUF file, with its other parts beside it.")
@click.option(
    "--safetensors-dir", type=_FOLDER, help="The weights: a folder of safetensors, tokenizer, config."
)
@click.option("--from", "source", type=ModelName(), help="Another model, whose files are shared.")
@click.option(
    "--license", "licenses", type=_FILE, multiple=True, help="A licence; may be given several times."
)
@click.option("--chat-template", type=_FILE, help="A Jinja template instead of the model's own.")
@click.option("--mmproj", type=_FILE, help="A multimodal projector.")
@click.option("--context-size", type=click.IntRange(1, 2**31 - 1), help="Tokens the model is loaded with.")
@click.option("--push", is_flag=True, help="Publish it as well.")
@click.pass_context
def command(
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
    """Make MODEL out of files, or out of another model with another context.

    The same files always make the same model. What a registry should call it is its name:
    greenroom package --gguf my.gguf REGISTRY/YOU/MODEL --push
    """
    if sum(one is not None for one in (gguf, safetensors_dir, source)) != 1:
        raise click.UsageError("Name one of --gguf, --safetensors-dir and --from.")
    split(model)
    settings = settings_of(ctx)
    if source is not None:
        if licenses or chat_template or mmproj or context_size is None:
            raise click.UsageError("--from goes with --context-size, and with nothing else.")
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


def _store(client: Client, model: str, ingredients: object) -> None:
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
            announce("Handing them to the daemon...")
            model_id = send(client, size, pieces)
    except JobFailed as failed:
        raise Problem(failed.failure.message, failed.failure.advice) from failed
    except OSError as error:
        raise Problem(f"A file could not be read: {error}.") from error
    give_tag(client, model_id, model)
