"""A life of the whole runner with real engine processes, and what its journal alone says of each moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.daemon_log import DaemonLog
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Entry, Journal, JournalTooNew, Record
from greenroom.actors.journal.reader import read_journal
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Address, Stored
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.library.core import Library
from greenroom.actors.library.messages import Pull, RemoveModel
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.events import EvictionDecided
from greenroom.actors.scheduler.messages import SCHEDULER, Configure, Serve, Unload
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.diagnosis.explain import explain
from greenroom.runner.diagnosis.replay import Replay, Walk, as_builtins, changes, replay, seq_at
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend
from waiting import until

BOUND = 20.0
CORES = (DaemonLog, InstallerCore, Library, Runner, Scheduler)


class Watched:
    """A journal that notes, for each event, the state its actor had when the event was committed."""

    def __init__(self, inside: Journal, states: dict[str, Any], live: dict[str, Any]) -> None:
        self.inside = inside
        self.states = states
        self.live = live

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        records = self.inside.append(batch, urgent=urgent)
        for record in records:
            self.live[record.id] = self.states.get(record.id)
        return records

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        return self.inside.read(after=after, stream=stream)

    def close(self) -> None:
        self.inside.close()


@dataclass
class Life:
    """What was lived: its journal, and what every actor knew after each event."""

    journal: Path
    live: dict[str, Any] = field(default_factory=dict)
    """event → the state of its actor right after it."""
    owners: dict[str, Address] = field(default_factory=dict)
    """stream → actor."""
    ends: list[tuple[int, dict[Address, Any]]] = field(default_factory=list)
    """Each time all was at rest: the last event's number, and what `ActorSystem.state` gave for each."""

    @property
    def records(self) -> list[Record]:
        return list(read_journal(self.journal))


def tiny_gguf(path: Path, name: str) -> Path:
    """A whole GGUF file with one tensor of four numbers."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    keys += text("general.name") + struct.pack("<I", 8) + text(name)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + text("weights") + struct.pack("<IQIQ", 1, 4, 0, 0)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + struct.pack("<4f", 1, 2, 3, 4) + b"\0" * 16)
    return path


@pytest.fixture(scope="module")
def life(programs: Path) -> Iterator[Life]:
    """Two daemons' lives: pulls, loads, an eviction, a crash, refusals, configuration, adoption, removal."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    with pytest.MonkeyPatch.context() as patch:
        try:
            yield _live(folder, programs, patch)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _live(folder: Path, programs: Path, patch: pytest.MonkeyPatch) -> Life:
    states: dict[str, Any] = {}
    for core in CORES:
        patch.setattr(core, "apply", _noting(core.apply, states))
    lived = Life(folder / "home" / "journal.db")
    lived.journal.parent.mkdir()
    backends = {
        "fake": fake_backend(programs / "fake_engine.py"),
        "absent": fake_backend(programs / "fake_engine.py", name="absent", deferred=True, preference=9),
    }
    settings = Settings(
        home=folder / "home",
        backends={"fake": ExternalBackend(binary=Path(sys.executable))},
        memory_budget=3 * 2**19,  # one engine's worth
    )

    def daemon() -> Greenroom:
        journal = Watched(SqliteJournal(lived.journal), states, lived.live)
        return Greenroom(settings, journal=journal, backends=backends)

    def rest(greenroom: Greenroom) -> None:
        greenroom.system.rest()
        addresses = greenroom.system.addresses
        lived.ends.append(
            (
                len(lived.records),
                {address: greenroom.system.state(address) for address in addresses},
            )
        )
        for record in lived.records:
            owner = next((one for one, core in addresses.items() if core.claims(record.stream)), None)
            if owner is not None:
                lived.owners[record.stream] = owner

    first = daemon()
    with first:
        until(lambda: any(one.state == "installed" for one in first.statuses()))
        one, two = (_pull(first, tiny_gguf(folder / f"{name}.gguf", name)) for name in ("one", "two"))
        _serve(first, one, "r-00000000-1")
        _serve(first, two, "r-00000000-2")  # evicts one
        with pytest.raises(Refused, match="not installed"):
            _serve(first, one, "r-00000000-3", backend="absent")
        _ask(first, Configure(model_id=two.id, model_ref=two.tags[0], keep_alive=-1.0))
        with pytest.raises(Refused, match="pinned"):
            _serve(first, one, "r-00000000-4")
        (engine,) = [one for one in first.engines() if one.state == "ready"]
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: not first.system.state(SCHEDULER).loads)
        _serve(first, two, "r-00000000-5")
        rest(first)
        first.stop(keep_engines=BOUND)
    second = daemon()
    with second:
        until(lambda: any(one.state == "ready" for one in second.engines()))
        _ask(second, Unload(all=True))
        until(lambda: all(one.state == "gone" for one in second.engines()))
        second.system.ask(RemoveModel(model_id=one.id, force=True)).get(timeout=BOUND)
        rest(second)
    return lived


def _noting(apply: Callable[..., Any], states: dict[str, Any]) -> Callable[..., Any]:
    def noting(self: Any, state: Any, stored: Stored[Any]) -> Any:
        after = apply(self, state, stored)
        states[stored.id] = after
        return after

    return noting


def _pull(greenroom: Greenroom, file: Path) -> Any:
    return greenroom.system.ask(Pull(reference=f"file:{file}")).get(timeout=BOUND).model


def _ask(greenroom: Greenroom, command: Any, cause: str = "") -> Any:
    return greenroom.system.ask(command, cause=cause).get(timeout=BOUND)


def _serve(greenroom: Greenroom, model: Any, request: str, **more: Any) -> None:
    serve = Serve(request_id=request, model_id=model.id, model_ref=model.tags[0], **more)
    _ask(greenroom, serve, cause=request)
    greenroom.gates.leave(request)


def test_the_life_has_every_kind_of_event(life: Life) -> None:
    types = [record.type for record in life.records]

    for wanted in (
        "eviction_decided engine_exited load_failed load_refused config_changed engine_adopted model_removed "
        "daemon_stopped installation_found"
    ).split():
        assert wanted in types
    assert types.count("daemon_started") == 2
    assert len(types) > 30


def test_at_every_event_the_replayed_state_is_the_one_that_was_live(life: Life) -> None:
    latest: dict[Address, Any] = {}
    for record in life.records:
        owner = life.owners[record.stream]
        latest[owner] = life.live[record.id]
        snapshot = replay(read_journal(life.journal), until=record.seq)

        assert snapshot.seq == record.seq
        assert dict(snapshot.states) == latest, f"after event {record.seq} ({record.id})"


def test_what_is_replayed_is_what_the_system_itself_had_at_rest(life: Life) -> None:
    assert len(life.ends) == 2
    for seq, states in life.ends:
        replayed = replay(read_journal(life.journal), until=seq).states
        for address, state in states.items():
            if address in replayed:
                assert replayed[address] == state
            else:
                assert state in (Runner("absent").initial(), state.__class__())


def test_a_walk_forwards_and_back_shows_the_same_states(life: Life) -> None:
    walk = Walk(lambda: read_journal(life.journal))
    there = [walk.here]
    while (snapshot := walk.forwards()) is not None:
        there.append(snapshot)
    assert [one.seq for one in there] == list(range(len(life.records) + 1))

    back = [walk.here]
    while (snapshot := walk.back()) is not None:
        back.append(snapshot)

    assert back == there[::-1]
    assert walk.go_to(7) == there[7]
    assert walk.before() == there[6]
    assert walk.here == there[7]


def test_stepping_back_beyond_the_remembered_states_replays_them(life: Life, monkeypatch: Any) -> None:
    monkeypatch.setattr("greenroom.runner.diagnosis.replay.REMEMBERED", 3)
    walk = Walk(lambda: read_journal(life.journal), 20)

    steps = [walk.back() for _ in range(20)]

    assert [one.seq for one in steps if one is not None] == list(range(19, -1, -1))
    for one in steps:
        assert one is not None
        assert one == replay(read_journal(life.journal), until=one.seq)


def test_a_state_survives_json(life: Life) -> None:
    snapshot = replay(read_journal(life.journal))

    plain = json.loads(json.dumps(as_builtins(snapshot)))

    assert plain["seq"] == len(life.records)
    assert list(plain["states"]) == [str(address) for address in snapshot.states]
    for address, state in snapshot.states.items():
        assert msgspec.convert(plain["states"][str(address)], type(state)) == state


def test_changes_name_what_an_event_made_different(life: Life) -> None:
    walk = Walk(lambda: read_journal(life.journal))
    while walk.forwards() is not None:
        record = walk.here.record
        assert record is not None
        changed = changes(walk.before(), walk.here)
        if record.type == "engine_ready":
            engine = json.loads(record.data)["engine_id"]
            assert changed[f"runner/fake engines {engine} state"] == ("starting", "ready")
        if record.type == "eviction_decided":
            engine = json.loads(record.data)["engine_id"]
            old, new = changed[f"scheduler loads {engine}"]
            assert old["spec"]["engine_id"] == engine
            assert new is None


def test_a_time_is_the_last_event_before_it(life: Life) -> None:
    records = life.records

    assert seq_at(records, records[0].at - 1) == 0
    assert seq_at(records, records[-1].at + 1) == records[-1].seq
    tenth = records[9]
    same = [one.seq for one in records if one.at <= tenth.at]
    assert seq_at(records, tenth.at) == max(same)


def test_a_clock_that_was_set_back_does_not_hide_what_came_after(script: Any) -> None:
    script.wait(-3600.0)
    script.load()

    assert seq_at(script.records, script.now) == script.records[-1].seq


def test_why_is_asked_of_the_same_life(life: Life) -> None:
    records = life.records
    one, two = [
        json.loads(record.data)["model"]["tags"][0] for record in records if record.type == "model_committed"
    ]
    now = records[-1].at

    evicted = next(record for record in records if record.type == "eviction_decided")
    then = [record for record in records if record.seq <= evicted.seq + 6]
    found = explain(then, one, evicted.at)
    assert (found.state, found.cause) == ("unloaded", "room")
    assert found.numbers["needed"] == json.loads(evicted.data)["needed"]
    refused = explain(records, "r-00000000-4", now)
    assert (refused.state, refused.cause) == ("refused", "no_room")
    assert explain(records, one, now).cause == "removed"
    assert explain(records, two, now).cause == "unload"
    assert explain(records, "fake", now).cause == "named_in_the_config"
    absent = explain(records, "absent", now, backends={"absent": ""})
    assert absent.cause == "never_asked"
    assert absent.also[0].startswith("Requests for")
    engines = {json.loads(r.data)["spec"]["engine_id"] for r in records if r.type == "engine_start_requested"}
    causes = {explain(records, engine, now).cause for engine in engines}
    assert causes == {"room", "crashed", "unload"}


# other journals


def test_streams_of_a_host_are_named_and_not_folded(script: Any) -> None:
    script.raw("host/orders", "order_placed", '{"total":7}')
    script.raw("host/orders", "order_placed", '{"total":8}')

    snapshot = replay(script.records)

    assert dict(snapshot.dormant) == {"host/orders": 2}


def test_an_unknown_event_ends_a_replay_as_it_ends_a_start(script: Any) -> None:
    script.raw("scheduler", "load_moved", "{}")

    with pytest.raises(JournalTooNew, match="load_moved"):
        replay(script.records)
    assert replay(script.records, until=4).seq == 4


def test_nothing_is_the_state_before_the_first_event() -> None:
    snapshot = replay(MemoryJournal().read())

    assert snapshot.seq == 0
    assert as_builtins(snapshot)["event"] is None


def test_an_event_that_cannot_be_folded_is_left_out_and_named(
    life: Life, monkeypatch: Any, caplog: Any
) -> None:
    real = Scheduler.apply

    def picky(self: Any, state: Any, stored: Any) -> Any:
        if isinstance(stored.event, EvictionDecided):
            raise ZeroDivisionError("poison")
        return real(self, state, stored)

    monkeypatch.setattr(Scheduler, "apply", picky)
    fold = Replay()
    for record in life.records:
        fold.add(record)
    evicted = [record.seq for record in life.records if record.type == "eviction_decided"]
    assert [one.args[0] for one in caplog.records if one.args] == evicted
    assert fold.snapshot.seq == life.records[-1].seq
