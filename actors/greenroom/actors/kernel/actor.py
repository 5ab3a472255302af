"""A Pykka actor that runs one `Executor` on a thread of its own.

It does without what a host of stock Pykka actors would regret, each with a test:

* an ask that races with stop is never answered: our `Inbox` can be closed;
* `SystemExit` in a handler stops every Pykka actor of the process: `Executor.handle` raises nothing;
* the host's `ActorRegistry.stop_all()` stops all actors: ours are not in the registry;
* a failing start is silent: `started` is a reply that the starter waits for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pykka

from greenroom.actors.kernel.answers import Asked, Reply, never_wait_here
from greenroom.actors.kernel.errors import StartFailed
from greenroom.actors.kernel.executor import Executor, Wake
from greenroom.actors.kernel.supervision import in_one_line


class Inbox:
    """Envelopes, first in, first out, from any thread; after `close` each goes to `refuse` at once.

    Pykka checks a flag before it puts a message into a plain queue, so a message that is put after the
    actor's last look is never answered and its caller waits forever. Closing the mailbox under its own lock
    leaves no such moment.
    """

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._ready = threading.Condition()
        self._refuse: Callable[[Any], None] | None = None
        self._taken: Any = None

    def put(self, message: Any) -> None:
        """Add a message, or refuse it when the mailbox is closed. Never blocks."""
        with self._ready:
            refuse = self._refuse
            if refuse is None:
                self._messages.append(message)
                self._ready.notify()
                return
        refuse(message)

    def get(self) -> Any:
        """Take the oldest message; wait for one if there is none."""
        if self._taken is not None:
            # Pykka's loop keeps its last envelope while it waits here, and with it what should end with its
            # holder.
            self._taken.message = None
        with self._ready:
            while not self._messages:
                self._ready.wait()
            self._taken = self._messages.popleft()
            return self._taken

    def qsize(self) -> int:
        return len(self._messages)

    def messages(self) -> list[Any]:
        with self._ready:
            return [envelope.message for envelope in self._messages]

    def empty(self) -> bool:
        return not self._messages

    def close(self, refuse: Callable[[Any], None]) -> None:
        """Refuse what waits and whatever comes from now on."""
        with self._ready:
            self._refuse = refuse
            waiting = list(self._messages)
            self._messages.clear()
        for message in waiting:
            refuse(message)


class Actor(pykka.ThreadingActor):
    use_daemon_thread = True

    actor_inbox: Inbox  # pyright: ignore[reportIncompatibleVariableOverride] - ours has a lane for reports

    def __init__(self, executor: Executor, count: Callable[[int], None]) -> None:
        """`count` is called with 1 for each message that comes and -1 for each that has been handled."""
        super().__init__()
        self.executor = executor
        self.started: Reply[None] = Reply()
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        """Set once it runs."""
        self._count = count
        executor.post = self.post

    # Pykka has no public way to bring one's own mailbox, nor to start an actor that is not in its registry.

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()

    def begin(self) -> None:
        self._start_actor_loop()

    # Pykka's hooks

    def on_start(self) -> None:
        self.thread = threading.current_thread()
        self.thread.name = f"actor-{self.executor.address}"
        never_wait_here()
        self.take_first_look()

    def on_receive(self, message: Asked | Wake) -> None:
        try:
            self.executor.handle(message)
        finally:
            self._count(-1)

    def on_stop(self) -> None:
        self.actor_stopped.set()
        self.actor_inbox.close(lambda envelope: self._refuse(envelope.message))
        self.executor.close()
        self.stopped.set()

    # for the system

    def take_first_look(self) -> None:
        """Start the executor; `started` has the outcome."""
        try:
            self.executor.start()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the starter must learn of it
            self.on_stop()
            failure = StartFailed(f"{self.executor.address} could not start: {in_one_line(error)}")
            failure.__cause__ = error
            self.started.fail(failure)
        else:
            self.started.set(None)

    def post(self, message: Asked | Wake) -> None:
        """Put a message into the mailbox; one to a stopped actor is refused. Never blocks."""
        self._count(1)
        try:
            self.actor_ref.tell(message)
        except pykka.ActorDeadError:
            self._refuse(message)

    def _refuse(self, message: object) -> None:
        # Pykka's own stop message may wait behind ours.
        if isinstance(message, Asked | Wake):
            self.executor.refuse(message)
            self._count(-1)
