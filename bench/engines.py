"""A cold request beside the engine's own start: the fake engine, and llama.cpp with the real model.

    python bench/engines.py [--json] [--repeat 5] [--python PATH] [--model FILE]

Measured by turns in one run: the bare engine from the start of its process to its first token, and a request
through the front door for a model that is not loaded, to the same token. `cold` is llama.cpp's where there
is an environment with xllamacpp (`--python`) and a GGUF file (`--model`; both by default those of the tests'
cache), else the fake engine's. Restart to ready with a long journal is measured by `bench/daemon.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Backend, CommandLine, Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend, tiny_gguf

REPOSITORY = Path(__file__).resolve().parents[1]
ENGINE = REPOSITORY / "tests" / "programs" / "fake_engine.py"
CACHE = Path(os.environ.get("GREENROOM_TEST_CACHE") or REPOSITORY / ".venv" / "test-cache")
BUDGET = 1.05
BOUND = 120.0
ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def backend_of(kind: str, python: str) -> Backend:
    """The declaration under test; llama.cpp out of the environment that is named."""
    if kind == "fake":
        return fake_backend(ENGINE, "--tokens", "1")

    class Here(LlamaCpp):
        def command(self, launch: Launch) -> CommandLine:
            return super().command(dataclasses.replace(launch, binary=None, python=Path(python)))

    return Here()


def serve(kind: str, python: str, home: Path) -> None:
    """The daemon under test, in a process of its own."""
    backend = backend_of(kind, python)
    binary = ExternalBackend(binary=Path(sys.executable))
    run(
        Greenroom(
            Settings(home=home, port=0, backends={backend.name: binary}), backends={backend.name: backend}
        )
    )


def call(url: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url + path, data, {"Accept": "application/json"})
    with urllib.request.urlopen(asked, timeout=BOUND) as answer:
        content = answer.read()
    return json.loads(content.splitlines()[-1]) if content.strip() else None


def bare(backend: Backend, model: Path, folder: Path) -> float:
    """Seconds from the start of the engine's process to its first token."""
    path = folder / "bare.sock"
    path.unlink(missing_ok=True)
    # With as many slots as ours has: what is compared is the way to the engine, not its size.
    spec = EngineSpec(
        engine_id="b", backend="b", installation_id="i", model_id="m", model_ref="m", slots=backend.slots
    )
    files = ModelFiles(path=model, format="gguf", name="m", context_length=8192)
    launch = Launch(spec=spec, root=folder, python=Path(sys.executable), model=files, socket=path)
    command = backend.command(launch)
    began = time.perf_counter()
    process = subprocess.Popen(
        command.argv, env={**os.environ, **command.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while knock(path) != 200:
            assert process.poll() is None, "the engine has ended"
            assert time.perf_counter() - began < BOUND, "the engine did not become ready"
            time.sleep(0.005)  # another process; polled, with a bound
        assert knock(path, {"model": "m", **ASK}) == 200
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def knock(path: Path, body: Any = None) -> int:
    """The status of the health path, or of a completion; 0 while no server listens."""
    connection = http.client.HTTPConnection("localhost", timeout=BOUND)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        where = ("GET", "/health") if body is None else ("POST", "/v1/chat/completions")
        connection.request(*where, None if body is None else json.dumps(body))
        response = connection.getresponse()
        response.read()
    except OSError:
        return 0
    finally:
        connection.close()
    return response.status


class Daemon:
    """A daemon whose model is in the store and not loaded."""

    def __init__(self, kind: str, python: str, model: Path, home: Path) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "--serve", kind, python, str(home)])
        note = home / "daemon.json"
        end = time.monotonic() + BOUND
        while not note.exists():
            assert time.monotonic() < end, "the daemon did not start"
            time.sleep(0.05)  # another process; polled, with a bound
        self.url = json.loads(note.read_text())["url"]
        self.model = f"file:{model}"
        call(self.url, "/models/create", {"from": self.model})

    def cold(self) -> float:
        """Seconds for a request to a model that is not loaded; it is not loaded afterwards either."""
        began = time.perf_counter()
        call(self.url, "/v1/chat/completions", {"model": self.model, **ASK})
        took = time.perf_counter() - began
        call(self.url, "/engines/unload", {"all": True})
        end = time.monotonic() + BOUND
        while call(self.url, "/engines/ps"):
            assert time.monotonic() < end, "the engine did not end"
            time.sleep(0.02)  # another process; polled, with a bound
        return took

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(BOUND)


def measure(kind: str, python: str, model: Path, folder: Path, repeat: int) -> dict[str, Any]:
    """Both ways by turns, so that both see the same machine."""
    folder.mkdir()
    backend = backend_of(kind, python)
    daemon = Daemon(kind, python, model, folder / "home")
    own: list[float] = []
    cold: list[float] = []
    try:
        bare(backend, model, folder)  # reads the files once, so that neither side pays for a cold disk cache
        daemon.cold()
        for _ in range(repeat):
            own.append(bare(backend, model, folder))
            cold.append(daemon.cold())
    finally:
        daemon.stop()
    ratio = statistics.median(cold) / statistics.median(own)
    return {
        "engine": kind,
        "own_start_s": round(statistics.median(own), 4),
        "cold_request_s": round(statistics.median(cold), 4),
        "added_ms": round((statistics.median(cold) - statistics.median(own)) * 1000, 1),
        "ratio": round(ratio, 3),
        "budget": BUDGET,
        "passed": ratio <= BUDGET,
    }


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--python", type=Path, default=CACHE / "llama-cpp-env" / "bin" / "python")
    parser.add_argument("--model", type=Path, default=next(iter(CACHE.glob("smollm2/*.gguf")), None))
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="gr-b-"))
    try:
        tiny = tiny_gguf(place / "tiny.gguf")
        result = {"fake": measure("fake", sys.executable, tiny, place / "f", options.repeat)}
        if options.model is not None and options.python.exists():
            result["llama_cpp"] = measure(
                "llama.cpp", str(options.python), options.model, place / "l", options.repeat
            )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    result["cold"] = result.get("llama_cpp", result["fake"])
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), **result}, indent=2))
    else:
        for one in {found["engine"]: found for found in result.values()}.values():
            print(
                f"{one['engine']:<10} own start {one['own_start_s']:.3f} s, cold request "
                f"{one['cold_request_s']:.3f} s, ratio {one['ratio']:.3f} (at most {BUDGET})"
            )
    return 0 if result["cold"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
