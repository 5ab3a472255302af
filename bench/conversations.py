"""The first token of a conversation's next turn, after its engine or its daemon has ended, with and without
what was saved of it.

    python bench/conversations.py [--json] [--tokens 4000] [--python PATH] [--model FILE]

The real llama.cpp with the real model. Each way to end is measured with `conversations` set to `disk` and to
`memory`. The first token includes the load of the model, which `load` shows alone. `--tokens` is about how
long the conversation is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines import BOUND, CACHE, backend_of, call

from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run
from greenroom.runner.setting_values import ExternalBackend

RULE = "Rule {}: be kind to whale number {}, and remember that it likes to sing in the evening."
RULE_TOKENS = 24
WAYS = ("unload", "kill the engine", "restart the daemon", "kill the daemon and its engine")
GOAL = 20.0
"""Times as soon as without, at 4,000 tokens."""


def serve(python: str, home: Path, setting: Any) -> None:
    """The daemon under test, in a process of its own."""
    backend = backend_of("llama.cpp", python)
    binary = ExternalBackend(binary=Path(sys.executable))
    settings = Settings(home=home, port=0, conversations=setting, backends={backend.name: binary})
    run(Greenroom(settings, backends={backend.name: backend}))


class Place:
    """A data directory, and its daemon."""

    def __init__(self, python: str, home: Path, setting: str) -> None:
        self._argv = [sys.executable, __file__, "--serve", python, str(home), setting]
        self._home = home
        self.start()

    def start(self) -> None:
        note = self._home / "daemon.json"
        note.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._argv, stderr=subprocess.DEVNULL)
        until(note.exists)
        self.url = json.loads(note.read_text())["url"]

    def engine(self) -> int:
        """The pid of the engine that was started last."""
        claims = sorted(self._home.glob("engines/*/claim"), key=lambda one: one.stat().st_mtime)
        return int(json.loads(claims[-1].read_text())["pid"])

    def saved(self) -> set[Path]:
        return set(self._home.glob("conversations/c-*.json"))

    def end(self, way: str, model: str) -> None:
        """End the engine in this way; the daemon runs afterwards."""
        if way == "unload":
            call(self.url, "/engines/unload", {"models": [model]})
        elif way == "kill the engine":
            os.kill(self.engine(), signal.SIGKILL)
        elif way == "restart the daemon":
            call(self.url, "/engines/unload", {"all": True})
            self.process.terminate()
            self.process.wait(BOUND)
            self.start()
        else:
            pid = self.engine()
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(ProcessLookupError):  # its keeper may have been sooner
                os.kill(pid, signal.SIGKILL)
            self.start()
        until(lambda: not call(self.url, "/engines/ps"))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)  # another process; polled, with a bound


def turn(place: Place, model: str, messages: list[dict[str, str]]) -> float:
    """Seconds until the first token; the answer joins the conversation."""
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, "stream": True}
    asked = urllib.request.Request(
        f"{place.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began, first, text = time.perf_counter(), 0.0, ""
    with urllib.request.urlopen(asked, timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"] or [{"delta": {}}]
                if said := choice["delta"].get("content"):
                    first, text = first or time.perf_counter() - began, text + said
    messages.append({"role": "assistant", "content": text})
    messages.append({"role": "user", "content": "And then?"})
    return first


def loaded(place: Place, model: str) -> float:
    """Seconds until the first token of a short prompt, whose model has to be loaded."""
    place.end("unload", model)
    return round(turn(place, model, [{"role": "user", "content": "Hi"}]), 3)


def measure(python: str, model: Path, folder: Path, setting: str, tokens: int) -> dict[str, float]:
    """Way to end → seconds until the first token of the next turn; `load`: of a short prompt alone."""
    place = Place(python, folder / setting, setting)
    found: dict[str, float] = {}
    name = f"file:{model}"
    try:
        call(place.url, "/models/create", {"from": name})
        for number, way in enumerate(WAYS):
            rules = " ".join(RULE.format(at, at + number * 1_000) for at in range(tokens // RULE_TOKENS))
            messages = [{"role": "system", "content": rules}, {"role": "user", "content": "What is rule 1?"}]
            before = place.saved()
            turn(place, name, messages)
            if setting == "disk" and way.startswith("kill"):
                until(lambda before=before: place.saved() - before)  # type: ignore[misc]
            place.end(way, name)
            found[way] = round(turn(place, name, messages), 3)
        found["load"] = loaded(place, name)
    finally:
        place.process.terminate()
        place.process.wait(BOUND)
    return found


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--tokens", type=int, default=4_000)
    parser.add_argument("--python", type=Path, default=CACHE / "llama-cpp-env" / "bin" / "python")
    parser.add_argument("--model", type=Path, default=next(iter(CACHE.glob("smollm2/*.gguf")), None))
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="gr-c-"))
    try:
        took: dict[str, Any] = {
            setting: measure(str(options.python), options.model, place, setting, options.tokens)
            for setting in ("disk", "memory")
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)
    times = {way: round(took["memory"][way] / took["disk"][way], 1) for way in WAYS}
    if options.json:
        print(
            json.dumps({"cores": os.cpu_count(), "tokens": options.tokens, **took, "times": times}, indent=2)
        )
    else:
        print(f"{'load':<32} {took['disk']['load']:7.2f} s")
        for way in WAYS:
            with_it, without = took["disk"][way], took["memory"][way]
            print(f"{way:<32} {with_it:7.2f} s, without {without:7.2f} s: {times[way]:g} times as soon")
    return 0 if options.tokens < 4_000 or min(times.values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
