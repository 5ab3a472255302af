"""Runs a program to its end: in a session of its own, bounded in time and output, cancellable."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from greenroom.runner.systems.processes import ProcessIdentity

_OUTPUT_LIMIT = 256 * 1024
_POLL = 0.1
_TERM_GRACE = 2.0


class ProgramTimeout(Exception):
    """A program did nothing, or did not end, for too long; the text is a sentence."""

    def __init__(self, sentence: str, stderr: str) -> None:
        super().__init__(sentence)
        self.stderr = stderr


@dataclass(frozen=True)
class ProgramRun:
    """How a program ended."""

    code: int
    """Negative: the signal that ended it."""
    stdout: str
    stderr: str
    seconds: float


def run_program(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    check: Callable[[], None] = lambda: None,
    on_start: Callable[[int], None] | None = None,
    on_output: Callable[[bytes], None] | None = None,
    deadline: float,
    idle: float,
    name: str = "",
) -> ProgramRun:
    """Run a program and wait; blocks. Both outputs are kept to the last 256 KiB at least.

    Args:
        argv: The program and its arguments.
        cwd: The folder to run in.
        env: All of its environment.
        check: Called about ten times a second; what it raises ends the program's session.
        on_start: Receives the pid.
        on_output: Receives each piece of standard output.
        deadline: Maximum seconds for the whole run.
        idle: Maximum seconds without output, computing, reading or writing: a program may be stopped, and may
            wait for a hung disk.
        name: What to call it; its file's name if not given.

    Raises:
        OSError: It could not start.
        ProgramTimeout: It exceeded a limit.
    """
    name = name or Path(argv[0]).name
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if on_start is not None:
            on_start(process.pid)
        out, err = _Tail(on_output), _Tail()
        _drain(process, out, err, check, began + deadline, idle, name)
    finally:
        _end(process)
    return ProgramRun(process.returncode, out.text(), err.text(), time.monotonic() - began)


def kill_all(processes: Iterable[ProcessIdentity], grace: float = _TERM_GRACE) -> None:
    """Kill these very processes, and wait until they are gone."""
    ours = [one for one in processes if one.send(signal.SIGKILL)]
    deadline = time.monotonic() + grace
    while any(one.alive() for one in ours) and time.monotonic() < deadline:
        time.sleep(0.01)  # not our children, so their ends can only be polled


def _session(leader: int) -> list[ProcessIdentity]:
    """Its living processes, in whichever process groups: build tools give each step its own."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):  # gone, or of another user
            if os.getsid(pid) == leader and (one := ProcessIdentity.of(pid)) is not None:
                found.append(one)
    return found


def _drain(
    process: subprocess.Popen[bytes],
    out: _Tail,
    err: _Tail,
    check: Callable[[], None],
    deadline: float,
    idle: float,
    name: str,
) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    seen: object = None
    last_sign = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        while selector.get_map():
            check()
            for key, _ in selector.select(_POLL):
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                chunk = os.read(stream.fileno(), 65536)
                if chunk:
                    key.data.add(chunk)
                    last_sign = time.monotonic()
                else:
                    selector.unregister(stream)
            now = time.monotonic()
            if now - last_sign > 1.0 and (value := _work_of(process.pid)) != seen:
                seen, last_sign = value, now
            if now > deadline or now - last_sign > idle:
                reason = f"{name} showed no activity for {idle:.0f}s."
                raise ProgramTimeout(
                    reason if now <= deadline else f"{name} exceeded its time limit.", err.text()
                )
            if process.poll() is not None and not selector.select(0):
                break  # a process that it started holds the pipes open; its own output is complete
    remaining = max(0.1, deadline - time.monotonic())
    try:
        process.wait(timeout=min(remaining, idle))
    except subprocess.TimeoutExpired as error:
        raise ProgramTimeout(f"{name} did not exit.", err.text()) from error


def _work_of(pid: int) -> tuple[float, int]:
    """What a process and its children have computed, read and written; rises while they work."""
    seconds, moved = 0.0, 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                used = one.cpu_times()
                seconds += used.user + used.system
                # Not available on every system.
                counters = getattr(one, "io_counters", None)
                moved += sum(counters()[:4]) if counters is not None else 0
    return seconds, moved


class _Tail:
    def __init__(self, listener: Callable[[bytes], None] | None = None) -> None:
        self._kept = bytearray()
        self._listener = listener

    def add(self, chunk: bytes) -> None:
        if self._listener is not None:
            self._listener(chunk)
        self._kept += chunk
        if len(self._kept) > 16 * _OUTPUT_LIMIT:
            del self._kept[:-_OUTPUT_LIMIT]

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process of the session behind, whatever happened."""
    if process.poll() is None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sent)
                os.killpg(process.pid, signal.SIGCONT)  # a stopped one would not see the signal
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_TERM_GRACE)
            if process.poll() is not None:
                break
        kill_all(_session(process.pid))
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
