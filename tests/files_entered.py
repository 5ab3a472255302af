"""Which of our source files a chat completion enters, counted and printed in order.

    python tests/files_entered.py [loaded | installing]

`loaded`: the model's engine is ready. `installing`: the backend has to be installed and the model loaded
first. A file is entered when one of its functions is called between the request's first line and its end: for
`loaded` on the event loop, for `installing` on any thread of the daemon. What runs while a module is imported
does not count, and neither do the keeper's and the engine's processes.

The limits are on what a reader has to open to follow the decisions on the way. So the kernel, the journal and
what we ask of the operating system are one library each, as aiohttp or Pykka are; and what `SKIPPED` lists is
printed without a number: values without decisions, and watchers that run without any request as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

TESTS = Path(__file__).parent
SOURCES = tuple(f"{TESTS.parent / root / 'greenroom'}{os.sep}" for root in ("actors", "runner"))
LIMITS = {"loaded": 12, "installing": 45}
LIBRARIES = ("actors/kernel/", "actors/journal/", "runner/systems/", "runner/devices/")
SKIPPED = {
    "a value": (
        *("actors/values.py", "actors/limits.py", "actors/characters.py", "actors/bounded_maps.py"),
        *(
            "actors/graphics.py",
            "/messages.py",
            "/events.py",
            "/effects.py",
            "runner/units.py",
            "runner/user_home.py",
        ),
    ),
    "a watcher": (
        *("runner/awake_clock.py", "runner/memory.py", "runner/devices/", "runner/daemon_lock.py"),
        *("runner/engines/health_monitor.py", "runner/engines/liveness.py"),
        *("runner/engines/reachability.py", "runner/engines/memory_watch.py"),
        *("runner/engines/memory_bound.py", "runner/conversations/saver.py"),
        *(
            "runner/conversations/slot_notes.py",
            "runner/conversations/saveable.py",
            "runner/conversations/costs.py",
        ),
        *("runner/conversations/store.py", "runner/conversations/index.py"),
    ),
    "threads, beneath all": ("actors/fork.py", "runner/threads.py"),
    "a test's": ("runner/testing.py",),
}


class Trace:
    """The files that are entered, in order, each with the first function."""

    def __init__(self) -> None:
        self.entered: dict[str, str] = {}
        self._seen: set[CodeType] = set()
        self._on = False

    def call(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not self._on or event != "call" or code in self._seen:
            return
        if not code.co_filename.startswith(SOURCES) or _is_importing(frame):
            return
        self._seen.add(code)
        file = code.co_filename.removeprefix(str(TESTS.parent) + os.sep)
        self.entered.setdefault(file.partition(f"greenroom{os.sep}")[2], code.co_qualname)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is entered inside."""
        self._on = True
        try:
            yield
        finally:
            self._on = False


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(SOURCES):
            return True
        frame = frame.f_back
    return False


async def walk(journey: str, trace: Trace, home: Path) -> None:
    """Serve a Greenroom, ask for a completion, and record the way that it takes."""
    from aiohttp import web

    import toy
    from greenroom.actors.library.messages import Pull, TagModel
    from greenroom.actors.scheduler.messages import AwaitReady
    from greenroom.runner.config import Settings
    from greenroom.runner.daemon import Greenroom
    from greenroom.runner.http.aiohttp_adapter import ServerRunner
    from greenroom.runner.http.app import front_door
    from greenroom.runner.testing import tiny_gguf

    # What a client receives while it waits is not on the way, and only a slow machine sends it.
    settings = Settings(home=home, install_policy="auto", progress_after=600.0)
    greenroom = Greenroom(settings, backends={"toy": toy.toy_backend(home.parent)})
    await asyncio.to_thread(greenroom.start)
    runner = ServerRunner(front_door(greenroom), access_log=None)
    try:
        await greenroom.system.ask(AwaitReady())
        file = tiny_gguf(home.parent / "tiny.gguf")
        pulled = await greenroom.system.ask(Pull(reference=f"file:{file}"))
        tag = TagModel(model_id=pulled.model.id, tag="docker.io/ai/tiny:latest")
        await greenroom.system.ask(tag)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        if journey == "loaded":
            for _ in range(3):
                await complete(host, port)
            sys.setprofile(trace.call)
        with trace.recording():
            await complete(host, port)
        sys.setprofile(None)
    finally:
        await runner.cleanup()
        await asyncio.to_thread(greenroom.stop)


async def complete(host: str, port: int) -> None:
    """Ask for a streamed completion on a connection of its own, and read it to its end."""
    body = json.dumps({"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{head}Connection: close\r\n\r\n{body}".encode())
    answer = await reader.read()
    writer.close()
    assert b"data: [DONE]" in answer, answer.decode()


def route(journey: str) -> dict[str, str]:
    """The files that a journey enters, in order, each with the first function."""
    import toy

    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    trace = Trace()
    try:
        toy.make_wheel(folder / "wheels")
        os.environ.update(toy.sources(folder / "wheels"))
        if journey == "installing":
            threading.setprofile(trace.call)
            sys.setprofile(trace.call)
        asyncio.run(walk(journey, trace, folder / "home"))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        shutil.rmtree(folder, ignore_errors=True)
    return trace.entered


def unit_of(file: str) -> str:
    """The file itself, or the library it belongs to."""
    return next((library for library in LIBRARIES if file.startswith(library)), file)


def skipped(file: str) -> str:
    """Why a reader need not open a file; empty when it has to be opened."""
    return next((why for why, names in SKIPPED.items() if file.endswith(names)), "")


def main() -> int:
    """Print the routes; 1 when one of them is too long."""
    sys.path.insert(0, str(TESTS / "shared"))
    too_long = False
    for journey in sys.argv[1:] or LIMITS:
        entered = route(journey)
        opened = dict.fromkeys(unit for file in entered if not skipped(unit := unit_of(file)))
        print(f"{journey}: {len(opened)} to open, at most {LIMITS[journey]}; {len(entered)} files in all")
        for file, function in entered.items():
            number = next((n for n, unit in enumerate(opened, 1) if unit == unit_of(file)), "")
            print(f"  {number:3} {file:42} {function:40} {skipped(file)}".rstrip())
        too_long = too_long or len(opened) > LIMITS[journey]
    return too_long


if __name__ == "__main__":
    sys.exit(main())
