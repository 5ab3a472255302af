"""Which events of a journal concern what, in a few bytes an event: a question reads only its own events."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property

import msgspec

from greenroom.runner.diagnosis.subjects import About


class Topic(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The type of an event and what it concerns besides its engine: many events share one."""

    type: str
    stream: str
    """`library`, `daemon`, `parked` for a command that an actor failed on, else empty."""
    models: tuple[str, ...]
    references: tuple[str, ...]
    backends: tuple[str, ...]
    job: str


class EventIndex:
    """What the events of one journal concern, by their numbers, from the first one on without a gap."""

    def __init__(
        self,
        topics: Sequence[Topic] = (),
        engines: Sequence[str] = (),
        topic_of: bytes = b"",
        engine_of: bytes = b"",
    ) -> None:
        """The last two hold an unsigned 32-bit number an event: of its topic; of its engine, or 0.

        Raises ValueError where these do not fit together.
        """
        self.topics = list(topics)
        self.engines = list(engines) or [""]
        """In the order in which the journal first names them, after an empty one."""
        self.topic_of, self.engine_of = array("I", topic_of), array("I", engine_of)
        if (
            len(self.topic_of) != len(self.engine_of)
            or max(self.topic_of, default=-1) >= len(self.topics)
            or max(self.engine_of, default=0) >= len(self.engines)
            or self.engines[0]
        ):
            raise ValueError("this is no index of events")
        self._topics = {_key(one): number for number, one in enumerate(self.topics)}
        self._engines = {name: number for number, name in enumerate(self.engines)}

    def __len__(self) -> int:
        """How many events there are: the number of the last one."""
        return len(self.topic_of)

    def add(self, type_: str, stream: str, about: About) -> None:
        """Put the next event at the end."""
        key = (type_, stream, about.models, about.references, about.backends, about.job)
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = len(self.topics)
            self.topics.append(Topic(*key))
        engine = self._engines.get(about.engine)
        if engine is None:
            engine = self._engines[about.engine] = len(self.engines)
            self.engines.append(about.engine)
        self.topic_of.append(topic)
        self.engine_of.append(engine)
        self.__dict__.pop("_numbers", None)

    def about(self, seq: int) -> About:
        """What event `seq` concerns."""
        topic = self.topics[self.topic_of[seq - 1]]
        engine = self.engines[self.engine_of[seq - 1]]
        return About(topic.models, topic.references, topic.backends, engine, topic.job)

    def type_of(self, seq: int) -> str:
        return self.topics[self.topic_of[seq - 1]].type

    def of_topics(self, topics: Iterable[int], limit: int | None = None) -> list[int]:
        """The events of these topics, in order; with a limit the latest of them."""
        found = sorted(seq for topic in topics for seq in self._numbers[topic][-(limit or 0) :])
        return found[-(limit or 0) :]

    def of_engines(self, starts: tuple[str, ...]) -> dict[str, list[int]]:
        """The events of each engine whose id begins with one of these, in order."""
        named = {number: name for number, name in enumerate(self.engines) if name and name.startswith(starts)}
        found: dict[str, list[int]] = {name: [] for name in named.values()}
        if named:
            for seq, engine in enumerate(self.engine_of, 1):
                if engine in named:
                    found[named[engine]].append(seq)
        return found

    @cached_property
    def _numbers(self) -> list[list[int]]:
        """The events of each topic, in order."""
        numbers: list[list[int]] = [[] for _ in self.topics]
        for seq, topic in enumerate(self.topic_of, 1):
            numbers[topic].append(seq)
        return numbers


_Key = tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...], str]


def _key(topic: Topic) -> _Key:
    return topic.type, topic.stream, topic.models, topic.references, topic.backends, topic.job
