"""Tables as Docker's commands print them: no lines, upper-case headings, two spaces between."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

_GAP = "  "
_NARROWEST = 24
"""Characters the last column is given before columns go for its sake."""


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    spare: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """The table as text, without the last line's end.

    Args:
        spare: Headings of columns that are left out where the width is too small, the first one first.
        width: Characters of a line, for which the last column is broken too; None for any number.
    """
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    shown = list(range(len(headings)))
    if width is not None:
        for heading in spare:
            if _needed(widths, shown) <= width:
                break
            shown.remove(headings.index(heading))
    text: list[str] = []
    for line in lines:
        *cells, last = ((line[column], widths[column]) for column in shown)
        begin = "".join(cell.ljust(size) + _GAP for cell, size in cells)
        text += [row.rstrip() for row in _broken(begin, last[0], width)]
    return "\n".join(text)


def terminal_width() -> int | None:
    """Of the terminal that standard output is; None for a pipe or a file, which take lines of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _needed(widths: Sequence[int], shown: Sequence[int]) -> int:
    *others, last = (widths[column] for column in shown)
    return sum(size + len(_GAP) for size in others) + min(last, _NARROWEST)


def _broken(begin: str, last: str, width: int | None) -> list[str]:
    """One line of the table, or several when its last cell is too long for one."""
    if width is None or len(begin) + len(last) <= width or width - len(begin) < _NARROWEST:
        return [begin + last]
    from textwrap import wrap

    first, *rest = wrap(last, width - len(begin), break_long_words=False, break_on_hyphens=False)
    return [begin + first, *(" " * len(begin) + more for more in rest)]
