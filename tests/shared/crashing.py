"""A scripted life of a real daemon that is killed at one boundary of it, started again, and looked at.

The driver knows only what a client knows: what it has asked, and what was acknowledged. Each step says which
state it leads to, so that a step interrupted by a kill is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daemon_process import DaemonProcess, ForkedDaemon, without_settings
from greenroom.actors.journal import maintenance
from greenroom.actors.journal.reader import read_journal
from greenroom.runner.installations.installed import InstallationStore
from greenroom.runner.testing import tiny_gguf
from toy import sources
from waiting import until

BOUND = 30.0
"""Seconds anything may take."""
POINTS = ("before", "after", "effect", "outcome")


class Died(Exception):
    """The daemon has gone while it was asked."""


@dataclass(frozen=True)
class Kill:
    """One boundary."""

    event: str
    type: str
    point: str

    def __str__(self) -> str:
        return f"{self.point} {self.event} ({self.type})"


@dataclass
class Life:
    """One life, from an empty data directory to an orderly stop. `kill` happens somewhere on the way."""

    place: Path
    """The folder with the wheels, and with `one.gguf` and `two.gguf` in `m`."""
    name: str = "h"
    """Of the data directory in it."""
    kill: Kill | None = None
    late: str = ""
    """A type of event that is acknowledged before it is stored: the fault this harness must find."""
    killed: str = ""
    """What the daemon wrote down as it died."""
    acknowledged: dict[str, bool] = field(default_factory=dict)
    """Fact → whether it is so, by the last answer about it."""
    in_doubt: set[str] = field(default_factory=set)
    """Facts that were being changed when the daemon died."""
    deaths: int = 0
    _process: ForkedDaemon | None = None
    """None when it was not started, or was stopped in order."""

    def __post_init__(self) -> None:
        self.home, self.models = self.place / self.name, self.place / "m"
        self._daemon = DaemonProcess(self.home)

    def live(self) -> None:
        """All of it, with every check on the way."""
        try:
            for step in (
                self.start,
                self.install,
                lambda: self.pull("one"),
                lambda: self.pull("two"),
                lambda: self.tag("one"),
                lambda: self.tag("two"),
                self.configure,
                lambda: self.chat("one"),
                lambda: self.chat("one"),
                lambda: self.chat("two"),
                self.crash_engine(),
                lambda: self.chat("two"),
                self.lose_daemon(),
                lambda: self.chat("two"),
                self.unload,
                lambda: self.untag("one"),
                lambda: self.remove("one"),
                lambda: self.chat("two"),
                self.uninstall,
                self.stop,
            ):
                self._until_done(step)
            self._look_at_the_end()
        finally:
            self.end()

    def _until_done(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Died:
            self._bury()
            self._start(None)
            self.look()
            self.in_doubt.clear()
            step()

    # the steps: each says which state it leads to

    def start(self) -> None:
        if self._process is None:
            self._start(self.kill)

    def install(self) -> None:
        with self._changing("installed", True):
            assert self.post("/engines/install-backend", {"backend": "toy"}) == (200, None)

    def pull(self, name: str) -> None:
        with self._changing(f"model {name}", True):
            status, line = self.post("/models/create", {"from": f"file:{self.models / name}.gguf"})
            assert (status, line.get("type")) == (200, "success"), (line, self.log())

    def tag(self, name: str) -> None:
        with self._changing(f"tag {name}", True):
            path = f"/models/file:{self.models / name}.gguf/tag?repo={name}&tag=latest"
            status, _ = self.post(path, {})
            assert status == 201

    def configure(self) -> None:
        with self._changing("configured", True):
            status, answer = self.post("/engines/_configure", {"model": "one", "keep_alive": "30m"})
            assert status in (200, 202), answer
        # The contract loads what was configured: that is the first load.
        self.until_so(lambda: [one["state"] for one in self.engines()] == ["ready"])

    def chat(self, model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, (model, answer)

    def crash_engine(self) -> Callable[[], None]:
        """The engine dies, once."""
        crashed: list[int] = []

        def step() -> None:
            if not crashed:
                (engine,) = self.engines()
                crashed.append(engine["pid"])
                os.kill(engine["pid"], signal.SIGKILL)
            self.until_so(lambda: not any(one["pid"] in crashed for one in self.engines()))
            self.until_so(lambda: "load_failed" in self.types())

        return step

    def lose_daemon(self) -> Callable[[], None]:
        """The daemon is killed from outside, once, with an engine that is ready."""
        lost: list[int] = []

        def step() -> None:
            if not lost:
                lost.append(self.pid)
                self.kill_daemon()
                # It may have reached its boundary by itself a moment before: then that was the kill.
                self.killed = next(iter(self._marks()), "")
                self._start(self.kill if not self.killed else None)

        return step

    def kill_daemon(self) -> None:
        """From outside."""
        self._running().kill()
        self._buried()

    def forget_history(self) -> None:
        """What daemons have noted of their events counts only as far as the journal still has it."""
        kept = read_journal(self.home / "journal.db") if (self.home / "journal.db").exists() else ()
        Path(f"{self.home}.notes").write_text("".join(f"{one.id} {one.type}\n" for one in kept))

    def is_refused(self) -> str:
        """A daemon that does not start, and says why: the end of its log."""
        try:
            self._start(None)
        except Died:
            status = self._buried()
            assert status > 0, status
            return self.log()
        raise AssertionError("the daemon has started")

    def unload(self) -> None:
        status, _ = self.post("/engines/unload", {"all": True})
        assert status == 200
        self.until_so(lambda: self.engines() == [])

    def untag(self, name: str) -> None:
        with self._changing(f"tag {name}", False):
            status, answer = self.ask_daemon("DELETE", f"/models/{name}")
            assert status == 200 or (status == 404 and self.killed), answer

    def remove(self, name: str) -> None:
        # The configuration of a removed model no longer matters.
        self.acknowledged.pop("configured", None)
        with self._changing(f"model {name}", False):
            status, answer = self.ask_daemon("DELETE", f"/models/file:{self.models / name}.gguf")
            # Asked again after a kill, it may have happened already.
            assert status == 200 or (status == 404 and self.killed), answer

    def uninstall(self) -> None:
        with self._changing("installed", False):
            status, answer = self.post("/engines/uninstall-backend", {"backend": "toy"})
            assert status == 200, answer

    def stop(self) -> None:
        """In order; a daemon that is killed as it stops is started and stopped again."""
        self._running().terminate()
        status = self._buried()
        if status == -signal.SIGKILL:
            raise Died
        assert status == 0, (status, self.log())

    # looking

    def look(self) -> None:
        """After a restart: what was acknowledged holds, nothing is believed by halves, nothing runs twice."""
        self.until_so(lambda: self.get("/readyz")[0] == 200)
        self.until_so(self._is_at_rest)
        status = self.get("/engines/status")[1]["toy"]
        self._holds("installed", status.startswith("Running"), status)
        tags = {tag for model in self.get("/models")[1] for tag in model.get("tags", ())}
        for name in ("one", "two"):
            self._holds(f"model {name}", any(tag.endswith(f"/{name}.gguf") for tag in tags), tags)
            self._holds(f"tag {name}", any(tag.endswith(f"{name}:latest") for tag in tags), tags)
        configured = self.get("/engines/_configure")[1] or []
        self._holds("configured", bool(configured), configured)
        self._look_at_disk(status.startswith("Running"))
        self._look_at_journal()

    def _holds(self, fact: str, is_so: bool, seen: object) -> None:
        if fact in self.acknowledged and fact not in self.in_doubt:
            assert self.acknowledged[fact] == is_so, f"{fact} was acknowledged; after {self.kill}: {seen}"

    def _is_at_rest(self) -> bool:
        """Every engine is ready and every process of this home is one of theirs, or a keeper's."""
        engines = self.engines()
        if any(one["state"] != "ready" for one in engines):
            return False
        status = self.get("/engines/status")[1]["toy"]
        if status.startswith("Installing") or status.endswith("being removed"):
            return False
        return {one["pid"] for one in engines} == set(self._processes("fake_engine.py"))

    def _look_at_disk(self, is_running: bool) -> None:
        store = InstallationStore(self.home)
        folders = [*self.home.glob("backends/toy/*")]
        for folder in folders:
            assert (folder / "installation.json").exists(), f"{folder} has no commit mark"
        found = store.look("toy")
        assert len(found) == len(folders)
        for one in found:
            assert not one.broken
            assert store.verify(one) == []
        assert bool(found) == is_running
        for blob in self.home.glob("models/blobs/sha256/*"):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name

    def _look_at_journal(self) -> None:
        found = maintenance.verify(self.home / "journal.db")
        assert found.is_sound, found.problems
        # Read first: the daemon goes on, and what it notes meanwhile need not be in what was read before.
        noted = [line for line in self._notes() if not line.startswith("!")]
        there = [f"{one.id} {one.type}" for one in read_journal(self.home / "journal.db")]
        assert [line for line in there if line in set(noted)] == noted, "an acknowledged event is lost"
        # What was written but not yet told is at most one batch a death.
        assert len(there) - len(noted) <= 3 * self.deaths, set(there) - set(noted)

    def _look_at_the_end(self) -> None:
        starts = [line.split()[1] for line in Path(f"{self.home}.starts").read_text().splitlines()]
        assert len(starts) == len(set(starts)), "an engine was started twice"
        until(lambda: not self._processes(""))
        assert not [line for line in self._notes() if line.startswith("! replay")], self._notes()
        self._look_at_journal()
        assert [*self.home.glob("backends/toy/*")] == []
        assert len([*self.home.glob("models/blobs/sha256/*")]) == 3  # file, config, manifest of `two`
        assert self.kill is None or self.killed, f"{self.kill} was never reached"

    # asking

    @property
    def pid(self) -> int:
        """The daemon that runs now."""
        return self._running().pid

    @contextlib.contextmanager
    def _changing(self, fact: str, to: bool) -> Iterator[None]:
        """Between the question and the answer either may hold."""
        self.in_doubt.add(fact)
        yield
        self.in_doubt.discard(fact)
        self.acknowledged[fact] = to

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask_daemon("GET", path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.ask_daemon("POST", path, body)

    def ask_daemon(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and the last line as JSON; Died when the daemon is gone."""
        if self._process is None:
            raise Died
        connection = http.client.HTTPConnection(urlsplit(self._daemon.url).netloc, timeout=BOUND)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Accept": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        except TimeoutError:
            raise AssertionError(f"{method} {path} got no answer; {self.kill}\n{self.log()}") from None
        except (OSError, http.client.HTTPException):
            raise Died from None
        finally:
            connection.close()
        lines = content.strip().splitlines()
        if not lines:
            return answer.status, None
        try:
            return answer.status, json.loads(lines[-1])
        except ValueError:
            return answer.status, content.decode()

    def engines(self) -> list[Any]:
        found: list[Any] = self.get("/engines/ps")[1]
        return found

    def types(self) -> set[str]:
        return {record.type for record in read_journal(self.home / "journal.db")}

    def _marks(self) -> list[str]:
        """What daemons wrote down as they died at the boundary."""
        return [line for line in self._notes() if line.startswith("! ") and "replay" not in line]

    def _notes(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return Path(f"{self.home}.notes").read_text().splitlines()
        return []

    def log(self) -> str:
        return self._daemon.log()[-6000:]

    def _processes(self, program: str) -> list[int]:
        """Living processes that daemons of this home have started and that run this program."""
        found = []
        not_theirs = {os.getpid(), self._process.pid if self._process else 0}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(") ")[2][:1]
                about = command + (entry / "environ").read_bytes() + os.readlink(entry / "cwd").encode()
                is_ours = int(entry.name) not in not_theirs and state != "Z"
                if is_ours and f"{self.home}/".encode() in about and program.encode() in command:
                    found.append(int(entry.name))
        return found

    def until_so(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + BOUND
        while not condition():
            about = f"{self.kill}: {self.engines()} {self._processes('')}\n{self.log()}"
            assert time.monotonic() < end, about
            time.sleep(0.01)

    # the daemon

    def _start(self, kill: Kill | None) -> None:
        wanted = [kill.event, kill.point] if kill is not None else ["", ""]
        env = without_settings("PIP_", "UV_") | sources(self.place / "wheels")
        self._process = daemon = self._daemon.fork("crash_daemon", *wanted, self.late, env=env)
        until(lambda: daemon.poll() is not None or self._daemon.has_address())
        if daemon.poll() is not None:
            raise Died(self.log())

    def _running(self) -> ForkedDaemon:
        assert self._process is not None
        return self._process

    def _bury(self) -> None:
        """The daemon has died: at the boundary, and nowhere else, and once."""
        if self._process is not None:
            status = self._buried()
            assert status == -signal.SIGKILL, f"status {status} at {self.kill}\n{self.log()}"
        marks = self._marks()
        assert len(marks) == 1, f"{marks} {self.kill}\n{self.log()}"
        assert not self.killed, f"the daemon died again after {self.killed}"
        self.killed = marks[0]

    def _buried(self) -> int:
        """Wait for the daemon's end."""
        status = self._running().wait(BOUND)
        if status == -signal.SIGKILL:
            self.deaths += 1
        self._process = None
        return status

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        if self._process is not None:
            self.kill_daemon()
        for pid in self._processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def boundaries(home: Path) -> list[Kill]:
    """All of a life: every event of its journal at each point."""
    return [
        Kill(record.id, record.type, point)
        for record in read_journal(home / "journal.db")
        for point in POINTS
    ]


def write_models(folder: Path) -> None:
    """`one.gguf` and `two.gguf`."""
    folder.mkdir()
    for name in ("one", "two"):
        tiny_gguf(folder / f"{name}.gguf", name)
