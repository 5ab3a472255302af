"""What the actors ask of their hands: each begins at once, never blocks, and reports back with a command."""

from __future__ import annotations

from greenroom.actors.facts import Caller, Engine, EngineSpec, Mode
from greenroom.actors.kernel.core import Effect

# installer


class BuildInstallation(Effect, frozen=True, kw_only=True):
    """Begin an attempt. Reports InstallCommitted or InstallAttemptEnded."""

    job: str
    backend: str
    version: str
    attempt: int
    repair: bool


class CancelBuild(Effect, frozen=True, kw_only=True):
    """End an attempt and remove what it left."""

    job: str


class LookAtInstallations(Effect, frozen=True, kw_only=True):
    """Sweep what has no commit mark, verify the rest. Reports InstallationsSeen for each backend."""

    backends: tuple[str, ...]


class RemoveInstallation(Effect, frozen=True, kw_only=True):
    """Delete its files. Reports InstallationGone."""

    backend: str
    installation_id: str


class PlanInstallation(Effect, frozen=True, kw_only=True):
    """Find out what would be fetched. Reports PlanMade."""

    backend: str
    version: str


class InformInstall(Effect, frozen=True, kw_only=True):
    """Say on the progress board what a job waits for between attempts; without a phase, that it is over."""

    backend: str
    phase: str = ""
    message: str = ""


# runner


class SpawnEngine(Effect, frozen=True, kw_only=True):
    """Start an engine. Reports SpawnedEngine, EngineMoved, EngineIsReady, EngineEnded."""

    spec: EngineSpec


class EndEngine(Effect, frozen=True, kw_only=True):
    """End an engine, by ever harder means. Reports EngineEnded."""

    engine_id: str
    reason: str


class RecoverEngines(Effect, frozen=True, kw_only=True):
    """Settle the journal's claims by looking. Reports AdoptedEngine, EngineEnded or LostEngine for each."""

    backend: str
    engines: tuple[Engine, ...]


# library


class FetchModel(Effect, frozen=True, kw_only=True):
    """Begin an attempt at a pull. Reports PullCommitted or PullAttemptEnded."""

    job: str
    reference: str
    token: str = ""
    force: bool = False


class CancelFetch(Effect, frozen=True, kw_only=True):
    """End an attempt; what has arrived is kept for the next one."""

    job: str


class InformPull(Effect, frozen=True, kw_only=True):
    """Say on the progress board what a pull waits for; without a phase, that it is over."""

    reference: str
    phase: str = ""
    message: str = ""


class LookAtModels(Effect, frozen=True, kw_only=True):
    """Reports ModelsSeen."""


class DeleteModel(Effect, frozen=True, kw_only=True):
    """Delete a model's files. Reports ModelGone."""

    model_id: str


class AddTag(Effect, frozen=True, kw_only=True):
    """Put a tag on a model, taken from whichever had it. Reports TagsWritten for both."""

    model_id: str
    tag: str


class RemoveTag(Effect, frozen=True, kw_only=True):
    """Take a tag off a model, which stays. Reports TagsWritten."""

    model_id: str
    tag: str


class StoreAgain(Effect, frozen=True, kw_only=True):
    """Store a model with another configuration. Reports ModelRepackaged."""

    model_id: str
    tag: str
    context_size: int | None


class SweepStore(Effect, frozen=True, kw_only=True):
    """Remove what no model needs. Reports StoreSwept."""


class SendModel(Effect, frozen=True, kw_only=True):
    """Begin to publish a model. Reports PushEnded."""

    model_id: str
    reference: str
    token: str = ""


class CancelSend(Effect, frozen=True, kw_only=True):
    """End a push."""

    reference: str


# scheduler


class OpenGate(Effect, frozen=True, kw_only=True):
    """Let requests into an engine."""

    engine_id: str
    model_id: str
    mode: Mode
    backend: str
    endpoint: str
    slots: int = 0
    """As many at once; 0 for all that come."""


class HoldGates(Effect, frozen=True, kw_only=True):
    """Requests are queued for these engines and no others: nobody walks in there."""

    engine_ids: tuple[str, ...]


class CloseGate(Effect, frozen=True, kw_only=True):
    """Let nobody else in."""

    engine_id: str


class RemoveGates(Effect, frozen=True, kw_only=True):
    """Keep the gates of these engines only; the others are gone."""

    keep: tuple[str, ...]


class AdmitRequest(Effect, frozen=True, kw_only=True):
    """Put a request into an engine's gate, which is open: only the scheduler closes it, in a later turn."""

    engine_id: str
    request_id: str
    caller: Caller = Caller()
    places: int = 1
    """Slots it takes."""


class LeaveGate(Effect, frozen=True, kw_only=True):
    """An abandoned request leaves whatever gate it may be in."""

    request_id: str


class InformRequest(Effect, frozen=True, kw_only=True):
    """Say on the progress board what a waiting request waits for."""

    request_id: str
    phase: str
    message: str
    follows: str = ""
    """The board's key of the job it waits for."""
    place: int = 0
    """In the queue; the first is 1."""
