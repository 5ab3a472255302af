"""Small tars inside models (older artifacts keep `config.json` and the tokenizer in one): out, safely.

Only regular files with plain relative names come out; links, devices, `..` and absolute names refuse the
whole archive, and so does one that is larger than any configuration, however small it is packed: sparse
files, a terabyte in a few bytes, and headers that would be read into memory whole.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

from greenroom.runner.models.failures import not_a_model
from greenroom.runner.models.references import BadReference, relative_name

_FILES_LIMIT = 1_000
BYTES_LIMIT = 256 * 2**20
"""Of all files of one archive, and of the archive."""
_HEADER_LIMIT = 2**20
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)


class BoundedMember(tarfile.TarInfo):
    """A member that takes no more room than its archive does, in memory and on the disk."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # The hook that tarfile has for subclasses. What is not a file's content is read into memory whole.
        if self.type == tarfile.GNUTYPE_SPARSE or (self.type not in _PLAIN and self.size > _HEADER_LIMIT):
            raise tarfile.ReadError("a member is larger than its archive, or has an endless header")
        member = super()._proc_member(archive)  # type: ignore[misc]
        if member.issparse():
            raise tarfile.ReadError("a member is larger than its archive")
        return member


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack an uncompressed tar below a folder; returns the files.

    Raises:
        JobFailed: permanent, `not_a_model`, for anything that is no plain bundle of files.
        OSError: the disk refused.
    """
    files: list[Path] = []
    left = BYTES_LIMIT
    try:
        with tarfile.open(archive, "r:", tarinfo=BoundedMember) as tar:
            for member in tar:
                if member.isdir():
                    continue
                left -= member.size
                if not member.isreg() or left < 0 or len(files) >= _FILES_LIMIT:
                    raise not_a_model(
                        f"An archive in the model holds {member.name[:80]!r}, which is not allowed."
                    )
                target = folder / relative_name(member.name.removeprefix("./"))
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                with content, target.open("xb") as out:
                    shutil.copyfileobj(content, out)
                files.append(target)
    except (tarfile.TarError, BadReference, FileExistsError, UnicodeError) as error:
        raise not_a_model(f"An archive in the model is damaged or hostile: {error}") from error
    return files
