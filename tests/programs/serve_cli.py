"""`greenroom serve` as users run it: serve_cli.py HOME [ARGUMENTS]."""

from __future__ import annotations

import os
import sys

# What a daemon imports as it starts: a fork finds it imported.
import greenroom.runner.daemon
import greenroom.runner.http.app
import greenroom.runner.http.server  # noqa: F401
from greenroom.runner.cli import serve  # noqa: F401
from greenroom.runner.cli.main import main as command_line


def main() -> None:
    home, *more = sys.argv[1:]
    # An interpreter of its own would have these on its path: backends of other packages lie there.
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    command_line(["--home", home, "serve", *more])
