"""The kernel: asks a second, from threads and from asyncio, in memory and durable; beside bare Pykka.

    python bench/kernel.py [--json] [--folder DIR] [--seconds 2] [--tasks 1 64] [--actors 1 8]

An ask that stores nothing shows what the shell costs; a durable one waits until its event is on the disk.
With several actors the journal's group commit can show: one actor has one decision in flight at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pykka

from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Address, Command, Decision, Effect, Event, Stored
from greenroom.actors.kernel.system import ActorSystem


class Counted(Event, frozen=True, kw_only=True):
    TAG = "counted"
    by: int
    why: str = ""


class Add(Command[Any], frozen=True, kw_only=True):
    by: int


class Total(Command[Any], frozen=True, kw_only=True):
    pass


class Sum(msgspec.Struct, frozen=True):
    total: int = 0


class Counter:
    event_types: Sequence[type[Event]] = (Counted,)

    def __init__(self, name: str) -> None:
        self.address = Address(name)

    def claims(self, stream: str) -> bool:
        return stream == self.address.name

    def stream_of(self, event: Event) -> str:
        return self.address.name

    def initial(self) -> Sum:
        return Sum()

    def initial_volatile(self) -> None:
        return None

    def decide(self, state: Sum, command: Command[Any], now: Moment, volatile: None) -> Decision[None]:
        match command:
            case Add(by=by):
                event = Counted(by=by, why="a client has asked for it, and gave a reason of a usual length")
                return Decision(events=(event,), reply=command.replied(state.total + by))
            case Total():
                return Decision(reply=command.replied(state.total))
            case _:
                return Decision()

    def apply(self, state: Sum, stored: Stored[Any]) -> Sum:
        return Sum(state.total + stored.event.by)

    def react(self, state: Sum, stored: Stored[Any]) -> Sequence[Effect]:
        return ()

    def settle(self, state: Sum, now: Moment, volatile: None) -> Decision[None]:
        return Decision()


class Echo(pykka.ThreadingActor):
    use_daemon_thread = True

    def on_receive(self, message: object) -> object:
        return message


Result = dict[str, float | int | str]


def rates(name: str, latencies: list[float], elapsed: float, **more: int) -> Result:
    ordered = sorted(latencies)
    return {
        "what": name,
        **more,
        "per_second": round(len(ordered) / elapsed),
        "p50_us": round(ordered[len(ordered) // 2] * 1e6, 1),
        "p99_us": round(ordered[int(len(ordered) * 0.99)] * 1e6, 1),
    }


def in_a_thread(name: str, seconds: float, ask: Callable[[], object]) -> Result:
    latencies = []
    start = now = time.perf_counter()
    while now - start < seconds:
        ask()
        then, now = now, time.perf_counter()
        latencies.append(now - then)
    return rates(name, latencies, now - start)


async def in_tasks(
    name: str, seconds: float, tasks: int, ask: Callable[[int], Awaitable[object]], **more: int
) -> Result:
    latencies: list[float] = []
    start = time.perf_counter()

    async def work(number: int) -> None:
        now = time.perf_counter()
        while now - start < seconds:
            await ask(number)
            then, now = now, time.perf_counter()
            latencies.append(now - then)

    await asyncio.gather(*(work(number) for number in range(tasks)))
    return rates(name, latencies, time.perf_counter() - start, tasks=tasks, **more)


def told(system: ActorSystem, count: int = 50_000) -> Result:
    start = time.perf_counter()
    for _ in range(count):
        system.tell(Total(), to="counter-0")
    system.rest(60)
    return {"what": "tell, drained", "per_second": round(count / (time.perf_counter() - start))}


def system_of(journal: Any, actors: int) -> ActorSystem:
    system = ActorSystem(journal)
    for number in range(actors):
        system.register(Counter(f"counter-{number}"))
    return system


def measure(folder: Path, seconds: float, tasks: list[int], actors: list[int]) -> dict[str, object]:
    results: list[Result] = []
    echo = Echo.start()
    results.append(in_a_thread("bare Pykka: ask", seconds, lambda: echo.ask("hello")))
    echo.stop()
    with system_of(MemoryJournal(), 1) as system:
        results.append(
            in_a_thread("ask, one thread", seconds, lambda: system.ask(Total(), to="counter-0").get())
        )
        results += [
            asyncio.run(
                in_tasks("ask, asyncio", seconds, count, lambda _: awaited(system, "counter-0", Total()))
            )
            for count in tasks
        ]
        results.append(told(system))
    for count in actors:
        for busy in tasks:
            if busy < count:
                continue
            journal = SqliteJournal(folder / f"kernel-{count}-{busy}.db")
            with system_of(journal, count) as system:
                durable = in_tasks(
                    "durable ask, asyncio",
                    seconds,
                    busy,
                    lambda number, system=system, count=count: awaited(  # type: ignore[misc]
                        system, f"counter-{number % count}", Add(by=1)
                    ),
                    actors=count,
                )
                results.append(asyncio.run(durable))
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "results": results,
        "started": started(seconds),
    }


async def awaited(system: ActorSystem, address: str, command: Command[Any]) -> object:
    return await system.ask(command, to=address)


def started(seconds: float) -> dict[str, float]:
    """What it costs to start and stop a system of ten actors, in milliseconds."""
    times = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        with system_of(MemoryJournal(), 10):
            pass
        times.append(time.perf_counter() - start)
    return {"actors": 10, "start_and_stop_ms": round(sorted(times)[len(times) // 2] * 1e3, 2)}


def show(result: dict[str, Any]) -> None:
    print(f"{result['machine']}, Python {result['python']}\n")
    print(f"{'':<24}{'actors':>8}{'tasks':>8}{'a second':>12}{'p50 us':>10}{'p99 us':>10}")
    for line in result["results"]:
        actors, tasks = line.get("actors", ""), line.get("tasks", "")
        p50, p99 = line.get("p50_us", ""), line.get("p99_us", "")
        print(f"{line['what']:<24}{actors:>8}{tasks:>8}{line['per_second']:>12,}{p50:>10}{p99:>10}")
    print(f"\nstart and stop of ten actors: {result['started']['start_and_stop_ms']} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument(
        "--tasks", type=int, nargs="*", default=[1, 64], help="asyncio tasks that ask at once"
    )
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 8], help="for durable asks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="greenroom-bench-", dir=options.folder) as folder:
        result = measure(Path(folder), options.seconds, options.tasks, options.actors)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        show(result)


if __name__ == "__main__":
    main()
