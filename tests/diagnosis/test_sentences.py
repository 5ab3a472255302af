from __future__ import annotations

import msgspec
import pytest

from greenroom.actors import conversation_log, daemon_log, idempotency, remote_log
from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped, DevicesChanged
from greenroom.actors.engine_runner import events as engine_runner_events
from greenroom.actors.engine_runner.events import EngineReady, EngineStartRequested
from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.installer import events as installer_events
from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.core import Event
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library import events as library_events
from greenroom.actors.library.events import (
    ModelCommitted,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.actors.scheduler import events as scheduler_events
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.values import (
    Caller,
    DeclaredEnvironment,
    EngineExit,
    EngineSpec,
    Failure,
    Installation,
    Loaded,
    Model,
)
from greenroom.actors.variants import RankedVariant
from greenroom.runner.diagnosis.sentences import TOLD, Narrator

OWNERS = (
    installer_events,
    engine_runner_events,
    scheduler_events,
    library_events,
    idempotency,
    daemon_log,
    conversation_log,
    remote_log,
)
EVENT_TYPES = [
    value
    for owner in OWNERS
    for value in vars(owner).values()
    if isinstance(value, type) and issubclass(value, Event) and value is not Event
] + [CommandParked]

SPEC = EngineSpec(
    engine_id="e1",
    backend="llama.cpp",
    installation_id="1.0-ab.1",
    model_id="sha256:" + "a" * 64,
    model_ref="docker.io/ai/smollm2:latest",
    memory=312_000_000,
)
INSTALLATION = Installation(id="1.0-ab.1", backend="mlx", version="1.0", size=421_000_000)
FAILURE = Failure(kind="transient", code="unreachable", message="The index did not answer.", advice="Wait.")


def tell(narrator: Narrator, event: Event) -> str:
    return narrator.tell(record_of(type(event).TAG, msgspec.json.encode(event).decode()))


def record_of(tag: str, data: str) -> Record:
    return Record(seq=1, at=0.0, stream="s", version=1, type=tag, schema=1, cause="", data=data)


def test_every_event_has_a_sentence_and_no_sentence_lacks_an_event() -> None:
    assert {kind.TAG for kind in EVENT_TYPES} == TOLD


def example(kind: type[Event]) -> Event:
    """An event of this type with something in every field that has no default."""
    values = {
        "spec": SPEC,
        "installation": INSTALLATION,
        "failure": FAILURE,
        "exit": EngineExit(at=1.0, code=1, summary="It ran out of memory"),
        "model": Model(id=SPEC.model_id, tags=(SPEC.model_ref,)),
        "loaded": Loaded(layers=3, total=31, size=10**8, reason="no usable GPU found"),
        "mode": "completion",
        "wanted_by": "request",
        "declared": DeclaredEnvironment(requirement="black>=26", python="3.12"),
        "variants": (RankedVariant(name="cpu", usable=True, reason="It runs on the processor."),),
    }
    filled = {}
    for each in msgspec.structs.fields(kind):
        if each.required:
            default = {int: 7, float: 7.0, str: "x", tuple[str, ...]: ("x",)}.get(each.type, "x")
            filled[each.name] = values.get(each.name, default)
    return kind(**filled)


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.TAG)
def test_a_sentence_is_a_sentence(kind: type[Event]) -> None:
    sentence = tell(Narrator(), example(kind))

    assert not sentence.startswith(f"{kind.TAG}: "), "it fell back to raw fields"
    assert sentence[0].isupper() or sentence.startswith(("x", "smollm2", "llama.cpp", "mlx"))
    assert sentence.endswith(".")
    assert ".." not in sentence
    assert "None" not in sentence


def test_an_event_that_names_only_a_job_is_worded_with_what_the_job_is_about() -> None:
    narrator = Narrator()
    tell(narrator, PullRequested(job="pull-1", reference="docker.io/ai/smollm2:latest"))

    sentence = tell(narrator, PullFailed(job="pull-1", failure=FAILURE))

    assert sentence == "Pulling smollm2 failed: The index did not answer. Wait."


def test_a_model_of_another_program_is_adopted_and_not_pulled() -> None:
    narrator = Narrator()
    asked = PullRequested(job="pull-1", reference="docker.io/ai/smollm2:latest", origin="/models/x.gguf")
    model = Model(id=f"sha256:{'ab' * 32}", tags=("docker.io/ai/smollm2:latest",))
    told = [
        tell(narrator, one)
        for one in (
            asked,
            ModelCommitted(job="pull-1", model=model, seconds=2.0),
            PullAttemptFailed(job="pull-1", attempt=1, failure=FAILURE, retry_at=1.0),
            PullFailed(job="pull-1", failure=FAILURE),
            PullCancelled(job="pull-1", reason="r-1 asked for it"),
        )
    ]
    assert told[1] == "Adopted smollm2 from /models/x.gguf in 2s and verified it."
    assert told[3].startswith("Adopting smollm2 from /models/x.gguf failed: ")
    assert not [one for one in told if "pull" in one.lower()]


def test_an_event_that_names_only_an_engine_is_worded_with_its_model_and_backend() -> None:
    narrator = Narrator()
    tell(narrator, EngineStartRequested(spec=SPEC))

    sentence = tell(narrator, EngineReady(engine_id="e1", seconds=0.84))

    assert sentence == "Engine e1 (smollm2 on llama.cpp) is ready after 0.84s."


def test_a_start_without_a_stop_before_it_says_so() -> None:
    narrator = Narrator()
    start = DaemonStarted(pid=11, version="0.1", platform="Linux")
    assert "cleanly" not in tell(narrator, start)

    assert "The previous daemon (process 11) did not shut down cleanly." in tell(
        narrator, msgspec.structs.replace(start, pid=12)
    )

    tell(narrator, DaemonStopped(pid=12, reason="a stop was requested"))
    assert "cleanly" not in tell(narrator, msgspec.structs.replace(start, pid=13))


CARD = GraphicsDevice(
    id="GPU-1", maker="nvidia", name="NVIDIA L4", driver="570.1", runtimes=(("cuda", "12.8"),)
)
BROKEN = msgspec.structs.replace(
    CARD, problem=Failure(kind="permanent", code="driver_mismatch", message="They differ.", advice="Restart.")
)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ((), (CARD,), "NVIDIA L4 was found (driver 570.1)."),
        ((CARD,), (), "NVIDIA L4 is gone."),
        ((CARD,), (BROKEN,), "NVIDIA L4 cannot be used: They differ. Restart."),
        ((BROKEN,), (CARD,), "NVIDIA L4 can be used again."),
        (
            (CARD,),
            (msgspec.structs.replace(CARD, driver="580.9"),),
            "NVIDIA L4 has another driver: 580.9 instead of 570.1.",
        ),
        (
            (CARD,),
            (msgspec.structs.replace(CARD, runtimes=(("vulkan", "1.3.2"),)),),
            "NVIDIA L4 has changed: vulkan 1.3.2, no cuda.",
        ),
        ((), (), "all problems are resolved."),
    ],
)
def test_what_is_new_about_a_device_is_told(
    before: tuple[GraphicsDevice, ...], after: tuple[GraphicsDevice, ...], told: str
) -> None:
    assert tell(Narrator(), DevicesChanged(before=before, after=after)) == f"Graphics devices: {told}"


def test_an_eviction_says_what_decided() -> None:
    event = EvictionDecided(
        engine_id="e1",
        model_id=SPEC.model_id,
        model_ref=SPEC.model_ref,
        backend="llama.cpp",
        reason="room",
        in_favour_of="docker.io/ai/gemma3:latest",
        memory=312_000_000,
        needed=2_000_000_000,
        free=1_900_000_000,
    )

    assert tell(Narrator(), event) == (
        "Evicting smollm2 from llama.cpp (engine e1) to make room for gemma3: "
        "2.00 GB needed, 1.90 GB free; smollm2 holds 312 MB."
    )


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        ("never_heard_of", '{"a":1}'),
        ("engine_ready", "{}"),
        ("engine_ready", "[]"),
        ("engine_ready", "not JSON"),
    ],
)
def test_an_event_that_cannot_be_worded_is_shown_as_stored(tag: str, data: str) -> None:
    assert Narrator().tell(record_of(tag, data)) == f"{tag}: {data}"


def test_a_fault_is_worded_with_its_subject_and_its_blame() -> None:
    def told(actor: str, command: str, fields: str) -> str:
        traceback = "Traceback …\nZeroDivisionError: division by zero"
        event = CommandParked(actor=actor, command=command, fields=fields, traceback=traceback)
        return Narrator().tell(record_of("command_parked", msgspec.json.encode(event).decode()))

    assert told("library", "Pull", "{}").startswith(
        "Bug in Greenroom: library failed twice on Pull and refused it: ZeroDivisionError: division"
    )
    assert told("scheduler", "serve a request", "r-7").startswith(
        "Bug in Greenroom: scheduler could not serve a request (r-7) and skipped it: Zero"
    )
    assert told("allowance", "settle", "").startswith(
        "Bug in the host program's actor allowance: allowance could not settle and skipped it: Zero"
    )


def test_a_job_names_the_process_that_asked_and_no_address_of_this_machine() -> None:
    process = Caller(kind="process", id="1000/7", name="curl (process 7)")
    pull = PullRequested(job="pull.1", reference="docker.io/ai/smollm2:latest", caller=process)
    assert tell(Narrator(), pull) == "Pulling smollm2, requested by curl (process 7)."
    here = Caller(kind="address", id="127.0.0.1", name="127.0.0.1")
    pull = msgspec.structs.replace(pull, caller=here)
    assert tell(Narrator(), pull) == "Pulling smollm2, as requested."


def test_a_load_tells_its_slots_and_who_wanted_it() -> None:
    there = Caller(kind="address", id="192.0.2.7", name="192.0.2.7")
    spec = msgspec.structs.replace(SPEC, slots=4)
    admitted = LoadAdmitted(spec=spec, reserved=312_000_000, budget=10**9, caller=there)
    told = tell(Narrator(), admitted)
    assert told == (
        "Loading smollm2 on llama.cpp with 4 slots for 192.0.2.7; 312 MB reserved "
        "(312 MB of 1.00 GB in total)."
    )
