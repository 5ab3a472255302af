"""`greenroom completion`: what makes a shell complete commands, flags and the names of models."""

from __future__ import annotations

import click

_HOW = {
    "bash": 'eval "$(greenroom completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(greenroom completion zsh)"   # in ~/.zshrc',
    "fish": "greenroom completion fish | source   # in ~/.config/fish/config.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(_HOW.values()))
@click.argument("shell", type=click.Choice(list(_HOW)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete greenroom's commands, flags and models."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    root = ctx.find_root()
    completer = kind(root.command, {}, "greenroom", "_GREENROOM_COMPLETE")
    # Not `source()`: it asks the installed shell for its version, which may not be here.
    click.echo(completer.source_template % completer.source_vars())
