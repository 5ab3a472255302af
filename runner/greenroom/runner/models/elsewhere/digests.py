"""File names that say what the content must be."""

from __future__ import annotations

import re
from pathlib import Path

_NAMED = re.compile(r"(?:sha256-)?([0-9a-f]{64})")


def known_digest(path: Path) -> str:
    """`sha256:<hex>` of a file in Ollama's blobs or Hugging Face's cache, after its name; else empty.

    Small files in Hugging Face's cache have shorter names, by git's hash.
    """
    found = _NAMED.fullmatch(path.name) if path.parent.name == "blobs" else None
    return f"sha256:{found[1]}" if found else ""
