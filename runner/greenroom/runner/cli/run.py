"""`greenroom run`: one question, or a chat."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from greenroom.runner.cli.client import Client, DaemonRefused, Gone, path_of
from greenroom.runner.cli.completion import ModelName
from greenroom.runner.cli.connect import ensure_daemon
from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.exit_codes import Problem
from greenroom.runner.cli.jobs import Watch, install, pull
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, readable, style
from greenroom.runner.cli.variants import Changeovers, fetch_better

_READING = re.compile(r"keepalive (?P<read>\d+)/(?P<all>\d+)")
_MEANT = re.compile(r"Did you mean [^?]*\?")
_PATIENCE = 2.0
"""Seconds before the progress of reading the prompt is shown."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer, in the order in which it arrives."""

    text: str = ""
    reasoning: str = ""


@dataclass
class Usage:
    """What the last answer cost."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_token_after: float = 0.0
    seconds: float = 0.0


class Conversation:
    """What was said so far, and the model it is said to."""

    def __init__(
        self,
        client: Client,
        model: str,
        *,
        say: Callable[[str], None],
        backend: str = "",
        system: str = "",
        max_tokens: int | None = None,
        may_install: bool = True,
        token: str = "",
    ) -> None:
        """`say` receives progress messages; `backend`, unless empty, is the only one that may serve."""
        self._client = client
        self._model = model
        self._shown = model
        self._say = say
        self._path = path_of("engines", backend, "v1/chat/completions") if backend else "/v1/chat/completions"
        self._max_tokens = max_tokens
        self._may_install = may_install
        self._token = token
        self.messages: list[dict[str, str]] = []
        self.usage: Usage | None = None
        """Of the last answer; None when it did not end in order."""
        self.cut_off = False
        """Whether the last answer ended for want of tokens."""
        self.system(system)

    def system(self, text: str) -> None:
        """Start over with this system prompt; empty means none."""
        self.messages = [{"role": "system", "content": text}] if text else []

    def prepare(self) -> None:
        """Have the model loaded: fetch it and install its backend if need be, visibly.

        Raises:
            Problem: it cannot be, or may not be.
        """
        with display() as shown, Watch(self._client, shown) as watch:
            done: set[str] = set()
            while True:
                try:
                    self._preload()
                except DaemonRefused as refused:
                    self._mend(refused, done, shown, watch)
                else:
                    return

    def _mend(self, refused: DaemonRefused, done: set[str], shown: Display, watch: Watch) -> None:
        """Do what a refusal asks for, once; raise it again when that is not for us to do."""
        backend = str(refused.fields.get("backend") or "")
        if refused.code == "model_not_found" and "model" not in done:
            done.add("model")
            meant = _MEANT.search(str(refused))
            shown.note(f"{self._shown} is not in the store; pulling it.{f' {meant[0]}' if meant else ''}")
            shown.note(pull(self._client, self._model, token=self._token, shown=shown))
        elif refused.code == "backend_not_installed" and backend not in done | {""} and self._may_install:
            done.add(backend)
            watch.own.add(f"install/{backend}")
            installed = install(self._client, backend, announce=shown.note, shown=shown)
            shown.note(installed.message)
        else:
            raise refused

    def ask(self, prompt: str) -> Iterator[Piece]:
        """Say something and yield the answer as it comes; it is remembered if it ends in order.

        Closing the iterator ends the generation. Raises Problem when it breaks off.
        """
        said = [*self.messages, {"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": self._model, "messages": said, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self._max_tokens is not None:
            body["max_tokens"] = self._max_tokens
        whole: list[str] = []
        began = time.monotonic()
        self.usage = None
        self.cut_off = False
        usage = Usage()
        with self._client.open("POST", self._path, body, accept="text/event-stream") as answer:
            for event in self._events(answer.lines()):
                counted = event.get("usage") or {}
                usage.prompt_tokens = int(counted.get("prompt_tokens") or usage.prompt_tokens)
                usage.answer_tokens = int(counted.get("completion_tokens") or usage.answer_tokens)
                if any(choice.get("finish_reason") == "length" for choice in event.get("choices") or ()):
                    self.cut_off = True
                for piece in _pieces(event):
                    if not usage.first_token_after:
                        usage.first_token_after = time.monotonic() - began
                    whole.append(piece.text)
                    yield piece
        usage.seconds = time.monotonic() - began
        self.usage = usage
        self.messages = [*said, {"role": "assistant", "content": "".join(whole)}]

    def _events(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        """The stream's objects; its comments go to `say`, and an error in it is raised."""
        began = time.monotonic()
        for line in lines:
            if line.startswith(":"):
                if told := _told(line[1:].strip(), time.monotonic() - began):
                    self._say(told)
                continue
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                continue
            error = event.get("error")
            if error:
                fields = error if isinstance(error, dict) else {"message": str(error)}
                raise Problem(
                    str(fields.get("message") or "The answer was interrupted."),
                    str(fields.get("advice") or ""),
                )
            yield event
        raise Gone(self._client.url, "closed the connection in the middle of its answer")

    def _preload(self) -> None:
        """Ask for the model without a prompt: the answer comes when its engine is ready."""
        body = {"model": self._model, "messages": [], "stream": False}
        with self._client.open("POST", self._path, body, headers={"X-Preload-Only": "true"}) as answer:
            answer.read()


def _told(comment: str, after: float) -> str:
    """The message for a stream's comment, `after` seconds into the stream; empty if it is not worth showing.

    mlx-lm's server comments `keepalive READ/ALL` while it reads the prompt (`mlx_lm/server.py`).
    """
    reading = _READING.fullmatch(comment)
    if reading is None:
        return comment
    if after < _PATIENCE or reading["read"] == reading["all"]:
        return ""
    return f"reading the prompt: {reading['read']} of {reading['all']} tokens"


def _pieces(event: dict[str, Any]) -> Iterator[Piece]:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if reasoning:
            yield Piece(reasoning=str(reasoning))
        if delta.get("content"):
            yield Piece(text=str(delta["content"]))


_PIPE_SECONDS = 2.0
"""A prompt is complete in itself; what a pipe adds to it must begin to come within this time."""


@click.command("run")
@click.argument("model", type=ModelName(catalogue=True))
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", metavar="TEXT", help="The system prompt.")
@click.option("--backend", default="", metavar="NAME", help="Use only this backend.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Limit the answer to so many tokens.")
@click.option("-d", "--detach", is_flag=True, help="Only load the model.")
@click.option("--stats", is_flag=True, help="Print token counts and speed afterwards.")
@click.pass_context
def run_command(
    ctx: click.Context,
    model: str,
    prompt: tuple[str, ...],
    system: str,
    backend: str,
    max_tokens: int | None,
    detach: bool,
    stats: bool,
) -> None:
    """Ask MODEL a question, or chat with it.

    The prompt is the rest of the line, standard input, or both (`cat letter | greenroom run smollm2
    "Summarize this."`). Without a prompt, a chat starts. If needed, the daemon is started, the model pulled
    and its backend installed. Only the answer is written to standard output.
    """
    settings = settings_of(ctx)
    question = readable(" ".join(prompt)).strip()
    if not question and not detach and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise click.UsageError("The prompt is empty: standard input has no text.")
    client = ensure_daemon(settings, announce)
    conversation = Conversation(
        client,
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
    changeovers = Changeovers(client)
    conversation.prepare()
    for told in changeovers.new():
        announce(told)
    if settings.install_policy != "never":
        fetch_better(client, backend)
    if detach:
        return
    if not question:
        chat(conversation, model, changeovers)
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
        announce("(The answer was cut off at the limit of --max-tokens or of the model's context.)")


def statistics(conversation: Conversation) -> str:
    """`27 tokens in 0.6s, the first after 0.12s; 45.0 tokens/s; prompt 38 tokens`."""
    usage = conversation.usage
    if usage is None:
        return "There is no complete answer yet."
    pace = usage.answer_tokens / max(usage.seconds - usage.first_token_after, 1e-3)
    return (
        f"{usage.answer_tokens} tokens in {usage.seconds:.2f}s, the first after "
        f"{usage.first_token_after:.2f}s; {pace:.1f} tokens/s; prompt {usage.prompt_tokens} tokens"
    )


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


_HELP = """\
/system TEXT   start over with this system prompt
/clear         start over
/stats         show the token count and speed of the last answer
/bye           quit (or Ctrl-D)
\"\"\"            starts and ends a message of several lines
Ctrl-C stops an answer."""


def chat(conversation: Conversation, model: str, changeovers: Changeovers) -> None:
    """Talk until the user has had enough. An answer that fails ends the answer, not the chat."""
    with contextlib.suppress(ImportError):
        # Editing and history of the line, where Python has it.
        import readline  # noqa: F401

    announce(f"Chatting with {model}. /bye to quit, /help for help.")
    while True:
        try:
            question = _read()
        except (EOFError, KeyboardInterrupt):
            announce("")
            return
        if question in ("/bye", "/exit", "/quit"):
            return
        if question.startswith("/"):
            _obey(conversation, question)
        elif question:
            try:
                tell(conversation, question)
                for told in changeovers.new():
                    announce(told)
            except KeyboardInterrupt:
                announce("")
            except Problem as problem:
                announce(f"{style('Error:', fg='red')} {problem}")


def _read() -> str:
    line = input("> ").strip()
    if not line.startswith('"""'):
        return line
    lines = [line[3:]]
    while not lines[-1].endswith('"""'):
        lines.append(input("... "))
    return "\n".join(lines)[:-3].strip()


def _obey(conversation: Conversation, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/set" and rest.startswith("system "):
        word, rest = "/system", rest.removeprefix("system ")
    if word == "/system":
        conversation.system(rest.strip())
    elif word == "/clear":
        conversation.system("")
    elif word == "/stats":
        announce(statistics(conversation))
    else:
        announce(_HELP if word in ("/help", "/?") else f"Unknown command {word}.\n{_HELP}")
