"""llama.cpp and mlx themselves: found out when they stop, hang or are out of reach, else left alone."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_stage import Stage
from greenroom.actors.gates import GateBoard
from greenroom.runner.backends.base import Backend, Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.engines.handle import PreparedEngine, Probe
from greenroom.runner.engines.liveness import LIMIT
from waiting import suspend

pytestmark = pytest.mark.real

PROMPT = "The sea is deep and blue and its fish are not counted. "


HANGING = """
import os, runpy, sys, time
from mlx_lm import server
compute = server.BatchGenerator.next
def hang(self, *given, **named):
    while os.path.exists({file!r}):
        time.sleep(0.1)
    return compute(self, *given, **named)
server.BatchGenerator.next = hang
runpy.run_path({launcher!r}, run_name="__main__")
"""
"""mlx-lm's own server, whose generation hangs while a file is there; its health path goes on answering."""


class Real:
    """One real engine under a host, and who is inside."""

    def __init__(self, stage: Stage, backend: Backend, python: Path, model: ModelFiles, spoken: str) -> None:
        self.stage = stage
        self.backend = backend
        self.python = python
        self.model = model
        self.spoken = spoken
        self.flags: tuple[str, ...] = ()
        self.gates = GateBoard()
        self.status = 0
        self.answer: Any = None

    def start(self, *flags: str, context: int = 2048, hanging: Path | None = None) -> None:
        def prepare(spec: Any, place: Path) -> PreparedEngine:
            launch = Launch(spec=spec, root=Path("/"), python=self.python, model=self.model, socket=place)
            command = self.backend.command(launch)
            if hanging is not None:
                python, isolated, program, *rest = command.argv
                code = HANGING.format(file=str(hanging), launcher=program)
                command = replace(command, argv=(python, isolated, "-c", code, *rest))
            return PreparedEngine(command, self.backend.readiness, model_name=self.spoken)

        spec = self.stage.spec(backend=self.backend.name, context_size=context, flags=(*self.flags, *flags))
        self.engine_id = spec.engine_id
        self.host = self.stage.host(prepare=prepare, readings=self.gates.readings, stall_after=60.0)
        self.host.start(spec)
        self.pid, _, self.endpoint = self.stage.heard.wait("spawned")
        self.stage.heard.wait("ready", bound=100)
        self.gates.open(spec.engine_id, "m", "completion", self.backend.name, self.endpoint)

    def found_out(self, since: float, bound: float) -> Any:
        lag = self.stage.lag()
        # On a busy machine it may take longer, by as much as this process itself was late.
        (failure,) = self.stage.heard.wait("stalled", bound=60)
        took = self.stage.heard.moment("stalled") - since
        assert lag.allows(took, bound), took
        return failure

    @contextlib.contextmanager
    def asked(self, words: int, tokens: int = 2) -> Iterator[threading.Thread]:
        """With a long prompt inside that only the engine reads."""
        assert self.gates.enter("m", "completion", "", "r")
        body = {"model": self.spoken, "prompt": PROMPT * words, "max_tokens": tokens}

        def ask() -> None:
            with contextlib.suppress(OSError):
                self.status, self.answer = self.request(body)
            self.gates.leave("r")

        client = threading.Thread(target=ask)
        client.start()
        yield client

    def request(self, body: dict[str, Any]) -> Any:
        import http.client
        import json
        import socket

        connection = http.client.HTTPConnection("localhost", timeout=600)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(600)
        connection.sock.connect(self.endpoint)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.fixture
def llama(stage: Stage, llama_cpp_python: Path, smollm2_gguf: Path) -> Real:
    model = ModelFiles(path=smollm2_gguf, format="gguf", name="ai/smollm2")
    real = Real(stage, LlamaCpp(), llama_cpp_python, model, "ai/smollm2")
    # Threads that wait for each other take up processors that other tests need.
    real.flags = ("--threads", "1")
    return real


@pytest.fixture
def mlx(stage: Stage, mlx_python: Path, smollm2_mlx: Path) -> Real:
    model = ModelFiles(path=smollm2_mlx, format="safetensors-mlx", name="smollm2")
    return Real(stage, Mlx(), mlx_python, model, "default_model")


@pytest.fixture(params=["llama", pytest.param("mlx", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Real:
    found: Real = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("inside", [False, True], ids=["idle", "at work"])
def test_a_stopped_engine_is_found_within_a_second(engine: Real, inside: bool) -> None:
    engine.start()
    with engine.asked(100) if inside else contextlib.nullcontext():
        since = time.monotonic()
        suspend(engine.pid)
        assert engine.found_out(since, 1.0).code == "engine_halted"
        engine.host.stop(engine.engine_id, reason="it is replaced")
        engine.stage.heard.wait("exited")


def test_an_engine_whose_socket_is_removed_is_found_within_a_second(engine: Real) -> None:
    engine.start()
    since = time.monotonic()
    os.unlink(engine.endpoint)
    assert engine.found_out(since, 1.0).code == "engine_unreachable"


def test_an_engine_whose_computing_thread_hangs_is_found_within_15_seconds(mlx: Real, tmp_path: Path) -> None:
    mlx.start(hanging=tmp_path / "hang")
    (tmp_path / "hang").touch()
    since = time.monotonic()
    with mlx.asked(1):
        assert mlx.found_out(since, 15.0).code == "engine_stalled"
        mlx.host.stop(mlx.engine_id, reason="it is replaced")
        mlx.stage.heard.wait("exited")


def test_the_counters_of_an_engine_move_only_while_it_works(engine: Real) -> None:
    engine.start()
    readiness = engine.backend.readiness
    probe = Probe(Path(engine.endpoint), readiness, model_name="ai/smollm2", leader=engine.pid)
    first = probe.counters(5.0)
    assert first
    assert probe.counters(5.0) == first
    assert engine.request({"prompt": PROMPT, "max_tokens": 2})[0] == 200
    assert probe.counters(5.0) != first


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_prompt_that_mlx_reads_for_longer_than_its_limit_is_work(mlx: Real) -> None:
    mlx.start(context=8192)
    with mlx.asked(60) as client:
        client.join(800)
    assert mlx.status == 200, mlx.answer
    assert "stalled" not in mlx.stage.heard.names()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", ["32", "2048"], ids=["small batches", "one batch"])
def test_a_prompt_that_takes_a_minute_and_more_is_work(llama: Real, batch: str) -> None:
    llama.start("-t", "1", "-tb", "1", "-b", batch, "-ub", batch, context=8192)
    began = time.monotonic()
    with llama.asked(320) as client:
        client.join(800)
    took = time.monotonic() - began
    assert took > 3 * LIMIT, "that was too fast to show anything"
    assert llama.status == 200, llama.answer
    assert "stalled" not in llama.stage.heard.names()
