"""The actors have stopped themselves: host and clients are notified, and engines are left alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer

from counting import Counter
from greenroom.actors import (
    Abandon,
    Configure,
    Decision,
    FaultyJournal,
    Granted,
    JournalFailed,
    MemoryJournal,
    Pull,
    RecordingEffectHandler,
    Serve,
    StartFailed,
    SystemFailed,
)
from greenroom.runner import (
    ExternalBackend,
    Greenroom,
    GreenroomError,
    Settings,
    fake_backend,
    front_door,
    tiny_gguf,
)


class Failing:
    """A Greenroom with a loaded model, whose journal then fails."""

    def __init__(self, home: Path, programs: Path) -> None:
        self.journal = FaultyJournal(MemoryJournal())
        self.told: list[BaseException] = []
        self.noted = threading.Event()
        settings = Settings(
            home=home, backends={"fake": ExternalBackend(binary=Path(sys.executable))}, engine_grace=1.0
        )
        self.greenroom = Greenroom(
            settings,
            journal=self.journal,
            backends={"fake": fake_backend(programs / "fake_engine.py")},
            on_failure=self._failed,
        )
        self.greenroom.start()
        ask = self.greenroom.system.ask
        self.model = ask(Pull(reference=str(tiny_gguf(home / "tiny.gguf")))).get(timeout=30).model
        serve = Serve(request_id="r", model_id=self.model.id, model_ref="tiny")
        granted: Granted = ask(serve).get(timeout=30)
        self.greenroom.system.tell(Abandon(request_id="r"))
        (engine,) = (one for one in self.greenroom.engines() if one.spec.engine_id == granted.engine_id)
        self.engine = psutil.Process(engine.pid)

    def _failed(self, error: BaseException) -> None:
        self.told.append(error)
        self.noted.set()

    def fail(self) -> None:
        self.journal.fault = JournalFailed("the disk is gone")
        configure = Configure(model_id=self.model.id, model_ref="tiny", keep_alive=7.0)
        with pytest.raises(SystemFailed):
            self.greenroom.system.ask(configure).get(timeout=10)


@pytest.fixture
def failing(home: Path, programs: Path) -> Iterator[Failing]:
    failing = Failing(home, programs)
    yield failing
    failing.greenroom.stop()


def test_a_host_is_notified_once_that_the_actors_have_stopped_themselves(failing: Failing) -> None:
    failing.fail()
    assert failing.noted.wait(10)
    assert [str(error) for error in failing.told] == ["the disk is gone"]
    assert failing.greenroom.failure is failing.told[0]


def test_engines_are_left_to_their_grace_when_the_actors_have_stopped_themselves(failing: Failing) -> None:
    failing.fail()
    failing.greenroom.stop()
    assert failing.engine.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    failing.engine.wait(timeout=20)


async def test_clients_learn_that_it_failed_and_not_that_a_model_is_missing(failing: Failing) -> None:
    async with TestClient(TestServer(front_door(failing.greenroom))) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
        async with client.get("/livez") as healthy:
            assert (healthy.status, (await healthy.json())["status"]) == (200, "ok")
        failing.fail()
        async with client.get("/livez") as live, client.get("/readyz") as ready:
            assert (live.status, (await live.json())["status"]) == (503, "failed")
            assert ready.status == 503
        async with client.post("/v1/chat/completions", json=body) as chat:
            assert chat.status == 503
            assert (await chat.json())["error"]["code"] == "stopped"


def test_a_host_without_a_listener_has_no_address(failing: Failing) -> None:
    (started,) = (one for one in failing.journal.read() if one.type == "daemon_started")
    assert "http" not in started.data


def test_a_start_that_fails_leaves_the_engines_it_has_adopted_for_the_next_one(
    home: Path, programs: Path
) -> None:
    class Broken(Counter):
        def decide(self, state: Any, command: Any, now: Any, volatile: Any) -> Decision[int]:
            raise LookupError("a bug of the host's")

    def made() -> Greenroom:
        mine = {"fake": ExternalBackend(binary=Path(sys.executable))}
        settings = Settings(home=home, backends=mine, engine_grace=30.0)
        return Greenroom(settings, backends={"fake": fake_backend(programs / "fake_engine.py")})

    with made() as first:
        ask = first.system.ask
        model = ask(Pull(reference=str(tiny_gguf(home / "tiny.gguf")))).get(timeout=30).model
        ask(Serve(request_id="r", model_id=model.id, model_ref="tiny")).get(timeout=30)
        (engine,) = (one for one in first.engines() if one.state == "ready")
        first.stop(keep_engines=30.0)
    failing = made()
    failing.register(Broken("broken"), effect_handler=RecordingEffectHandler())
    with pytest.raises(StartFailed, match="broken could not start: LookupError"):
        failing.start()
    with made() as third:
        (adopted,) = (one for one in third.engines() if one.state != "gone")
        assert adopted.pid == engine.pid


def test_a_program_is_notified_whatever_it_does_then(home: Path) -> None:
    told: list[BaseException] = []
    noted = threading.Event()

    def quits(error: BaseException) -> None:
        told.append(error)
        sys.exit("a host's way to end")

    def notes(error: BaseException) -> None:
        told.append(error)
        noted.set()

    settings: dict[str, Any] = {"engine_grace": 1.0, "install_policy": "never"}
    with (
        Greenroom.open(home, on_failure=quits, **settings) as client,
        Greenroom.open(home, on_failure=notes, **settings),
    ):
        assert client.runner is not None
        # What a cleaner does that knows no better: from now on nothing can be stored.
        (home / "journal.db").unlink()
        ask = client.runner.system.ask
        with pytest.raises(SystemFailed):
            ask(Configure(model_id="sha256:0", model_ref="m", keep_alive=7.0)).get(timeout=10)
        assert noted.wait(10)
        assert told == [client.runner.failure] * 2
        with pytest.raises(GreenroomError):
            client.configure("m", keep_alive="1h")
        with Greenroom.open(home, on_failure=notes, **settings):  # too late, and notified at once
            assert told == [client.runner.failure] * 3
