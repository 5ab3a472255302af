"""Scripted histories: journals as the actors write them, without the actors."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from advice import problem_with
from greenroom.actors.conversation_log import ConversationLog
from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.engine_runner.events import (
    EngineExited,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.events import InstallationCommitted, InstallRequested
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Entry, Record
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Event
from greenroom.actors.library.core import Library
from greenroom.actors.library.events import ModelCommitted, PullRequested
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.events import (
    BackendChosen,
    EvictionDecided,
    LoadAdmitted,
    LoadFailed,
    LoadRefused,
)
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Installation, Model
from greenroom.runner.diagnosis.explain import explain
from greenroom.runner.diagnosis.explanation import Explanation

NOON = 1_700_000_000.0 - 1_700_000_000.0 % 86_400 + 43_200
"""Tuesday, 2023-11-14 12:00:00 UTC, when every script begins."""


GB = 10**9


class Script:
    """Stores events one after the other; `now` is the second the next one is stored at."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.now = NOON
        self._journal = MemoryJournal()
        self._versions: dict[str, int] = {}
        self._engines: dict[str, EngineSpec] = {}
        self._chosen: dict[str, str] = {}
        self._requests = 0
        self._jobs = 0

    # any event

    def add(self, event: Event, *, cause: str = "", after: float = 0.0) -> str:
        """Store an event `after` seconds; its id."""
        self.now += after
        return self.raw(
            self._stream(event), type(event).TAG, msgspec.json.encode(event).decode(), cause=cause
        )

    def raw(self, stream: str, tag: str, data: str, *, cause: str = "", schema: int = 1) -> str:
        """Store what may be no event of ours."""
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        entry = Entry(
            stream=stream, version=version, type=tag, schema=schema, cause=cause, data=data, at=self.now
        )
        self.records += self._journal.append([entry])
        return f"{stream}/{version}"

    def wait(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.now += seconds

    def write(self, path: Path) -> Path:
        """The same as a file."""
        journal = SqliteJournal(path)
        journal.append(
            [Entry(**{name: getattr(one, name) for name in Entry.__struct_fields__}) for one in self.records]
        )
        journal.close()
        return path

    # what happens often

    def daemon(self, pid: int = 100) -> None:
        """A daemon starts."""
        self.add(DaemonStarted(pid=pid, version="0.1.0", platform="Linux"))

    def stopped(self, pid: int = 100) -> None:
        """It stops in order."""
        self.add(DaemonStopped(pid=pid, reason="a stop was requested"))

    def install(
        self, backend: str = "llama.cpp", version: str = "1.0", *, cause: str = "", wanted_by: Any = "default"
    ) -> str:
        """A backend is installed in five seconds; the installation's id."""
        job = self.job(backend)
        asked = self.add(
            InstallRequested(job=job, backend=backend, version="", wanted_by=wanted_by), cause=cause
        )
        made = Installation(id=f"{version}-ab12cd34.1", backend=backend, version=version, size=106_000_000)
        self.add(
            InstallationCommitted(job=job, backend=backend, installation=made, seconds=5.0),
            cause=asked,
            after=5.0,
        )
        return made.id

    def job(self, backend: str) -> str:
        """A new job's id."""
        self._jobs += 1
        return f"{backend}.{self._jobs}"

    def model(self, name: str = "smollm2", *, kind: Any = "gguf", size: int = 98_000_000) -> str:
        """A model is fetched; its id."""
        model_id = f"sha256:{name.encode().hex():0<64.64}"
        tag = f"docker.io/ai/{name}:latest"
        self._jobs += 1
        asked = self.add(PullRequested(job=f"pull.{self._jobs}", reference=tag))
        model = Model(id=model_id, tags=(tag,), format=kind, size=size, quantization="Q4_1")
        self.add(ModelCommitted(job=f"pull.{self._jobs}", model=model, seconds=2.0), cause=asked, after=2.0)
        return model_id

    def request(self) -> str:
        """A new request's id."""
        self._requests += 1
        return f"r-0a1b2c3d-{self._requests}"

    def admit(
        self,
        name: str = "smollm2",
        *,
        backend: str = "llama.cpp",
        memory: int = 444_000_000,
        request: str = "",
        reasons: tuple[str, ...] = ("it reads GGUF and is installed",),
        reserved: int = 0,
        budget: int = 8 * GB,
        installation: str = "1.0-ab12cd34.1",
        mode: Any = "completion",
        preferred: str = "",
        **placed: Any,
    ) -> str:
        """A load is decided on and its engine asked for, with its devices in `placed`; the engine's id."""
        request = request or self.request()
        engine_id = f"18bd0f5a2c0-{len(self._engines) + 1}"
        spec = EngineSpec(
            engine_id=engine_id,
            backend=backend,
            installation_id=installation,
            model_id=f"sha256:{name.encode().hex():0<64.64}",
            model_ref=f"docker.io/ai/{name}:latest",
            mode=mode,
            memory=memory,
            **placed,
        )
        self._engines[engine_id] = spec
        self.add(
            BackendChosen(
                model_id=spec.model_id,
                model_ref=spec.model_ref,
                mode=mode,
                backend=backend,
                installation_id=installation,
                reasons=reasons,
                preferred=preferred,
            ),
            cause=request,
        )
        admitted = self.add(
            LoadAdmitted(spec=spec, reserved=reserved or memory, budget=budget), cause=request
        )
        self._chosen[engine_id] = self.add(EngineStartRequested(spec=spec), cause=admitted)
        return engine_id

    def spawn(self, engine_id: str, pid: int = 4711) -> None:
        """Its process runs."""
        self.add(
            EngineSpawned(engine_id=engine_id, pid=pid, started=1.0, endpoint="/tmp/x.sock"),
            cause=self._chosen[engine_id],
            after=0.1,
        )

    def load(self, name: str = "smollm2", *, seconds: float = 0.8, **more: Any) -> str:
        """A load that succeeds; the engine's id."""
        engine_id = self.admit(name, **more)
        self.spawn(engine_id)
        self.add(
            EngineReady(engine_id=engine_id, seconds=seconds),
            cause=self._chosen[engine_id],
            after=seconds - 0.1,
        )
        return engine_id

    def evict(self, engine_id: str, reason: str, *, cause: str = "", **numbers: Any) -> None:
        """It is asked to stop, and does."""
        spec = self._engines[engine_id]
        decided = self.add(
            EvictionDecided(
                engine_id=engine_id,
                model_id=spec.model_id,
                model_ref=spec.model_ref,
                backend=spec.backend,
                reason=reason,
                memory=spec.memory,
                **numbers,
            ),
            cause=cause,
        )
        self.add(EngineStopRequested(engine_id=engine_id, reason="it is no longer needed"), cause=decided)
        end = EngineExit(at=self.now, code=0, expected=True, summary="It was stopped.")
        self.add(EngineExited(engine_id=engine_id, exit=end), cause=self._chosen[engine_id], after=0.2)

    def die(self, engine_id: str, summary: str, *, was_ready: bool, **ending: Any) -> None:
        """It ends of its own accord."""
        end = EngineExit(at=self.now, summary=summary, **ending)
        self.add(EngineExited(engine_id=engine_id, exit=end), cause=self._chosen[engine_id])
        failure = Failure(
            kind="permanent", code="engine_failed", message=summary, detail="\n".join(end.last_lines)
        )
        self.failed(engine_id, failure, was_ready=was_ready)

    def failed(self, engine_id: str, failure: Failure, *, was_ready: bool = False) -> None:
        """The scheduler notes it."""
        spec = self._engines[engine_id]
        self.add(
            LoadFailed(
                engine_id=engine_id,
                model_id=spec.model_id,
                model_ref=spec.model_ref,
                backend=spec.backend,
                installation_id=spec.installation_id,
                failure=failure,
                was_ready=was_ready,
            ),
            cause=self._chosen[engine_id],
        )

    def refuse(
        self,
        name: str,
        code: str,
        message: str,
        *,
        request: str = "",
        advice: str = "",
        backends: tuple[str, ...] = (),
        **numbers: float,
    ) -> None:
        """Requests for a model are refused."""
        refused = LoadRefused(
            model_id=f"sha256:{name.encode().hex():0<64.64}",
            model_ref=f"docker.io/ai/{name}:latest",
            mode="completion",
            code=code,
            message=message,
            numbers=numbers,
            advice=advice,
            backends=backends,
        )
        self.add(refused, cause=request or self.request())

    # asking

    def why(self, name: str, **more: Any) -> Explanation:
        """The answer, as of the second the script has come to; every command in it is one that there is."""
        found = explain(self.records, name, self.now, **more)
        problems = [one for remedy in found.remedies if (one := problem_with(remedy.command))]
        assert not problems, problems
        return found

    def _stream(self, event: Event) -> str:
        kind = type(event)
        if kind in InstallerCore.event_types:
            return f"install/{event.backend}"  # type: ignore[attr-defined]
        if kind in Runner.event_types:
            spec = getattr(event, "spec", None) or self._engines[event.engine_id]  # type: ignore[attr-defined]
            return f"runner/{spec.backend}"
        if kind in Library.event_types:
            return "library"
        if kind in ConversationLog.event_types:
            return "conversations"
        return "scheduler" if kind in Scheduler.event_types else "daemon"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clock times are those of Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def script() -> Script:
    """A daemon that has started, with llama.cpp installed and smollm2 here."""
    made = Script()
    made.daemon()
    made.install()
    made.model()
    return made


@pytest.fixture(scope="session")
def scripts() -> type[Script]:
    """Makes scripts in which nothing has happened."""
    return Script


@pytest.fixture
def empty_script() -> Script:
    """Nothing has happened."""
    return Script()


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of our own, and an environment without the user's settings and secrets."""
    for name in list(os.environ):
        if name.startswith(("GREENROOM_", "MODEL_RUNNER_", "HF_", "PIP_", "UV_")):
            monkeypatch.delenv(name)
    person = tmp_path / "person"
    folder = tmp_path / "home"
    for one in (person, folder):
        one.mkdir()
    monkeypatch.setenv("HOME", str(person))
    monkeypatch.setenv("GREENROOM_HOME", str(folder))
    return folder


@pytest.fixture
def greenroom(home: Path) -> Callable[..., Outcome]:
    """Run a command in this process."""
    from greenroom.runner.cli.main import run

    def command(*arguments: str) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(list(arguments))
        return Outcome(code, out.getvalue(), err.getvalue())

    return command
