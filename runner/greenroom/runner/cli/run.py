"""`greenroom run`: one question, or a chat."""

from __future__ import annotations

import os
import select
import stat
import sys

import click

from greenroom.runner.cli.conversation import Conversation, announce
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.cli.output import style
from greenroom.runner.cli.streams import readable

_PIPE_SECONDS = 2.0
"""A prompt is complete in itself; what a pipe adds to it must begin to come within this time."""


@click.command("run")
@click.argument("model", type=ModelName(catalogue=True))
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", metavar="TEXT", help="An instruction that precedes the conversation.")
@click.option("--backend", default="", metavar="NAME", help="Have it served by this backend and no other.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="End the answer after so many tokens.")
@click.option("-d", "--detach", is_flag=True, help="Only load the model.")
@click.option("--stats", is_flag=True, help="Say afterwards how many tokens, and how quickly.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    prompt: tuple[str, ...],
    system: str,
    backend: str,
    max_tokens: int | None,
    detach: bool,
    stats: bool,
) -> None:
    """Ask MODEL something, or chat with it.

    The prompt is the rest of the line, or comes from a pipe (`cat letter | greenroom run smollm2
    "Summarise this."` takes both); without one, a chat begins. The daemon is started, the model
    fetched and its backend installed if need be. Only the answer goes to standard output.
    """
    settings = settings_of(ctx)
    question = readable(" ".join(prompt)).strip()
    if not question and not detach and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise click.UsageError("There is no prompt: standard input is empty.")
    conversation = Conversation(
        ensure_daemon(settings, announce),
        model,
        say=announce,
        backend=backend,
        system=system,
        max_tokens=max_tokens,
        may_install=settings.install_policy != "never",
        token=os.environ.get("HF_TOKEN", "")
        if model.lower().startswith(("hf.co/", "huggingface.co/"))
        else "",
    )
    conversation.prepare()
    if detach:
        return
    if not question:
        from greenroom.runner.cli.chat import chat

        chat(conversation, model)
        return
    if prompt:
        question = _with_pipe(question)
    tell(conversation, question)
    if stats:
        announce(statistics(conversation))


def tell(conversation: Conversation, question: str) -> None:
    """Print the answer as it comes."""
    reasoning = False
    last = ""
    for piece in conversation.ask(question):
        if piece.reasoning:
            if not reasoning:
                click.echo(style("Thinking:", dim=True))
            reasoning = True
            click.echo(style(piece.reasoning, dim=True), nl=False)
        if piece.text:
            if reasoning:
                click.echo("\n\n--\n")
                reasoning = False
            click.echo(piece.text, nl=False)
            last = piece.text
    if not last.endswith("\n"):
        click.echo()
    if conversation.cut_off:
        announce("(The answer was cut off: it reached the limit of --max-tokens, or of the model's context.)")


def statistics(conversation: Conversation) -> str:
    """`27 tokens in 0.6s, the first after 0.12s; 45.0 tokens/s; prompt 38 tokens`."""
    usage = conversation.usage
    if usage is None:
        return "There is no whole answer to count."
    pace = usage.answer_tokens / max(usage.seconds - usage.first_token_after, 1e-3)
    return (
        f"{usage.answer_tokens} tokens in {usage.seconds:.2f}s, the first after "
        f"{usage.first_token_after:.2f}s; {pace:.1f} tokens/s; prompt {usage.prompt_tokens} tokens"
    )


def _with_pipe(question: str) -> str:
    """The question and what is piped in. A pipe that nobody writes to must not hold up the answer."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return question
    if stat.S_ISREG(kind):
        more = sys.stdin.read()
    elif stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        if not select.select([sys.stdin], [], [], _PIPE_SECONDS)[0]:
            announce(f"Nothing came on standard input for {_PIPE_SECONDS:g} seconds; going on without it.")
            return question
        more = sys.stdin.read()
    else:
        return question
    return f"{question}\n\n{more.strip()}" if more.strip() else question
