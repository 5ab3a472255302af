"""Ensures `friend` in a folder, and says how Ctrl-C ended that. Arguments: the folder, the index's URL."""

from __future__ import annotations

import sys
from typing import Any

from greenroom import Installer

home, url = sys.argv[1:]


def watch(step: Any) -> None:
    print(step.phase, flush=True)


with Installer(home) as installer:
    try:
        installer.ensure("friend", index=f"{url}/simple", progress=watch)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
