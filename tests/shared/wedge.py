"""A real daemon in a process of its own, with engines that misbehave on demand, asked as clients ask."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from daemon_process import DaemonProcess, ForkedDaemon, without_settings
from greenroom.actors.journal.reader import read_journal
from greenroom.runner.testing import tiny_gguf
from waiting import until_async

BOUND = 30.0
"""Seconds anything may take before a test gives up on it."""
MIB = 2**20


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def frames(self) -> list[Any]:
        """The data of a stream's events; `[DONE]` as it is."""
        lines = self.body.decode().splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    @property
    def text(self) -> str:
        """What was said in a stream."""
        chunks = [one for one in self.frames if isinstance(one, dict) and one.get("choices")]
        return "".join(choice["delta"].get("content") or "" for one in chunks for choice in one["choices"])


@dataclass
class Daemon(DaemonProcess):
    """One data directory, and the daemon that runs on it at the moment."""

    session: aiohttp.ClientSession
    flags: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    toy: bool = False
    expected_deaths: set[int] = field(default_factory=set)

    # life

    def begin(self, **env: str) -> ForkedDaemon:
        """Start it and do not wait."""
        more = ["--toy"] if self.toy else []
        env = {**without_settings(), "GREENROOM_WEDGE_HOME": str(self.home), **self.env, **env}
        return self.fork("serve_wedge", *more, "--", *self.flags, env=env)

    async def start(self, **env: str) -> Daemon:
        """Start it and wait until it is ready."""
        self.begin(**env)

        async def ready() -> bool:
            return self.listens() and (await self.get("/readyz")).status == 200

        await until_async(ready)
        return self

    async def stop(self, keep_engines: float | None = None) -> None:
        """End it in order."""
        assert self.process is not None
        if keep_engines is None:
            self.process.terminate()
        else:
            await self.post("/daemon/stop", {"keep_engines": keep_engines})
        await self.gone()
        assert self.process.returncode == 0, self.log()

    async def kill(self) -> None:
        """End it without a word."""
        self.send_kill()
        await self.gone()

    async def gone(self) -> None:
        """Wait for its end, however that comes."""
        process = self.process
        assert process is not None
        await until_async(lambda: process.poll() is not None)

    # asking

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.ask("POST", path, body, **headers)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        began = time.monotonic()
        try:
            async with self.session.request(method, self.url + path, json=body, headers=named) as answer:
                content = await answer.read()
                return Answer(answer.status, answer.headers, content, time.monotonic() - began)
        except aiohttp.ClientConnectionError as error:
            return Answer(0, {}, str(error).encode(), time.monotonic() - began)
        except aiohttp.ClientPayloadError as error:
            return Answer(-1, {}, str(error).encode(), time.monotonic() - began)

    async def chat(self, model: str, **fields: Any) -> Answer:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        return await self.post("/v1/chat/completions", body)

    @contextlib.asynccontextmanager
    async def streaming(self, model: str, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A stream whose first token has come."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
        async with self.session.post(self.url + "/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            while not (await answer.content.readline()).startswith(b"data: "):
                pass
            yield answer

    async def add(self, *names: str, numbers: Mapping[str, int] | None = None, **config: Any) -> None:
        """Have models here, configured so; `flags` are the fake engine's, `numbers` stand in their files."""
        for name in names:
            file = tiny_gguf(self.home.parent / f"{name}.gguf", name, numbers)
            pulled = await self.post("/models/create", {"from": f"file:{file}"})
            assert pulled.status == 200, pulled.body
            tagged = await self.post(f"/models/file:{file}/tag?repo={name}&tag=latest", {})
            assert tagged.status == 201, tagged.body
            if config:
                await self.configure(name, **config)

    async def configure(self, name: str, flags: tuple[str, ...] = (), **fields: Any) -> None:
        """Change how a model is loaded. Its preload ends in whatever the flags make of it."""
        body = {"model": name, "runtime-flags": list(flags), **fields}
        answer = await self.post("/engines/_configure", body)
        assert answer.status == 202, answer.body

    async def unload(self, *names: str) -> None:
        """Have idle engines ended, and wait until they are gone."""
        await self.post("/engines/unload", {"models": list(names)} if names else {"all": True})

        async def gone() -> bool:
            return not [row for row in await self.engines() if not names or row["model_name"] in names]

        await until_async(gone)

    # looking

    async def engines(self) -> list[Any]:
        """`ps`."""
        found: list[Any] = (await self.get("/engines/ps")).json
        return found

    async def engine(self, name: str, state: str = "ready") -> Any:
        """The engine of a model, once it is in this state."""

        async def find() -> Any:
            rows = [row for row in await self.engines() if row["model_name"] == name]
            return next((row for row in rows if row["state"] == state), None)

        return await until_async(find)

    def events(self, *types: str) -> list[dict[str, Any]]:
        """The journal, read beside the daemon: the fields, with `type`, `stream` and `cause`."""
        return [
            {**json.loads(one.data), "type": one.type, "stream": one.stream, "cause": one.cause}
            for one in read_journal(self.home / "journal.db")
            if not types or one.type in types
        ]

    def spawned(self, name: str = "") -> list[dict[str, Any]]:
        """The starts of a model's engines that were carried out."""
        ids = {
            one["spec"]["engine_id"]
            for one in self.events("engine_start_requested")
            if not name or one["spec"]["model_ref"] == name
        }
        return [one for one in self.events("engine_spawned") if one["engine_id"] in ids]

    def processes(self) -> list[psutil.Process]:
        """Every keeper and engine of this data directory that lives."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                env = process.environ()
                ours = env.get("GREENROOM_WEDGE_HOME") == str(self.home) or env.get(
                    "GREENROOM_ENGINE_FOLDER", ""
                ).startswith(str(self.home))
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def engine_pids(self) -> list[int]:
        """Engine processes that live."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                if "GREENROOM_ENGINE_FOLDER" in process.environ():
                    found.append(process.pid)
        return found

    async def at_rest(self) -> None:
        """Wait until no request is inside a gate or queued."""

        async def rests() -> bool:
            ledger = (await self.get("/engines/ledger")).json
            return not ledger["waiting"] and not any(one["inside"] for one in ledger["engines"])

        await until_async(rests)

    async def clean_up(self) -> None:
        """Whatever the test has left behind. Engines first: to end a deaf one in order takes ten seconds."""
        process = self.process
        if process is not None and process.poll() is not None:
            process = None
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                if process is None or one.pid != process.pid:
                    one.kill()
        if process is not None:
            process.send_signal(signal.SIGTERM)
            await until_async(lambda: process.poll() is not None)
