"""The interactive chat of `greenroom run MODEL`."""

from __future__ import annotations

import contextlib

from greenroom.runner.cli.conversation import Conversation, announce
from greenroom.runner.cli.output import style
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.run import statistics, tell

_HELP = """\
/system TEXT   start over with this instruction
/clear         start over
/stats         how many tokens the last answer had, and how quickly they came
/bye           leave (Ctrl-D too)
\"\"\"            begins and ends a text of several lines
Ctrl-C ends an answer."""


def chat(conversation: Conversation, model: str) -> None:
    """Talk until the user has had enough. An answer that fails ends the answer, not the chat."""
    with contextlib.suppress(ImportError):
        # Editing and history of the line, where Python has it.
        import readline  # noqa: F401

    announce(f"Chatting with {model}. /bye to leave, /help for more.")
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
        announce(_HELP if word in ("/help", "/?") else f"There is no {word}.\n{_HELP}")
