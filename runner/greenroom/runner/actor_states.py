"""Reads the states of the actors directly, from any thread, without sending them a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from greenroom.actors.characters import NAME, is_line
from greenroom.actors.engine_runner.core import RunnerState
from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.messages import INSTALLER, BackendStatus
from greenroom.actors.installer.state import InstallerState
from greenroom.actors.kernel.errors import KernelError, Refusal, Refused, SystemFailed
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.library.state import LibraryState
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.scheduler.state import ModelConfigState, Quarantine, SchedulerState
from greenroom.actors.values import Engine, Installation, Model
from greenroom.runner.models.near_names import did_you_mean
from greenroom.runner.models.references import AmbiguousName, BadReference, find_model, listed_names, shown
from greenroom.runner.remotes.watch import Remotes

_NAMES = 1_000
"""Names that are remembered: clients use few, and hostile ones must not fill the memory."""
_REMEMBERED = 256
"""Characters of a name that is remembered; a longer one is looked up each time."""


class NotRunning(RuntimeError):
    """This Greenroom has not been started, or has been stopped."""


class NoSuchModel(Refused):
    """No model has this name, or it is no name."""

    def __init__(self, refusal: Refusal, param: str) -> None:
        super().__init__(refusal)
        self.param = param
        """The field or parameter with the name."""


class ActorStates:
    """The models, engines and backends of a running system."""

    def __init__(self, backends: Iterable[str], remotes: Remotes) -> None:
        self.remotes = remotes
        """Remote backends and their models; none of these models is in the store."""
        self._runners = tuple(runner_address(name) for name in backends)
        self._system: ActorSystem | None = None
        self.failure: BaseException | None = None
        """Why the system has stopped itself, if it has."""
        self._named: tuple[Mapping[str, Model], dict[str, Model]] = {}, {}
        """Resolved names; valid until the models change."""

    @property
    def system(self) -> ActorSystem:
        """The actors. Raises NotRunning before the start and after the stop."""
        if self._system is None:
            raise NotRunning("this Greenroom is not running: start it, or use it as a context manager")
        return self._system

    @property
    def is_running(self) -> bool:
        """It has been started, and not stopped since."""
        return self._system is not None

    # models

    def models(self) -> tuple[Model, ...]:
        """The models in the store, in no order."""
        return tuple(self._models().values())

    def find_model(self, text: str) -> Model | None:
        """The model with this name or tag. Raises BadReference, AmbiguousName."""
        return find_model(text, self.models())

    def model(self, name: str, param: str = "model") -> Model:
        """The model with this name or tag, which `param` of a request holds. Raises NoSuchModel.

        Raises SystemFailed when the actors have stopped themselves: which models there are is not known then.
        """
        if self.failure is not None:
            raise SystemFailed(str(self.failure)) from self.failure
        models = self._models()
        known = self._named
        if known[0] is not models:
            known = self._named = models, {}
        if (model := known[1].get(name)) is not None:
            return model
        if not is_line(name):
            raise _bad_name(f"A model's name is one line of at most {NAME} printable characters.", param)
        try:
            model = find_model(name, models.values())
        except (BadReference, AmbiguousName) as error:
            raise _bad_name(str(error), param) from None
        if model is None:
            self.see_that_it_is_ours(name, param)
            raise _not_found(name, models.values(), param)
        if len(name) <= _REMEMBERED and len(known[1]) < _NAMES:
            known[1][name] = model
        return model

    def see_that_it_is_ours(self, name: str, param: str = "model") -> None:
        """Raise NoSuchModel for a name that begins with a remote backend's."""
        if (named := self.remotes.named(name)) is not None:
            remote, name = named[0], shown(name.strip())
            url = remote.settings.url
            raise NoSuchModel(
                Refusal(
                    code="not_ours",
                    kind="conflict",
                    message=f"{name} is a model of the remote backend {remote.name} ({url}).",
                    advice="You can send it requests, but Greenroom does not store, load or configure it.",
                    subject=name,
                ),
                param,
            )

    def _models(self) -> Mapping[str, Model]:
        state: LibraryState = self.system.state(LIBRARY)
        return state.models

    def configs(self) -> Mapping[str, ModelConfigState]:
        """How models are configured, by `config_key`; empty while the scheduler cannot tell."""
        state = self._scheduler()
        return state.configs if state is not None else {}

    def quarantines(self) -> tuple[Quarantine, ...]:
        """Models that an older version of a backend serves; empty while the scheduler cannot tell."""
        state = self._scheduler()
        return tuple(state.quarantines.values()) if state is not None else ()

    def _scheduler(self) -> SchedulerState | None:
        try:
            state: SchedulerState = self.system.state(SCHEDULER)
        except KernelError:
            return None
        return state

    # engines and backends

    def engines(self) -> tuple[Engine, ...]:
        """All engines of all runners, including the last that ended."""
        found: list[Engine] = []
        for address in self._runners:
            state: RunnerState = self.system.state(address)
            found += state.engines.values()
        return tuple(found)

    def engine(self, engine_id: str) -> Engine | None:
        """An engine there is, or was lately."""
        return next((one for one in self.engines() if one.spec.engine_id == engine_id), None)

    def installation(self, backend: str, installation_id: str) -> Installation | None:
        """An installation that the installer knows."""
        state: InstallerState = self.system.state(INSTALLER)
        return state.of(backend).installations.get(installation_id)

    def installed_variants(self) -> set[tuple[str, str]]:
        """Each backend and variant of which the installer knows an installation."""
        state: InstallerState = self.system.state(INSTALLER)
        return {
            (name, one.variant)
            for name, backend in state.backends.items()
            for one in backend.installations.values()
        }

    def why_evicted(self, engine_id: str) -> tuple[str, str] | None:
        """Why an engine was evicted, and for which model, which may be empty; None if it was not, lately."""
        state: SchedulerState = self.system.state(SCHEDULER)
        return state.evicted.get(engine_id)

    def live_endpoints(self) -> set[str]:
        """Where engines listen, or have listened until they end."""
        return {engine.endpoint for engine in self.engines() if engine.state != "gone"}

    def statuses(self) -> tuple[BackendStatus, ...]:
        """All backends as the installer sees them."""
        core = self.system.addresses[INSTALLER]
        assert isinstance(core, InstallerCore)
        state: InstallerState = self.system.state(INSTALLER)
        return core.list_of(state, self.system.clock.now().wall).backends


def _bad_name(message: str, param: str) -> NoSuchModel:
    return NoSuchModel(Refusal(code="bad_model_name", message=message), param)


def _not_found(name: str, models: Iterable[Model], param: str) -> NoSuchModel:
    name = shown(name.strip())
    meant = did_you_mean(name, (tag for one in models for tag in listed_names(one)))
    found, pull = f'model "{name}" is not in the store', f"run: greenroom pull {name}"
    return NoSuchModel(
        Refusal(
            code="model_not_found",
            kind="not_found",
            message=f"{found}." if meant else f"{found}; {pull}",
            advice=f"{meant} Or {pull}" if meant else "",
            subject=name,
        ),
        param,
    )
