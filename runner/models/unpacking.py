"""Small tars inside models (older artifacts keep `config.json` and the tokenizer in one): out, safely.

Only regular files with plain relative names come out; links, devices, `..` and absolute names refuse the
whole archive, and so does one that is larger than any configuration, however small it is packed.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from greenroom.runner.models.failures import not_a_model
from greenroom.runner.models.references import BadReference, relative_name

_FILES_LIMIT = 1_000
_BYTES_LIMIT = 256 * 2**20


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack an uncompressed tar below a folder; returns the files.

    Raises:
        JobFailed: permanent, `not_a_model`, for anything that is no plain bundle of files.
        OSError: the disk refused.
    """
    files: list[Path] = []
    left = _BYTES_LIMIT
    try:
        with tarfile.open(archive, "r:") as tar:
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
