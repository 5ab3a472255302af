"""Real processes that take memory without end, and what becomes of them and of their neighbours."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_stage import Stage
from greenroom.actors.scheduler.state import OVER_MEMORY
from greenroom.actors.values import EngineSpec, Reservation
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.engines.host import EngineHost
from greenroom.runner.engines.memory_bound import MemoryLeft
from greenroom.runner.engines.memory_watch import MemoryWatch
from greenroom.runner.systems import here, processes
from waiting import until

pytestmark = pytest.mark.skipif(
    sys.platform == "darwin", reason="no figure there tells own memory from files"
)

MIB = 2**20
PLENTY = MemoryLeft(available=64 * 2**30, headroom=0)
GROWS = {"prompt": "grow", "max_tokens": 1}


def watching(room: Callable[[], MemoryLeft] = lambda: PLENTY) -> Any:
    return partial(MemoryWatch, room=room)


def small(stage: Stage, *flags: str, **fields: Any) -> EngineSpec:
    reservation = Reservation(weights=10 * MIB, compute=60 * MIB)
    return stage.spec(memory=reservation.total, reservations=(reservation,), flags=flags, **fields)


def begin(stage: Stage, host: EngineHost, spec: EngineSpec) -> tuple[int, str]:
    host.start(spec)
    pid, _, endpoint = stage.heard.wait("spawned", engine_id=spec.engine_id)
    stage.heard.wait("ready", engine_id=spec.engine_id, bound=100)
    return pid, endpoint


def ask_to_grow(stage: Stage, endpoint: str) -> None:
    def ask() -> None:
        try:
            stage.request(endpoint, "/v1/completions", GROWS)
        except (OSError, ValueError):
            return  # it is ended meanwhile

    threading.Thread(target=ask, daemon=True).start()


def test_an_engine_that_grows_without_end_is_stopped_at_once_and_reported_with_the_numbers(
    stage: Stage,
) -> None:
    host = stage.host("--grow-of", "grow", watch_memory=watching())
    spec = small(stage)
    pid, endpoint = begin(stage, host, spec)
    ask_to_grow(stage, endpoint)
    (failure,) = stage.heard.wait("stalled")
    assert (failure.code, failure.blame) == (OVER_MEMORY, "engine")
    assert "its limit was 1.18 GB (73.4 MB was reserved for it" in failure.message
    # It does not run any more, so it does not grow while its end is decided.
    until(lambda: processes.stopped([pid]))
    assert psutil.Process(pid).memory_info().rss < 2000 * MIB
    peak = max(size.peak for name, _, (size, *_) in stage.heard.calls if name == "measured")
    assert peak > 1100 * MIB, "the ledger learns what it held"
    assert "exited" not in stage.heard.names(), "its runner ends it"
    host.stop(spec.engine_id, reason="it holds too much")
    (end,) = stage.heard.wait("exited")
    assert end.signal == "SIGKILL"
    assert not stage.alive(pid)


def test_an_engine_that_takes_what_was_reserved_is_left_alone_even_if_memory_is_short(stage: Stage) -> None:
    short = MemoryLeft(available=0, headroom=500 * MIB)
    host = stage.host("--grow-of", "grow", "--grow-to", "256", watch_memory=watching(lambda: short))
    reservation = Reservation(cache=300 * MIB)
    _, endpoint = begin(stage, host, stage.spec(memory=reservation.total, reservations=(reservation,)))
    status, _ = stage.request(endpoint, "/v1/completions", GROWS)
    assert status == 200
    time.sleep(1.2)  # two looks at an idle engine: what must not happen has no event
    assert "stalled" not in stage.heard.names()


def test_an_engine_with_too_much_is_ended_once_memory_is_short(stage: Stage) -> None:
    room = [PLENTY]
    host = stage.host("--grow-of", "grow", "--grow-to", "512", watch_memory=watching(lambda: room[0]))
    pid, endpoint = begin(stage, host, small(stage))
    status, _ = stage.request(endpoint, "/v1/completions", GROWS)
    assert status == 200
    time.sleep(1.2)  # see above
    assert "stalled" not in stage.heard.names()
    room[0] = MemoryLeft(available=100 * MIB, headroom=500 * MIB)
    (failure,) = stage.heard.wait("stalled")
    assert "the machine had only 105 MB left" in failure.message
    until(lambda: processes.stopped([pid]))


def test_pages_of_mapped_files_do_not_count(stage: Stage, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"\1" * 200 * MIB)
    child = (
        "import mmap, sys, time\n"
        f"file = open({str(weights)!r}, 'rb')\n"
        "pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(pages[::4096])\n"
        "print(flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert here.resident(process.pid) > 200 * MIB
            own = processes.own_memory_of([process.pid])
            assert own is not None
            assert own < 50 * MIB
        finally:
            process.kill()


def test_the_kernel_would_kill_an_engine_before_its_keeper(stage: Stage) -> None:
    host = stage.host()
    spec = stage.spec()
    pid, _ = begin(stage, host, spec)
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 500
    keeper = stage.claim(spec.engine_id)["keeper_pid"]
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{keeper}/oom_score_adj").read_text()) == own


def test_the_system_refuses_an_engine_memory_when_nothing_watches_it(stage: Stage) -> None:
    host = stage.host(prepare=limited(stage, 300 * MIB, "--grow-of", "grow"))
    _, endpoint = begin(stage, host, small(stage))
    ask_to_grow(stage, endpoint)
    # The program fails its request with MemoryError, and lives.
    until(lambda: "MemoryError" in (stage.folder / host_engine(host) / "log").read_text())
    assert "exited" not in stage.heard.names()


def host_engine(host: EngineHost) -> str:
    (one,) = host.engine_ids
    return one


def limited(stage: Stage, size: int, *flags: str) -> Any:
    inner = stage.prepares(*flags)

    def prepare(spec: EngineSpec, place: Path) -> PreparedEngine:
        return replace(inner(spec, place), data_limit=size)

    return prepare


@pytest.mark.slow
@pytest.mark.real
def test_a_schema_that_has_llama_cpp_take_all_memory_costs_that_engine_alone(
    stage: Stage, llama_cpp_python: Path, smollm2_gguf: Path
) -> None:
    """The front door refuses it; there may be others that it does not know."""
    llama = LlamaCpp()
    files = ModelFiles(path=smollm2_gguf, format="gguf", name="smollm2")

    def prepare(spec: EngineSpec, place: Path) -> PreparedEngine:
        launch = Launch(spec=spec, root=Path("/"), python=llama_cpp_python, model=files, socket=place)
        return PreparedEngine(llama.command(launch), llama.readiness, model_name="smollm2")

    host = stage.host(prepare=prepare, watch_memory=watching())
    reservation = Reservation(weights=smollm2_gguf.stat().st_size, cache=50 * MIB, compute=150 * MIB)
    spec = stage.spec(
        backend="llama.cpp", context_size=512, memory=reservation.total, reservations=(reservation,)
    )
    pid, endpoint = begin(stage, host, spec)
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 5, "maxItems": 2}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            stage.request(endpoint, "/v1/chat/completions", body)

    threading.Thread(target=ask, daemon=True).start()
    (failure,) = stage.heard.wait("stalled", bound=100)
    assert failure.code == OVER_MEMORY
    until(lambda: processes.stopped([pid]))
    held = processes.own_memory_of([pid])
    assert held is not None
    assert held < 2500 * MIB


@pytest.mark.real
def test_a_real_engine_beside_one_that_grows_without_end_loses_nothing(
    stage: Stage, llama_cpp_python: Path, smollm2_gguf: Path
) -> None:
    fake = stage.prepares("--grow-of", "grow")
    llama = LlamaCpp()
    files = ModelFiles(path=smollm2_gguf, format="gguf", name="smollm2")

    def prepare(spec: EngineSpec, place: Path) -> PreparedEngine:
        if spec.backend == "fake":
            return fake(spec, place)
        launch = Launch(spec=spec, root=Path("/"), python=llama_cpp_python, model=files, socket=place)
        return PreparedEngine(llama.command(launch), llama.readiness, model_name="smollm2")

    # No reserve is left at any time: a real engine, with its weights mapped, is within its reservation.
    host = stage.host(prepare=prepare, watch_memory=watching(lambda: MemoryLeft(available=0, headroom=2**29)))
    reservation = Reservation(weights=smollm2_gguf.stat().st_size, cache=50 * MIB, compute=150 * MIB)
    real = stage.spec(
        backend="llama.cpp",
        context_size=2048,
        flags=("--threads", "1"),
        memory=reservation.total,
        reservations=(reservation,),
    )
    pid, endpoint = begin(stage, host, real)
    answers: list[tuple[int, Any]] = []
    prompt = {"prompt": "The sea is deep. " * 60, "max_tokens": 16, "temperature": 0}
    client = threading.Thread(
        target=lambda: answers.append(stage.request(endpoint, "/v1/completions", prompt))
    )
    client.start()
    grows = small(stage)
    grown, elsewhere = begin(stage, host, grows)
    ask_to_grow(stage, elsewhere)
    stage.heard.wait("stalled", engine_id=grows.engine_id)
    host.stop(grows.engine_id)
    stage.heard.wait("exited", engine_id=grows.engine_id)
    assert not stage.alive(grown)
    client.join(100)
    assert answers[0][0] == 200, json.dumps(answers[0][1])
    assert stage.alive(pid)
    assert [one for name, one, _ in stage.heard.calls if name == "stalled"] == [grows.engine_id]
