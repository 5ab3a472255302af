"""The line of a chat: editing, pasting, several lines, and what was typed in earlier chats."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from greenroom.runner.cli.output import unfiltered

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

HISTORY = "chat-history"
"""The file in the data directory, readable by its owner only."""
_BLOCK = '"""'
MOST_BYTES = 500_000
KEPT_BYTES = 250_000
"""What is left of the history when it has become too long: its latest entries."""


class LineEditor:
    """Reads one message at a time from the terminal; a paste is one message, however many lines it has."""

    def __init__(self, words: Sequence[str], history: Path | None) -> None:
        """`words` are completed by the tab key; without `history`, nothing is kept."""
        self._session = _session(words, history)

    def read(self) -> str:
        """The next message.

        Ctrl-C clears the line. Raises EOFError for Ctrl-D, and KeyboardInterrupt for Ctrl-C on an empty line.
        """
        return unquoted(self._session.prompt())


def unquoted(text: str) -> str:
    """The message without the quotation marks around several lines."""
    text = text.strip()
    if not text.startswith(_BLOCK):
        return text
    text = text.removeprefix(_BLOCK)
    return text.removesuffix(_BLOCK).strip()


def is_open(text: str) -> bool:
    """Whether it begins a message of several lines that has not ended yet."""
    text = text.strip()
    return text.startswith(_BLOCK) and not (len(text) >= 2 * len(_BLOCK) and text.endswith(_BLOCK))


def prepare_history(path: Path) -> None:
    """Make the file, for its owner only, and drop its oldest entries when it is too long."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "rb") as file:
        os.fchmod(file.fileno(), 0o600)
        if file.seek(0, os.SEEK_END) <= MOST_BYTES:
            return
        file.seek(-KEPT_BYTES, os.SEEK_END)
        # An entry begins with a comment, its time.
        kept = file.read().partition(b"\n# ")
    new, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}-")
    with os.fdopen(new, "wb") as file:
        file.write(b"\n# " + kept[2])
    Path(name).replace(path)


def _session(words: Sequence[str], history: Path | None) -> PromptSession[str]:
    """Imported here: it takes longer than most commands."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output.vt100 import Vt100_Output

    kept: FileHistory | InMemoryHistory = InMemoryHistory()
    if history is not None:
        with contextlib.suppress(OSError):  # a chat works without
            prepare_history(history)
            kept = FileHistory(str(history))
    bindings = KeyBindings()
    for keys, act in _BINDINGS.items():
        bindings.add(*keys)(act)
    screen = _screen()

    def size() -> Size:
        columns, rows = os.get_terminal_size(screen.fileno())
        return Size(rows=rows or 24, columns=columns or 80)  # some terminals do not know

    session: PromptSession[str] = PromptSession(
        "> ",
        history=kept,
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        key_bindings=bindings,
        multiline=Condition(lambda: is_open(session.default_buffer.text)),
        prompt_continuation=lambda _width, _line, wraps: "" if wraps else "... ",
        # No terminal is asked where its cursor is: some never say.
        output=Vt100_Output(screen, size, term=os.environ.get("TERM"), enable_cpr=False),
    )
    return session


def _screen() -> TextIO:
    """Standard output may be a file, for the answers."""
    out = unfiltered(sys.stdout)
    return out if out.isatty() else unfiltered(sys.stderr)


def _clear_or_leave(event: Any) -> None:
    if event.current_buffer.text:
        event.current_buffer.reset()
    else:
        event.app.exit(exception=KeyboardInterrupt, style="class:aborting")


def _new_line(event: Any) -> None:
    event.current_buffer.insert_text("\n")


_BINDINGS: dict[tuple[str, ...], Callable[[Any], None]] = {
    ("c-c",): _clear_or_leave,
    ("escape", "enter"): _new_line,
}
