"""Ensures `hello` in a folder. Arguments: the folder, the index's URL, and a phase at which it kills itself;
`stay` keeps the installer open.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from greenroom import Installer

home, url, phase = sys.argv[1:]


def watch(step: Any) -> None:
    print(step.phase, flush=True)
    if step.phase == phase:
        os.kill(os.getpid(), signal.SIGKILL)


with Installer(home) as installer:
    installer.ensure("hello", index=f"{url}/simple", progress=watch)
    print("open", flush=True)
    if phase == "stay":
        threading.Event().wait()
