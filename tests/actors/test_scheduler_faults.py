"""What raises while the scheduler decides costs one request or one load; everyone else is served."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.conversation_log import ConversationLog
from greenroom.actors.daemon_log import DaemonLog, DaemonStarted
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.idempotency import Idempotency
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.kernel.core import Command, NotUnderstood
from greenroom.actors.library.core import Library
from greenroom.actors.scheduler import reconcile
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.events import ConfigChanged, LoadFailed, LoadRefused
from greenroom.actors.scheduler.ledger import Memory
from scheduler_stage import FACTS, GIB, Stage, begun, model

STARTED = DaemonStarted(pid=1, version="0", platform="test")
POISON = ConfigChanged(model_id="sha256:bad", model_ref="bad", mode="completion", context_size=10**320)


def poisoned() -> Stage:
    """A journal that an earlier version has let a context of 10^320 tokens into."""
    stage = Stage()
    stage.given(POISON)
    stage.faults_allowed = True
    return stage.begin(model("bad", kv_bytes_per_token=1000), model("good"))


def test_a_stored_configuration_that_no_client_may_ask_for_any_more_was_never_said() -> None:
    stage = poisoned()
    stage.serve("r1", "bad").serve("r2", "good")
    assert stage.faults == []
    assert [(spec.model_ref, spec.context_size) for spec in stage.loads] == [("bad", 0), ("good", 0)]


@pytest.fixture
def raises(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a function of the scheduler raise for one name."""

    def patch(module: str, name: str, wrong: str, of: Any) -> None:
        import importlib

        loaded = importlib.import_module(f"greenroom.actors.{module}")
        real = getattr(loaded, name)

        def picky(*arguments: Any, **more: Any) -> Any:
            if wrong in of(*arguments):
                raise ZeroDivisionError(f"{wrong} cannot be")
            return real(*arguments, **more)

        monkeypatch.setattr(loaded, name, picky)

    return patch


def test_an_exception_about_one_waiting_request_refuses_that_one_and_is_noted(raises: Any) -> None:
    stage = begun(model("bad"), model("good"))
    stage.faults_allowed = True
    raises("scheduler.queue", "choose", "bad", lambda one, *_: one.id)
    stage.serve("r1", "bad").serve("r2", "good")
    refusal = stage.refused("r1")
    assert (refusal.code, refusal.kind, refusal.subject) == ("internal_error", "internal", "bad")
    assert [spec.model_ref for spec in stage.loads] == ["good"]
    assert {(one.doing, one.about) for one in stage.faults} == {("serve a request", "r1")}
    assert [one.code for one in stage.stored(LoadRefused)] == ["internal_error"]
    stage.serve("r3", "bad")
    assert stage.refused("r3").code == "internal_error"
    assert len(stage.stored(LoadRefused)) == 1


def test_an_exception_about_one_load_fails_that_load_and_no_other(raises: Any) -> None:
    stage = begun(model("bad"), model("good"))
    stage.faults_allowed = True
    stage.serve("r1", "bad").serve("r2", "good")
    bad, good = stage.spec_of("bad"), stage.spec_of("good")
    raises("scheduler.reconcile", "failure_of", "bad", lambda engine: engine.spec.model_ref)
    stage.engine_is(bad, "starting").engine_is(good, "starting")
    stage.dies(bad)
    assert stage.refused("r1").code == "internal_error"
    assert [spec.model_ref for spec in stage.loads] == ["good"]
    [failed] = stage.stored(LoadFailed)
    assert failed.failure.code == "internal_error"
    assert stage.state.breakers == {}
    stage.engine_is(good, "ready")
    assert stage.granted("r2").engine_id == good.engine_id


def test_a_step_that_raises_is_skipped_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = begun(model("good"))
    stage.faults_allowed = True

    def cannot() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reconcile, "Ready", cannot)
    stage.serve("r1", "good")
    spec = stage.spec_of("good")
    stage.engine_is(spec, "starting").engine_is(spec, "ready")
    assert stage.granted("r1").engine_id == spec.engine_id
    assert {one.doing for one in stage.faults} == {"schedule (report_ready)"}


def test_an_engine_that_cannot_be_ended_keeps_no_other_from_ending(raises: Any) -> None:
    stage = begun(model("bad"), model("good"), memory=Memory(budget=64 * GIB, available=64 * GIB))
    stage.loaded("bad")
    stage.loaded("good")
    stage.faults_allowed = True
    raises("scheduler.reconcile", "eviction", "bad", lambda engine, *_: engine.spec.model_ref)
    stage.pass_time(301)
    assert [spec.model_ref for spec in stage.loads] == ["bad"]
    assert {one.doing for one in stage.faults} == {"end an idle engine"}


@pytest.mark.parametrize(
    "core",
    [
        Scheduler(FACTS),
        InstallerCore(FACTS),
        Library(),
        Runner("mlx"),
        Idempotency(),
        ConversationLog(),
        DaemonLog(STARTED),
    ],
    ids=lambda core: type(core).__name__,
)
def test_every_actor_says_what_it_does_not_know_and_nothing_comes_of_it(core: Any) -> None:
    class Strange(Command[Any], frozen=True, kw_only=True):
        pass

    with pytest.raises(NotUnderstood, match=f"{core.address} does not know the command Strange"):
        core.decide(core.initial(), Strange(), Stage().now, core.initial_volatile())
