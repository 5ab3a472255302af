"""Characters that text from outside must not bring to a log, a journal or a terminal. Light to import."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, what turns the direction of writing round, and halves of
# characters, as bytes that are not UTF-8 become.
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"

NAME = 4_096
"""Characters of a model's name or source; a path is one."""

_UNPRINTABLE = re.compile(f"[{UNPRINTABLE}]")


def is_line(text: str, longest: int = NAME) -> bool:
    """Whether it is one line of printable characters of at most that length."""
    return len(text) <= longest and _UNPRINTABLE.search(text) is None


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with each of them written as in JSON (`\u001b`); with `lines`, tabs and line ends stay."""
    return _UNPRINTABLE.sub(_but_lines if lines else _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _but_lines(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else _escaped(found)
