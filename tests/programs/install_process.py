"""Installs a toy backend, and stops dead at a phase, so that a test can kill it exactly there.

Arguments: data directory, index URL, stem of the lock, phase at which to print its name and stop,
and optionally a uv to use.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from greenroom.runner.backends.base import Environment
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.sources import PackageSources, Setting

home, url, stem, phase, *uv = sys.argv[1:]


def watch(progress: Any) -> None:
    if progress.phase == phase and (phase != "downloading" or progress.done):
        print(phase, flush=True)
        threading.Event().wait()


sources = PackageSources(index=Setting(f"{url}/simple", "test"))
environments = Environments(Path(home), sources, uv_binary=Path(uv[0]) if uv else None)
source = Environment(distribution="toy", lock=stem, probe=("toy",), requirements=("toy",))
environments.build("toy", source, job="install-1", progress=watch)
print("committed", flush=True)
