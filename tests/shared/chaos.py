"""Faults drawn at random over a live daemon, four clients before it, and what must hold all the same.

Each fault is taken back after a while. Every client gets an answer or a reason; a connection may break off
only when the daemon was killed meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from daemon_process import DaemonProcess, ForkedDaemon
from greenroom.actors.journal import maintenance
from greenroom.actors.journal.reader import read_journal
from greenroom.runner.testing import tiny_gguf
from other_process import limit
from waiting import BOUND, until

CLIENTS = 4
ANSWER_WITHIN = 60.0
"""Seconds within which every request is answered: its longest wait, and the time that faults take."""
AT_REST_WITHIN = 60.0

Undo = Callable[[], None]


class Chaos:
    """One daemon, its clients, and what happens to it."""

    def __init__(self, place: Path, seed: int) -> None:
        self.home = place / "h"
        self.random = random.Random(seed)
        self.told = f"seed {seed}"
        self.happened: list[str] = []
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        self._models = [tiny_gguf(place / f"{name}.gguf", name) for name in ("one", "two")]
        self._clock = Path(f"{self.home}.clock")
        self._clock.write_bytes(struct.pack("d", 0.0))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port: int = listener.getsockname()[1]
        self._deaths: list[tuple[float, float]] = []
        """When the daemon was killed, and when the next one was ready."""
        self._limits: dict[tuple[int, int], tuple[int, int]] = {}
        self._asking_since: dict[int, float] = {}
        """Client → when it asked what it waits for."""
        self._over = threading.Event()
        self._home = DaemonProcess(self.home)
        self._daemon = self._start()

    def run(self, seconds: float) -> None:
        """All of it: clients ask, faults come and go; then it is looked at."""
        for file in self._models:
            assert self._ask("POST", "/models/create", {"from": f"file:{file}"})[0] == 200
        clients = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            self._faults(seconds)
        finally:
            self._over.set()
            for client in clients:
                client.join(ANSWER_WITHIN + AT_REST_WITHIN)
        assert not any(client.is_alive() for client in clients), f"some client waits forever: {self.said()}"
        self._look()

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for process in self._processes():
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        self._home.end()

    # what happens

    def _faults(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        pending: list[tuple[float, Undo]] = []
        while time.monotonic() < end or pending:
            for due in [one for one in pending if one[0] <= time.monotonic()]:
                pending.remove(due)
                due[1]()
            longest_wait = time.monotonic() - min(self._asking_since.values(), default=time.monotonic())
            assert longest_wait < 2 * ANSWER_WITHIN, f"a client waits for {longest_wait:.0f} s: {self.said()}"
            code = self._daemon.poll()
            assert code is None, f"the daemon ended by itself with {code}: {self.said()}"
            if time.monotonic() < end and len(pending) < 2:
                kinds = self._kinds()
                (name, fault, longest), *_ = self.random.choices(kinds, [one[2] for one in kinds])
                undo = fault()
                if undo is not None:
                    lasts = self.random.uniform(0.1, longest)
                    self.happened.append(f"{name} for {lasts:.1f} s")
                    pending.append((time.monotonic() + lasts, undo))
            time.sleep(self.random.uniform(0.05, 0.4))

    def _kinds(self) -> list[tuple[str, Callable[[], Undo | None], float]]:
        """Each with the most seconds it lasts, which also say how often it comes."""
        return [
            ("daemon stopped", lambda: self._stopped([self._of(self._daemon.pid)]), 3.0),
            ("engine stopped", lambda: self._stopped(self._running("fake_engine.py")), 4.0),
            ("keeper stopped", lambda: self._stopped(self._running("keeper")), 2.0),
            ("engine killed", lambda: self._killed(self._running("fake_engine.py")), 1.0),
            ("keeper killed", lambda: self._killed(self._running("keeper")), 1.0),
            ("daemon killed", self._daemon_killed, 0.5),
            ("no descriptors", self._no_descriptors, 2.0),
            ("disk full", self._disk_full, 2.0),
            ("no memory", self._no_memory, 1.0),
            ("clock jumped", self._clock_jumped, 3.0),
            ("client that says nothing", self._silent_client, 3.0),
        ]

    def _of(self, pid: int) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid)
        return None

    def _stopped(self, processes: list[psutil.Process | None]) -> Undo | None:
        process = self.random.choice(processes) if processes else None
        if process is None:
            return None
        with contextlib.suppress(psutil.Error):
            process.suspend()

        def undo() -> None:
            with contextlib.suppress(psutil.Error):
                process.resume()

        return undo

    def _killed(self, processes: list[psutil.Process | None]) -> Undo | None:
        process = self.random.choice(processes) if processes else None
        if process is None:
            return None
        with contextlib.suppress(psutil.Error):
            process.kill()
        return lambda: None

    def _daemon_killed(self) -> Undo:
        began = time.monotonic()
        self._home.send_kill().wait(BOUND)
        self._deaths.append((began, float("inf")))
        self._daemon = self._start()
        self._deaths[-1] = (began, time.monotonic())
        return lambda: None

    def _limited(self, kind: int, to: int) -> Undo | None:
        pid = self._daemon.pid
        try:
            # What it was at first: of two limits at a time, neither is what to go back to.
            before = self._limits.setdefault((pid, kind), limit(pid, kind))
            limit(pid, kind, (to, before[1]))
        except (OSError, ValueError):
            return None

        def undo() -> None:
            with contextlib.suppress(OSError):
                limit(pid, kind, before)

        return undo

    def _no_descriptors(self) -> Undo | None:
        with contextlib.suppress(OSError):
            now = len(os.listdir(f"/proc/{self._daemon.pid}/fd"))
            return self._limited(resource.RLIMIT_NOFILE, max(1, now - self.random.randrange(-4, 12)))
        return None

    def _disk_full(self) -> Undo | None:
        largest = max((one.stat().st_size for one in self.home.glob("journal.db*")), default=0)
        return self._limited(resource.RLIMIT_FSIZE, self.random.choice([largest, 4096 * 8]))

    def _no_memory(self) -> Undo | None:
        with contextlib.suppress(psutil.Error):
            now = psutil.Process(self._daemon.pid).memory_info().vms
            return self._limited(resource.RLIMIT_AS, now + self.random.choice([0, 2**18, 2**21, 2**24]))
        return None

    def _clock_jumped(self) -> Undo:
        years = self.random.choice([-30, -1, 1, 5])
        self._set_clock(years * 365 * 86_400.0)
        return lambda: self._set_clock(0.0)

    def _set_clock(self, offset: float) -> None:
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", offset))

    def _silent_client(self) -> Undo | None:
        connections: list[socket.socket] = []
        with contextlib.suppress(OSError):
            connections += [
                socket.create_connection(("127.0.0.1", self._port), 1)
                for _ in range(self.random.randrange(1, 200))
            ]

        def undo() -> None:
            for one in connections:
                one.close()

        return undo

    # the clients

    def _client(self, number: int) -> None:
        chance = random.Random(self.random.random() + number)
        while not self._over.is_set():
            began = self._asking_since[number] = time.monotonic()
            what = chance.choice([self._chat, self._chat, self._stream, self._manage])
            try:
                self.answers[what(chance)] += 1
            except AssertionError as error:
                self.wrong.append(str(error))
            except TimeoutError:
                self.wrong.append(f"{what.__name__} had no answer for {ANSWER_WITHIN:g} s")
            except (OSError, http.client.HTTPException) as error:
                self.answers["broken off"] += 1
                if not self._died_since(began):
                    self.wrong.append(f"{what.__name__} broke off although the daemon lived: {error!r}")
                time.sleep(0.1)
        self._asking_since.pop(number, None)

    def _died_since(self, began: float) -> bool:
        time.sleep(0.2)  # the thread that killed it may not have recorded that yet
        return any(ready > began - 0.5 for _, ready in self._deaths)

    def _chat(self, chance: random.Random) -> str:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": f"file:{chance.choice(self._models)}", "messages": messages}
        status, answer = self._ask("POST", "/v1/chat/completions", body)
        if status == 200:
            assert answer["choices"], answer
            return "chat"
        return self._reason(status, answer)

    def _stream(self, chance: random.Random) -> str:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": f"file:{chance.choice(self._models)}", "messages": messages, "stream": True}
        with self._asking("POST", "/v1/chat/completions", body) as answer:
            if answer.status != 200:
                return self._reason(answer.status, json.loads(answer.read()))
            if chance.random() < 0.2:
                answer.read(30)
                return "left in mid stream"
            frames = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
        failed = [one for one in frames if one.startswith('{"error"')]
        if failed:
            return self._reason(200, json.loads(failed[-1]))
        if not frames or frames[-1] != "[DONE]":
            self.wrong.append(f"a stream ended without its end: {frames[-2:]}")
        return "stream"

    def _manage(self, chance: random.Random) -> str:
        name = f"file:{chance.choice(self._models)}"
        method, path, body = chance.choice(
            [
                ("GET", "/engines/ps", None),
                ("GET", "/models", None),
                ("GET", "/readyz", None),
                ("GET", "/engines/df", None),
                ("GET", "/livez", None),
                ("POST", "/models/create", {"from": name}),
                ("POST", "/engines/unload", {"all": True}),
                ("POST", "/engines/_configure", {"model": name, "keep_alive": f"{chance.randrange(60)}m"}),
            ]
        )
        status, answer = self._ask(method, path, body)
        if path == "/models" and status == 200:
            tags = {tag for model in answer for tag in model["tags"]}
            assert len(tags) == len(self._models), f"a model is lost: {tags}"
        return path if status < 300 else self._reason(status, answer)

    def _reason(self, status: int, answer: Any) -> str:
        """Check that a refusal has one of the expected reasons."""
        error = answer.get("error") if isinstance(answer, dict) else None
        said = error.get("message") if isinstance(error, dict) else answer
        code = error.get("code") if isinstance(error, dict) else ""
        if not said or code == "internal_error":
            self.wrong.append(f"{status} without a reason: {answer}")
        return f"{status} {code}"

    @contextlib.contextmanager
    def _asking(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_WITHIN)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Accept": "application/json"})
            yield connection.getresponse()

    def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with self._asking(method, path, body) as answer:
            lines = answer.read().strip().splitlines()
        try:
            return answer.status, json.loads(lines[-1]) if lines else None
        except ValueError:
            return answer.status, lines[-1].decode()

    # looking

    def _look(self) -> None:
        """Nothing is lost, nothing is left."""
        self._until("it is ready", lambda: self._ask("GET", "/readyz")[0] == 200)
        for file in self._models:
            body = {"model": f"file:{file}", "messages": [{"role": "user", "content": "hello"}]}
            self._until(f"{file.stem} answers", partial(self._answers, body))
        self._daemon.terminate()
        assert self._daemon.wait(AT_REST_WITHIN) == 0, self.said()
        self._until("no process is left", lambda: not self._processes())
        found = maintenance.verify(self.home / "journal.db")
        assert found.is_sound, (found.problems, self.said())
        records = list(read_journal(self.home / "journal.db"))
        assert records[-1].type == "daemon_stopped"
        there = {f"{one.id} {one.type}" for one in records}
        lost = set(Path(f"{self.home}.notes").read_text().splitlines()) - there
        assert not lost, f"stored events are lost: {lost}"
        parked = [one.data for one in records if one.type == "command_parked"]
        assert not parked, (parked, self.said())
        starts = [line.split()[1] for line in Path(f"{self.home}.starts").read_text().splitlines()]
        assert len(starts) == len(set(starts)), "an engine was started twice"
        assert not self.wrong, f"{self.wrong[:5]} ({len(self.wrong)} in all)\n{self.said()}"

    def _answers(self, body: Any) -> bool:
        status, answer = self._ask("POST", "/v1/chat/completions", body)
        # A breaker that is open for long has said so, and until when.
        return status == 200 or (status == 503 and answer["error"]["code"] == "breaker_open")

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + AT_REST_WITHIN
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if condition():
                    return
            assert time.monotonic() < end, f"not so after {AT_REST_WITHIN:g} s: {what}\n{self.said()}"
            time.sleep(0.1)

    def said(self) -> str:
        """Everything that helps to understand what went wrong."""
        log = self._home.log()[-8000:]
        return f"{self.told}; {'; '.join(self.happened[-30:])}\n{dict(self.answers)}\n{log}"

    def _processes(self) -> list[psutil.Process]:
        """Everything that this daemon, or one before it, has started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                words = process.cmdline()
                ours = any(f"{self.home}/" in word for word in words)
                if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _running(self, program: str) -> list[psutil.Process | None]:
        found: list[psutil.Process | None] = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                if any(program in word for word in process.cmdline()):
                    found.append(process)
        return found

    # the daemon

    def _start(self) -> ForkedDaemon:
        daemon = self._home.fork("chaos_daemon", str(self._port))
        until(self._home.listens)
        return daemon
