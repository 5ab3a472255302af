"""An installation and a pull begin in two threads at the same moment, before either has imported anything."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, sys, threading, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("urllib3."):
            time.sleep(0.02)  # so that the threads meet

def bring(name):
    together.wait()
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed.append(f"{name}: {error!r}")

sys.meta_path.insert(0, Slow())
failed, names = [], sys.argv[1:]
together = threading.Barrier(len(names))
threads = [threading.Thread(target=bring, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(" ".join(failed) or 0)
"""
MODULES = (
    "greenroom.runner.installations.web",
    "greenroom.runner.installations.verified_download",
)


def test_threads_that_import_what_downloads_get_all_of_it() -> None:
    """Of two that import different parts of urllib3 first, one got half of it, and its job failed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MODULES], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
