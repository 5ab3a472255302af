"""Adoption: what becomes of an engine that an earlier daemon started.

What is left is found out by observation alone. One that runs is adopted if it is the one in the journal;
what cannot be identified is ended. `EngineHost.recover` begins it, and reports the outcome.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.engines.exit_report import read_end, write_end
from greenroom.runner.engines.folders import EngineFolder, keeper_of, read_claim
from greenroom.runner.engines.handle import Handle
from greenroom.runner.engines.keeper import create_claim
from greenroom.runner.engines.keeper_watch import Channel, KeeperGone
from greenroom.runner.systems.processes import ProcessIdentity, boot_id, of_folder

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 60.0
"""How long we keep looking at an engine of an earlier daemon when the machine refuses to tell."""
_KEEPER_SECONDS = 20.0
"""How long a living keeper may take to answer. Its socket follows its claim within milliseconds, but giving
it up ends its engine, and a machine that has just started may be busy."""
_GONE_SECONDS = 5.0
_TERM_SECONDS = 3.0


@dataclass(frozen=True)
class Ended:
    """It has ended and its keeper has recorded how."""

    end: dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """There is no process, or none that could still be kept; what was left has been ended."""

    reason: str


@dataclass(frozen=True)
class Running:
    """Its keeper is alive and has answered on this connection, which now holds the engine."""

    channel: Channel
    state: dict[str, Any]


def adopt(
    handle: Handle, expected: Engine, grace: float, *, closing: Callable[[], bool]
) -> Ended | Missing | Running:
    """What is left of an engine that the journal claims to run. Blocks.

    Of one that runs, the handle then has all that is known. If it is not the expected one, `handle.distrust`
    says why, and it is to be ended.

    What cannot be looked at, for lack of descriptors or room, is looked at again: it may well run.

    Raises:
        OSError: It could not be looked at for a minute, or since the host is closing.
    """
    handle.was_ready = expected.state in ("ready", "stopping")
    handle.served = True  # one that is starting may have been ready before
    handle.pid, handle.started = expected.pid, expected.started
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            found = look(handle.folder, None if math.isinf(grace) else grace)
        except OSError as problem:
            if time.monotonic() > deadline or closing():
                raise
            _log.warning("engine %s cannot be checked: %s", handle.engine_id, problem)
            handle.over.wait(1.0)
        else:
            break
    if isinstance(found, Running):
        _take_over(handle, expected, found)
    return found


def _take_over(handle: Handle, expected: Engine, found: Running) -> None:
    state = found.state
    handle.channel = found.channel
    handle.distrust = distrust(expected, state)
    if not handle.distrust:
        try:
            handle.learn(state["about"])
        except (KeyError, TypeError, ValueError):
            handle.distrust = "its claim was written by another version of Greenroom"
    handle.pid, handle.started = int(state["pid"]), float(state["started"])
    handle.endpoint = Path(str(state["engine_socket"]))
    handle.halted_at = time.monotonic() if state.get("halted") else 0.0
    handle.spawned.set()
    if handle.distrust or handle.stop_requested or expected.state == "stopping" or state.get("stopping"):
        handle.stop_requested = True
        handle.stop_reason = handle.stop_reason or str(state.get("stopping") or "")


def end_unknown(folder: EngineFolder, ladder: Sequence[tuple[str, float]], bound: float) -> bool:
    """End an engine that no daemon knows, within `bound` seconds. False if none runs."""
    found = look(folder, bound)
    if not isinstance(found, Running):
        if read_end(folder.exit) is None:
            write_end(folder.exit, folder.engine_id, keeper_died=True)
        return False
    with contextlib.suppress(KeeperGone):
        found.channel.send("stop", reason="no daemon knows this engine", ladder=ladder)
        found.channel.await_event("exited", bound)
    found.channel.close()
    return True


def look(folder: EngineFolder, grace: float | None) -> Ended | Missing | Running:
    """Look at one engine folder, and end what no keeper keeps. Blocks for some seconds at most.

    An unclaimed start is claimed here, so that its keeper, should it come late, gives up.

    Raises:
        OSError: The folder cannot be read, which says nothing about the engine.
    """
    if (end := read_end(folder.exit)) is not None:
        return Ended(end)
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Read first: on a full disk an existing claim could not be found by creating one.
    if not (claim := claim_of(folder)):
        if claim_for_daemon(folder):
            return Missing("it was never started before the daemon ended")
        claim = claim_of(folder)
    if "keeper_pid" not in claim:
        return Missing("another daemon had already cancelled its start")
    if claim.get("boot_id") != boot_id():
        return Missing("the machine was restarted")
    reason = "its keeper had died"
    deadline = time.monotonic() + _KEEPER_SECONDS
    while keeper_of(claim).alive():
        try:
            channel = Channel.connect(str(claim["keeper_socket"]), int(claim["keeper_pid"]))
        except KeeperGone as problem:
            if time.monotonic() > deadline:
                keeper_of(claim).send(signal.SIGKILL)
                reason = f"its keeper did not answer ({problem})"
                break
            time.sleep(0.01)  # just claimed, before its socket exists; or just ending
            continue
        try:
            channel.send("hold", grace=grace)
            return Running(channel, channel.await_event("state", _KEEPER_SECONDS))
        except KeeperGone as problem:
            channel.close()
            if time.monotonic() > deadline:
                keeper_of(claim).send(signal.SIGKILL)
                reason = f"its keeper did not answer ({problem})"
                break
    if (end := read_end(folder.exit)) is not None:
        return Ended(end)
    end_processes(engine_of(read_claim(folder)), folder)
    return Missing(reason)


def claim_for_daemon(folder: EngineFolder) -> bool:
    """Claim an unclaimed start, so that no keeper ever carries it out. False if it is claimed."""
    mine = {"engine_id": folder.engine_id, "boot_id": boot_id(), "settled_by": os.getpid()}
    return create_claim(str(folder.claim), mine)


def distrust(expected: Engine, state: dict[str, Any]) -> str:
    """Why a running engine is not the one in the journal; "" if it is."""
    pid, started = int(state.get("pid", 0)), float(state.get("started", 0.0))
    if state.get("engine_id") != expected.spec.engine_id:
        return "its keeper keeps another engine"
    if expected.pid and (pid, started) != (expected.pid, expected.started):
        if pid == expected.pid:
            return f"process {pid} is another process with the recorded pid"
        return f"its process is {pid}, not the recorded {expected.pid}"
    if _spec_of(state) != expected.spec:
        return "it was started for another model or configuration"
    return ""


def _spec_of(state: dict[str, Any]) -> EngineSpec | None:
    """The spec in a keeper's state; None if invalid."""
    try:
        return msgspec.convert(state.get("about", {}).get("spec"), EngineSpec)
    except msgspec.ValidationError:
        return None


def end_processes(leader: ProcessIdentity, folder: EngineFolder) -> None:
    """End an engine that no keeper keeps: its leader's group, then any other process of it."""
    leader.send_group(signal.SIGTERM)
    _await_death([leader], _TERM_SECONDS)
    leader.send_group(signal.SIGKILL)
    left = of_folder(folder.path.absolute())
    for process in left:
        process.send(signal.SIGKILL)
    _await_death([leader, *left], _GONE_SECONDS)
    for process in (leader, *left):
        process.reap()


def claim_of(folder: EngineFolder) -> dict[str, Any]:
    """The same; raises OSError if it exists but cannot be read."""
    if claim := read_claim(folder):
        return claim
    with contextlib.suppress(FileNotFoundError):
        folder.claim.read_bytes()
    return {}


def engine_of(claim: dict[str, Any]) -> ProcessIdentity:
    return ProcessIdentity(
        int(claim.get("pid", 0)), float(claim.get("started", 0.0)), str(claim.get("boot_id", ""))
    )


def _await_death(processes: list[ProcessIdentity], seconds: float) -> None:
    """They are not our children, so their death can only be polled for."""
    deadline = time.monotonic() + seconds
    while any(process.alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
