"""What translated streams cost beside chat completions that are passed through, as ratios.

    python bench/families.py [--json] [--requests 300] [--streams 32] [--pace 20] [--seconds 5] [--repeat 3]

One daemon and one fake engine, asked by turns through each API family by one lean client: milliseconds to
the first token, and the daemon's processor time a token. Chat completions pass through; the other families
are decoded and written again, token by token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from front_door import Client, Daemon

BUDGET = 2.0
PASSED = "chat completions"


class Family(NamedTuple):
    """One API, and how its stream shows a token."""

    path: str
    token: bytes
    prompt: str
    """The field of the prompt: a message, or text."""
    limit: str
    """The field of the most tokens."""


FAMILIES = {
    PASSED: Family("/v1/chat/completions", b'"content"', "messages", "max_tokens"),
    "Anthropic": Family("/v1/messages", b'"text_delta"', "messages", "max_tokens"),
    "Ollama": Family("/api/chat", b'"done":false', "messages", ""),
    "Responses": Family("/v1/responses", b'"response.output_text.delta"', "input", "max_output_tokens"),
}


class Asker(Client):
    """One connection that asks for streams of one family."""

    def __init__(self, host: str, family: Family) -> None:
        super().__init__(host, family.path)
        self._family = family

    def data_received(self, data: bytes) -> None:
        tokens = data.count(self._family.token)
        if tokens and not self.first:
            self.first = time.perf_counter()
        self.tokens += tokens
        self._rest = (self._rest + data)[-16:]
        if self.first and self._rest.endswith(b"\r\n0\r\n\r\n") and self.done and not self.done.done():
            self.done.set_result(None)

    def body(self, tokens: int) -> bytes:
        """A request for that many tokens."""
        text = "Write one sentence about the sea."
        asked: dict[str, Any] = {"model": "tiny", "stream": True}
        asked[self._family.prompt] = (
            text if self._family.prompt == "input" else [{"role": "user", "content": text}]
        )
        if self._family.limit:
            asked[self._family.limit] = tokens
        else:
            asked["options"] = {"num_predict": tokens}
        if self._family.path == "/v1/responses":
            asked["store"] = False
        return json.dumps(asked).encode()


async def connected(url: str, family: Family) -> Asker:
    """A connection to the daemon."""
    host, port = url.removeprefix("http://").split(":")
    asker = Asker(f"{host}:{port}", family)
    await asyncio.get_running_loop().create_connection(lambda: asker, host, int(port))
    return asker


async def first_tokens(url: str, requests: int) -> dict[str, float]:
    """Median milliseconds to the first token, by turns, so that all families see the same machine."""
    askers = {name: await connected(url, family) for name, family in FAMILIES.items()}
    found: dict[str, list[float]] = {name: [] for name in FAMILIES}
    for turn in range(requests + 20):
        for name, asker in askers.items():
            took = await asker.ask(1) * 1000
            if turn >= 20:
                found[name].append(took)
    for asker in askers.values():
        asker.close()
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


async def processor(daemon: Daemon, name: str, streams: int, tokens: int) -> float:
    """Microseconds of the daemon's processor time for each token."""
    process = psutil.Process(daemon.process.pid)
    askers = [await connected(daemon.url, FAMILIES[name]) for _ in range(streams)]
    used = sum(process.cpu_times()[:2])
    await asyncio.gather(*(asker.ask(tokens) for asker in askers))
    used = sum(process.cpu_times()[:2]) - used
    total = sum(asker.tokens for asker in askers)
    assert total >= streams * tokens, f"{name}: {total} of {streams * tokens} tokens came"
    for asker in askers:
        asker.close()
    return used / (streams * tokens) * 1e6


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    daemon = Daemon(folder / "quick")
    try:
        firsts = await first_tokens(daemon.url, options.requests)
    finally:
        daemon.stop()
    tokens = round(options.pace * options.seconds)
    daemon = Daemon(folder / "paced", "--tokens", str(tokens), "--token-delay", str(1 / options.pace))
    used: dict[str, list[float]] = {name: [] for name in FAMILIES}
    try:
        for _ in range(options.repeat):
            for name in FAMILIES:
                used[name].append(await processor(daemon, name, options.streams, tokens))
    finally:
        daemon.stop()
    costs = {name: round(statistics.median(values), 1) for name, values in used.items()}
    families = [
        {
            "family": name,
            "first_token_ms": firsts[name],
            "first_token_ratio": round(firsts[name] / firsts[PASSED], 2),
            "processor_us_a_token": costs[name],
            "processor_ratio": round(costs[name] / costs[PASSED], 2),
        }
        for name in FAMILIES
    ]
    return {"streams": options.streams, "budget": BUDGET, "families": families}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--pace", type=float, default=20.0, help="tokens a second of one stream")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    import uvloop

    folder = Path(tempfile.mkdtemp(prefix="gr-bench-"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), **result}, indent=2))
    else:
        for one in result["families"]:
            print(
                f"{one['family']:<16} first token {one['first_token_ms']:.2f} ms "
                f"({one['first_token_ratio']:.2f} x), processor {one['processor_us_a_token']:.0f} us a token "
                f"({one['processor_ratio']:.2f} x)"
            )
    held = all(
        one["first_token_ratio"] <= BUDGET and one["processor_ratio"] <= BUDGET for one in result["families"]
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
