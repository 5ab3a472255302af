"""What is really there of an engine an earlier daemon left: looked at, never assumed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.engines.channel import Channel, KeeperGone
from greenroom.runner.engines.exit_report import read_end
from greenroom.runner.engines.identity import ProcessIdentity, boot_id, of_folder
from greenroom.runner.engines.keeper import create_claim
from greenroom.runner.engines.paths import EngineFolder

_KEEPER_SECONDS = 20.0
"""How long a living keeper may take to answer. Between its claim and its socket lie milliseconds, but to give
it up ends its engine, and a machine that has just started may be busy."""
_GONE_SECONDS = 5.0
_TERM_SECONDS = 3.0


@dataclass(frozen=True)
class Ended:
    """It has ended and its keeper has written how."""

    end: dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """No process is there, or none that could still be kept; what was left has been ended."""

    reason: str


@dataclass(frozen=True)
class Running:
    """Its keeper lives and has answered on a connection that is now a life line."""

    channel: Channel
    state: dict[str, Any]


def look(folder: EngineFolder, grace: float | None) -> Ended | Missing | Running:
    """Find out about one engine folder, and end what no keeper keeps. Blocks for some seconds at most.

    A start that nobody has claimed yet is claimed here, so that its keeper, should it come late, gives up.

    Raises OSError when it cannot be looked at: that says nothing about the engine.
    """
    if (end := read_end(folder.exit)) is not None:
        return Ended(end)
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Read before it is tried: with a full disk a claim that is there could not be found by making one.
    if not (claim := _claim_of(folder)):
        if claim_for_daemon(folder):
            return Missing("it had not been started before the daemon ended")
        claim = _claim_of(folder)
    if "keeper_pid" not in claim:
        return Missing("its start was settled before: it never ran")
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
            time.sleep(0.01)  # it has just claimed, and its socket is not there yet; or it is just ending
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
    """Claim a start that nobody has claimed: no keeper will ever carry it out. False when one has."""
    mine = {"engine_id": folder.engine_id, "boot_id": boot_id(), "settled_by": os.getpid()}
    return create_claim(str(folder.claim), mine)


def distrust(expected: Engine, state: dict[str, Any]) -> str:
    """Why a running engine is not the one the journal tells of; "" when it is."""
    pid, started = int(state.get("pid", 0)), float(state.get("started", 0.0))
    if state.get("engine_id") != expected.spec.engine_id:
        return "its keeper keeps another engine"
    if expected.pid and (pid, started) != (expected.pid, expected.started):
        if pid == expected.pid:
            return f"process {pid} is another one than the recorded, with the same number"
        return f"its process is {pid}, not the recorded {expected.pid}"
    if _spec_of(state) != expected.spec:
        return "it was started for another model or configuration"
    return ""


def _spec_of(state: dict[str, Any]) -> EngineSpec | None:
    """What a keeper says its engine was started with; None when that is no such thing."""
    try:
        return msgspec.convert(state.get("about", {}).get("spec"), EngineSpec)
    except msgspec.ValidationError:
        return None


def end_processes(leader: ProcessIdentity, folder: EngineFolder) -> None:
    """End an engine that no keeper keeps any more: the group of its leader, then whoever is left of it."""
    leader.send_group(signal.SIGTERM)
    _await_death([leader], _TERM_SECONDS)
    leader.send_group(signal.SIGKILL)
    left = of_folder(folder.path.absolute())
    for process in left:
        process.send(signal.SIGKILL)
    _await_death([leader, *left], _GONE_SECONDS)
    for process in (leader, *left):
        process.reap()


def read_claim(folder: EngineFolder) -> dict[str, Any]:
    """The claim as it stands; empty when there is none."""
    try:
        value = json.loads(folder.claim.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _claim_of(folder: EngineFolder) -> dict[str, Any]:
    """The same; raises OSError when there is one that cannot be read."""
    if claim := read_claim(folder):
        return claim
    with contextlib.suppress(FileNotFoundError):
        folder.claim.read_bytes()
    return {}


def keeper_of(claim: dict[str, Any]) -> ProcessIdentity:
    """The keeper a claim names."""
    return ProcessIdentity(
        int(claim.get("keeper_pid", 0)),
        float(claim.get("keeper_started", 0.0)),
        str(claim.get("boot_id", "")),
    )


def engine_of(claim: dict[str, Any]) -> ProcessIdentity:
    """The engine process a claim names."""
    return ProcessIdentity(
        int(claim.get("pid", 0)), float(claim.get("started", 0.0)), str(claim.get("boot_id", ""))
    )


def _await_death(processes: list[ProcessIdentity], seconds: float) -> None:
    """Nothing tells of the death of a process that is not our child: look, bounded."""
    deadline = time.monotonic() + seconds
    while any(process.alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
