"""What the shell completes: commands, flags, and the names of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greenroom.runner import exit_codes
from greenroom.runner.user_home import user_home

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from greenroom.runner.client.http_client import HttpClient

    _Text = click.ParamType[str]
else:
    _Text = click.ParamType  # in older releases it takes no parameter


_HUB = "huggingface.co/"


class ModelName(_Text):
    """A model by any of its names, completed from the store and optionally from the short names."""

    name = "model"

    def __init__(self, *, catalogue: bool = False) -> None:
        """With `catalogue`, also complete names of models that can be pulled."""
        self._catalogue = catalogue

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Unchanged, since only the daemon resolves names; but a path becomes absolute."""
        return anchored(value)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The names that begin like this; a path is completed by the shell itself."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith((".", "/", "~")):
            return [CompletionItem(incomplete, type="file")]
        names = dict.fromkeys(_here())
        if self._catalogue:
            names |= dict.fromkeys(_in_catalogue())
        # Both forms of Hugging Face's names, so that what was typed once completes again.
        names |= {name.replace(_HUB, "hf.co/", 1): None for name in names if name.startswith(_HUB)}
        if not incomplete:
            names = {name: None for name in names if not name.startswith(_HUB)}
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class OneOf(_Text):
    """A name of other things than models, completed from what there is; any text is accepted."""

    name = "name"

    def __init__(self, *kinds: Callable[[], Iterable[str]]) -> None:
        """`kinds` give the names. They are called only to complete, and print nothing."""
        self._kinds = kinds

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The names that begin like this."""
        from click.shell_completion import CompletionItem

        names = dict.fromkeys(name for kind in self._kinds for name in kind())
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def backend_names() -> Iterable[str]:
    """The backends of this program, whatever machine they are for."""
    from greenroom.runner.backends.discovery import BACKENDS

    return BACKENDS


def engine_ids() -> Iterable[str]:
    """Ids of engines that have a log, the latest first."""
    from greenroom.runner.config import BadSetting, load

    try:
        folders = [one for one in (load().home / "engines").iterdir() if one.is_dir()]
        return [one.name for one in sorted(folders, key=lambda one: one.stat().st_mtime, reverse=True)]
    except (BadSetting, OSError):
        return ()


def job_names() -> Iterable[str]:
    """What `greenroom cancel` takes: backends that are being installed, models that are being pulled."""
    from greenroom.runner.cli.display import title_of
    from greenroom.runner.client.daemons import find
    from greenroom.runner.client.errors import GreenroomError
    from greenroom.runner.config import BadSetting, load

    try:
        daemon = find(load(), patience=1.0)
    except (BadSetting, GreenroomError):
        return ()
    found = _listed(daemon.client(), "/jobs") if daemon is not None else ()
    names = (str(one.get("job") or "") for one in found)
    return [title_of(name) for name in names if name.startswith(("install/", "pull/"))]


def conversation_ids() -> Iterable[str]:
    """Ids of saved conversations."""
    from greenroom.runner.config import BadSetting, load

    try:
        return [one.stem for one in (load().home / "conversations").glob("c-*.json")]
    except (BadSetting, OSError):
        return ()


def model_names() -> Iterable[str]:
    """Names of models in the store."""
    return _here()


def anchored(model: str) -> str:
    """A model's name as the daemon understands it: its folder is not ours.

    Raises Problem when the text cannot name a model.
    """
    from greenroom.runner.cli.problem import Problem
    from greenroom.runner.models.references import BadReference, Reference

    if model.lower().endswith(".gguf") and "://" not in model and Path(model).is_file():
        # A name that looks like a file of the folder one is in means that file.
        model = f"./{model}" if not model.startswith((".", "/", "~", "file:")) else model
    try:
        reference = Reference.parse(model)
    except BadReference as error:
        raise Problem(str(error), code=exit_codes.USAGE) from error
    return str(reference.anchored(Path.cwd(), user_home())) if reference.scheme == "path" else model


def _here() -> list[str]:
    """The models that the daemon lists; if none answers, those in the store."""
    from greenroom.runner.client.daemons import find
    from greenroom.runner.client.errors import GreenroomError
    from greenroom.runner.config import BadSetting, load
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.models.references import familiar
    from greenroom.runner.models.store import ModelStore

    # Nothing may be printed in the middle of a command line.
    try:
        settings = load()
    except BadSetting:
        return []
    try:
        daemon = find(settings, patience=1.0)
    except GreenroomError:
        daemon = None
    if daemon is not None:
        client = daemon.client()
        stored = [familiar(tag) for model in _listed(client, "/models") for tag in model.get("tags") or ()]
        remotes = _listed(client, "/engines/remotes")
        return [*stored, *(f"{one['name']}/{model}" for one in remotes for model in one["models"])]
    if settings.host:
        return []
    try:
        models = ModelStore(settings.home / "models").models()
    except JobFailed:
        return []
    return [familiar(tag) for model in models for tag in model.tags]


def _listed(client: HttpClient, path: str) -> list[Any]:
    """What a daemon lists there; nothing if it has no such list or does not answer."""
    from greenroom.runner.client.errors import GreenroomError

    try:
        return client.get(path, timeout=2.0) or []
    except GreenroomError:
        return []


def _in_catalogue() -> list[str]:
    from greenroom.runner.config import BadSetting, load
    from greenroom.runner.models.short_names import BadCatalogue, Catalogue

    try:
        return [name for name, _ in Catalogue.load(load().models)]
    except (BadSetting, BadCatalogue):
        return []


_HOW = {
    "bash": 'In ~/.bashrc: eval "$(greenroom completion bash)"',
    "zsh": 'In ~/.zshrc: eval "$(greenroom completion zsh)"',
    "fish": "In ~/.config/fish/config.fish:\n  greenroom completion fish | source",
}


@click.command("completion", epilog="\b\n" + "\n".join(_HOW.values()))
@click.argument("shell", type=click.Choice(list(_HOW)))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes greenroom's commands, flags and model names in SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    root = ctx.find_root()
    completer = kind(root.command, {}, "greenroom", "_GREENROOM_COMPLETE")
    # Not `source()`: it asks the installed shell for its version, which may not be here.
    script = completer.source_template % completer.source_vars()
    if shell == "zsh":
        # Its completion system may not have been started by what comes before in ~/.zshrc.
        script = f"(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}\n{script}"
    click.echo(script)
