"""The first token of a conversation's next turn, after its engine or its daemon has ended, with and without
what was saved of it; and what all that costs requests that gain nothing.

    python bench/conversations.py [--json] [--brief] [--tokens 4000 16000] [--ways unload …]
                                  [--python PATH] [--model FILE] [--long-model FILE]

The real llama.cpp with real models, on daemons of their own. A next turn is asked after each way to end: the
same conversation with another last question, so each has as much to read. `without` is that turn on a daemon
that saves nothing, once: whatever has ended its engine, it loads the model and reads everything. Then two
models, of which one fits into memory, take turns, each with a conversation that grows.

The goal is the time of a load (the first token of a short prompt, cold), 0.3 s, and the time to read and to
check the file at the speeds measured here; and at 4,000 tokens a twentieth of the time without.

`unused` asks an engine that costs nothing, by turns through three daemons: `conversations` as it is by
default, `memory` and `off`. A busy machine hides so little, so what the front door
does is timed in one process as well. `--brief` leaves out the long conversation and the models that take
turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import front_door
from engines import BOUND, CACHE, backend_of, call

import greenroom.runner.daemon
from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import SlotChoice
from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.config import Settings
from greenroom.runner.conversations import files
from greenroom.runner.conversations.saver import ConversationSaver
from greenroom.runner.conversations.store import FOLDER, ConversationStore
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run
from greenroom.runner.setting_values import ExternalBackend

RULE = "Rule {}: be kind to whale number {}, and remember that it likes to sing in the evening."
RULE_TOKENS = 24
WAYS: Mapping[str, str] = {
    "eviction": "another model needed the memory",
    "keep_alive": "its keep-alive ended",
    "unload": "it was unloaded",
    "restart": "the daemon was restarted",
    "upgrade": "Greenroom was upgraded",
    "kill_engine": "SIGKILL of the engine",
    "kill_daemon": "SIGKILL of the daemon, which leaves the engine",
    "kill_both": "SIGKILL of the daemon and its engine",
}
BRIEF = ("unload", "kill_both")
NEWER = "99.0.0"
SWAPS = 10
SHORT, LONG = 4_000, 8_000
"""Tokens of the conversation for which there is the goal of `TIMES`; from which it needs the long model."""
TIMES = 20.0
SECONDS = 0.3
UNUSED_MS = 0.01
ANSWER, GROWING = 8, 64
"""Tokens; where a conversation grows, so many that it is saved again."""


class Chat(NamedTuple):
    """What is measured with one length of conversation."""

    tokens: int
    model: Path
    memory: int
    """Bytes, for one engine and not for two."""
    slots: int
    context: int | None = None


def serve(python: str, settings: dict[str, Any], version: str) -> None:
    """The daemon under test, in a process of its own."""
    greenroom.runner.daemon.__version__ = version or greenroom.__version__  # type: ignore[attr-defined]
    backend = backend_of("llama.cpp", python)
    binary = ExternalBackend(binary=Path(sys.executable))
    told = {**settings, "home": Path(settings["home"])}
    run(
        Greenroom(Settings(port=0, backends={backend.name: binary}, **told), backends={backend.name: backend})
    )


class Place:
    """A data directory, and its daemon."""

    def __init__(self, python: str, home: Path, setting: str, chat: Chat) -> None:
        settings = {"home": str(home), "conversations": setting, "memory_budget": chat.memory}
        settings["slots"] = chat.slots  # otherwise there are fewer where memory is scarce, and both fit
        self._argv = [sys.executable, __file__, "--serve", python, json.dumps(settings)]
        self._chat, self._home = chat, home
        self.start()
        self.models = [self._add(chat.model), self._add(twin(chat.model, home.parent))]

    def _add(self, file: Path) -> str:
        name = f"file:{file}"
        call(self.url, "/models/create", {"from": name})
        if self._chat.context:
            call(self.url, "/engines/_configure", {"model": name, "context-size": self._chat.context})
        return name

    def start(self, version: str = "") -> None:
        note = self._home / "daemon.json"
        note.unlink(missing_ok=True)
        self.process = subprocess.Popen([*self._argv, version], stderr=subprocess.DEVNULL)
        until(note.exists)
        self.url = json.loads(note.read_text())["url"]

    def stop(self) -> None:
        """As `greenroom restart` does."""
        argv = [sys.executable, "-m", "greenroom.runner.cli", "stop"]
        env = {**os.environ, "GREENROOM_HOME": str(self._home)}
        subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL, timeout=BOUND)
        self.process.wait(BOUND)

    def engine(self) -> int:
        """The pid of the engine that was started last."""
        claims = sorted(self._home.glob("engines/*/claim"), key=lambda one: one.stat().st_mtime)
        return int(json.loads(claims[-1].read_text())["pid"])

    def saved(self) -> int:
        """Bytes of the largest file."""
        return max((one.stat().st_size for one in self._home.glob(f"{FOLDER}/c-*.bin")), default=0)

    def end(self, way: str, messages: list[dict[str, str]]) -> None:
        """End the engine in this way, which holds these messages; the daemon runs afterwards."""
        if way == "eviction":
            self.turn([{"role": "user", "content": "Hi"}], self.models[1])
            return
        if way == "keep_alive":
            self.turn(messages, keep_alive="1s")
        elif way == "unload":
            call(self.url, "/engines/unload", {"all": True})
        elif way in ("restart", "upgrade"):
            self.stop()
            self.start(NEWER if way == "upgrade" else "")
        else:
            pid = self.engine()
            if way != "kill_engine":
                self.process.kill()
                self.process.wait()
            if way != "kill_daemon":
                os.kill(pid, signal.SIGKILL)
            if way != "kill_engine":
                self.start()
        if way == "kill_daemon":
            until(lambda: call(self.url, "/engines/ps"))
        else:
            until(lambda: not call(self.url, "/engines/ps"))

    def turn(self, messages: Sequence[dict[str, str]], model: str = "", **more: Any) -> Turn:
        body = {"model": model or self.models[0], "messages": messages, "max_tokens": ANSWER, **more}
        body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        asked = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        began, first, text, read = time.perf_counter(), 0.0, "", 0
        with urllib.request.urlopen(asked, timeout=1_800) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    told = json.loads(line[6:])
                    read = told.get("timings", {}).get("prompt_n", read)
                    for choice in told["choices"]:
                        if said := choice["delta"].get("content"):
                            first, text = first or time.perf_counter() - began, text + said
        assert first, "the model said nothing"
        return Turn(first, read, text)


class Turn(NamedTuple):
    """An answer."""

    first: float
    """Seconds until the first token."""
    read: int
    """Tokens of the prompt that were read for it."""
    text: str


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)  # another process; polled, with a bound


def twin(model: Path, folder: Path) -> Path:
    """The same model by another name in its file, so that it is another one."""
    copy = folder / f"twin-{model.name}"
    if not copy.exists():
        data = model.read_bytes()
        at = data.index(b"general.name") + len(b"general.name") + 4 + 8
        copy.write_bytes(data[:at] + b"~" + data[at + 1 :])
    return copy


def talk(tokens: int, number: int) -> list[dict[str, str]]:
    """A conversation of about so many tokens that no other number shares."""
    rules = " ".join(RULE.format(at, at + number * 1_000) for at in range(tokens // RULE_TOKENS))
    return [{"role": "system", "content": rules}, {"role": "user", "content": "What is rule 1?"}]


def gone_on(messages: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    return [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]


def another(messages: Sequence[dict[str, str]], number: int) -> list[dict[str, str]]:
    """The same with another last question, which nothing that was saved has."""
    return [*messages[:-1], {"role": "user", "content": f"And then, {number}?"}]


def speeds(folder: Path, size: int) -> tuple[float, float]:
    """Bytes a second at which a file of this size is read from the disk, and its checksum computed."""
    file = folder / "speed"
    with file.open("wb") as made:
        made.write(os.urandom(size))
        made.flush()
        os.fsync(made.fileno())
        if sys.platform == "linux":  # so that it is read from the disk
            os.posix_fadvise(made.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    file.read_bytes()
    read = time.perf_counter() - began
    began = time.perf_counter()
    files.checksum(file)
    checked = time.perf_counter() - began
    file.unlink()
    return size / read, size / checked


def swaps(place: Place, tokens: int) -> list[float]:
    """Seconds until the first token of each turn, while two models push each other out."""
    talks = [talk(tokens, 1), talk(tokens, 2)]
    for number, model in enumerate(place.models):
        talks[number] = gone_on(talks[number], place.turn(talks[number], model, max_tokens=GROWING).text)
    took = []
    for _ in range(SWAPS):
        for number, model in enumerate(place.models):
            turn = place.turn(talks[number], model, max_tokens=GROWING)
            talks[number] = gone_on(talks[number], turn.text)
            took.append(round(turn.first, 3))
    return took


def measure(python: str, chat: Chat, folder: Path, ways: Sequence[str], is_brief: bool) -> dict[str, Any]:
    """One length of conversation, with what was saved and without."""
    folder.mkdir()
    messages = talk(chat.tokens, 0)
    place = Place(python, folder / "disk", "disk", chat)
    took: dict[str, dict[str, Any]] = {}
    try:
        held = gone_on(messages, place.turn(messages).text)
        place.end("unload", held)
        for number, way in enumerate(ways):
            if way == "unload":
                place.turn(held)
            place.end(way, held)
            turn = place.turn(another(held, number))
            print(f"{chat.tokens} tokens, {WAYS[way]}: {turn.first:.2f} s", file=sys.stderr, flush=True)
            took[way] = {"seconds": round(turn.first, 3), "read": turn.read}
        size = place.saved()
        loads = []
        for _ in range(3):
            place.end("unload", held)
            loads.append(place.turn([{"role": "user", "content": "Hi"}]).first)
        load = statistics.median(loads)
        taken = [] if is_brief or chat.tokens > LONG else swaps(place, chat.tokens)
    finally:
        place.process.terminate()
        place.process.wait(BOUND)
    disk, checksum = speeds(folder, size)
    place = Place(python, folder / "memory", "memory", chat)
    try:
        without = place.turn(another(held, 0))
        if "kill_daemon" in took:
            place.end("kill_daemon", held)
            took["kill_daemon"]["without"] = round(place.turn(another(held, 1)).first, 3)
    finally:
        place.process.terminate()
        place.process.wait(BOUND)
    goal = load + SECONDS + size / disk + size / checksum
    for one in took.values():
        one.setdefault("without", round(without.first, 3))
        one["times"] = round(one["without"] / one["seconds"], 1)
        one["holds"] = one["seconds"] <= goal
    found = {
        "tokens": without.read,
        "model": chat.model.name,
        "load": round(load, 3),
        "bytes": size,
        "disk_mb_a_second": round(disk / 1e6),
        "checksum_mb_a_second": round(checksum / 1e6),
        "goal": round(goal, 3),
        "without": round(without.first, 3),
        "ways": took,
        "times": min(one["times"] for way, one in took.items() if way != "kill_daemon"),
    }
    if taken:
        expected = without.first * len(taken)
        found["swaps"] = {
            "turns": taken,
            "sum": round(sum(taken), 1),
            "without": round(expected, 1),
            "times": round(expected / sum(taken), 1),
        }
    return found


# what it costs where it gains nothing

HELD = "in its slot"
BODIES = {
    "too short to be kept": "{} sea",
    HELD: "sea " * 500,
    "looked up and not found": "{} " + "sea " * 500,
}
"""What is asked; the number of the request begins a prompt that no slot has."""


async def unused(folder: Path, requests: int) -> dict[str, Any]:
    """Milliseconds that the first token takes longer by default than with `off` and `memory`."""
    first = front_door.Daemon(folder / "disk", conversations="disk")
    (model,) = call(first.url, "/models")
    first.stop()
    store = ConversationStore(folder / "disk" / FOLDER, lambda: 10**9)
    store.open()
    save_another(store, folder / "other", model["id"], bytes(16))
    saved = {one.name for one in (folder / "disk" / FOLDER).iterdir()}
    daemons = {
        setting: front_door.Daemon(folder / setting, conversations=setting)
        for setting in ("disk", "memory", "off")
    }
    added: dict[str, Any] = {}
    try:
        for what, text in BODIES.items():
            ways = [front_door.Way(name, url=one.url, text=text) for name, one in daemons.items()]
            times = await front_door.first_tokens(ways, requests)
            pairs = {
                other: [a - b for a, b in zip(times["disk"], times[other], strict=True)]
                for other in ("memory", "off")
            }
            quick = {name: statistics.quantiles(one, n=10)[0] for name, one in times.items()}
            added[what] = {
                other: {
                    "median": round(statistics.median(all_), 4),
                    "quickest_tenth": round(quick["disk"] - quick[other], 4),
                }
                for other, all_ in pairs.items()
            }
        written = {one.name for one in (folder / "disk" / FOLDER).iterdir()} - saved
    finally:
        for one in daemons.values():
            one.stop()
    return {"added_ms": added, "in_process_us": in_process(folder), "written": sorted(written)}


def in_process(home: Path) -> dict[str, float]:
    """Microseconds of what the front door does for a request that conversations bring nothing, without the
    server around it; a thousand others are saved.
    """
    store = ConversationStore(home / "many", lambda: 10**9)
    gates = GateBoard()
    gates.open("e", "m", "completion", "llama.cpp", "/socket", 4)
    spec = EngineSpec(
        engine_id="e", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m", slots=4
    )
    engine = Engine(spec=spec, state="ready", since=1.0, endpoint="/socket", pid=1)
    saver = ConversationSaver(
        home, store, gates, {"llama.cpp": LlamaCpp()}, lambda _: engine, lambda _: None, lambda *_: ""
    )
    store.open()
    store.opened.set()
    for number in range(1_000):
        save_another(store, home / "other", "m", number.to_bytes(16))
    found = {}
    for what, text in BODIES.items():
        if what == HELD:
            continue
        prompt: tuple[object, ...] = ({}, {"role": "user", "content": text})
        gates.enter("m", "completion", "", "r")
        choice = gates.take_slot("r", prompt, lambda: ())
        assert choice is not None

        def once(
            choice: SlotChoice = choice, prompt: tuple[object, ...] = prompt, size: int = len(text)
        ) -> None:
            saver.loses(choice)
            if not saver.reads_at_once("e", size):
                saver.restorer.is_new(choice, prompt, "user:0")

        found[what] = round(min(timeit.repeat(once, number=10_000, repeat=5)) * 100, 2)
        gates.leave("r")
    return found


def save_another(store: ConversationStore, file: Path, model_id: str, part: bytes) -> None:
    """Save a conversation with a model, so that others are looked for."""
    file.write_bytes(bytes(1_000))
    store.put(
        file,
        compat="",
        owner="user:0",
        model_id=model_id,
        model="tiny",
        backend="fake",
        chain=(bytes(16), part),
        tokens=500,
        seconds=1.0,
        reason="idle",
    )


# what is printed


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown, for `docs/performance.md`."""
    for chat in found["chats"]:
        yield (
            f"{chat['tokens']:,} tokens, {chat['model']}. The load alone takes {chat['load']:.2f} s. The "
            f"file has {chat['bytes'] / 1e6:.0f} MB, read at {chat['disk_mb_a_second']:,} MB/s and checked "
            f"at {chat['checksum_mb_a_second']:,} MB/s, so the goal is {chat['goal']:.2f} s.\n"
        )
        yield "| what had happened | with | without | times as soon | read | goal |"
        yield "|---|---|---|---|---|---|"
        for way, one in chat["ways"].items():
            yield (
                f"| {WAYS[way]} | {one['seconds']:.2f} s | {one['without']:.2f} s | {one['times']:g} | "
                f"{one['read']} tokens | {'holds' if one['holds'] else 'does not hold'} |"
            )
        if swapped := chat.get("swaps"):
            yield (
                f"| two models, to and fro {SWAPS} times: the sum | {swapped['sum']:.1f} s | "
                f"{swapped['without']:.0f} s | {swapped['times']:g} | | |"
            )
        yield ""
    yield "First token, added by saving conversations, in ms: median of pairs, and of quickest tenths.\n"
    yield "| a request | beside `off` | beside `memory` |"
    yield "|---|---|---|"
    for what, added in found["unused"]["added_ms"].items():
        cells = (
            f"{added[one]['median']:+.3f}, {added[one]['quickest_tenth']:+.3f}" for one in ("off", "memory")
        )
        yield f"| {what} | {' | '.join(cells)} |"
    told = ", ".join(f"{what} {took:g} µs" for what, took in found["unused"]["in_process_us"].items())
    yield f"\nIn the front door alone, with 1,000 others saved: {told}."
    yield f"Files written for these: {len(found['unused']['written'])}"


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--brief", action="store_true", help="one short conversation, and two ways to end")
    parser.add_argument("--tokens", type=int, nargs="*", default=None)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=None)
    parser.add_argument("--requests", type=int, default=1_000, help="through each daemon, for what it costs")
    parser.add_argument("--python", type=Path, default=CACHE / "llama-cpp-env" / "bin" / "python")
    parser.add_argument("--model", type=Path, default=next(iter(CACHE.glob("smollm2/*.gguf")), None))
    parser.add_argument("--long-model", type=Path, default=next(iter(CACHE.glob("gemma3/*.gguf")), None))
    options = parser.parse_args()
    lengths = options.tokens if options.tokens is not None else [SHORT, *([] if options.brief else [16_000])]
    ways = options.ways or (BRIEF if options.brief else tuple(WAYS))
    folder = Path(tempfile.mkdtemp(prefix="gr-c-"))
    chats = []
    try:
        for tokens in lengths:
            is_long = tokens > LONG
            model = options.long_model if is_long else options.model
            if model is None or not options.python.exists():
                print(f"{tokens} tokens: there is no model or no llama.cpp to measure.", file=sys.stderr)
                continue
            context = -(-tokens * 9 // 8 // 1_024) * 1_024
            chat = (
                Chat(tokens, model, 1_100_000_000, 1, context)
                if is_long
                else Chat(tokens, model, 1_600_000_000, 4)
            )
            chats.append(measure(str(options.python), chat, folder / str(tokens), ways, options.brief))
        (folder / "unused").mkdir()
        with asyncio.Runner() as runner:
            cost = runner.run(unused(folder / "unused", options.requests))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "chats": chats, "unused": cost}
    print(json.dumps(found, indent=2) if options.json else "\n".join(table(found)))
    holds = all(one["holds"] for chat in chats for one in chat["ways"].values())
    holds &= all(chat["times"] >= TIMES for chat in chats if SHORT <= chat["tokens"] < LONG)
    holds &= all(one < UNUSED_MS * 1_000 for one in cost["in_process_us"].values()) and not cost["written"]
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
