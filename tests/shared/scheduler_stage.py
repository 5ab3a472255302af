"""The scheduler on a stage: its core with real gates, a manual clock, and owners told by a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

import msgspec

from greenroom.actors.engine_runner.messages import EngineList, ForbidStart
from greenroom.actors.gates import GateEffects
from greenroom.actors.installer.messages import BackendStatus, InstallationList
from greenroom.actors.kernel.core import Address, Answer, Command, Decision, Effect, Recovered, Tell
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.messages import ModelList
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    HoldGates,
    LeaveGate,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.scheduler.ledger import Memory
from greenroom.actors.scheduler.messages import GateEmptied, Granted, Serve
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.testing import Case
from greenroom.actors.values import (
    BackendFacts,
    Engine,
    EngineExit,
    EngineSpec,
    Failure,
    Installation,
    Model,
    RequestSnapshot,
)
from strict_gates import StrictGates

C = TypeVar("C", bound=Command[Any])

GIB = 2**30

LLAMA = BackendFacts(
    name="llama.cpp",
    deferred=False,
    formats=("gguf",),
    modes=("completion", "embedding"),
    preference=10,
    install_preference=10,
)
MLX = BackendFacts(
    name="mlx",
    deferred=True,
    formats=("safetensors", "safetensors-mlx"),
    modes=("completion",),
    preference=30,
    install_preference=10,
    download_bytes=350_000_000,
)
VLLM = BackendFacts(
    name="vllm",
    deferred=True,
    formats=("safetensors",),
    modes=("completion", "embedding"),
    preference=10,
    install_preference=20,
)
METAL = BackendFacts(
    name="vllm-metal",
    deferred=True,
    formats=("safetensors",),
    modes=("completion",),
    preference=20,
    install_preference=20,
    verdict="vllm-metal needs macOS 15 or newer on Apple silicon.",
)
FACTS = (LLAMA, MLX, VLLM, METAL)


def model(name: str, size: int = GIB, **more: Any) -> Model:
    return Model(id=f"sha256:{name}", tags=(name,), size=size, **more)


def installation(backend: str, version: str = "1", **more: Any) -> Installation:
    return Installation(id=f"{version}-aaaa.1", backend=backend, version=version, digest="aaaa", **more)


def installed(backend: str, **more: Any) -> BackendStatus:
    one = installation(backend)
    return BackendStatus(
        name=backend, state="installed", current=one, installations=(one,), wanted=True, **more
    )


def absent(backend: str, **more: Any) -> BackendStatus:
    return BackendStatus(name=backend, state="absent", **more)


def exited(at: float = 0.0, **more: Any) -> EngineExit:
    return EngineExit(at=at, **{"code": 1, "summary": "It died.", **more})


class Stage(Case[Any, Any]):
    """A scheduler and its inputs. `gates` are real ones; the effects on them are carried out."""

    def __init__(
        self,
        *,
        facts: Sequence[BackendFacts] = FACTS,
        policy: Any = "ask",
        limits: Limits = Limits(),  # noqa: B008 - frozen
        memory: Memory = Memory(budget=8 * GIB, available=8 * GIB),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(Scheduler(facts, policy=policy, limits=limits))
        self.facts = facts
        self.memory = memory
        self.gates = StrictGates(lambda: self.clock.now().monotonic)
        self._gate_effects = GateEffects(self.gates, ProgressBoard())
        self.disk_full = False
        self.answering = True
        """Whether runners have handled what was sent to them."""
        self.outcomes: dict[str, Any] = {}
        """What each request was answered."""
        self.informed: dict[str, PublishRequestProgress] = {}
        self.performed: list[Effect] = []
        """Every effect of all lives."""
        self.statuses = {one.name: absent(one.name) for one in facts}
        self.models: dict[str, Model] = {}
        self.engines: dict[str, dict[str, Engine]] = {one.name: {} for one in facts}
        self._version = 0

    # what others tell

    def begin(self, *models: Model, installed_ones: Sequence[str] = ("llama.cpp",)) -> Self:
        """A new life in which every owner has sent its list."""
        self.when(Recovered()).rest()
        for name in installed_ones:
            self.statuses[name] = installed(name)
        self.models |= {one.id: one for one in models}
        self.hear_installer()
        self.hear_library()
        for name in self.engines:
            self.hear_runner(name)
        return self

    def rebuild(self) -> Self:
        """Lose what is volatile; the gates stay."""
        super().rebuild()
        return self.begin(installed_ones=())

    def hear_installer(self, *changed: BackendStatus, heard: dict[str, str] | None = None) -> Self:
        self.statuses |= {one.name: one for one in changed}
        self._version += 1
        told = InstallationList(
            backends=tuple(self.statuses.values()), version=self._version, heard=heard or {}
        )
        return self.when(told).rest()

    def hear_library(self, *models: Model) -> Self:
        self.models |= {one.id: one for one in models}
        return self.when(ModelList(models=tuple(self.models.values()), version=1)).rest()

    def hear_runner(self, backend: str = "llama.cpp", *engines: Engine) -> Self:
        self.engines[backend] |= {one.spec.engine_id: one for one in engines}
        calls = [one.token for one in self.sent(RequestSnapshot, f"runner/{backend}") if one.token]
        never = [one.engine_id for one in self.sent(ForbidStart, f"runner/{backend}")]
        told = EngineList(
            backend=backend,
            engines=tuple(self.engines[backend].values()),
            version=1,
            token=calls[-1] if self.answering and calls else "",
            forbidden=tuple(one for one in never if one not in self.engines[backend])
            if self.answering
            else (),
        )
        return self.when(told).rest()

    # what engines do

    @property
    def loads(self) -> list[EngineSpec]:
        """Engines that are loading or loaded, oldest first."""
        return [load.spec for load in self.state.loads.values()]

    def spec_of(self, name: str) -> EngineSpec:
        return next(spec for spec in self.loads if spec.model_id == f"sha256:{name}")

    def engine_is(self, spec: EngineSpec, state: Any, **more: Any) -> Self:
        """The runner tells that an engine has come to this state."""
        engine = Engine(
            spec=spec, state=state, since=self.now.wall, endpoint=f"/run/{spec.engine_id}.sock", **more
        )
        return self.hear_runner(spec.backend, engine)

    def dies(self, spec: EngineSpec, **more: Any) -> Self:
        return self.engine_is(spec, "gone", exit=exited(self.now.wall, **more))

    # what clients do

    def serve(self, request_id: str, name: str, **more: Any) -> Self:
        ask = Serve(request_id=request_id, model_id=f"sha256:{name}", model_ref=name, **more)
        self.when(ask)
        if isinstance(self.reply, Refusal):
            self.outcomes[request_id] = self.reply
        return self.rest()

    def loaded(self, name: str, request_id: str = "", **more: Any) -> EngineSpec:
        """Have a model loaded and no request inside."""
        request = request_id or f"load-{name}"
        self.serve(request, name, **more)
        spec = self.spec_of(name)
        self.engine_is(spec, "starting").engine_is(spec, "ready")
        assert isinstance(self.outcomes[request], Granted), self.outcomes[request]
        self.leave(request)
        return spec

    def leave(self, request_id: str) -> Self:
        inside = [one for one in self.gates.readings() if request_id in self.gates.inside(one)]
        self.gates.leave(request_id)
        for one in inside:
            self.when(GateEmptied(engine_id=one)).rest()
        return self

    def pass_time(self, seconds: float) -> Self:
        return self.advance(seconds).rest()

    def refused(self, request_id: str) -> Refusal:
        outcome = self.outcomes[request_id]
        assert isinstance(outcome, Refusal), outcome
        return outcome

    def granted(self, request_id: str) -> Granted:
        outcome = self.outcomes[request_id]
        assert isinstance(outcome, Granted), outcome
        return outcome

    # as an actor does it

    def look(self) -> Any:
        self.volatile = msgspec.structs.replace(
            self.volatile, gates=self.gates.readings(), memory=self.memory
        )
        return self.volatile

    def sent(self, kind: type[C], to: str = "runner/llama.cpp") -> list[C]:
        """All commands of one kind that were ever sent to an actor."""
        return [
            effect.command
            for effect in self.performed
            if isinstance(effect, Tell) and effect.address == Address(to) and isinstance(effect.command, kind)
        ]

    def stored(self, kind: type[Any]) -> list[Any]:
        """All events of one kind in this life."""
        return [one.event for one in self.history if isinstance(one.event, kind)]

    def carry_out(self, decision: Decision[Any], cause: str) -> None:
        urgent = any(event.is_urgent for event in decision.events)
        if self.disk_full and decision.events and not urgent:
            decision = decision.if_not_stored or Decision()
        before = len(self.effects)
        super().carry_out(decision, cause)
        for effect in self.effects[before:]:
            self.performed.append(effect)
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case OpenGate() | HoldGates() | CloseGate() | RemoveGates() | AdmitRequest() | LeaveGate():
                self._gate_effects.perform(effect, "")
            case PublishRequestProgress(request_id=request):
                self.informed[request] = effect
            case Answer(key=key, outcome=outcome):
                self.outcomes.setdefault(key, outcome)
            case _:
                pass


NO_SPACE = Failure(kind="permanent", code="no_space", message="There is no room on the disk.")
OFFLINE = Failure(kind="transient", code="unreachable", message="The index does not answer.")


def begun(*models: Any, installed_ones: Any = ("llama.cpp",), **more: Any) -> Stage:
    return Stage(**more).begin(*models, installed_ones=installed_ones)


def room_for(models: int) -> Memory:
    return Memory(budget=models * GIB, available=models * GIB)
