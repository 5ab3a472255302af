"""Files named for the hash of their content."""

from __future__ import annotations

import re
from pathlib import Path

_NAMED = re.compile(r"(?:sha256-)?([0-9a-f]{64})")


def known_digest(path: Path) -> str:
    """`sha256:<hex>` if the file's name is its hash, as in Ollama's and Hugging Face's blobs; else empty.

    Hugging Face's cache names small files for git's hash, which is shorter and does not count.
    """
    found = _NAMED.fullmatch(path.name) if path.parent.name == "blobs" else None
    return f"sha256:{found[1]}" if found else ""
