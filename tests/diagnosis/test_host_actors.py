"""What other programs' actors have stored is shown in their words, there and on the command line."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from counting import Add, Counted, Counter
from fake_greenroom import fake_greenroom
from greenroom.actors import Entry, MemoryJournal, RecordingEffectHandler, SqliteJournal
from greenroom.actors.engine_runner.events import EngineReady
from greenroom.runner import Greenroom, HostActor, NotAvailable, read_events
from greenroom.runner.diagnosis import host_actors
from greenroom.runner.diagnosis.host_actors import HostActors
from greenroom.runner.diagnosis.overview import overview, told_changes
from greenroom.runner.diagnosis.replay import as_builtins, replay
from greenroom.runner.diagnosis.sentences import Narrator
from waiting import BOUND

ALLOWANCE = """
    from greenroom.actors import Address, Decision, Event, SingleStream
    from greenroom.runner import HostActor

    class Spent(Event, frozen=True, kw_only=True):
        TAG = "allowance_spent"
        SCHEMA = 2
        UPCASTERS = {1: lambda fields: {"tokens": fields["words"] * 2}}
        tokens: int

    class Allowance(SingleStream[int]):
        address = Address("allowance")
        event_types = (Spent,)

        def initial(self):
            return 100

        def decide(self, left, command, now, volatile):
            return Decision()

        def apply(self, left, stored):
            return left - stored.event.tokens

    ALLOWANCE = HostActor(Allowance(), sentences={Spent: lambda event: f"Spent {event.tokens} tokens."})
"""


def entry(version: int, data: str, schema: int) -> Entry:
    return Entry(
        stream="allowance",
        version=version,
        type="allowance_spent",
        schema=schema,
        cause="",
        data=data,
        at=1.79e9 + version,
    )


def declared(folder: Path, *lines: str) -> None:
    info = folder / "allowance-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: allowance\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[greenroom.actors]", *lines]) + "\n")
    (folder / "allowance.py").write_text(textwrap.dedent(ALLOWANCE))


def run(home: Path, *arguments: str, path: Path | None = None) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "greenroom.runner.cli", *arguments, "--journal", str(home)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env={**os.environ, "PYTHONPATH": str(path or "")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_command_line_shows_actors_that_a_distribution_declares(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.append([entry(1, '{"words":10}', 1), entry(2, '{"tokens":30}', 2)])
    journal.close()
    installed = tmp_path / "installed"
    installed.mkdir()
    declared(installed, "allowance = allowance:ALLOWANCE", "broken = allowance:Nothing")

    out, err = run(tmp_path, "log", path=installed)
    assert "Spent 20 tokens." in out
    assert "Spent 30 tokens." in out
    assert "The actor 'broken' of allowance 1.0 is ignored: AttributeError" in err
    out, _ = run(tmp_path, "replay", "--json", path=installed)
    assert json.loads(out)["states"] == {"allowance": 50}
    out, _ = run(tmp_path, "why", "allowance/2", path=installed)
    assert "Spent 30 tokens." in out
    # Without it they are as they were stored.
    out, _ = run(tmp_path, "log")
    assert 'allowance_spent: {"words":10}' in out


def test_a_program_gives_its_actors_to_its_own_greenroom(home: Path) -> None:
    greenroom = fake_greenroom(home)
    greenroom.register(
        Counter("counter"),
        effect_handler=RecordingEffectHandler(),
        sentences={Counted: lambda event: f"Counted {event.by:g} more."},
    )
    with greenroom, greenroom.client() as client:
        with client.events(types=[Counted]) as events:
            greenroom.system.ask(Add(by=3.0), to="counter").get(timeout=BOUND)
            assert str(next(events)) == "Counted 3 more."
        assert "Counted 3 more." in str(client.why("counter/1"))
    (counted,) = read_events(home, types=["counted"])
    assert str(counted) == 'counted: {"by":3.0}'


class State:
    def __repr__(self) -> str:
        return "a state of its own"


class Odd(Counter):
    def initial(self) -> Any:
        return State()

    def apply(self, state: Any, stored: Any) -> Any:
        return State()


def test_any_state_is_shown() -> None:
    hosts = HostActors([HostActor(Odd("odd"))], lambda: ())
    journal = MemoryJournal()
    journal.append(
        [Entry(stream="odd", version=1, type="counted", schema=1, cause="", data='{"by":1.0}', at=1.0)]
    )
    before, after = replay((), hosts=hosts), replay(journal.read(), hosts=hosts)
    assert "a state of its own" in overview(after)
    assert as_builtins(after)["states"] == {"odd": "a state of its own"}
    assert [*told_changes(before, after)] == ['+ odd = "a state of its own"']


@pytest.mark.parametrize("error", [LookupError("a bug of the host's"), SystemExit(3)])
def test_a_sentence_that_fails_does_no_harm(error: BaseException) -> None:
    def fail(_: Any) -> str:
        raise error

    hosts = HostActors([HostActor(Counter("counter"), {Counted: fail})], lambda: ())
    journal = MemoryJournal()
    journal.append(
        [Entry(stream="counter", version=1, type="counted", schema=1, cause="", data='{"by":1.0}', at=1.0)]
    )
    assert Narrator(hosts).tell(journal.records[0]) == 'counted: {"by":1.0}'


class Copied(Counter):
    class Ready(EngineReady, frozen=True, kw_only=True):
        TAG = EngineReady.TAG

    event_types = (Ready,)


COPIED = HostActor(Copied("copied"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("COPIED", "two event types have the tag 'engine_ready'"),
        ("BOUND", "is not callable"),
        ("MemoryJournal", "is not a HostActor"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_sentence(value: str, said: str) -> None:
    point = EntryPoint("wrong", f"{__name__}:{value}", host_actors.GROUP)
    hosts = HostActors(entry_points=lambda: [point])
    assert hosts.core_of("wrong") is None
    (problem,) = hosts.problems
    assert problem.startswith("The actor 'wrong' of ")
    assert said in problem


def test_an_actor_that_cannot_begin_is_told_and_is_not_used_again(home: Path) -> None:
    class Broken(Counter):
        def initial(self) -> Any:
            raise LookupError("no beginning")

    def failed() -> str:
        with pytest.raises(NotAvailable) as caught:
            Greenroom.open(home, actors=(HostActor(Broken("counter")),)).models()
        return caught.value.sentence

    assert "no beginning" in failed()
    gc.collect()
    with Greenroom.open(home, actors=(HostActor(Counter("counter")),)) as client:
        assert client.models() == []


def test_what_is_no_actor_is_refused_at_once(home: Path) -> None:
    with pytest.raises(TypeError, match="actors must be HostActors, not Counter"):
        Greenroom.open(home, actors=[Counter("counter")])  # type: ignore[list-item]
    for wrong in (Counter, None):
        with pytest.raises(TypeError, match="core must be an instance of a core"):
            HostActor(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="functions by class of event"):
        HostActor(Counter("counter"), {"counted": str})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="on_failure must be a function, not str"):
        Greenroom.open(home, on_failure="print")  # type: ignore[arg-type]
