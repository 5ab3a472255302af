"""What is in a journal and how it is read: versions, tombstones, strangers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from counting import COUNTER, Add, Counted, Counter, Sum
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Entry, EventChanged, JournalTooNew
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Command,
    Decision,
    Effect,
    Event,
    Recovered,
    Stored,
    Upcasters,
)
from greenroom.actors.kernel.errors import StartFailed
from greenroom.actors.kernel.event_store import Codec
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.testing import RecordingEffectHandler, given


def entry(stream: str, version: int, tag: str, data: str = "{}", schema: int = 1) -> Entry:
    return Entry(stream=stream, version=version, type=tag, schema=schema, cause="", data=data, at=1.0)


def journal(*entries: Entry) -> MemoryJournal:
    made = MemoryJournal()
    if entries:
        made.append(entries)
    return made


class Weighed(Event, frozen=True, kw_only=True):
    """Was `{"pounds": …}`, then `{"kilos": …}`, now `{"grams": …}`."""

    TAG = "weighed"
    SCHEMA = 3
    UPCASTERS: ClassVar[Upcasters] = {
        1: lambda fields: {"kilos": fields["pounds"] / 2},
        2: lambda fields: {"grams": round(fields["kilos"] * 1_000)},
    }
    grams: int


class Scales:
    """A host's own event-sourced actor."""

    address = Address("scales")
    event_types: Sequence[type[Event]] = (Weighed,)

    def claims(self, stream: str) -> bool:
        return stream.startswith("host/scales/")

    def stream_of(self, event: Event) -> str:
        return "host/scales/1"

    def initial(self) -> int:
        return 0

    def initial_volatile(self) -> None:
        return None

    def decide(self, state: int, command: Command[Any], now: Moment, volatile: None) -> Decision[None]:
        if isinstance(command, Recovered):
            return Decision()
        return Decision(events=(Weighed(grams=5),), reply=command.replied(state + 5))

    def apply(self, state: int, stored: Stored[Any]) -> int:
        return state + int(stored.event.grams)

    def react(self, state: int, stored: Stored[Any]) -> Sequence[Effect]:
        return ()

    def settle(self, state: int, now: Moment, volatile: None) -> Decision[None]:
        return Decision()


class Weigh(Command[Any], frozen=True, kw_only=True):
    pass


def started(kept: MemoryJournal, *cores: Any, retired: Sequence[str] = ()) -> ActorSystem:
    system = ActorSystem(kept)
    for core in cores:
        system.register(core, effect_handler=RecordingEffectHandler())
    system.store.codec.retire(*retired)
    system.start()
    return system


def test_a_host_shares_the_journal_with_an_actor_of_its_own() -> None:
    kept = journal()
    system = started(kept, Counter(), Scales())
    assert system.ask(Weigh(), to="scales").get(timeout=5) == 5
    assert system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2
    assert system.ask(Weigh(), to="scales").get(timeout=5) == 10
    system.stop()
    assert [(one.seq, one.id, one.schema) for one in kept.records] == [
        (1, "host/scales/1/1", 3),
        (2, "counter/1", 1),
        (3, "host/scales/1/2", 3),
    ]
    again = started(MemoryJournal(kept.records), Counter(), Scales())
    assert (again.state("scales"), again.state(COUNTER)) == (10, Sum(2, 1))
    again.stop()


def test_the_streams_of_an_actor_that_is_gone_are_dormant_and_wake_up_with_it() -> None:
    kept = journal(
        entry("host/scales/1", 1, "weighed", '{"grams": 4}', 3), entry("counter", 1, "counted", '{"by": 2}')
    )
    without = started(kept, Counter())
    assert without.ask(Add(by=1), to=COUNTER).get(timeout=5) == 3
    without.stop()
    back = started(MemoryJournal(kept.records), Counter(), Scales())
    assert back.ask(Weigh(), to="scales").get(timeout=5) == 9
    assert back.state(COUNTER).total == 3
    back.stop()


def test_old_schema_versions_are_upcast_step_by_step() -> None:
    kept = journal(
        entry("host/scales/1", 1, "weighed", '{"pounds": 4}', 1),
        entry("host/scales/1", 2, "weighed", '{"kilos": 1.5}', 2),
        entry("host/scales/1", 3, "weighed", '{"grams": 7}', 3),
    )
    system = started(kept, Scales())
    assert system.state("scales") == 2_000 + 1_500 + 7
    system.stop()


def test_retired_tags_are_skipped_and_still_count_as_versions() -> None:
    kept = journal(entry("counter", 1, "hiccup"), entry("counter", 2, "counted", '{"by": 2}'))
    system = started(kept, Counter(), retired=["hiccup"])
    assert system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 3
    system.stop()
    assert [one.id for one in kept.records] == ["counter/1", "counter/2", "counter/3"]


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (
            entry("counter", 1, "teleported"),
            JournalTooNew,
            r"event 1 \(counter/1\) is of type 'teleported'.*newer",
        ),
        (entry("counter", 1, "counted", schema=2), JournalTooNew, r"event 1 .*has schema 2.*up to 1"),
        (
            entry("counter", 1, "counted", '{"by": "two"}'),
            EventChanged,
            r"event 1 .*does not fit counting.Counted: .*journal is whole.*SCHEMA = 2 and an upcaster from 1",
        ),
        (entry("counter", 1, "counted", "{}"), EventChanged, "missing required field `by`"),
        (entry("host/scales/1", 1, "weighed", "{}", 1), EventChanged, "schema 1.*pounds.*upcasters"),
        (entry("host/scales/1", 1, "weighed", "[]", 1), EventChanged, "schema 1"),
    ],
)
def test_what_cannot_be_read_stops_the_boot_with_a_sentence(bad: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        started(journal(bad), Counter(), Scales())


def test_an_event_that_cannot_be_applied_is_left_out_and_noted_once() -> None:
    """Poison in a journal must not keep everything else in it from being used."""

    class Picky(Counter):
        def apply(self, state: Any, stored: Any) -> Any:
            return state if 7 / (stored.event.by - 2) is None else super().apply(state, stored)

    past = journal(
        entry("counter", 1, "counted", '{"by": 1}'),
        entry("counter", 2, "counted", '{"by": 2}'),
        entry("counter", 3, "counted", '{"by": 4}'),
    )
    for _ in range(2):
        system = started(past, Picky())
        assert system.state(COUNTER) == Sum(5, 2)
        system.stop()
        past = MemoryJournal(past.records)
    parked = [record for record in past.records if record.type == "command_parked"]
    assert [record.cause for record in parked] == ["counter/2"]
    assert "ZeroDivisionError" in parked[0].data


def test_two_actors_that_claim_one_stream_do_not_start() -> None:
    thief = Counter("thief")
    thief.claims = lambda stream: True  # type: ignore[method-assign]
    with pytest.raises(StartFailed, match="counter and thief both claim the stream 'counter'"):
        started(journal(entry("counter", 1, "counted", '{"by": 2}')), Counter(), thief)


def test_the_streams_of_parked_commands_belong_to_no_actor() -> None:
    greedy = Counter()
    greedy.claims = lambda stream: True  # type: ignore[method-assign]
    parked = '{"actor": "counter", "command": "Add", "fields": "", "traceback": ""}'
    system = started(journal(entry("parked/counter", 1, "command_parked", parked)), greedy)
    assert system.state(COUNTER) == Sum()
    system.stop()


def test_two_event_types_cannot_share_a_tag() -> None:
    class Other(Event, frozen=True, kw_only=True):
        TAG = "counted"

    codec = Codec()
    codec.register([Counted, Counted])
    with pytest.raises(ValueError, match="two event types have the tag 'counted'"):
        codec.register([Other])


def test_an_event_type_needs_a_tag_and_an_upcaster_from_each_older_schema() -> None:
    class Nameless(Event, frozen=True, kw_only=True):
        pass

    class Gap(Event, frozen=True, kw_only=True):
        TAG = "gap"
        SCHEMA = 3
        UPCASTERS: ClassVar[Upcasters] = {2: lambda fields: fields}

    with pytest.raises(ValueError, match="has no TAG"):
        Codec().register([Nameless])
    with pytest.raises(ValueError, match=r"'gap' has schema 3 and no upcaster from \[1\]"):
        Codec().register([Gap])


def test_a_lazy_codec_reads_and_writes_what_another_does() -> None:
    eager, lazy = Codec(), Codec(lazy=True)
    for codec in (eager, lazy):
        codec.register([Weighed, Counted])
    past = journal(
        entry("scales", 1, "weighed", '{"pounds": 2}'),
        entry("scales", 2, "weighed", '{"kilos": 1}', schema=2),
        entry("scales", 3, "weighed", '{"grams": 1}', schema=3),
        entry("counter", 1, "counted", '{"by": 2}'),
    )
    for record in (*past.records, *past.records):
        assert lazy.decode(record) == eager.decode(record)
    for stranger in (
        entry("scales", 1, "weighed", '{"stones": 2}', schema=3),
        entry("scales", 1, "weighed", '{"grams": "many"}', schema=3),
    ):
        with pytest.raises(EventChanged):
            lazy.decode(journal(stranger).records[0])
    unread = Codec(lazy=True)
    unread.register([Counted])
    written = unread.entry(Counted(by=3), stream="counter", version=1, cause="", at=1.0)
    assert written == eager.entry(Counted(by=3), stream="counter", version=1, cause="", at=1.0)


def test_defaults_are_not_stored_and_come_back() -> None:
    class Roomy(Event, frozen=True, kw_only=True):
        TAG = "roomy"
        one: int = 1
        two: tuple[str, ...] = ()

    codec = Codec()
    codec.register([Roomy])
    written, stored = codec.entry(Roomy(one=2), stream="s", version=1, cause="", at=1.0)
    assert written.data == '{"one":2}'
    assert stored.event == Roomy(one=2)
    assert stored.id == "s/1"


def test_a_case_and_a_system_agree_on_a_whole_life() -> None:
    case = given(Counter()).when(Add(by=2, times=2)).then(Counted(by=2), Counted(by=2))
    system = started(journal(), Counter())
    system.ask(Add(by=2, times=2), to=COUNTER).get(timeout=5)
    assert system.state(COUNTER) == case.rebuild().state
    system.stop()
    assert msgspec.json.encode(case.state) == msgspec.json.encode(system.state(COUNTER))
