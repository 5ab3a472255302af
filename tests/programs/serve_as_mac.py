"""The daemon on a Mac, as far as its verdicts go: it listens on a free port."""

from __future__ import annotations

import logging

from greenroom.runner.backends.base import Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.config import load
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    mac = Platform(system="darwin", machine="arm64", macos=(15, 1), python=(3, 12))
    # llama.cpp is installed from the start, and a Mac's wheels do not run here.
    backends = {name: backend for name, backend in BACKENDS.items() if backend.deferred}
    run(Greenroom(load({"port": "0"}), here=mac, backends=backends))
