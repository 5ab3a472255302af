"""Prints answers as they come, broken between words on a terminal."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator

import click

from greenroom.runner.cli.chat_session import Conversation, pace
from greenroom.runner.cli.output import announce, own, style, terminal_width
from greenroom.runner.cli.prompt_files import Content
from greenroom.runner.client.results import TextResult

_FENCE = "```"


class Wrapper:
    """Breaks a stream of text between words: a word that meets the edge moves to the next line.

    Lines of code, between fences, are left to the terminal.
    """

    def __init__(self, width: int | None) -> None:
        """`width` is None for what is no terminal: text passes unchanged."""
        self._width = width
        self._column = 0
        self._word = ""
        """The end of the line, from its last space on."""
        self._line = ""
        self._is_code = False

    def feed(self, text: str) -> str:
        """What to write for the next piece of text."""
        if self._width is None:
            return text
        return "".join(self._shown(text, self._width))

    def _shown(self, text: str, width: int) -> Iterator[str]:
        for one in text:
            if one == "\n":
                if self._line.lstrip().startswith(_FENCE):
                    self._is_code = not self._is_code
                self._column, self._word, self._line = 0, "", ""
                yield one
                continue
            size = _size(one)
            if not self._is_code and self._column + size > width:
                if one == " ":
                    # It would begin the next line.
                    self._column, self._word = 0, ""
                    yield "\n"
                    continue
                begun = _length(self._word)
                if 0 < begun < self._column:
                    yield own(f"\x1b[{begun}D\x1b[K")
                    yield f"\n{self._word}"
                    self._column = begun
                else:
                    yield "\n"
                    self._column, self._word = 0, ""
            self._column += size
            self._word = "" if one == " " else self._word + one
            self._line = (self._line + one)[: len(_FENCE) + 8]
            yield one


def _size(one: str) -> int:
    """Columns of a character."""
    if unicodedata.combining(one) or unicodedata.category(one) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def _length(text: str) -> int:
    return sum(map(_size, text))


def tell(conversation: Conversation, content: Content) -> None:
    """Print the answer as it comes. Raises Problem when it breaks off."""
    reasoning = False
    last = ""
    wrapper = Wrapper(terminal_width())
    try:
        with contextlib.closing(conversation.ask(content)) as pieces:
            for piece in pieces:
                if piece.reasoning:
                    if not reasoning:
                        click.echo(style("Thinking:", dim=True))
                    reasoning = True
                    click.echo(style(wrapper.feed(piece.reasoning), dim=True), nl=False)
                    last = piece.reasoning
                if piece.text:
                    if reasoning:
                        click.echo("\n\n--\n")
                        wrapper, reasoning = Wrapper(terminal_width()), False
                    click.echo(wrapper.feed(piece.text), nl=False)
                    last = piece.text
    finally:
        # What follows, the next prompt or an error, begins a line of its own.
        reply = conversation.reply
        if (last and not last.endswith("\n")) or (reply is not None and reply.finish and not last):
            click.echo()
    if conversation.reply is not None and conversation.reply.finish == "length":
        announce(_cut_off(conversation))


def _cut_off(conversation: Conversation) -> str:
    reply, most = conversation.reply, conversation.options.max_tokens
    if reply is not None and most is not None and reply.answer_tokens >= most:
        return f"(The answer was cut off after {most} tokens, the limit that was set.)"
    return (
        "(The answer was cut off: the context is full. "
        f"A larger one: greenroom configure {conversation.model} --context N)"
    )


def statistics(reply: TextResult | None) -> str:
    """`27 tokens in 0.6s, the first after 0.12s; 45.0 tokens/s; prompt 38 tokens`."""
    if reply is None or not reply.answer_tokens:
        return "There is no complete answer yet."
    return (
        f"{reply.answer_tokens} tokens in {reply.seconds:.2f}s, the first after "
        f"{reply.first_token_after:.2f}s; {pace(reply):.1f} tokens/s; prompt {reply.prompt_tokens} tokens"
    )


def as_json(conversation: Conversation, content: Content) -> dict[str, object]:
    """The whole answer with what it cost, for programs. Raises Problem when it breaks off."""
    for _ in conversation.ask(content):
        pass
    reply = conversation.reply
    assert reply is not None, "it was asked"
    return {
        "model": conversation.model,
        "answer": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish,
        "prompt_tokens": reply.prompt_tokens,
        "answer_tokens": reply.answer_tokens,
        "first_token_seconds": round(reply.first_token_after, 4),
        "seconds": round(reply.seconds, 4),
        "tokens_per_second": round(pace(reply), 2),
    }
