"""Starts, watches, stops, adopts and settles engine processes, each under a keeper of its own.

It carries out the effects of all runners: `SpawnEngine`, `EndEngine` and `RecoverEngines`, and reports to the
runner of the engine's backend. For every start exactly one `EngineExited` or `EngineLost` comes, and nothing
after it. Of engines that run it also reports their memory and, when one is ready and does nothing for the
requests inside it, that it has stalled; neither ends anything.

`prepare(spec, socket)` runs on a thread of the host, may read the disk, and raises `JobFailed` when the
engine cannot be started at all.

No method blocks unless it says so, and all may be called from any thread. Threads: one that watches all
keepers (and sleeps until one says something), one that watches the vital signs of all engines, and one for
each engine that is loading or being settled.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from greenroom.actors.engine_runner.effects import EndEngine, RecoverEngines, SpawnEngine
from greenroom.actors.engine_runner.events import EngineExited, EngineLost
from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.kernel.core import Effect
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.reports import Happened, TellActor
from greenroom.actors.values import Engine, EngineExit, EngineSpec, Failure, Loaded
from greenroom.runner.engines.adoption import (
    Ended,
    Missing,
    adopt,
    claim_for_daemon,
    end_processes,
    end_unknown,
    engine_of,
)
from greenroom.runner.engines.exit_report import engine_exit, no_keeper, not_spawned, read_end, write_end
from greenroom.runner.engines.folders import EngineFolder, Folders, keeper_of, read_claim
from greenroom.runner.engines.handle import (
    Handle,
    Prepare,
    ProbeResult,
    ProgressDeadline,
    never_spawned,
    take_pulse,
)
from greenroom.runner.engines.health_monitor import KILL, DeviceUsage, HealthMonitor, Readings, WatchMemory
from greenroom.runner.engines.keeper import LADDER
from greenroom.runner.engines.keeper_log import FIRST_LINES, LAST_LINES
from greenroom.runner.engines.keeper_watch import KeeperGone, KeeperWatch, SpareKeeper, cleaned
from greenroom.runner.errors import JobFailed, not_begun
from greenroom.runner.systems.processes import ProcessIdentity, boot_id, is_kept_waiting
from greenroom.runner.threads import settle, start_thread

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
ReadLoaded = Callable[[EngineSpec, str], Loaded | None]
"""An engine and its output → what that says about its layers on devices."""
ReadSpeed = Callable[[EngineSpec, str], float]
"""An engine and its output → tokens a second of its answers; 0.0 if that does not say."""
KEEPER_SECONDS = 5.0
"""Seconds beyond those of its ladder that a keeper has to end its engine."""
_PULSE_SECONDS = 1.0
SPAWN_SECONDS = 60.0
"""How long a keeper may take to claim and spawn; it takes milliseconds."""
_PROBE_PAUSE = (0.01, 0.1)
"""The shortest and the longest pause between two questions whether an engine is ready, in seconds."""
_FINISH_SECONDS = 45.0
"""The longest that an unreachable engine may continue to answer the requests inside it."""
_FINISH_QUIET = 5.0
"""Seconds without a byte after which these requests no longer count as being answered."""
_FINISH_EVERY = 0.5


class EngineHost:
    """All engines of one data directory."""

    def __init__(
        self,
        engines_dir: Path,
        *,
        prepare: Prepare,
        tell: TellActor,
        board: ProgressBoard,
        grace: float = 120.0,
        stall_after: float = 60.0,
        ladder: Sequence[tuple[str, float]] = LADDER,
        spare_keeper: bool = True,
        readings: Readings = dict,
        device_usage: DeviceUsage | None = None,
        watch_memory: WatchMemory | None = None,
        loaded: ReadLoaded | None = None,
        speed: ReadSpeed | None = None,
        before_end: Callable[[str], None] | None = None,
    ) -> None:
        """`readings` says which requests are inside which engine; without it, none is watched for doing
        nothing. `device_usage` says how many bytes of a graphics device's memory processes hold, `loaded`
        what an engine's output says about its layers there, `speed` what it says about its answers.
        `before_end` is called, on a thread, with the id of one that was ready and is to be stopped in order.
        `watch_memory` makes what finds engines that take too much memory.

        `stall_after`: seconds without any sign of life after which an engine that loads, or that has requests
        inside, is suspected to be dead.
        """
        self._dir = engines_dir.resolve()
        self._prepare = prepare
        self._tell = tell
        self._board = board
        self._grace = grace
        self._stall_after = stall_after
        self._loaded: ReadLoaded = loaded or (lambda *_: None)
        self._speed: ReadSpeed = speed or (lambda *_: 0.0)
        self._before_end = before_end or (lambda _: None)
        self._ladder = [(name, bound) for name, bound in ladder]
        self._stop_bound = sum(bound for _, bound in self._ladder) + KEEPER_SECONDS
        self._handles: dict[str, Handle] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._folders = Folders(self._dir, self._keeps)
        self.spare = SpareKeeper(self._thread, wanted=spare_keeper)
        self._readings = readings
        self._watch = KeeperWatch(self._heard, self._keeper_gone, self._overdue)
        self._health = HealthMonitor(
            self._living,
            readings,
            stall_after=stall_after,
            device_usage=device_usage,
            watch_memory=watch_memory,
        )
        self.spare.refill()

    def _handle_of(self, spec: EngineSpec) -> Handle:
        return Handle(spec, EngineFolder.of(self._dir, spec.engine_id), self._tell, self._board)

    def _keeps(self, engine_id: str) -> bool:
        with self._lock:
            return engine_id in self._handles

    def _living(self) -> list[Handle]:
        with self._lock:
            return list(self._handles.values())

    @property
    def engine_ids(self) -> frozenset[str]:
        """The engines that it starts, watches or ends."""
        with self._lock:
            return frozenset(self._handles)

    def perform(self, effect: Effect, cause: str) -> None:
        """Begin one effect. Raises where no report would say that it could not be begun."""
        match effect:
            case SpawnEngine(spec=spec):
                try:
                    self.start(spec)
                except Exception as error:  # noqa: BLE001 - the runner must get an end
                    _log.exception("engine %s could not be started", spec.engine_id)
                    event = EngineExited(engine_id=spec.engine_id, exit=never_spawned(not_begun(error)))
                    self._tell(runner_address(spec.backend), Happened(event=event))
            case EndEngine(backend=backend, engine_id=one, reason=reason):
                if not self.stop(one, reason=reason):
                    lost = EngineLost(engine_id=one, reason="there is no such engine")
                    self._tell(runner_address(backend), Happened(event=lost))
            case RecoverEngines(engines=engines):
                self.recover(engines)
            case _:
                raise TypeError(f"the engine host does not perform {type(effect).__name__} ({cause})")

    # -- start -------------------------------------------------------------------------------------

    def start(self, spec: EngineSpec) -> None:
        """Start one engine. A second start of the same id is the same start."""
        handle = self._handle_of(spec)
        with self._lock:
            if self._closing or spec.engine_id in self._handles:
                return
            self._handles[spec.engine_id] = handle
        self._health.wake()
        try:
            start_thread(partial(self._start, handle), f"engine-{spec.engine_id}")
        except RuntimeError as problem:
            self._failed(handle, not_begun(problem, "The engine"))

    def _start(self, handle: Handle) -> None:
        try:
            sockets = handle.folder.create()
            prepared = self._prepare(handle.spec, sockets.engine)
            if handle.stop_requested or self._closing:
                summary = f"The {handle.spec.backend} engine was stopped before it ran."
                self._forget(handle)
                handle.tell_exited(EngineExit(at=time.time(), summary=summary, expected=True))
                return
            handle.endpoint = sockets.engine
            about = handle.about(prepared)
            handle.learn(about)
            handle.channel = self.spare.begin(
                engine_id=handle.engine_id,
                folder=str(handle.folder.path.absolute()),
                keeper_socket=str(sockets.keeper),
                engine_socket=str(sockets.engine),
                argv=list(prepared.command.argv),
                env=cleaned(prepared.command.env),
                about=about,
                data_limit=prepared.data_limit,
                grace=None if math.isinf(self._grace) else self._grace,
            )
        except JobFailed as problem:
            self._failed(handle, problem.failure)
            return
        except Exception as problem:  # noqa: BLE001 - the runner must get an end
            if isinstance(problem, KeeperGone):
                failure = no_keeper(f"The engine's keeper cannot be started: {problem}.")
            else:
                _log.exception("engine %s could not be started", handle.engine_id)
                failure = not_begun(problem, "The engine")
            self._failed(handle, failure)
            self.spare.refill()
            return
        self._watch.add(handle)
        if not handle.spawned.wait(SPAWN_SECONDS):
            _log.warning("engine %s: its keeper does not start the engine, so it is killed", handle.engine_id)
            handle.channel.kill()  # its end is then reported like that of any keeper that dies
            handle.spawned.wait()
        try:
            self._await_ready(handle)
        finally:
            # Not sooner: the start of another process would take its share of what the engine loads with.
            self.spare.refill()

    def _failed(self, handle: Handle, failure: Failure) -> None:
        self._forget(handle)
        handle.tell_failed(failure)

    # -- readiness ---------------------------------------------------------------------------------

    def _await_ready(self, handle: Handle) -> None:
        """Probe until it is ready, dead, or has shown no sign of life for too long."""
        probe = handle.probe()
        begun = time.monotonic()
        patience, next_pulse = ProgressDeadline(begun), begun + _PULSE_SECONDS
        while handle.wanted and not handle.given_up_at:
            health = probe.look() if handle.endpoint.exists() else ProbeResult.SILENT
            now = time.monotonic()
            if health is ProbeResult.READY:
                self._read_loaded(handle)
                handle.tell_ready()
                self._health.wake()  # from now on it is looked at more often
                return
            if health is ProbeResult.DEAD:
                self._give_up(handle, "it says that its model could not be loaded")
                return
            if now >= next_pulse:
                next_pulse = now + _PULSE_SECONDS
                if patience.moved(take_pulse(handle.pid, handle.folder.log_size()), now):
                    handle.tell_progress("loading", "" if handle.served else handle.folder.last_line())
                    continue
                silent = patience.silent_for(now)
                if silent >= self._stall_after and not is_kept_waiting(handle.pid):
                    self._give_up(handle, f"it wrote nothing and used no processor for {silent:.0f}s")
                    return
            # Noticed late by a hundredth of the load, on average: asking more often would slow the load by
            # more than that. To look for its socket costs nothing.
            low, high = _PROBE_PAUSE
            pause = min(high, max(low, 0.02 * (now - begun)))
            handle.over.wait(pause if handle.endpoint.exists() else low)

    def _read_loaded(self, handle: Handle) -> None:
        if (
            handle.spec.placement
            and (loaded := self._loaded(handle.spec, handle.folder.read_log())) is not None
        ):
            handle.tell_loaded(loaded)

    def _give_up(self, handle: Handle, fault: str) -> None:
        handle.fault = fault
        self._send_stop(handle, fault)

    # -- stop --------------------------------------------------------------------------------------

    def stop(self, engine_id: str, *, reason: str = "") -> bool:
        """Interrupt, terminate, kill the whole process group, each bounded. False for an unknown engine."""
        with self._lock:
            handle = self._handles.get(engine_id)
        if handle is None:
            return False
        handle.stop_requested, handle.stop_reason = True, reason
        reason = reason or "a stop was requested"
        if self._closing or not (handle.may_finish or handle.was_ready):
            self._send_stop(handle, reason)
        else:
            self._thread(f"engine-{engine_id}", partial(self._stop_in_order, handle, reason))
        return True

    def _stop_in_order(self, handle: Handle, reason: str) -> None:
        try:
            if handle.may_finish:
                self._let_finish(handle)
            else:
                self._before_end(handle.engine_id)
        finally:
            self._send_stop(handle, reason)

    def _let_finish(self, handle: Handle) -> None:
        """No new request can reach it; those inside are not cut off as long as they are being answered."""
        deadline = time.monotonic() + _FINISH_SECONDS
        while not self._closing and time.monotonic() < deadline:
            reading = self._readings().get(handle.engine_id)
            if reading is None or not reading.inside or reading.unanswered_since:
                break
            if time.monotonic() - reading.quiet_since > _FINISH_QUIET or handle.over.wait(_FINISH_EVERY):
                break

    def _send_stop(self, handle: Handle, reason: str) -> None:
        channel = handle.channel
        if channel is None or handle.stop_sent:
            return  # not spawned yet: `stop_requested` is looked at once it is
        handle.stop_sent = True
        if handle.halted_at:
            handle.ladder = KILL  # it obeys nothing else
        handle.kill_at = time.monotonic() + self._stop_bound
        try:
            channel.send("stop", reason=reason, ladder=list(handle.ladder or self._ladder))
        except KeeperGone:
            return  # the watch notices the same, and settles it
        self._watch.wake()

    def _overdue(self, handle: Handle) -> None:
        """The keeper has not ended it within all its bounds: go round the keeper."""
        _log.warning("engine %s: its keeper does not answer; both are killed", handle.engine_id)
        if handle.channel is not None:
            handle.channel.kill()  # one that has claimed nothing yet is known only here
        claim = read_claim(handle.folder)
        engine_of(claim).send_group(signal.SIGKILL)
        keeper_of(claim).send(signal.SIGKILL)

    # -- what keepers say --------------------------------------------------------------------------

    def _heard(self, handle: Handle, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "spawned":
            handle.pid, handle.started = int(str(message["pid"])), float(str(message["started"]))
            handle.tell_spawned()
            if handle.stop_requested:
                self._send_stop(handle, handle.stop_reason or "a stop was requested")
        elif event == "failed":
            text = str(message.get("message"))
            self._failed(handle, not_spawned(str(message.get("code")), int(message.get("errno") or 0), text))
        elif event == "halted":
            handle.halted_at = time.monotonic()
            self._health.wake()
        elif event == "continued":
            handle.halted_at = 0.0
        elif event == "stopping":
            _log.info("engine %s: %s (%s)", handle.engine_id, message.get("signal"), message.get("reason"))
        elif event == "exited":
            self._tell_end(handle, message)

    def _keeper_gone(self, handle: Handle) -> None:
        """The connection ended. Usually the end was reported before; else the keeper itself has died."""
        if handle.over.is_set():
            return
        self._thread(f"engine-{handle.engine_id}", partial(self._settle_without_keeper, handle))

    def _settle_without_keeper(self, handle: Handle) -> None:
        try:
            self._find_end(handle)
        except Exception as problem:  # noqa: BLE001 - the runner must get an end
            _log.exception("engine %s: how it ended is not known", handle.engine_id)
            self._forget(handle)
            handle.tell_lost(f"its keeper had died, and how it ended is not known: {problem!r}")

    def _find_end(self, handle: Handle) -> None:
        end = read_end(handle.folder.exit)
        if end is None and not handle.pid:
            try:
                never_began = claim_for_daemon(handle.folder)
            except OSError as problem:
                # Its keeper was ours and is dead: without a claim nothing else ever carries this start out.
                if read_claim(handle.folder):
                    raise
                self._failed(handle, not_begun(problem, "The engine"))
                return
            if never_began:
                text = "The engine's keeper ended before it had started the engine."
                self._failed(handle, no_keeper(text, handle.folder.keeper_said()))
                return
        if end is None:
            leader = ProcessIdentity(handle.pid, handle.started, boot_id())
            end_processes(leader if handle.pid else engine_of(read_claim(handle.folder)), handle.folder)
            lines = handle.folder.read_log().splitlines()
            end = write_end(
                handle.folder.exit,
                handle.engine_id,
                keeper_died=True,
                keeper_said=handle.folder.keeper_said(),
                first_lines=lines[:FIRST_LINES],
                last_lines=lines[-LAST_LINES:],
            )
        self._tell_end(handle, end)

    def _tell_end(self, handle: Handle, end: dict[str, Any]) -> None:
        self._forget(handle)
        if handle.distrust:
            handle.tell_lost(handle.distrust)
            return
        if end.get("failed"):
            number = int(end.get("errno") or 0)
            handle.tell_failed(not_spawned("spawn", number, str(end["failed"])))
            return
        # On its own, a keeper stops its engine when no daemon came back, or at a shutdown.
        own_accord = "" if handle.stop_requested else str(end.get("stop_reason") or "")
        handle.tell_exited(
            engine_exit(
                end,
                handle.spec,
                expected=not handle.fault and bool(handle.stop_requested or own_accord),
                was_ready=handle.was_ready,
                served=handle.served,
                reason=handle.fault or handle.stop_reason or own_accord,
                speed=self._speed(handle.spec, handle.folder.read_log()),
            )
        )

    # -- after a restart: see `adoption` -----------------------------------------------------------

    def recover(self, expected: Sequence[Engine]) -> Future[object]:
        """Settle what the journal claims to run: adopt what can be identified, end the rest.

        Done when each engine has been reported as adopted, exited or lost.
        """
        parts = [
            self._future(f"engine-{engine.spec.engine_id}", partial(self._recover, engine))
            for engine in expected
        ]
        return self._future("engine-recovery", lambda: wait(parts))

    def _recover(self, expected: Engine) -> None:
        handle = self._handle_of(expected.spec)
        with self._lock:
            if self._closing:
                return
            kept = self._handles.setdefault(handle.engine_id, handle)
        if kept is not handle:
            # A runner that was rebuilt asks for engines that never were away.
            kept.tell_kept()
            return
        self._health.wake()
        try:
            found = adopt(handle, expected, self._grace, closing=lambda: self._closing)
            if isinstance(found, Ended):
                self._tell_end(handle, found.end)
            elif isinstance(found, Missing):
                self._forget(handle)
                handle.tell_lost(found.reason)
            elif handle.stop_requested:
                self._watch.add(handle)
                self._send_stop(handle, handle.distrust or "a stop was requested before the restart")
                handle.over.wait(self._stop_bound + 10.0)
            else:
                self._keep(handle)
        except Exception as problem:  # noqa: BLE001 - the runner must get an end
            _log.exception("engine %s: it could not be settled", handle.engine_id)
            self._forget(handle)
            handle.tell_lost(f"it could not be settled: {problem!r}")

    def _keep(self, handle: Handle) -> None:
        ready = handle.probe().look() is ProbeResult.READY
        if ready:
            self._read_loaded(handle)
        handle.tell_adopted(ready)
        self._health.wake()
        self._watch.add(handle)
        if not ready:
            self._thread(f"engine-{handle.engine_id}", partial(self._await_ready, handle))

    def sweep(self, known_ids: Collection[str]) -> Future[list[str]]:
        """End unknown engines and remove old folders of ended ones; returns the ids of those ended."""
        unknown = partial(end_unknown, ladder=self._ladder, bound=self._stop_bound)
        sweep = partial(self._folders.sweep, set(known_ids), unknown)
        return self._future("engine-sweep", sweep)

    # -- the host's own end ------------------------------------------------------------------------

    def shutdown(self, *, keep: float | None = None) -> None:
        """Stop all engines in parallel, bounded; or leave them for `keep` seconds (`math.inf`: no limit).

        Blocks. Nothing more is reported of engines that are left; a next host adopts them.
        """
        with self._lock:
            self._closing = True
            handles = list(self._handles.values())
        self.spare.close()
        deadline = time.monotonic() + self._stop_bound + KEEPER_SECONDS
        for handle in handles:
            if keep is None:
                self.stop(handle.engine_id, reason="the daemon is stopping")
            else:
                self._leave(handle, keep)
        for handle in handles:
            handle.over.wait(max(0.0, deadline - time.monotonic()))
        self._health.close()
        self._watch.close()

    def _leave(self, handle: Handle, keep: float) -> None:
        handle.spawned.wait(5.0)  # one that is just being spawned: its keeper must receive the grace
        channel = handle.channel
        if channel is None or handle.over.is_set():
            handle.silence()  # still being prepared: it never begins, since the host is closing
            return
        with contextlib.suppress(KeeperGone):
            channel.send("leave", grace=None if math.isinf(keep) else keep)
        handle.silence()
        self._watch.leave(handle)

    # -- threads -----------------------------------------------------------------------------------

    def _forget(self, handle: Handle) -> None:
        with self._lock:
            if self._handles.get(handle.engine_id) is not handle:
                return
            del self._handles[handle.engine_id]
        handle.folder.forget_slots()
        if self._folders.has_ended() and not self._closing:
            self._thread("engine-prune", self._folders.prune)

    def _thread(self, name: str, run: Callable[[], None]) -> None:
        """On a thread of its own; here and now where the machine has none left."""
        try:
            start_thread(run, name)
        except RuntimeError:
            _log.warning("there is no thread left for %s", name)
            run()

    def _future(self, name: str, run: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        self._thread(name, partial(settle, future, run))
        return future
