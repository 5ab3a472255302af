"""llama.cpp itself: found out when it is stopped or out of reach, left alone as long as it works."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from greenroom.actors.gates import GateBoard
from greenroom.runner.backends.declaration import Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.engines.host import Prepared
from greenroom.runner.engines.liveness import LIMIT
from greenroom.runner.engines.readiness import Probe

pytestmark = pytest.mark.real

PROMPT = "The sea is deep and blue and nobody has counted its fish. "


class Llama:
    """One llama.cpp under a host, and who is inside."""

    def __init__(self, stage: Any, python: Path, gguf: Path) -> None:
        self.stage = stage
        self.python = python
        self.gguf = gguf
        self.gates = GateBoard()

    def start(self, *flags: str, context: int = 2048) -> None:
        def prepare(spec: Any, place: Path) -> Prepared:
            model = ModelFiles(path=self.gguf, format="gguf", name="ai/smollm2")
            launch = Launch(spec=spec, root=Path("/"), python=self.python, model=model, socket=place)
            return Prepared(LlamaCpp().command(launch), LlamaCpp.readiness)

        spec = self.stage.spec(backend="llama.cpp", context_size=context, flags=flags)
        self.engine_id = spec.engine_id
        self.host = self.stage.host(prepare=prepare, readings=self.gates.readings, stall_after=60.0)
        self.host.start(spec)
        self.pid, _, self.endpoint = self.stage.heard.wait("spawned")
        self.stage.heard.wait("ready", bound=60)
        self.gates.open(spec.engine_id, "m", "completion", "llama.cpp", self.endpoint)

    def found_out(self, since: float, bound: float) -> Any:
        lag = self.stage.lag()
        (failure,) = self.stage.heard.wait("stalled")
        took = self.stage.heard.moment("stalled") - since
        assert lag.allows(took, bound), took
        return failure

    @contextlib.contextmanager
    def asked(self, words: int, tokens: int = 2) -> Iterator[threading.Thread]:
        """With a long prompt inside that is read by nobody but the engine."""
        assert self.gates.enter("m", "completion", "", "r")
        body = {"prompt": PROMPT * words, "max_tokens": tokens, "cache_prompt": False}

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
def llama(stage: Any, llama_cpp_python: Path, smollm2_gguf: Path) -> Llama:
    return Llama(stage, llama_cpp_python, smollm2_gguf)


@pytest.mark.parametrize("inside", [False, True], ids=["idle", "at work"])
def test_one_that_is_stopped_is_found_within_a_second(llama: Llama, inside: bool) -> None:
    llama.start()
    with llama.asked(100) if inside else contextlib.nullcontext():
        since = time.monotonic()
        os.kill(llama.pid, signal.SIGSTOP)
        assert llama.found_out(since, 1.0).code == "engine_halted"
        llama.host.stop(llama.engine_id, reason="it is replaced")
        llama.stage.heard.wait("exited")


def test_one_whose_socket_is_removed_is_found_within_a_second(llama: Llama) -> None:
    llama.start()
    since = time.monotonic()
    os.unlink(llama.endpoint)
    assert llama.found_out(since, 1.0).code == "engine_unreachable"


def test_its_counters_stand_still_while_it_does_nothing_and_move_with_its_work(llama: Llama) -> None:
    llama.start()
    probe = Probe(Path(llama.endpoint), LlamaCpp.readiness, model_name="ai/smollm2", leader=llama.pid)
    first = probe.counters(5.0)
    assert first
    assert probe.counters(5.0) == first
    assert llama.request({"prompt": PROMPT, "max_tokens": 2})[0] == 200
    assert probe.counters(5.0) != first


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", ["32", "2048"], ids=["small batches", "one batch"])
def test_a_prompt_that_takes_a_minute_and_more_is_work(llama: Llama, batch: str) -> None:
    llama.start("-t", "1", "-tb", "1", "-b", batch, "-ub", batch, context=8192)
    began = time.monotonic()
    with llama.asked(320) as client:
        client.join(800)
    took = time.monotonic() - began
    assert took > 3 * LIMIT, "that was too fast to show anything"
    assert llama.status == 200, llama.answer
    assert "stalled" not in llama.stage.heard.names()
