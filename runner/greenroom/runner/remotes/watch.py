"""Checks on a thread per remote backend whether it answers, and which models it has.

Only a request for a backend that did not answer its last check waits for such a thread, and only for seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Literal

import msgspec

from greenroom.actors.remote_log import NAMED, NoteRemote
from greenroom.actors.values import Engine, EngineSpec, Failure
from greenroom.runner.config import BadSetting
from greenroom.runner.errors import JobFailed
from greenroom.runner.remote_settings import NoKey, RemoteBackend
from greenroom.runner.remotes.asking import ask_models
from greenroom.runner.remotes.model import RemoteModel, remote_model
from greenroom.runner.remotes.reading import RemoteReading
from greenroom.runner.threads import NoThread, start_thread

_log = logging.getLogger(__name__)

EVERY = 20.0
"""Seconds between two checks of a backend that answers."""
_FIRST, _LONGEST = 2.0, 60.0
"""The same for one that does not: doubled each time, until it has answered for a while."""
SOON = 1.0
"""The minimum number of seconds between two checks, however many requests want one."""


class Remote:
    """A remote backend. Thread-safe; only `_run` waits."""

    def __init__(self, name: str, settings: RemoteBackend, every: float = EVERY) -> None:
        self.name = name
        self.settings = settings
        self._every = every
        self._key = ""
        self._reading = RemoteReading(name=name, url=settings.url, slots=settings.slots)
        self._next_at = 0.0
        self._pause = _FIRST
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._notify: Callable[[RemoteReading], None] = lambda _: None
        self._wishes: list[Future[None]] = []

    @property
    def slot_owner(self) -> Engine:
        """It as an engine: the scheduler gives its slots, and neither loads nor ends it."""
        spec = EngineSpec(
            engine_id=self.name,
            backend=self.name,
            installation_id="",
            model_id=self.name,
            model_ref=self.name,
            slots=self.settings.slots,
        )
        return Engine(spec=spec, state="ready", since=0.0, endpoint=self.settings.url)

    @property
    def models(self) -> tuple[RemoteModel, ...]:
        """Its models, as last listed; none while it does not answer."""
        now = self._reading
        return (
            tuple(remote_model(self.name, one, now.url) for one in now.models)
            if now.state == "answers"
            else ()
        )

    def find(self, own: str) -> RemoteModel | None:
        """Its model with this name of its own, with or without the tag `latest`."""
        now = self._reading
        names = (own, own.removesuffix(":latest"), f"{own}:latest")
        return next((remote_model(self.name, one, now.url) for one in names if one in now.models), None)

    @property
    def now(self) -> RemoteReading:
        """Does not ask."""
        left = max(0.0, self._next_at - time.monotonic())
        return msgspec.structs.replace(self._reading, next_in=round(left, 1))

    @property
    def authorization(self) -> str:
        """The value of the `Authorization` header, with the key as of the last check; empty without a key."""
        return f"Bearer {self._key}" if self._key else ""

    def ask_again(self) -> Future[None]:
        """Check it now, unless it was checked within the last second; done after the check."""
        wish: Future[None] = Future()
        with self._lock:
            if self._closed.is_set() or time.time() - self._reading.asked_at < SOON:
                wish.set_result(None)
                return wish
            self._wishes.append(wish)
        self._wake.set()
        return wish

    # the watch's side

    def start(self, notify: Callable[[RemoteReading], None]) -> None:
        """Begin to ask; `notify` gets each reading, on the thread that asks. Raises NoThread.

        After `close` it may be started again, and knows nothing then.
        """
        self._notify, self._pause = notify, _FIRST
        self._reading = RemoteReading(name=self.name, url=self.settings.url, slots=self.settings.slots)
        self._closed = closed = threading.Event()
        start_thread(lambda: self._run(closed), f"remote-{self.name}")

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        self._wake.set()

    def _run(self, closed: threading.Event) -> None:
        while not closed.is_set():
            self._wake.clear()
            with self._lock:
                wishes, self._wishes = self._wishes, []
            try:
                self._look(closed)
            except Exception:  # noqa: BLE001 - one odd answer must not end the watch
                _log.exception("the remote backend %s could not be checked", self.name)
            _fulfil(wishes)
            self._wake.wait(max(SOON, self._next_at - time.monotonic()))
        with self._lock:
            wishes, self._wishes = self._wishes, []
        _fulfil(wishes)

    def _look(self, closed: threading.Event) -> None:
        before, failure, models = self._reading, None, self._reading.models
        try:
            self._key = self.settings.key.read() if self.settings.key is not None else ""
            models = ask_models(self.settings, self._key)
        except NoKey as error:
            failure = Failure(kind="permanent", code="no_key", message=f"its key cannot be used: {error}")
        except JobFailed as failed:
            failure = failed.failure
        if failure is not None:
            failure = msgspec.structs.replace(failure, message=_sentence(failure.message))
        if closed.is_set():
            return
        now = time.time()
        state: Literal["answers", "silent"] = "answers" if failure is None else "silent"
        since = before.since if before.state == state else now
        if failure is None:
            self._pause = _FIRST if now - since >= _LONGEST else self._pause
            pause = self._every
        else:
            pause, self._pause = self._pause, min(_LONGEST, self._pause * 2)
        self._next_at = time.monotonic() + pause
        self._reading = msgspec.structs.replace(
            before, state=state, since=since, asked_at=now, failure=failure, models=models
        )
        self._notify(self.now)


def _fulfil(wishes: Iterable[Future[None]]) -> None:
    for one in wishes:
        if one.set_running_or_notify_cancel():  # its client may have left
            one.set_result(None)


def _sentence(clause: str) -> str:
    return f"{clause[:1].upper()}{clause[1:]}."


class Remotes:
    """All remote backends of a Greenroom. False if there is none."""

    def __init__(
        self, declared: Mapping[str, RemoteBackend], others: Iterable[str] = (), every: float = EVERY
    ) -> None:
        """`others` are the backends that Greenroom installs. Raises BadSetting if one has the same name."""
        for name in sorted(set(others).intersection(declared)):
            raise BadSetting(
                f'[backends."{name}"] has a url, but {name} is a backend that Greenroom installs; give the '
                "remote backend another name, such as lab"
            )
        self._all = {name: Remote(name, one, every) for name, one in declared.items()}

    def __bool__(self) -> bool:
        return bool(self._all)

    def __iter__(self) -> Iterator[Remote]:
        return iter(self._all.values())

    def get(self, name: str) -> Remote | None:
        """The one with this name."""
        return self._all.get(name)

    def named(self, model: str) -> tuple[Remote, str] | None:
        """The backend that a model's name begins with, and the rest of the name; None for other names."""
        name, slash, own = model.strip().partition("/")
        remote = self._all.get(name) if slash else None
        return (remote, own) if remote is not None and own else None

    def models(self) -> list[RemoteModel]:
        """Of those that answer."""
        return [model for remote in self for model in remote.models]

    def start(self, tell: Callable[[NoteRemote], object], life: str) -> None:
        """Begin to check all of them, without waiting for an answer. `tell` receives each reading."""

        def note(reading: RemoteReading) -> None:
            tell(
                NoteRemote(
                    backend=reading.name,
                    url=reading.url,
                    life=life,
                    models=() if reading.failure is not None else reading.models[:NAMED],
                    count=0 if reading.failure is not None else len(reading.models),
                    failure=reading.failure,
                )
            )

        for remote in self:
            try:
                remote.start(note)
            except NoThread as error:
                _log.error("the remote backend %s is not checked: %s", remote.name, error)

    def close(self) -> None:
        """Stop checking. Threads in the middle of a check end with it, within seconds."""
        for remote in self:
            remote.close()
