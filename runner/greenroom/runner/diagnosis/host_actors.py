"""Actors of other programs, whose events lie in the journal: their classes, sentences and states.

A program gives them to its own Greenroom (`actors=`). So that the installed command line shows them too, its
distribution declares each through the entry point group `greenroom.actors`:

    [project.entry-points."greenroom.actors"]
    allowance = "my_program:ALLOWANCE"

The object is a `HostActor`, or a function without arguments that makes one. Distributions are only searched
when a journal has an event that Greenroom does not know. Their actors are not run: of a core, `initial`,
`claims` and `apply` are used. What cannot be used is left out, with a sentence in `problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from greenroom.actors.journal.port import JournalError, Record

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from greenroom.actors.kernel.core import Core, EffectHandler, Event
    from greenroom.actors.kernel.event_store import Codec

    Sentences = Mapping[type[Event], Callable[[Any], str]]

GROUP = "greenroom.actors"


@dataclass(frozen=True)
class HostActor:
    """An actor of the host program, which shares the journal with Greenroom's own actors."""

    core: Core[Any, Any]
    sentences: Sentences = field(default_factory=dict)
    """By event type, a function that returns the sentence for `greenroom log`, `why` and `replay`."""
    effect_handler: EffectHandler | None = None
    """Carries out its effects in the program that runs it."""

    def __post_init__(self) -> None:
        """Raises TypeError for what is no core, or no sentences."""
        if isinstance(self.core, type) or not hasattr(self.core, "address"):
            raise TypeError(f"core must be an instance of a core, not {self.core!r:.80}")
        if not isinstance(self.sentences, Mapping):
            raise TypeError(f"sentences must be a dictionary, not {type(self.sentences).__name__}")
        for kind, word in self.sentences.items():
            if not hasattr(kind, "TAG") or not callable(word):
                raise TypeError(
                    f"sentences must have functions by class of event, not {word!r:.60} by {kind!r:.60}"
                )


class HostActors:
    """The actors of other programs, as a journal is read with them. Thread-safe."""

    def __init__(
        self, given: Iterable[HostActor] = (), entry_points: Callable[[], Iterable[EntryPoint]] | None = None
    ) -> None:
        """`given` come before those that are declared; `entry_points` finds these."""
        self._given = tuple(given)
        self._entry_points = entry_points or _declared
        self._guard = Lock()
        self._is_complete = False
        self._codec: Codec
        self._cores: list[Core[Any, Any]] = []
        self._sentences: dict[str, Callable[[Any], str]] = {}
        self._problems: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """Why some that are declared are left out, a sentence each, as far as they were searched for."""
        return tuple(self._problems)

    def core_of(self, stream: str) -> Core[Any, Any] | None:
        """The one whose stream it is."""
        self._complete()
        return next((core for core in self._cores if core.claims(stream)), None)

    def event(self, record: Record) -> Event | None:
        """The event of a record, of any type that is known; None otherwise."""
        self._complete()
        try:
            stored = self._codec.decode(record)
        except JournalError:
            return None
        return stored.event if stored is not None else None

    def sentence(self, record: Record) -> str:
        """What its program says of an event; empty if it says nothing."""
        self._complete()
        word = self._sentences.get(record.type)
        event = self.event(record) if word is not None else None
        if word is None or event is None:
            return ""
        try:
            return " ".join(str(word(event)).split())
        except (Exception, SystemExit):  # other people's code may raise anything
            import logging  # commands import this module and log nothing

            logging.getLogger(__name__).exception("the sentence for %s (%s) failed", record.id, record.type)
            return ""

    def _complete(self) -> None:
        with self._guard:
            if self._is_complete:
                return
            # Rarely needed, and not quick to import.
            from greenroom.runner.diagnosis.actors import event_codec

            self._codec = event_codec()
            for one in self._given:
                self._add(one)
            known = {core.address for core in self._cores}
            for entry in self._entry_points():
                try:
                    actor = _loaded(entry)
                    if actor.core.address not in known:
                        self._add(actor)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - other people's code may raise anything
                    where = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
                    words = " ".join(str(error).split()).rstrip(".")[:200]
                    self._problems.append(
                        f"The actor {entry.name!r} of {where} is ignored: {type(error).__name__}: {words}."
                    )
            self._is_complete = True

    def _add(self, actor: HostActor) -> None:
        actor.core.initial()
        self._codec.register(actor.core.event_types)
        self._cores.append(actor.core)
        self._sentences |= {kind.TAG: word for kind, word in actor.sentences.items()}


def _loaded(entry: EntryPoint) -> HostActor:
    loaded: Any = entry.load()
    actor = loaded if isinstance(loaded, HostActor) else loaded()
    if not isinstance(actor, HostActor):
        raise TypeError(f"{entry.value} is not a HostActor")
    return actor


def _declared() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))


INSTALLED = HostActors()
"""Those that the installed distributions declare."""
