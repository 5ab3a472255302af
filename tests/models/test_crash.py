"""The store after SIGKILL: the old or the new, never anything between, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from greenroom.runner.models.store import Store


@pytest.mark.parametrize("operation", ["commit", "remove", "tag", "sweep"])
def test_killed_before_any_change_it_makes_the_store_is_the_old_or_the_new(
    operation: str, tmp_path: Path, programs: Path, gguf: Callable[..., bytes]
) -> None:
    for name in ("a.gguf", "b.gguf", "mmproj-a.gguf"):
        (tmp_path / name).write_bytes(gguf(filler=name[0].encode()))
    done = subprocess.run(
        [sys.executable, programs / "store_crash.py", tmp_path, operation],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) > 3
    assert [r["finished"] for r in rounds] == [False] * (len(rounds) - 1) + [True]
    assert [r for r in rounds if r["wrong"]] == []
    old, new = rounds[0]["models"], rounds[-1]["models"]
    assert (old != new) == (operation != "sweep")
    switches = [r["models"] == new for r in rounds]
    assert switches == sorted(switches), "it went to the new one and back"
    assert all(r["models"] in (old, new) for r in rounds)


PULL = """
import sys, threading
from pathlib import Path
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.store import Store

class Listener:
    def __getattr__(self, name):
        def told(*arguments, **more):
            print(name, *arguments, flush=True)
            if name != "progress":
                over.set()
        return told

over = threading.Event()
store = Store(Path(sys.argv[1]))
store.prepare()
puller = Puller(store, Listener(), packages=PackageSources(index=Setting(sys.argv[2], "test")))
puller.start("job", "pypi:tiny-model==1.0/tiny_model/tiny.gguf")
over.wait(60)
puller.close()
"""


def test_a_pull_that_is_killed_in_the_middle_is_never_believed_and_the_next_succeeds(
    tmp_path: Path, gguf: Callable[..., bytes], local_index: Any
) -> None:
    local_index.add(
        "tiny-model", "1.0", {"tiny_model/tiny.gguf": gguf(), "tiny_model/pad": os.urandom(2**20)}
    )
    local_index.hold_after = 2**19
    root = tmp_path / "models"
    argv = [sys.executable, "-c", PULL, str(root), local_index.url]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert local_index.holding.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)

    assert Store(root).models() == ()
    assert list((root / "incoming").iterdir())
    local_index.hold_after = None
    local_index.release.set()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert "committed job" in done.stdout, done.stdout + done.stderr
    store = Store(root)
    assert [m.tags for m in store.look()] == [("pypi:tiny-model==1.0/tiny_model/tiny.gguf",)]
    store.prepare()
    assert not list((root / "incoming").iterdir())
