"""`greenroom help`: the help of a command, as `--help` prints it."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Explain COMMAND, or list the commands."""
    root = ctx.find_root()
    command: click.Command = root.command
    context = click.Context(command, info_name=root.info_name)
    for position, word in enumerate(words):
        if not isinstance(command, click.Group):
            raise click.UsageError(f"{' '.join(words[:position])} has no commands of its own.", context)
        name, found, _ = command.resolve_command(context, [word])
        assert found is not None, "resolve_command raises for what it does not know"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    click.echo(command.get_help(context))
