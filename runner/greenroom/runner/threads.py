"""Threads whose start cannot hang, and calls and jobs on them that can be cancelled and abandoned.

`threading.Thread.start` waits without limit for the new thread to report that it runs. A thread that finds no
memory for its first call ends before that, and its starter waits forever, with every lock it holds.

A thread cannot be ended from outside, but what it waits for can: sockets are shut down, children are killed.
The rest (a name server that does not answer, a frozen disk) is abandoned: the caller's wait is over, a job's
slot is free, and a later result of the thread is dropped. The threads are daemons, so that neither a stop nor
the interpreter's exit waits for them.
"""

from __future__ import annotations

import _thread
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from greenroom.runner.errors import JobCancelled

BEGINS_WITHIN = 10.0
"""Seconds within which a new thread must have begun, even on a busy machine."""


class NoThread(RuntimeError, OSError):
    """The machine has no thread or no memory for one. The work is not done, and never will be."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno, self.strerror = errno.EAGAIN, text


class _Begun(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.guard = threading.Lock()
        self.given_up = False

    def wait(self, timeout: float | None = None) -> bool:
        if super().wait(BEGINS_WITHIN if timeout is None else timeout):
            return True
        with self.guard:
            if not self.is_set():
                self.given_up = True
                raise NoThread(f"a thread did not begin within {BEGINS_WITHIN:g}s")
        return True

    def set(self) -> None:
        with self.guard:
            if not self.given_up:
                super().set()


class Thread(threading.Thread):
    """A daemon thread for one piece of work.

    `start` raises NoThread.
    """

    def __init__(self, work: Callable[[], object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        # The event that `start` waits for. It has no public name; the tests fail if it is renamed.
        self._started = _Begun()

    def start(self) -> None:
        """Begin. Raises NoThread."""
        try:
            super().start()
        except NoThread:
            raise
        except RuntimeError as error:  # the system's limit of threads
            raise NoThread(str(error)) from error

    def run(self) -> None:
        """Do the work, unless `start` has given up."""
        if not self._started.given_up:
            self._work()


def start_thread(work: Callable[[], object], name: str) -> Thread:
    """Begin work on a thread of its own. Raises NoThread."""
    thread = Thread(work, name)
    thread.start()
    return thread


T = TypeVar("T")

_TICK = 0.1


class Flag(Protocol):
    """A cancel flag; `threading.Event` is one."""

    def is_set(self) -> bool: ...


def stop_if(cancel: Flag | None) -> None:
    if cancel is not None and cancel.is_set():
        raise JobCancelled


class TookTooLong(Exception):
    """The call did not finish in time."""


class Beside(Generic[T]):
    """A call that runs beside other work and need not be waited for.

    Unlike a pool's, its thread blocks neither the caller nor the program's exit.
    """

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self.future: Future[T] = Future()
        start_thread(partial(settle, self.future, call), name)

    def result(self, *, cancel: Flag | None = None, seconds: float | None = None) -> T:
        """Wait for the call and return or raise what it does.

        Raises:
            TookTooLong: The time is over.
            JobCancelled: `cancel` was set.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not wait([self.future], _TICK).done:
            stop_if(cancel)
            if deadline is not None and time.monotonic() >= deadline:
                raise TookTooLong
        return self.future.result()


def settle(future: Future[T], call: Callable[[], T]) -> None:
    """Make a call, and give its outcome to a future."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)


def bounded(
    call: Callable[[], T],
    *,
    name: str,
    seconds: float | None,
    cancel: Flag | None = None,
    drop: Callable[[T], object] | None = None,
    left: Callable[[], object] | None = None,
) -> T:
    """Run a call on a thread of its own and return or raise what it does.

    Args:
        call: May block indefinitely.
        name: The thread's name.
        seconds: How long to wait; None for no limit.
        cancel: Stops the wait when set.
        drop: Receives a result that arrives after the wait, on any thread.
        left: Called when the wait ends before the call does, to wake the call where possible.

    Raises:
        TookTooLong: The time is over.
        JobCancelled: `cancel` was set.
    """
    work = Beside(call, name)
    try:
        return work.result(seconds=seconds, cancel=cancel)
    except BaseException:
        if left is not None and not work.future.done():
            left()
        if drop is not None:
            work.future.add_done_callback(lambda done: done.exception() or drop(done.result()))
        raise


@contextmanager
def repeating(call: Callable[[], None], every: float, name: str) -> Iterator[None]:
    """Meanwhile, make a call every so many seconds; not where the machine has no thread for it."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            call()

    with suppress(RuntimeError):
        start_thread(run, name)
    try:
        yield
    finally:
        over.set()


log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for which a cancelled job may end by itself."""

BEGUN_WITHIN = 5.0
"""Seconds within which a thread must have begun, or there was no memory for it."""


class Cancel(threading.Event):
    """An event that also interrupts waits: registered functions are called once it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._ends: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        """Cancel. Never raises."""
        super().set()
        with self._guard:
            ends = tuple(self._ends.values())
        for end in ends:
            try:
                end()
            except Exception:
                log.exception("A wait could not be cancelled")

    @contextmanager
    def ends(self, end: Callable[[], None]) -> Iterator[None]:
        """Meanwhile, `end` is called when this is set, or at once if it already is; on any thread."""
        key = object()
        with self._guard:
            self._ends[key] = end
        try:
            if self.is_set():
                end()
            yield
        finally:
            with self._guard:
                del self._ends[key]


@dataclass(frozen=True)
class JobEnding:
    tell: Callable[[], None]
    late: bool = False
    """Reported even if the job was abandoned: it has changed something."""


@dataclass(eq=False)
class _Job:
    key: str
    work: Callable[[Cancel], JobEnding]
    gone: Callable[[], None]
    cancel: Cancel = field(default_factory=Cancel)
    over: bool = False
    is_ending: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class Crew:
    """Runs jobs, a few at once and others in order. Each ends, at the latest a while after it is
    cancelled.
    """

    def __init__(self, at_once: int, name: str, *, patience: float = PATIENCE) -> None:
        self._at_once = at_once
        self._name = name
        self._patience = patience
        self._waiting: deque[_Job] = deque()
        self._running: dict[str, _Job] = {}
        self._changed = threading.Condition()
        self._telling = 0
        self._closed = False

    def start(
        self,
        key: str,
        work: Callable[[Cancel], JobEnding],
        gone: Callable[[], None],
        waits: Callable[[], None] = lambda: None,
    ) -> bool:
        """Start a job or queue it; False if there is one with this key, or the crew is closed.

        `gone` is called if the job is cancelled before it begins, or does not end in time afterwards;
        otherwise the ending returned by `work` is reported. `waits` is called first if the job is queued.
        """
        job = _Job(key, work, gone)
        with self._changed:
            if self._closed or self.has(key):
                return False
            if len(self._running) >= self._at_once:
                waits()
            self._waiting.append(job)
            self._next()
        return True

    def has(self, key: str) -> bool:
        return key in self.keys()

    def keys(self) -> tuple[str, ...]:
        with self._changed:
            return (*self._running, *(job.key for job in self._waiting))

    def cancel(self, key: str) -> None:
        with self._changed:
            job = next((one for one in self._waiting if one.key == key), None)
            if job is not None:
                self._waiting.remove(job)
                job.over = True
            running = self._running.get(key)
        if job is not None:
            job.cancel.set()
            _tell(job.gone)
        elif running is not None:
            self._end(running)

    def close(self) -> None:
        """Cancel all jobs and wait for their end within the time limit; nothing starts afterwards."""
        with self._changed:
            self._closed = True
            keys = self.keys()
        for key in keys:
            self.cancel(key)
        deadline = time.monotonic() + self._patience
        with self._changed:
            while (self._running or self._telling) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            hanging = tuple(self._running.values())
        for job in hanging:
            self._give_up(job)
        with self._changed:
            self._changed.wait_for(lambda: not self._telling, 1.0)

    def _next(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            job = self._waiting.popleft()
            self._running[job.key] = job
            try:
                start_thread(partial(self._run, job), self._name)
            except RuntimeError:  # the system allows no more threads
                log.exception("%s could not be started", job.key)
                job.over = True
                del self._running[job.key]
                _tell(job.gone)

    def _run(self, job: _Job) -> None:
        try:
            ending = job.work(job.cancel)
        except BaseException:
            log.exception("%s failed unexpectedly", job.key)
            ending = JobEnding(job.gone)
        self._leave(job, ending.tell, late=ending.late)

    def _leave(self, job: _Job, tell: Callable[[], None], *, late: bool = False) -> bool:
        """Free its slot and report its end; False if that was done before."""
        with self._changed:
            first = not job.over
            self._telling += 1
            if first:
                self._free(job)
        # Only after its slot is free: the report may lead to a new start of the same job.
        if first or late:
            _tell(tell)
        with self._changed:
            self._telling -= 1
            self._changed.notify_all()
        return first

    def _free(self, job: _Job) -> None:
        job.over = True
        job.ended.set()
        del self._running[job.key]
        self._next()

    def _end(self, job: _Job) -> None:
        job.cancel.set()
        with self._changed:
            if job.over or job.is_ending:
                return
            job.is_ending = True
        try:
            start_thread(partial(self._give_up_later, job), f"{self._name}-end")
        except RuntimeError:  # no thread left to wait on
            self._give_up(job)

    def _give_up_later(self, job: _Job) -> None:
        if not job.ended.wait(self._patience):
            self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        if self._leave(job, job.gone):
            log.warning("%s did not end within %.0fs and is abandoned", job.key, self._patience)


class _Batch(Generic[T]):
    """Calls taken one after another by a few threads."""

    def __init__(self, calls: Sequence[Callable[[], T]]) -> None:
        self._left = deque(enumerate(calls))
        self.results: dict[int, T] = {}
        self.errors: list[BaseException] = []
        self.changed = threading.Condition()
        self.stopped = False
        self.busy = 0

    def work(self) -> None:
        try:
            while not self.stopped and (taken := self._take()) is not None:
                number, call = taken
                result = call()
                with self.changed:
                    self.results[number] = result
                    self.changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self.errors.append(error)
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()

    def _take(self) -> tuple[int, Callable[[], T]] | None:
        with self.changed:
            return self._left.popleft() if self._left else None


def side_by_side(
    calls: Sequence[Callable[[], T]],
    at_once: int,
    name: str,
    *,
    tick: Callable[[], None],
    halt: Callable[[], None],
    patience: float = PATIENCE,
) -> list[T]:
    """The results of the calls, in order, or what the first failing one raised.

    `tick` is called regularly, and may raise to abort. At the end `halt` wakes the calls that are waiting;
    they get `patience` seconds to end.
    """
    batch = _Batch(calls)
    for _ in range(min(at_once, len(calls))):
        with batch.changed:
            batch.busy += 1
        try:
            start_thread(batch.work, name)
        except RuntimeError:  # no thread left: fewer at once
            with batch.changed:
                batch.busy -= 1
                if not batch.busy and not batch.results:
                    raise
    try:
        with batch.changed:
            while batch.busy and not batch.errors:
                batch.changed.wait(_TICK)
                tick()
    finally:
        batch.stopped = True
        halt()
        deadline = time.monotonic() + patience
        with batch.changed:
            while batch.busy and (left := deadline - time.monotonic()) > 0:
                batch.changed.wait(left)
    if batch.errors:
        raise batch.errors[0]
    return [batch.results[number] for number in range(len(calls))]


def _tell(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        log.exception("The result of a job could not be reported")


async def in_thread(work: Callable[[], T]) -> T:
    """Await something that blocks, on a thread of its own: one that hangs takes no other's place."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    has_begun = False

    def run() -> None:
        nonlocal has_begun
        has_begun = True
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            failed = error
        try:
            loop.call_soon_threadsafe(settle, result, failed)
        except RuntimeError:
            log.debug("the loop was closed before %s had ended", work)

    def expect_begun() -> None:
        if not has_begun:
            settle(None, MemoryError("a thread could not start"))

    # Not `Thread.start`, which waits for the thread: one that finds no memory to begin with would block
    # the loop forever.
    _thread.start_new_thread(run, ())
    check = loop.call_later(BEGUN_WITHIN, expect_begun)
    try:
        return await future
    finally:
        check.cancel()


def whole(work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
    """Do it on a thread of its own, and wait.

    Ctrl-C does not cut it in half: its end is waited for, what was done is undone, and then the caller is
    interrupted. A second Ctrl-C interrupts at once; the thread still undoes what it has done.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    interrupted, over, deciding = threading.Event(), threading.Event(), threading.Lock()

    def run() -> None:
        try:
            made = work()
            with deciding:
                if not interrupted.is_set():
                    done.append(made)
            if not done and undo is not None:
                undo(made)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failed.append(error)
        finally:
            over.set()

    try:
        threading.Thread(target=run, name="greenroom-open", daemon=True).start()
    except RuntimeError:  # while the interpreter shuts down, as in `atexit`, there are no new threads
        run()
    try:
        over.wait()
    except BaseException:
        with deciding:
            interrupted.set()
        if done and undo is not None:
            undo(done[0])
        over.wait()
        raise
    if failed:
        raise failed[0]
    return done[0]
