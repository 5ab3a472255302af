"""A chat: messages, and the commands that begin with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Protocol

import click

from greenroom.runner.cli import answers, saved_chats
from greenroom.runner.cli.chat_session import CONTEXT, Conversation, Options, overflows
from greenroom.runner.cli.completion import anchored
from greenroom.runner.cli.configure import context_of, keep_alive_of
from greenroom.runner.cli.output import announce, style
from greenroom.runner.cli.prompt_files import content_of, schema_of
from greenroom.runner.cli.variants import Changeovers
from greenroom.runner.client.errors import GreenroomError, RequestRefused

HELP = """\
/set NAME VALUE   temperature, seed, max_tokens, context, keep_alive, format; without a value: the default
/set system TEXT  the system prompt; /system TEXT starts over with it
/set stats        print token counts and speed after each answer; /set nostats
/show             the model, the parameters, and how long the chat is; /show messages
/save NAME        keep this chat; /load NAME goes on with it
/load MODEL       start over with another model
/clear            start over; the system prompt stays
/stats            token counts and speed of the last answer
/bye              leave (or Ctrl-D)
@FILE             in a message: the text of a file, or an image
\"\"\"               starts and ends a message of several lines (or Alt-Enter)
Ctrl-C            stops an answer, or clears the line"""
COMMANDS = ("/set ", "/show", "/load ", "/save ", "/clear", "/system ", "/stats", "/bye", "/help", "/?")

_ROOM = 0.75
"""The part of a full context that is kept, so that the next answers have room."""
_OTHER_NAMES = {"num_ctx": "context", "num_predict": "max_tokens", "keep-alive": "keep_alive"}


class Lines(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """The next message. Raises EOFError at their end, and KeyboardInterrupt."""
        ...


def chat(
    conversation: Conversation, changeovers: Changeovers, lines: Lines, home: Path, *, stats: bool = False
) -> None:
    """Talk until the user leaves. What fails ends the answer, not the chat."""
    ChatSession(conversation, changeovers, lines, home, stats=stats).talk()


class ChatSession:
    def __init__(
        self, conversation: Conversation, changeovers: Changeovers, lines: Lines, home: Path, *, stats: bool
    ) -> None:
        self._conversation = conversation
        self._changeovers = changeovers
        self._lines = lines
        self._home = home
        self._stats = stats
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/system": self._system,
            "/stats": lambda _: announce(answers.statistics(self._conversation.reply)),
            "/help": lambda _: announce(HELP),
            "/?": lambda _: announce(HELP),
        }

    def talk(self) -> None:
        announce(f"Chatting with {self._conversation.model}. /? for help, /bye or Ctrl-D to leave.")
        while True:
            try:
                line = self._lines.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                announce("Ctrl-D or /bye leaves the chat.")
                continue
            if line in ("/bye", "/exit", "/quit"):
                return
            try:
                self._act(line)
            except KeyboardInterrupt:
                announce("(stopped)")
            except GreenroomError as problem:
                announce(f"{style('Error:', fg='red')} {problem}")

    def _act(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/") and "/" not in word[1:] and "\n" not in line:
            near = difflib.get_close_matches(word, self._commands, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            announce(f"There is no command {word}.{hint} /? lists them.")
        elif line:
            self._answer(line)
            self._changeovers.announce()

    def _answer(self, line: str) -> None:
        conversation, dropped = self._conversation, 0
        content = content_of(line)
        while True:
            try:
                answers.tell(conversation, content)
                break
            except RequestRefused as refused:
                tokens, size = (int(refused.fields.get(name) or 0) for name in ("n_prompt_tokens", "n_ctx"))
                count = self._make_room(tokens, size) if overflows(refused) else 0
                if not count:
                    raise
                dropped += count
        if self._stats:
            announce(answers.statistics(conversation.reply))
        reply, most = conversation.reply, conversation.options.max_tokens
        if reply is not None and reply.finish == "length" and most is None:
            used = reply.prompt_tokens + reply.answer_tokens
            dropped += self._make_room(used, used)
        if dropped:
            announce(
                f"(The context is full: the oldest {dropped} messages of this chat are no longer sent. "
                "For more room: /set context N. To start over: /clear)"
            )

    def _make_room(self, tokens: int, size: int) -> int:
        """Drop the oldest turns of a chat of so many tokens for a context of that size; how many messages."""
        conversation = self._conversation
        before = len(conversation.messages)
        length = _length(conversation)
        target = length * _ROOM * min(1.0, size / tokens) if tokens and size else length * _ROOM
        while conversation.drop_oldest() and _length(conversation) > target:
            pass
        return before - len(conversation.messages)

    # commands

    def _set(self, rest: str) -> None:
        name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        value = value.strip()
        name = _OTHER_NAMES.get(name, name)
        if not name:
            announce(self._parameters())
        elif name in ("stats", "verbose", "nostats", "quiet"):
            self._stats = name in ("stats", "verbose")
            announce(f"Statistics are {'printed after each answer' if self._stats else 'not printed'}.")
        elif name == "system":
            messages = self._conversation.messages[bool(self._conversation.system_prompt) :]
            self._conversation.system(value)
            self._conversation.messages += messages
            announce("The system prompt is set." if value else "There is no system prompt now.")
        elif name in _PARAMETERS:
            option, parse = _PARAMETERS[name]
            try:
                parsed = parse(value) if value and value != "none" else None
            except (ValueError, click.BadParameter) as error:
                reason = error.message if isinstance(error, click.BadParameter) else f"{error}."
                announce(f"{style('Error:', fg='red')} {name} is not changed: {reason}")
                return
            self._conversation.change(**{option: parsed})
            announce(f"{name} is {value if parsed is not None else 'the default again'}.")
        else:
            known = ", ".join([*_PARAMETERS, "system", "stats", "nostats"])
            announce(f"There is no parameter {name}. There are: {known}.")

    def _show(self, rest: str) -> None:
        conversation = self._conversation
        if rest == "system":
            announce(conversation.system_prompt or "There is no system prompt.")
            return
        if rest == "messages":
            for one in conversation.messages:
                announce(f"{style(one['role'] + ':', bold=True)} {saved_chats.text_of(one)}")
            return
        reply = conversation.reply
        used = reply.prompt_tokens + reply.answer_tokens if reply is not None else 0
        count = sum(one["role"] != "system" for one in conversation.messages)
        announce(f"model: {conversation.model}")
        announce(f"system prompt: {conversation.system_prompt or 'none'}")
        announce(f"messages: {count}{f' ({used} tokens)' if used and count else ''}")
        announce(self._parameters())

    def _parameters(self) -> str:
        options = self._conversation.options
        lines = []
        for name, (option, _) in _PARAMETERS.items():
            value = getattr(options, option)
            if option == "response_format" and value is not None:
                value = "json" if value["type"] == "json_object" else "a JSON schema"
            lines.append(f"{name}: {'default' if value is None else value}")
        return "\n".join([*lines, f"stats: {'yes' if self._stats else 'no'}"])

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        kept = " The system prompt stays." if self._conversation.system_prompt else ""
        announce(f"The chat starts over.{kept}")

    def _system(self, text: str) -> None:
        self._conversation.system(text)
        announce(
            f"The chat starts over{' with this system prompt' if text else ', without a system prompt'}."
        )

    def _save(self, name: str) -> None:
        if not name:
            announce("Name the chat: /save NAME")
            return
        path = saved_chats.path_of(name, self._home)
        conversation = self._conversation
        options = {one.name: getattr(conversation.options, one.name) for one in fields_of(Options)}
        saved_chats.save(path, saved_chats.SavedChat(conversation.model, options, conversation.messages))
        announce(f"Saved to {path}. To go on with it: /load {name}")

    def _load(self, name: str) -> None:
        conversation = self._conversation
        if not name:
            known = saved_chats.names(self._home)
            announce(
                f"Name a chat or a model: /load NAME{'. Saved chats: ' if known else ''}{', '.join(known)}"
            )
            return
        path = saved_chats.path_of(name, self._home)
        before = conversation.model, conversation.options, conversation.messages
        try:
            if path.is_file():
                saved = saved_chats.load(path)
                conversation.model = saved.model
                conversation.options = Options(**saved.options)
                conversation.messages = saved.messages
            else:
                conversation.model = anchored(name)
                conversation.clear()
            conversation.prepare()
        except BaseException:
            conversation.model, conversation.options, conversation.messages = before
            raise
        conversation.reply = None
        count = sum(one["role"] != "system" for one in conversation.messages)
        announce(f"Chatting with {conversation.model}{f'; {count} messages so far' if count else ''}.")


def _length(conversation: Conversation) -> int:
    """Characters that are sent; an image counts as a page of text."""
    return sum(len(saved_chats.text_of(one)) + 16 for one in conversation.messages)


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise ValueError(f"it must be from {least:g} to {most:g}")
        return value

    return parse


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("it must be a whole number, 1 or more")
    return int(text)


def _context(text: str) -> int:
    size = context_of(text)
    return CONTEXT if size == -1 else size


_PARAMETERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "temperature": ("temperature", _number(0, 2)),
    "seed": ("seed", int),
    "max_tokens": ("max_tokens", _count),
    "context": ("context", _context),
    "keep_alive": ("keep_alive", keep_alive_of),
    "format": ("response_format", schema_of),
}
"""What `/set` takes: the option, and how its value is read."""
