"""Files a backend looks for below the user's home, put there out of its installation and taken away again.

vllm-metal keeps its compiled kernels in `~/.cache/vllm-metal` and would compile them anew if they were not
there, which takes Apple's developer tools. The place may be shared with an installation of the user's own,
so single files are put there, each in one step, and only what is still ours, to the byte, is taken away.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from greenroom.actors.journal.disk import force
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.verification import sha256


def place(tree: Path, folders: Mapping[str, str], home: Path) -> list[Path]:
    """See that the files of these folders of the tree lie where they are looked for.

    Returns:
        The files that had to be put there: missing ones, and ones with other bytes.

    Raises:
        JobFailed: They cannot be written.
    """
    placed = []
    for source, target in _files(tree, folders, home):
        if _same(source, target):
            continue
        try:
            _copy(source, target)
        except OSError as error:
            raise JobFailed.permanent(
                "cannot_place",
                f"{target} could not be written, where the backend looks for it: {error.strerror or error}.",
                advice="Give yourself the right to write there, and free some space if the disk is full.",
                detail=f"{type(error).__name__}: {error}",
            ) from error
        placed.append(target)
    return placed


def withdraw(tree: Path, folders: Mapping[str, str], home: Path) -> int:
    """Take away those that are still as the tree has them; returns the bytes of disk freed.

    Files that cannot be removed stay: they are small, and an uninstallation must not fail for them.
    """
    freed = 0
    emptied = set()
    for source, target in _files(tree, folders, home):
        if _same(source, target):
            with suppress(OSError):
                blocks = target.stat().st_blocks
                target.unlink()
                freed += blocks * 512
                emptied.add(target.parent)
    for folder in emptied:
        with suppress(OSError):
            folder.rmdir()
    return freed


def _files(tree: Path, folders: Mapping[str, str], home: Path) -> Iterator[tuple[Path, Path]]:
    for inside, below in folders.items():
        source, target = tree / _relative(inside), home / _relative(below)
        # Sorted: a stamp (`x.so.sha256`) comes after what it vouches for.
        for file in sorted(source.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file, target / file.relative_to(source)


def _relative(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{text!r} is not a path below a folder")
    return path


def _same(source: Path, target: Path) -> bool:
    try:
        return source.stat().st_size == target.stat().st_size and sha256(source) == sha256(target)
    except OSError:
        return False


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as out, source.open("rb") as content:
            shutil.copyfileobj(content, out)
            out.flush()
            force(out.fileno())
        shutil.copymode(source, draft)
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
