"""Several clients at once on one real llama.cpp engine: tokens a second, and answers lost.

    python bench/clients.py [--json] [--repeat 3] [--clients 4 16 64] [--tokens 96] [--context 1024]
                            [--python PATH] [--model FILE]

By turns in one run: the same server by hand with the same memory (as many slots, each with the same context),
asked by all clients at once over its socket; and Greenroom with its default settings, which lets in as many
as there are slots and queues the rest. `by_default` is the server by hand with its own defaults: four slots
over one context, the memory of which it is given for one request. Long answers are lost there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines import BOUND, CACHE, Daemon, backend_of, call, knock

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Launch, ModelFiles

BUDGET = 0.95
AT = 16
"""Clients that the budget is about."""
ANSWER_WITHIN = 1800.0
Connect = Callable[[], http.client.HTTPConnection]


class ByHand:
    """The server as an expert would start it by hand."""

    def __init__(self, python: str, model: Path, folder: Path, context: int, slots: int) -> None:
        """Without `slots` it has its own defaults."""
        self.path = folder / "hand.sock"
        self.path.unlink(missing_ok=True)
        backend = backend_of("llama.cpp", python)
        spec = EngineSpec(
            engine_id="b",
            backend="llama.cpp",
            installation_id="i",
            model_id="m",
            model_ref="m",
            context_size=context,
            slots=slots,
            prompt_cache=64 * 2**20,
        )
        files = ModelFiles(path=model, format="gguf", name="m", context_length=8192)
        launch = Launch(spec=spec, root=folder, python=Path(python), model=files, socket=self.path)
        argv = list(backend.command(launch).argv)
        if not slots:
            place = argv.index("--parallel")
            del argv[place : place + 2]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + BOUND
        while knock(self.path) != 200:
            assert self.process.poll() is None, "the engine has ended"
            assert time.monotonic() < end, "the engine did not become ready"
            time.sleep(0.02)  # another process; polled, with a bound

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=ANSWER_WITHIN)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.path))
        return connection

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def ask(connect: Connect, model: str, number: int, tokens: int) -> int:
    """Tokens of one answer; 0 when it was lost."""
    body = {
        "model": model,
        "prompt": f"Story number {number}, told by another client: " + "once there was a king " * 12,
        "max_tokens": tokens,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    try:
        connection = connect()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
    except OSError:
        return 0
    if answer.status != 200:
        return 0
    return int(json.loads(content)["usage"]["completion_tokens"])


def crowd(connect: Connect, model: str, clients: int, tokens: int) -> tuple[float, int]:
    """Tokens a second of all together, and how many got less than they asked for."""
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda number=number: found.append(ask(connect, model, number, tokens)))
        for number in range(clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    return sum(found) / took, sum(one < tokens for one in found)


def measure(python: str, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    folder.mkdir()
    daemon = Daemon("llama.cpp", python, model, folder / "home")
    host = daemon.url.removeprefix("http://")
    rows = []
    try:
        call(daemon.url, "/engines/_configure", {"model": daemon.model, "context-size": options.context})
        call(daemon.url, "/v1/completions", {"model": daemon.model, "prompt": "Hi", "max_tokens": 1})
        (engine,) = [one for one in call(daemon.url, "/engines/ps") if one["state"] == "ready"]
        hand = ByHand(python, model, folder, options.context, engine["slots"])

        def through_the_door() -> http.client.HTTPConnection:
            return http.client.HTTPConnection(host, timeout=ANSWER_WITHIN)

        for clients in options.clients:
            ours: list[Any] = []
            theirs: list[Any] = []
            lost = [0, 0]
            for _ in range(options.repeat):
                for index, (connect, name, speeds) in enumerate(
                    ((hand.connect, "m", theirs), (through_the_door, daemon.model, ours))
                ):
                    speed, missing = crowd(connect, name, clients, options.tokens)
                    speeds.append(speed)
                    lost[index] += missing
            rows.append(
                {
                    "clients": clients,
                    "by_hand_tokens_s": round(statistics.median(theirs), 1),
                    "greenroom_tokens_s": round(statistics.median(ours), 1),
                    "ratio": round(statistics.median(o / t for o, t in zip(ours, theirs, strict=True)), 3),
                    "lost_by_hand": lost[0],
                    "lost": lost[1],
                }
            )
        hand.stop()
        hand = ByHand(python, model, folder, options.context, 0)
        # Four answers that fit alone and not together.
        speed, missing = crowd(hand.connect, "m", 4, options.context // 2)
        by_default = {"clients": 4, "tokens_s": round(speed, 1), "lost": missing}
        long_speed, long_missing = crowd(through_the_door, daemon.model, 4, options.context // 2)
        hand.stop()
    finally:
        daemon.stop()
    return {
        "slots": engine["slots"],
        "context": options.context,
        "clients": rows,
        "by_default": by_default,
        "long_answers": {"clients": 4, "tokens_s": round(long_speed, 1), "lost": long_missing},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--python", type=Path, default=CACHE / "llama-cpp-env" / "bin" / "python")
    parser.add_argument("--model", type=Path, default=next(iter(CACHE.glob("smollm2/*.gguf")), None))
    options = parser.parse_args()
    if options.model is None or not options.python.exists():
        print("There is no environment with xllamacpp, or no model: run the tests once.", file=sys.stderr)
        return 2
    place = Path(tempfile.mkdtemp(prefix="gr-b-"))
    try:
        result = measure(str(options.python), options.model, place / "c", options)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), **result}, indent=2))
    else:
        print(f"{result['slots']} slots with a context of {result['context']} each")
        for one in result["clients"]:
            print(
                f"{one['clients']:>3} clients: by hand {one['by_hand_tokens_s']:.0f} tokens/s, "
                f"Greenroom {one['greenroom_tokens_s']:.0f} ({one['ratio']:.2f}), lost {one['lost']}"
            )
        print(f"long answers, 4 clients: lost {result['long_answers']['lost']}, ", end="")
        print(f"by llama-server's own defaults {result['by_default']['lost']}")
    held = all(
        not one["lost"] and (one["clients"] != AT or one["ratio"] >= BUDGET) for one in result["clients"]
    )
    return 0 if held and not result["long_answers"]["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
