"""`greenroom run`: one question, or a chat."""

from __future__ import annotations

import json
import os
import select
import stat
import sys
from functools import partial
from typing import Any

import click

from greenroom.runner.cli.chat_session import CONTEXT, Conversation, Options
from greenroom.runner.cli.completion import ModelName, OneOf, backend_names
from greenroom.runner.cli.local_names import check_not_local
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, readable
from greenroom.runner.cli.variants import Changeovers, fetch_better
from greenroom.runner.client.daemons import ensure_daemon

_PIPE_SECONDS = 2.0
"""A prompt is complete in itself; what a pipe adds to it must begin to come within this time."""


@click.command("run")
@click.argument("model", type=ModelName(catalogue=True))
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", metavar="TEXT", help="The system prompt.")
@click.option("--image", "images", multiple=True, metavar="FILE", help="Send an image with the prompt.")
@click.option("--format", "wanted", metavar="json|FILE", help="Answer in JSON, or by a JSON schema in FILE.")
@click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="0 is steady, 1 varied.")
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer again.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Limit the answer.")
@click.option("--context", metavar="N", help="Tokens of context that are needed at least; `max` for all.")
@click.option("--keep-alive", metavar="DURATION", help="How long the model stays loaded afterwards: 30m.")
@click.option(
    "--backend", default="", type=OneOf(backend_names), metavar="NAME", help="Use only this backend."
)
@click.option("-d", "--detach", is_flag=True, help="Only load the model.")
@click.option("--stats", "--verbose", is_flag=True, help="Print token counts and speed after each answer.")
@click.option("--history/--no-history", default=True, help="Keep what is typed in chats, for the next ones.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer with its statistics as JSON.")
@click.pass_context
def run_command(
    ctx: click.Context,
    /,
    model: str,
    prompt: tuple[str, ...],
    system: str,
    images: tuple[str, ...],
    backend: str,
    detach: bool,
    stats: bool,
    history: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Ask MODEL a question, or chat with it.

    The prompt is the rest of the line, standard input, or both (`cat letter | greenroom run smollm2
    "Summarize this."`). On the line, @FILE stands for a file: its text, or its image. Without a prompt, a
    chat starts. If needed, the daemon is started, the model pulled and its backend installed. Only the answer
    is written to standard output.
    """
    settings = settings_of(ctx)
    options = _options(**given)
    typed = readable(" ".join(prompt)).strip()
    if detach and (typed or images):
        raise click.UsageError("--detach only loads the model: leave out the prompt, or --detach.")
    question = typed
    if not question and not detach and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise click.UsageError("The prompt is empty: standard input has no text.")
    if as_json and not question:
        raise click.UsageError("--json is for one question; give a prompt.")
    if images and not question:
        raise click.UsageError("An image needs a prompt. In a chat, name it in the message: @photo.png")
    parts: list[dict[str, Any]] = []
    if images or "@" in typed:
        from greenroom.runner.cli.prompt_files import with_files

        # What a pipe brings is not searched: it may be from others, and name any file.
        text, parts = with_files(typed, images)
        question = text or question
    client = ensure_daemon(settings, announce)
    conversation = Conversation(
        client,
        model,
        say=announce,
        backend=backend,
        system=system,
        options=options,
        may_install=settings.install_policy != "never",
        token=os.environ.get("HF_TOKEN", "")
        if model.lower().startswith(("hf.co/", "huggingface.co/"))
        else "",
        before_pull=partial(check_not_local, settings.home) if not settings.host else lambda _: None,
    )
    changeovers = Changeovers(client)
    conversation.prepare()
    changeovers.announce()
    if settings.install_policy != "never":
        fetch_better(client, backend)
    if detach:
        return
    if not question:
        from greenroom.runner.cli.chat import COMMANDS, chat
        from greenroom.runner.cli.line_editor import HISTORY, LineEditor

        editor = LineEditor(COMMANDS, settings.home / HISTORY if history else None)
        chat(conversation, changeovers, editor, settings.home, stats=stats)
        return
    from greenroom.runner.cli import answers

    if typed:
        question = _with_pipe(question)
    content = [{"type": "text", "text": question}, *parts] if parts else question
    if as_json:
        click.echo(json.dumps(answers.as_json(conversation, content), indent=4, ensure_ascii=False))
    else:
        answers.tell(conversation, content)
        if stats:
            announce(answers.statistics(conversation.reply))
    # A download that ended before the question was asked has had it loaded on the new variant.
    changeovers.announce()


def _options(
    *,
    temperature: float | None,
    seed: int | None,
    max_tokens: int | None,
    keep_alive: str | None,
    context: str | None,
    wanted: str | None,
) -> Options:
    """Raises BadParameter, or Problem for a schema that cannot be used."""
    if keep_alive is not None or context is not None or wanted is not None:
        from greenroom.runner.cli.configure import context_of, keep_alive_of
        from greenroom.runner.cli.prompt_files import schema_of

        size = context_of(context) if context is not None else None
        return Options(
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            keep_alive=keep_alive_of(keep_alive) if keep_alive is not None else None,
            context=CONTEXT if size == -1 else size,
            response_format=schema_of(wanted) if wanted is not None else None,
        )
    return Options(temperature=temperature, seed=seed, max_tokens=max_tokens)


def _with_pipe(question: str) -> str:
    """The prompt and what is piped in. A pipe without a writer must not delay the answer."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return question
    if stat.S_ISREG(kind):
        more = sys.stdin.read()
    elif stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        if not select.select([sys.stdin], [], [], _PIPE_SECONDS)[0]:
            announce(f"No standard input within {_PIPE_SECONDS:g}s; continuing without it.")
            return question
        more = sys.stdin.read()
    else:
        return question
    return f"{question}\n\n{more.strip()}" if more.strip() else question
