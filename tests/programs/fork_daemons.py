"""Daemons that are forks of a process which has imported everything: each is there in a fraction of the time.

Reads lines of JSON and answers each with one. `{"program": …, "argv": […], "env": {…}, "log": path}` forks a
process that runs `main()` of a program in this folder, and gives its pid. `{"poll": pid}` gives its status as
Python's `returncode` has it, null while it runs. What still runs when the input ends is killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from types import ModuleType
from typing import Any


def become(module: ModuleType, order: dict[str, Any]) -> Any:
    """What the program's `main` gives, in a process that has nothing of this one but what it has imported."""
    os.environ.clear()
    os.environ.update(order["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.argv = [str(module.__file__), *order["argv"]]
    return module.main()


def main() -> Any:
    running: set[int] = set()
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            running.discard(pid)
            answer = {"status": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            module = importlib.import_module(order["program"])
            gc.freeze()
            pid = os.fork()
            if pid == 0:
                return become(module, order)
            running.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
