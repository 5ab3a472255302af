"""Library and installer in real shells whose journal is full: nobody is left waiting for space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenroom.actors import effects as fx
from greenroom.actors import messages as msg
from greenroom.actors.facts import Failure, Installation
from greenroom.actors.installer import Installer
from greenroom.actors.journal.memory import MemoryJournal
from greenroom.actors.journal.port import JournalFull
from greenroom.actors.kernel.core import Command, Effect
from greenroom.actors.kernel.errors import Refusal, Refused
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.library import Library
from greenroom.actors.testing import FaultyJournal, ManualClock, RecordingHands
from stage import MLX, NO_SPACE, model

SMOL, QWEN = model("smol"), model("qwen")
BUILT = Installation(id="1-aaaa.1", backend="mlx", version="1", digest="aaaa")
FULL = JournalFull("no space left on device")


class House:
    """Both owners, with hands that do at once what they are asked to."""

    def __init__(self, *, looks: bool = True) -> None:
        self.clock = ManualClock()
        self.journal = FaultyJournal(MemoryJournal())
        self.installer = RecordingHands()
        self.library = RecordingHands()
        self.system = ActorSystem(self.journal, clock=self.clock)
        self.system.register(Installer((MLX,)), hands=self.installer)
        self.system.register(Library(), hands=self.library)
        on = self.reports
        on(
            self.library,
            fx.AddTag,
            lambda e: msg.TagsWritten(model_id=e.model_id, tag=e.tag, tags=("smol", e.tag)),
        )
        on(self.library, fx.FetchModel, lambda e: msg.PullCommitted(job=e.job, model=QWEN))
        on(
            self.library,
            fx.SendModel,
            lambda e: msg.PushEnded(model_id=e.model_id, reference=e.reference, sent=1, seconds=1.0),
        )
        on(
            self.library,
            fx.StoreAgain,
            lambda e: msg.ModelRepackaged(source_id=e.model_id, tag=e.tag, model=QWEN),
        )
        on(
            self.installer,
            fx.BuildInstallation,
            lambda e: msg.InstallCommitted(job=e.job, installation=BUILT),
        )
        if looks:
            on(self.library, fx.LookAtModels, lambda _: msg.ModelsSeen(models=(SMOL,)))
            on(
                self.installer,
                fx.LookAtInstallations,
                lambda _: msg.InstallationsSeen(backend="mlx", installations=()),
            )
        self.system.start()
        self.system.rest()

    def reports(self, hands: RecordingHands, kind: type[Effect], report: Callable[[Any], Command]) -> None:
        """Have hands report this as soon as they are asked for that."""
        to = msg.LIBRARY if hands is self.library else msg.INSTALLER
        hands.on[kind] = lambda effect, _: self.system.tell(to, report(effect))

    def fills_up_before(self, hands: RecordingHands, kind: type[Effect]) -> None:
        """The disk is full by the time they have done it."""
        do = hands.on[kind]

        def fill(effect: Any, cause: str) -> None:
            self.journal.fault = FULL
            do(effect, cause)

        hands.on[kind] = fill

    def space_is_back(self) -> None:
        self.journal.fault = None
        self.clock.advance(2.0)
        self.system.rest()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.system.stop()


def refused(reply: Any) -> Refusal:
    with pytest.raises(Refused) as error:
        reply.get(timeout=5)
    return error.value.refusal


TAG = msg.TagModel(model_id=SMOL.id, tag="mine")
DONE: list[tuple[str, Command, str, type[Effect]]] = [
    (msg.LIBRARY.name, TAG, "model_tagged", fx.AddTag),
    (msg.LIBRARY.name, msg.Pull(reference="qwen"), "model_committed", fx.FetchModel),
    (msg.LIBRARY.name, msg.Push(model_id=SMOL.id, reference="r/smol"), "model_pushed", fx.SendModel),
    (
        msg.LIBRARY.name,
        msg.RepackageModel(model_id=SMOL.id, tag="small", context_size=512),
        "model_committed",
        fx.StoreAgain,
    ),
    (msg.INSTALLER.name, msg.Ensure(backend="mlx"), "installation_committed", fx.BuildInstallation),
]


@pytest.mark.parametrize(("owner", "command", "event", "effect"), DONE, ids=lambda one: type(one).__name__)
def test_what_is_done_and_cannot_be_recorded_is_answered_at_once_and_recorded_later(
    house: House, owner: str, command: Command, event: str, effect: type[Effect]
) -> None:
    house.fills_up_before(house.library if owner == "library" else house.installer, effect)
    before = len(list(house.journal.read()))
    refusal = refused(house.system.ask(owner, command))
    assert (refusal.status, refusal.code) == (507, "journal_full")
    assert "This was done" in refusal.message
    assert "no space left on device" in refusal.message
    assert event not in [one.type for one in house.journal.read()][before:]
    house.space_is_back()
    assert event in [one.type for one in house.journal.read()][before:]


def test_a_failure_that_cannot_be_recorded_is_told_as_what_it_is(house: House) -> None:
    house.reports(house.library, fx.FetchModel, lambda e: msg.PullAttemptEnded(job=e.job, failure=NO_SPACE))
    house.fills_up_before(house.library, fx.FetchModel)
    refusal = refused(house.system.ask(msg.LIBRARY, msg.Pull(reference="qwen")))
    assert (refusal.code, refusal.message) == (NO_SPACE.code, NO_SPACE.message)
    house.space_is_back()
    assert [one.type for one in house.journal.read()][-1] == "pull_failed"


def test_a_wish_that_waited_for_the_first_look_is_refused_and_not_kept_waiting() -> None:
    house = House(looks=False)
    replies = [
        house.system.ask(msg.LIBRARY, msg.Pull(reference="qwen")),
        house.system.ask(msg.INSTALLER, msg.Ensure(backend="mlx")),
    ]
    house.system.rest()
    house.journal.fault = FULL
    house.system.tell(msg.LIBRARY, msg.ModelsSeen(models=()))
    house.system.tell(msg.INSTALLER, msg.InstallationsSeen(backend="mlx", installations=()))
    for reply in replies:
        refusal = refused(reply)
        assert (refusal.status, refusal.code) == (507, "journal_full")
        assert "Make room" in refusal.advice
    house.space_is_back()
    # What was refused does not come to pass by itself.
    assert [one.type for one in house.journal.read()] == []
    house.system.stop()


def test_uninstalling_and_cancelling_make_room_and_are_recorded_all_the_same(house: House) -> None:
    house.system.ask(msg.INSTALLER, msg.Ensure(backend="mlx")).get(timeout=5)
    house.library.on[fx.FetchModel] = lambda effect, cause: None
    pull = house.system.ask(msg.LIBRARY, msg.Pull(reference="qwen"))
    house.system.rest()
    house.journal.fault = FULL
    cancelled = house.system.ask(msg.LIBRARY, msg.CancelPull(reference="qwen", reason="no room"))
    assert cancelled.get(timeout=5).ended
    assert refused(pull).code == "cancelled"
    house.system.ask(msg.INSTALLER, msg.Uninstall(backend="mlx"))
    house.system.rest()
    types = [one.type for one in house.journal.read()]
    assert types[-2:] == ["pull_cancelled", "installation_retiring"]


def test_a_failure_is_a_failure(house: House) -> None:
    """What the disk itself refuses needs no event."""
    failure = Failure(kind="permanent", code="no_space", message="There is no space for the tag.")
    house.reports(
        house.library,
        fx.AddTag,
        lambda e: msg.TagsWritten(model_id=e.model_id, tag=e.tag, tags=(), failure=failure),
    )
    house.journal.fault = FULL
    refusal = refused(house.system.ask(msg.LIBRARY, TAG))
    assert (refusal.status, refusal.message) == (507, failure.message)
