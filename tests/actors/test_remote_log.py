"""What is stored about remote backends, and how their slots are assigned."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.remote_log import NoteRemote, RemoteAnswered, RemoteFailed, RemoteLog
from greenroom.actors.scheduler.messages import Drain, Serve, SlotFreed
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.testing import given
from greenroom.actors.values import Caller, Engine, EngineSpec, Failure
from scheduler_stage import Stage, model

REFUSED = Failure(kind="transient", code="unreachable", message="Connection refused.")
ABOUT: dict[str, Any] = {"backend": "lab", "url": "http://lab/v1", "life": "1"}
UP = NoteRemote(models=("a", "b"), count=2, **ABOUT)
LAB = EngineSpec(engine_id="lab", backend="lab", installation_id="", model_id="lab", model_ref="lab", slots=2)
REMOTE = Engine(spec=LAB, state="ready", since=0.0, endpoint="http://lab/v1")


def test_only_a_change_is_stored_and_the_first_answer_of_each_life() -> None:
    case = given(RemoteLog())
    case = case.when(UP).then(RemoteAnswered(models=("a", "b"), count=2, **ABOUT))
    case = case.when(UP).then()
    case = case.when(replace(UP, models=("a",), count=1)).then()
    down = NoteRemote(failure=REFUSED, **ABOUT)
    case = case.when(down).then(RemoteFailed(failure=REFUSED, **ABOUT))
    case = case.when(replace(down, failure=replace(REFUSED, message="It is still refused."))).then()
    other = replace(REFUSED, code="key_refused")
    case = case.when(replace(down, failure=other)).then(RemoteFailed(failure=other, **ABOUT))
    case = case.when(replace(UP, life="2")).then(RemoteAnswered)
    case = case.when(replace(UP, life="2", url="http://other/v1")).then(RemoteAnswered)
    assert case.state.backends["lab"].url == "http://other/v1"


def serve(at: Stage, request: str, by: str) -> Stage:
    caller = Caller(kind="address", id=by, name=by)
    ask = Serve(
        request_id=request, model_id="lab", model_ref="lab/a", backend="lab", caller=caller, held=True
    )
    at.when(ask).rest()
    return at


def test_its_slots_are_given_in_turns_and_its_gate_is_there_without_a_load() -> None:
    at = Stage(limits=Limits(remotes={"lab": REMOTE})).begin(model("qwen"))
    assert at.gates.readings()["lab"].slots == 2
    at.loaded("qwen")
    assert at.gates.enter("lab", "completion", "lab", "r1") is not None
    assert at.gates.enter("lab", "completion", "lab", "r2") is not None
    assert at.gates.enter("lab", "completion", "lab", "r3") is None
    for request, by in (("r3", "greedy"), ("r4", "greedy"), ("r5", "modest")):
        serve(at, request, by)
    assert at.informed["r3"].message == "queued for a slot of lab/a, which has 2"
    at.gates.leave("r1")
    at.when(SlotFreed(engine_id="lab")).rest()
    at.gates.leave("r2")
    at.when(SlotFreed(engine_id="lab")).rest()
    assert at.gates.inside("lab") == {"r3", "r5"}, "callers take turns"
    # It holds no memory, and no drain waits for it.
    assert all(one.spec.backend != "lab" for one in at.state.loads.values())
    at.when(Drain()).rest()
    assert isinstance(at.outcomes["r4"], Refusal)
    assert at.outcomes["r4"].code == "stopping"
