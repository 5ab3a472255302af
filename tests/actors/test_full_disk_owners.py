"""Library and installer in real shells whose journal is full: no caller is left waiting for space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import BuildInstallation, InspectInstallations
from greenroom.actors.installer.messages import INSTALLER, Ensure, InstallationsSeen, Uninstall
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFull
from greenroom.actors.kernel.core import Command, Effect
from greenroom.actors.kernel.errors import Refusal, Refused
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.library.core import Library
from greenroom.actors.library.effects import (
    AddTag,
    FetchModel,
    InspectModels,
    SendModel,
    StoreAgain,
)
from greenroom.actors.library.events import ModelPushed
from greenroom.actors.library.messages import (
    LIBRARY,
    CancelPull,
    ModelsSeen,
    Pull,
    Push,
    RepackageModel,
    TagModel,
)
from greenroom.actors.reports import Happened
from greenroom.actors.testing import FaultyJournal, ManualClock, RecordingEffectHandler
from greenroom.actors.values import Failure, Installation
from reports import build_committed, pull_failed, pulled, repackaged, tags_written
from scheduler_stage import MLX, NO_SPACE, model

SMOL, QWEN = model("smol"), model("qwen")
BUILT = Installation(id="1-aaaa.1", backend="mlx", version="1", digest="aaaa")
FULL = JournalFull("no space left on device")


class Owners:
    """Both owners, with effect handlers that do at once what they are asked to."""

    def __init__(self, *, looks: bool = True) -> None:
        self.clock = ManualClock()
        self.journal = FaultyJournal(MemoryJournal())
        self.installer = RecordingEffectHandler()
        self.library = RecordingEffectHandler()
        self.system = ActorSystem(self.journal, clock=self.clock)
        self.system.register(InstallerCore((MLX,)), effect_handler=self.installer)
        self.system.register(Library(), effect_handler=self.library)
        on = self.reports
        on(
            self.library,
            AddTag,
            lambda e: tags_written(e.model_id, e.tag, tags=("smol", e.tag)),
        )
        on(self.library, FetchModel, lambda e: pulled(e.job, QWEN))
        on(
            self.library,
            SendModel,
            lambda e: Happened(
                event=ModelPushed(model_id=e.model_id, reference=e.reference, sent=1, seconds=1.0)
            ),
        )
        on(
            self.library,
            StoreAgain,
            lambda e: repackaged(e.model_id, e.tag, model=QWEN),
        )
        on(
            self.installer,
            BuildInstallation,
            lambda e: build_committed(e.job, BUILT),
        )
        if looks:
            on(self.library, InspectModels, lambda _: ModelsSeen(models=(SMOL,)))
            on(
                self.installer,
                InspectInstallations,
                lambda _: InstallationsSeen(backend="mlx", installations=()),
            )
        self.system.start()
        self.system.rest()

    def reports(
        self,
        effect_handler: RecordingEffectHandler,
        kind: type[Effect],
        report: Callable[[Any], Command[Any]],
    ) -> None:
        """Have an effect handler report this as soon as it is asked for that."""
        to = LIBRARY if effect_handler is self.library else INSTALLER
        effect_handler.on[kind] = lambda effect, _: self.system.tell(report(effect), to=to)

    def fills_up_before(self, effect_handler: RecordingEffectHandler, kind: type[Effect]) -> None:
        """The disk is full by the time they have done it."""
        do = effect_handler.on[kind]

        def fill(effect: Any, cause: str) -> None:
            self.journal.fault = FULL
            do(effect, cause)

        effect_handler.on[kind] = fill

    def space_is_back(self) -> None:
        self.journal.fault = None
        self.clock.advance(2.0)
        self.system.rest()


@pytest.fixture
def owners() -> Iterator[Owners]:
    owners = Owners()
    yield owners
    owners.system.stop()


def refused(reply: Any) -> Refusal:
    with pytest.raises(Refused) as error:
        reply.get(timeout=5)
    return error.value.refusal


TAG = TagModel(model_id=SMOL.id, tag="mine")
DONE: list[tuple[str, Command[Any], str, type[Effect]]] = [
    (LIBRARY.name, TAG, "model_tagged", AddTag),
    (LIBRARY.name, Pull(reference="qwen"), "model_committed", FetchModel),
    (LIBRARY.name, Push(model_id=SMOL.id, reference="r/smol"), "model_pushed", SendModel),
    (
        LIBRARY.name,
        RepackageModel(model_id=SMOL.id, tag="small", context_size=512),
        "model_committed",
        StoreAgain,
    ),
    (INSTALLER.name, Ensure(backend="mlx"), "installation_committed", BuildInstallation),
]


@pytest.mark.parametrize(("owner", "command", "event", "effect"), DONE, ids=lambda one: type(one).__name__)
def test_what_is_done_and_cannot_be_recorded_is_answered_at_once_and_recorded_later(
    owners: Owners, owner: str, command: Command[Any], event: str, effect: type[Effect]
) -> None:
    owners.fills_up_before(owners.library if owner == "library" else owners.installer, effect)
    before = len(list(owners.journal.read()))
    refusal = refused(owners.system.ask(command, to=owner))
    assert (refusal.kind, refusal.code) == ("exhausted", "journal_full")
    assert "This was done" in refusal.message
    assert "no space left on device" in refusal.message
    assert event not in [one.type for one in owners.journal.read()][before:]
    owners.space_is_back()
    assert event in [one.type for one in owners.journal.read()][before:]


def test_a_failure_that_cannot_be_recorded_is_still_reported_as_such(owners: Owners) -> None:
    owners.reports(owners.library, FetchModel, lambda e: pull_failed(e.job, NO_SPACE))
    owners.fills_up_before(owners.library, FetchModel)
    refusal = refused(owners.system.ask(Pull(reference="qwen")))
    assert (refusal.code, refusal.message) == (NO_SPACE.code, NO_SPACE.message)
    owners.space_is_back()
    assert [one.type for one in owners.journal.read()][-1] == "pull_failed"


def test_an_install_request_that_waited_for_the_first_scan_is_refused_and_not_kept_waiting() -> None:
    owners = Owners(looks=False)
    replies = [
        owners.system.ask(Pull(reference="qwen")),
        owners.system.ask(Ensure(backend="mlx")),
    ]
    owners.system.rest()
    owners.journal.fault = FULL
    owners.system.tell(ModelsSeen(models=()))
    owners.system.tell(InstallationsSeen(backend="mlx", installations=()))
    for reply in replies:
        refusal = refused(reply)
        assert (refusal.kind, refusal.code) == ("exhausted", "journal_full")
        assert "Free space" in refusal.advice
    owners.space_is_back()
    # What was refused does not come to pass by itself.
    assert [one.type for one in owners.journal.read()] == []
    owners.system.stop()


def test_uninstalling_and_cancelling_make_room_and_are_recorded_all_the_same(owners: Owners) -> None:
    owners.system.ask(Ensure(backend="mlx")).get(timeout=5)
    owners.library.on[FetchModel] = lambda effect, cause: None
    pull = owners.system.ask(Pull(reference="qwen"))
    owners.system.rest()
    owners.journal.fault = FULL
    cancelled = owners.system.ask(CancelPull(reference="qwen", reason="no room"))
    assert cancelled.get(timeout=5).ended
    assert refused(pull).code == "cancelled"
    owners.system.ask(Uninstall(backend="mlx"))
    owners.system.rest()
    types = [one.type for one in owners.journal.read()]
    assert types[-2:] == ["pull_cancelled", "installation_retiring"]


def test_a_failure_is_a_failure(owners: Owners) -> None:
    """What the disk itself refuses needs no event."""
    failure = Failure(kind="permanent", code="no_space", message="There is no space for the tag.")
    owners.reports(
        owners.library,
        AddTag,
        lambda e: tags_written(e.model_id, e.tag, tags=(), failure=failure),
    )
    owners.journal.fault = FULL
    refusal = refused(owners.system.ask(TAG))
    assert (refusal.kind, refusal.message) == ("exhausted", failure.message)
