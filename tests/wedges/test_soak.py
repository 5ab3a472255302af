"""A soak: random loads, evictions, kills, disconnects, pressure and restarts; afterwards nothing has leaked.

`GREENROOM_SOAK_SECONDS` is how long (600), `GREENROOM_SOAK_SEED` repeats one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import psutil
import pytest

from greenroom.actors.scheduler.quarantine import LONGEST_COOL_DOWN
from waiting import until_async
from wedge import MIB, Daemon

SECONDS = float(os.environ.get("GREENROOM_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("GREENROOM_SOAK_SEED", "0")) or random.randrange(1, 10**6)
CLIENTS = 8
LONGEST = 60.0
"""Seconds within which every request must have come to its end, whatever happens."""
MODELS = ("plain", "slow", "mortal", "frozen", "deaf", "sick")
FLAGS = (
    *("--tokens", "6", "--token-delay", "0.01", "--load-seconds", "0.1"),
    *("--for", "slow=--tokens,60,--token-delay,0.03"),
    *("--for", "mortal=--die-after-requests,9,--die-by,SIGKILL"),
    *("--for", "frozen=--freeze-after-requests,7"),
    *("--for", "deaf=--deaf-to-sigterm,--child"),
    *("--for", "sick=--die-in-load,1"),
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS * 2 + 1800)]

NUMBERS = itertools.count()


def hello() -> list[dict[str, str]]:
    """A prompt that no other request has: one that an engine died of is refused for a while."""
    return [{"role": "user", "content": f"hi {next(NUMBERS)}"}]


class Soak:
    """What goes on at the same time, and what came of it."""

    def __init__(self, daemon: Daemon, dice: random.Random) -> None:
        self.daemon = daemon
        self.dice = dice
        self.over = False
        self.restarting = asyncio.Event()
        self.restarting.set()
        self.lives = 1
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    # clients

    async def client(self) -> None:
        ways: list[tuple[int, Callable[[str], Awaitable[str]]]] = [
            *((5, self.chat), (4, self.stream), (2, self.leave), (2, self.leave_queue), (1, self.embed)),
            (1, self.keep),
        ]
        while not self.over:
            await self.restarting.wait()
            (way,) = self.dice.choices([way for _, way in ways], [weight for weight, _ in ways])
            model = self.dice.choice(MODELS)
            life, began = self.lives, time.monotonic()
            try:
                async with asyncio.timeout(LONGEST):
                    outcome = await way(model)
            except TimeoutError:
                outcome = "wedged"
                self.wrong.append(f"{way.__name__} {model} has not ended after {LONGEST:.0f} s")
            except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
                outcome = "broken off"
                # A daemon that is killed breaks everything off; nothing else may.
                assert self.daemon.process is not None
                if life == self.lives and self.restarting.is_set() and self.daemon.process.poll() is None:
                    self.wrong.append(
                        f"{way.__name__} {model}: {error!r} after {time.monotonic() - began:.1f} s"
                    )
            self.outcomes[f"{way.__name__} {outcome}"] += 1
            await asyncio.sleep(self.dice.random() * 0.05)

    def judged(self, status: int, error: dict[str, Any]) -> str:
        """A refusal is fine when it says something, and when to come back where that helps."""
        if not error.get("message") or status not in (404, 429, 500, 502, 503, 507):
            self.wrong.append(f"{status} {error}")
        return f"{status} {error.get('code')}"

    async def chat(self, model: str) -> str:
        async with self.post({"model": model, "messages": hello()}) as answer:
            body = await answer.json()
            if answer.status != 200:
                return self.judged(answer.status, body["error"])
            return "200"

    async def embed(self, model: str) -> str:
        body = {"model": model, "input": f"hello {next(NUMBERS)}"}
        async with self.daemon.session.post(f"{self.daemon.url}/v1/embeddings", json=body) as answer:
            content = await answer.json()
            return "200" if answer.status == 200 else self.judged(answer.status, content["error"])

    async def keep(self, model: str) -> str:
        wish = self.dice.choice([0, "0", 1, "2s", "5m", -1])
        async with self.post({"model": model, "messages": hello(), "keep_alive": wish}) as answer:
            body = await answer.json()
            return "200" if answer.status == 200 else self.judged(answer.status, body["error"])

    async def stream(self, model: str) -> str:
        async with self.post({"model": model, "messages": hello(), "stream": True}) as answer:
            text = await answer.text()
            if answer.status != 200:
                return self.judged(answer.status, json.loads(text)["error"])
        data = [line for line in text.splitlines() if line.startswith("data: ")]
        errors = sum('"error"' in line for line in data)
        if not data or errors > 1 or (data[-1] == "data: [DONE]") == bool(errors):
            self.wrong.append(f"a stream of {model} ended so: {text[-300:]!r}")
        return "error frame" if errors else "200"

    async def leave(self, model: str) -> str:
        async with self.post({"model": model, "messages": hello(), "stream": True}) as answer:
            for _ in range(self.dice.randrange(1, 8)):
                await answer.content.readline()
        return "left"

    async def leave_queue(self, model: str) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.dice.random() * 0.5):
                return await self.chat(model)
        return "left"

    def post(self, body: dict[str, Any]) -> Any:
        return self.daemon.session.post(f"{self.daemon.url}/v1/chat/completions", json=body)

    # trouble

    async def trouble(self) -> None:
        while not self.over:
            await asyncio.sleep(self.dice.random() * 1.5)
            await self.restarting.wait()
            trouble = self.dice.choice(
                [self.kill_engine, self.kill_keeper, self.unload, self.pressure, self.freeze, self.ask]
            )
            with contextlib.suppress(psutil.Error, ProcessLookupError, OSError, aiohttp.ClientError):
                await trouble()

    async def kill_engine(self) -> None:
        pids = self.daemon.engine_pids()
        number = self.dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
        if pids:
            os.kill(self.dice.choice(pids), number)

    async def kill_keeper(self) -> None:
        claims = list(self.daemon.home.glob("engines/*/claim"))
        if claims and self.dice.random() < 0.5:
            keeper = psutil.Process(json.loads(self.dice.choice(claims).read_text())["keeper_pid"])
            if "keeper" in " ".join(keeper.cmdline()):
                keeper.kill()

    async def unload(self) -> None:
        await self.daemon.post("/engines/unload", {"all": True})

    async def pressure(self) -> None:
        file = self.daemon.home.parent / "available"
        file.write_text(str(self.dice.randrange(500, 700) * MIB))
        await asyncio.sleep(self.dice.random() * 2.0)
        file.unlink()

    async def freeze(self) -> None:
        pids = self.daemon.engine_pids()
        if not pids:
            return
        pid = self.dice.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.dice.random() * 1.0)
        os.kill(pid, signal.SIGCONT)

    async def ask(self) -> None:
        """The cheap endpoints, which must be quick and true."""
        began = time.monotonic()
        ready = await self.daemon.get("/readyz")
        if ready.status == 503:
            self.wrong.append(f"not ready: {ready.body!r}")
        if time.monotonic() - began > 5.0:
            self.wrong.append(f"/readyz took {time.monotonic() - began:.1f} s")
        await self.daemon.get("/engines/ps?all=true")

    async def restart(self) -> None:
        """The daemon ends, in one way or another, and comes back."""
        self.restarting.clear()
        self.lives += 1
        how = self.dice.choice(["kill", "kill", "stop", "keep"])
        if how == "kill":
            await self.daemon.kill()
        else:
            await self.daemon.stop(keep_engines=30 if how == "keep" else None)
        await self.daemon.start()
        self.outcomes[f"restart {how}"] += 1
        self.restarting.set()


async def test_after_a_soak_nothing_has_leaked(make_daemon: Any) -> None:
    print(f"seed {SEED}, {SECONDS:.0f} s")
    daemon = await make_daemon(
        *FLAGS,
        memory_budget="210MiB",
        stall_after="2",
        max_wait="20",
        keep_alive="3",
        engine_grace="20",
        # Engines are killed so often here that breakers would leave little to look at otherwise.
        test_proven="1",
    )
    await daemon.add(*MODELS)
    soak = Soak(daemon, random.Random(SEED))
    tasks = [asyncio.create_task(soak.client()) for _ in range(CLIENTS)]
    tasks += [asyncio.create_task(soak.trouble())]
    began = time.monotonic()
    while time.monotonic() - began < SECONDS * 0.6:
        await asyncio.sleep(min(SECONDS * 0.15, 20.0))
        await soak.restart()
    # The last life is long enough for what leaks to be seen.
    await asyncio.sleep(SECONDS * 0.1)
    before = await _used(daemon)
    await asyncio.sleep(max(1.0, SECONDS - (time.monotonic() - began)))
    soak.over = True
    await asyncio.gather(*tasks)
    print(json.dumps(dict(sorted(soak.outcomes.items())), indent=1))
    assert soak.wrong == [], "\n".join(soak.wrong[:20])
    assert soak.outcomes["chat 200"] > 0
    assert soak.outcomes["stream 200"] > 0

    await daemon.at_rest()
    for name in ("plain", "slow", "deaf"):
        await _serves(daemon, name)
    assert not [one for one in daemon.events("load_admitted") if one["promised"] > one["budget"]]
    # A restart keeps pins, so each is given an end before everything is unloaded.
    for row in await daemon.engines():
        await daemon.chat(row["model_name"], keep_alive=1, max_tokens=1)
    await daemon.unload()
    await until_async(lambda: not daemon.engine_pids())
    after = await _settled(daemon, before)
    print(f"before {before}, after {after}")
    assert after["threads"] <= before["threads"] + 2
    assert after["files"] <= before["files"] + 4
    assert after["memory"] <= before["memory"] + 24 * MIB
    assert (await daemon.get("/engines/ledger")).json["promised"] == 0
    assert len(list((daemon.home / "engines").iterdir())) < 100
    zombies = [one for one in psutil.Process(daemon.process.pid).children() if one.status() == "zombie"]
    assert len(zombies) <= 1
    await daemon.stop()
    await until_async(lambda: not daemon.processes())


async def _serves(daemon: Daemon, name: str) -> None:
    """The model serves, at the latest when its breaker lets it."""
    answer = await daemon.chat(name, max_tokens=2)
    while answer.status == 503 and answer.error["code"] == "breaker_open":
        wait = float(answer.headers["Retry-After"])
        assert wait <= LONGEST_COOL_DOWN
        print(f"{name} is left alone for {wait:.0f} s: {answer.error['message']}")
        await asyncio.sleep(wait + 1.0)
        answer = await daemon.chat(name, max_tokens=2)
    assert answer.status == 200, answer.body


async def _used(daemon: Daemon) -> dict[str, int]:
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    return {
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "memory": process.memory_info().rss,
    }


async def _settled(daemon: Daemon, before: dict[str, int]) -> dict[str, int]:
    """What is used once connections that are kept for a while have been let go."""
    end = time.monotonic() + 30
    while True:
        used = await _used(daemon)
        if used["files"] <= before["files"] or time.monotonic() > end:
            return used
        await asyncio.sleep(0.5)
