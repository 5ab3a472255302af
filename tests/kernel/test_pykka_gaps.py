"""What stock Pykka would do to us and to a host, each held by the remedy named in `actor.py`."""

from __future__ import annotations

import inspect
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pykka
import pytest

from counter_bench import Bench
from counting import COUNTER, Add, Counter, Done, Run, Total, Turnstile
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFailed
from greenroom.actors.kernel.actor import Actor, Inbox
from greenroom.actors.kernel.errors import ActorStopped, Refused, StartFailed, SystemFailed
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.testing import FaultyJournal, RecordingEffectHandler


class HostActor(pykka.ThreadingActor):
    """An actor of the host program's own, on stock Pykka."""

    def on_receive(self, message: object) -> object:
        if isinstance(message, BaseException):
            raise message
        return message


@pytest.fixture
def host_actor() -> Iterator[Any]:
    actor = HostActor.start()
    yield actor
    if actor.is_alive():
        actor.stop()


@pytest.fixture
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# the two private names of Pykka that we use


def test_pykka_takes_the_mailbox_that_its_actor_makes() -> None:
    executor: Any = SimpleNamespace()
    actor = Actor(executor, lambda _: None)
    makes = Actor._create_actor_inbox  # noqa: SLF001 - a private name of Pykka that we use
    assert pykka.ThreadingActor._create_actor_inbox is not makes  # noqa: SLF001 - the same
    assert isinstance(actor.actor_inbox, Inbox)
    assert actor.actor_ref.actor_inbox is actor.actor_inbox


def test_pykka_starts_an_actor_that_is_not_in_its_registry() -> None:
    class Unregistered(pykka.ThreadingActor):
        use_daemon_thread = True

        def on_receive(self, message: object) -> object:
            return message

    actor = Unregistered()
    actor._start_actor_loop()  # noqa: SLF001 - a private name of Pykka that we use
    assert actor.actor_ref.ask("heard", timeout=5) == "heard"
    assert actor.actor_ref not in pykka.ActorRegistry.get_all()
    actor.stop()


def test_no_other_private_name_of_pykka_is_used() -> None:
    public = {*dir(pykka.ThreadingActor), *dir(pykka.ThreadingFuture), *pykka.__all__}
    names = {name for name in public if name.startswith("_") and not name.startswith("__")}
    kernel = Path(inspect.getfile(Actor)).parent
    used = {
        word
        for path in kernel.glob("*.py")
        for line in path.read_text().splitlines()
        for word in re.findall(r"(?:\bself\.|def |super\(\)\.|pykka\.)(_\w+)", line)
        if word in names or "pykka._" in line
    }
    assert used == {"_create_actor_inbox", "_start_actor_loop"}


def race(rounds: int, asks: int) -> None:
    """Stop a system while several threads ask it; every ask must end, answered or refused."""
    threads = 4
    for _ in range(rounds):
        system = ActorSystem(MemoryJournal())
        system.register(Counter(), effect_handler=RecordingEffectHandler(), mailbox=10**9)
        system.start()
        replies: list[list[object]] = [[] for _ in range(threads)]
        ready = threading.Barrier(threads + 1)

        def ask(mine: list[object], system: ActorSystem = system, ready: threading.Barrier = ready) -> None:
            ready.wait()
            mine.extend(system.ask(Total(), to=COUNTER) for _ in range(asks // threads))

        askers = [threading.Thread(target=ask, args=(mine,)) for mine in replies]
        for asker in askers:
            asker.start()
        ready.wait()
        system.stop()
        for asker in askers:
            asker.join()
        deadline = time.monotonic() + 20
        for reply in (one for mine in replies for one in mine):
            try:
                assert reply.get(timeout=max(0.0, deadline - time.monotonic())) == 0  # type: ignore[attr-defined]
            except ActorStopped:
                continue


def test_an_ask_that_races_with_stop_is_always_answered(eager_switching: None) -> None:
    race(rounds=60, asks=100)


@pytest.mark.slow
def test_sixty_thousand_asks_that_race_with_stop_are_all_answered(eager_switching: None) -> None:
    race(rounds=600, asks=100)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_exiting_in_our_handler_leaves_the_hosts_actors_alive(
    bench: Bench, host_actor: Any, error: Any
) -> None:
    def leave() -> None:
        raise error

    with pytest.raises(Refused, match="failed on this twice"):
        bench.system.ask(Run(what=leave), to=COUNTER).get(timeout=5)
    assert host_actor.is_alive()
    assert host_actor.ask("still here?", timeout=5) == "still here?"
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0


def test_exiting_in_our_effect_handler_leaves_the_hosts_actors_alive(bench: Bench, host_actor: Any) -> None:
    def leave(effect: object, cause: str) -> None:
        del bench.effect_handler.on[Done]
        raise SystemExit(3)

    bench.effect_handler.on[Done] = leave
    with pytest.raises(ActorStopped, match="was rebuilt"):
        bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    assert host_actor.is_alive()
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 1


def test_exiting_in_on_failure_leaves_the_hosts_actors_alive(host_actor: Any) -> None:
    journal = FaultyJournal(MemoryJournal())
    system = ActorSystem(journal, on_failure=lambda error: sys.exit(4))
    system.register(Counter(), effect_handler=RecordingEffectHandler())
    with system:
        journal.fault = JournalFailed("the disk is gone")
        with pytest.raises(SystemFailed):
            system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    assert host_actor.is_alive()


def test_a_host_that_stops_all_its_actors_leaves_ours_alive(bench: Bench, host_actor: Any) -> None:
    pykka.ActorRegistry.stop_all(timeout=5)
    assert not host_actor.is_alive()
    assert bench.system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2


def test_a_hosts_actor_that_exits_leaves_ours_alive(bench: Bench, host_actor: Any) -> None:
    host_actor.tell(SystemExit(1))
    host_actor.actor_stopped.wait(5)
    assert bench.system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2


def test_our_actors_are_never_in_pykkas_registry(bench: Bench) -> None:
    assert pykka.ActorRegistry.get_all() == []


@pytest.mark.parametrize("error", [ValueError("no such backend"), SystemExit(1)])
def test_a_failing_start_is_an_error_for_its_caller(make_bench: Callable[..., Bench], error: Any) -> None:
    bench = make_bench()
    bench.counter.faults["decide"] = [error] * 9
    with pytest.raises(StartFailed, match=f"counter could not start: {type(error).__name__}"):
        bench.system.start()
    with pytest.raises(ActorStopped):
        bench.system.ask(Total(), to=COUNTER).get(timeout=5)


def test_a_start_that_hangs_is_an_error_within_its_bound(make_bench: Callable[..., Bench]) -> None:
    bench, held = make_bench(), Turnstile()
    bench.counter.on_settle = lambda *_: held() and None  # type: ignore[assignment]
    with pytest.raises(StartFailed, match=r"counter did not start within 0\.05 seconds"):
        bench.system.start(timeout=0.05)
    held.open.set()
