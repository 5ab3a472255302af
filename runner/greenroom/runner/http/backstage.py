"""What the front door needs of a `Greenroom`: anything else of this shape may stand behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from greenroom.actors.gates import GateBoard
from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.values import BackendFacts, Engine, InstallPolicy, Model
from greenroom.runner.backends.base import Backend
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.store import Store


class DoorSettings(Protocol):
    """The settings the front door reads."""

    @property
    def install_policy(self) -> InstallPolicy:
        """What a request may cause to be installed."""
        ...

    @property
    def max_wait(self) -> float:
        """Seconds a request may wait for an engine."""
        ...

    @property
    def progress_after(self) -> float:
        """Seconds after which a waiting streaming client is told what is going on."""
        ...

    @property
    def unread_for(self) -> float:
        """Seconds a client may read nothing of its answer while others wait; 0 is without end."""
        ...

    @property
    def max_body(self) -> int:
        """Bytes a request's body may have."""
        ...


class Backstage(Protocol):
    """The runner behind the front door."""

    @property
    def settings(self) -> DoorSettings:
        """How it is configured."""
        ...

    @property
    def home(self) -> Path:
        """The data directory."""
        ...

    @property
    def home_problem(self) -> str:
        """What is wrong with the data directory; empty when nothing is."""
        ...

    @property
    def instance_id(self) -> str:
        """What a client knows this data directory by."""
        ...

    def prove(self, challenge: str, address: str) -> str:
        """Proves to a client at this address that the data directory is ours; empty where it cannot."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """Why the actors have stopped themselves; None while they have not."""
        ...

    @property
    def system(self) -> ActorSystem:
        """Where the actors are."""
        ...

    @property
    def gates(self) -> GateBoard:
        """Who is inside which engine."""
        ...

    @property
    def board(self) -> ProgressBoard:
        """How far jobs are."""
        ...

    @property
    def backends(self) -> Mapping[str, Backend]:
        """The declarations, by name."""
        ...

    @property
    def facts(self) -> tuple[BackendFacts, ...]:
        """What the actors know of the declarations on this machine."""
        ...

    def budget_for(self, backend: str) -> int:
        """Bytes that one engine of this backend may use at most, where it computes."""
        ...

    @property
    def store(self) -> Store:
        """The models on disk."""
        ...

    @property
    def puller(self) -> Puller:
        """Knows where models come from."""
        ...

    def find_model(self, text: str) -> Model | None:
        """The model people call by this name, if it is here."""
        ...

    def models(self) -> tuple[Model, ...]:
        """All models that are here."""
        ...

    def engines(self) -> tuple[Engine, ...]:
        """All engines of all runners, and the last that are gone."""
        ...

    def statuses(self) -> tuple[BackendStatus, ...]:
        """All backends as the installer sees them."""
        ...
