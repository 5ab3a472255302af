"""`greenroom`: the group of all commands. Start-up stays quick since only the command used is imported."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from greenroom import __version__
from greenroom.runner import exit_codes
from greenroom.runner.cli.output import (
    announce,
    drop_output,
    filtered,
    is_about_output,
    prepare_streams,
    style,
)
from greenroom.runner.cli.problem import exit_code_of
from greenroom.runner.client.errors import GreenroomError
from greenroom.runner.config import BadSetting, Settings, ToleratedMistake, load
from greenroom.runner.home import HomeUnusable

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Ask a model a question, or chat with it."),
    "pull": ("transfers", "Download a model."),
    "list": ("models", "List the models in the store."),
    "inspect": ("models", "Show a model's details and which backend would serve it."),
    "search": ("models", "Search for models to pull."),
    "configure": ("configure", "Show or change how a model is loaded: context, keep-alive, slots, flags."),
    "tag": ("models", "Give a model another name."),
    "rm": ("models", "Remove models."),
    "push": ("transfers", "Push a model to a registry."),
    "package": ("transfers", "Make a model from files, and optionally push it."),
    "create": ("create", "Make a model from another one, with a system prompt and parameters."),
    "export": ("transfers", "Write a model to one file."),
    "load": ("transfers", "Import a model from a file that export wrote."),
    "models": ("models", "List or verify the models in the store, or adopt those of other programs."),
    "adopt": ("adopt", "Take over the models that Ollama, LM Studio and others keep on this machine."),
    "purge": ("models", "Remove all models."),
    "prune": ("models", "Remove interrupted downloads and unused data."),
    "conversations": ("saved_conversations", "List or remove what is saved of conversations."),
    "ps": ("engines", "List the running engines."),
    "memory": ("memory", "Show which model holds how much memory, and for what."),
    "queue": ("memory", "List the requests that wait for an engine."),
    "bench": ("bench", "Measure how fast a model answers."),
    "launch": ("launch", "Start an agent or another client, set up to use a local model."),
    "status": ("daemon", "Show whether the daemon is running, and its backends."),
    "devices": ("devices", "Show the graphics devices, and what is wrong with them."),
    "unload": ("engines", "Unload models."),
    "serve": ("serve", "Run the daemon in the foreground."),
    "stop": ("daemon", "Stop the daemon; or unload models."),
    "restart": ("daemon", "Stop the daemon and start it again."),
    "logs": ("daemon", "Show the daemon's log, or an engine's."),
    "log": ("log", "Show what has happened: the journal, as sentences."),
    "why": ("diagnosis", "Explain the state of NAME; without one, list current problems."),
    "requests": ("requests", "List the requests there were, show one, or record what is said."),
    "replay": ("diagnosis", "Show the state of every actor at any time, from the journal."),
    "bundle": ("diagnosis", "Write an archive for a bug report, without secrets and prompts."),
    "journal": ("journal", "Verify, count, back up, export, import or set aside the journal."),
    "backends": ("backends", "List the backends; verify, export or import them."),
    "install-runner": ("backends", "Install a backend."),
    "start-runner": ("backends", "Start the daemon and install a backend if needed."),
    "reinstall-runner": ("backends", "Rebuild a backend's installation."),
    "uninstall-runner": ("backends", "Remove a backend."),
    "upgrade-runner": ("backends", "Install another version of a backend and switch to it."),
    "rollback-runner": ("backends", "Switch back to the previous version of a backend."),
    "cancel": ("jobs", "Cancel an installation or a pull."),
    "df": ("daemon", "Show the disk space that models and backends use."),
    "config": ("config", "Show every setting and its source."),
    "completion": ("completion", "Print a script that completes commands and model names."),
    "help": ("help", "Explain a command."),
    "version": ("daemon", "Show the versions of the command and the daemon."),
}
"""Each command, the module it is in, and its line in the help: listing them must not import them."""

ALIASES = {"ls": "list", "show": "inspect", "cp": "tag", "remove": "rm", "ledger": "memory"}
"""What other runners call some of them."""
_WARNED = "greenroom.warned"
_ERROR_LOG_LIMIT = 1_000_000
_SENTENCE = 400
"""Characters."""
_HANGING_THREADS = 5.0
"""Seconds that threads may outlive the command."""


class Subcommands(click.Group):
    """Lists its commands with the whole first sentence of each, in lines that fit."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(_SENTENCE)) for name, one in found if one])


class CommandGroup(click.Group):
    """Finds the command `a-b` as `a_b_command` in its module, which is imported only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All of them, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = import_module(f"greenroom.runner.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        if not gc.isenabled():  # see `__main__`
            gc.freeze()
            gc.enable()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            from greenroom.runner.cli.other_runners import meant

            guess = meant(args, [*COMMANDS, *ALIASES])
            hint = f" Did you mean {guess!r}?" if guess else " See: greenroom --help"
            raise click.UsageError(f"There is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The help's list, without importing a single command."""
        with formatter.section("Commands"):
            others: dict[str, list[str]] = {}
            for alias, name in ALIASES.items():
                others.setdefault(name, []).append(alias)
            formatter.write_dl(
                [(", ".join([name, *others.get(name, ())]), line) for name, (_, line) in COMMANDS.items()]
            )


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings: docs/configuration.md. Exit codes: docs/cli.md.",
)
@click.option("--home", metavar="DIR", help="The data directory (GREENROOM_HOME).")
@click.option("--host", metavar="URL", help="The daemon's address (GREENROOM_HOST).")
@click.option("--port", metavar="PORT", help="The daemon's port (GREENROOM_PORT; 12400).")
@click.version_option(__version__, "-v", "--version", message="greenroom %(version)s")
@click.pass_context
def greenroom(ctx: click.Context, /, **flags: Any) -> None:
    """Run models on this machine. Backends are installed when they are needed."""
    ctx.obj = flags


def settings_of(ctx: click.Context, *, strict: bool = False, **flags: Any) -> Settings:
    """The settings, with the flags of the group and of the command.

    A mistake in the config file is a warning, since a running daemon can be used all the same; what starts
    one is `strict`. Raises BadSetting.
    """
    given = {name: value for name, value in (ctx.obj | flags).items() if value is not None}
    settings = load(given, tolerant=not strict)
    if settings.problems and not ctx.meta.get(_WARNED):
        ctx.meta[_WARNED] = True  # of the group too: a command may ask twice
        for problem in settings.problems:
            announce(f"Warning: {problem}")
    return settings


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit; whatever goes wrong ends in a sentence and a documented code."""
    prepare_streams()
    code = run(arguments)
    if threading.active_count() > 1:
        from greenroom.runner.shutdown import LastResort

        # The interpreter would wait indefinitely for a daemon's thread that hangs.
        LastResort(_HANGING_THREADS, code=code).begin()
    gc.freeze()  # or the interpreter would look for garbage among all that is imported before it ends
    sys.exit(code)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Runs without garbage collection: modules and events make many objects but no cycles.

    Imports take a tenth less so, and reading events a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run(arguments: list[str] | None = None) -> int:
    """Like `main`, but gives the exit code."""
    with filtered():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    try:
        if "_GREENROOM_COMPLETE" in os.environ:
            greenroom.main(arguments, prog_name="greenroom")
        # Not click's `main`, which exits with 1 when the reader of our output closes the pipe.
        with greenroom.make_context("greenroom", sys.argv[1:] if arguments is None else arguments) as ctx:
            code = greenroom.invoke(ctx)
        sys.stdout.flush()  # a reader that has gone is noticed while the error can still be caught
        return code if isinstance(code, int) else exit_codes.OK
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as group:
        click.echo(group.message, err=True)
        return exit_codes.USAGE
    except click.UsageError as error:
        if error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
            click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
        return _fail(error.format_message(), exit_codes.USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), exit_codes.USAGE)
    except ToleratedMistake:
        # `settings_of` has told the mistake as a warning.
        told = "Greenroom is not running, and cannot be started before its config file is corrected."
        return _fail(told, exit_codes.USAGE)
    except BadSetting as error:
        return _fail(str(error), exit_codes.USAGE)
    except GreenroomError as problem:
        if problem.detail:
            click.echo(problem.detail.rstrip(), err=True)
        return _fail(str(problem), exit_code_of(problem))
    except HomeUnusable as error:
        return _fail(str(error), exit_codes.NOT_RUNNING)
    except (KeyboardInterrupt, EOFError, click.Abort):
        click.echo(err=True)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed the pipe, as in `greenroom log | head`.
        drop_output()
        return exit_codes.OK
    except OSError as error:
        if is_about_output(error):
            drop_output()
            return _fail(f"Cannot write the output: {error.strerror}.", exit_codes.FAILED)
        unusable = _of_the_home(error)
        if unusable is not None:
            return _fail(str(unusable), exit_codes.NOT_RUNNING)
        return _fail(_unexpected(error), exit_codes.FAILED)
    except Exception as error:  # noqa: BLE001 - the last resort: people get a sentence, never a traceback
        return _fail(_unexpected(error), exit_codes.FAILED)


def _fail(sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):
        announce(f"{style('Error:', fg='red')} {sentence}")
    return code


def _of_the_home(error: OSError) -> HomeUnusable | None:
    """What is wrong with the data directory, if the error is about a file in it."""
    try:
        settings = load()
    except (BadSetting, HomeUnusable):
        return None
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(error.filename))
    if settings.home not in (path, *path.parents):
        return None
    return HomeUnusable(error, settings.home, settings.origin("home"))


def _unexpected(error: Exception) -> str:
    """One line, and where the rest is."""
    import traceback

    kind = type(error).__name__
    try:
        log = load().home / "cli-errors.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if log.exists() and log.stat().st_size > _ERROR_LOG_LIMIT:
            flags |= os.O_TRUNC
        with os.fdopen(os.open(log, flags, 0o600), "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"greenroom {' '.join(_without_prompts(sys.argv[1:]))}\n")
            file.writelines(traceback.format_exception(error))
    except (OSError, BadSetting):
        where = Path(error.__traceback__.tb_frame.f_code.co_filename).name if error.__traceback__ else "?"
        return f"Unexpected error: {kind}: {error} (in {where})."
    return f"Unexpected error: {kind}: {error}. Details are in {log}."


def _without_prompts(arguments: list[str]) -> list[str]:
    """The command and its flags: logs hold no prompts."""
    return [word.split("=")[0] for word in arguments if word.startswith("-") or word in COMMANDS]
