"""The keeper: the small parent process of one engine. Standard library only, run by `keeper_main.py`.

It stands between daemon and engine, so that either may die without losing the record of what happened:

* it first creates `claim` exclusively; a second claimant (a late keeper, or a daemon that settles an
unsettled
  start) gives up;
* every connection that sent `hold` keeps the engine. When the last one closes, the grace period begins, and
at
  its end the engine is ended;
* its own death ends the engine: by parent-death signal on Linux, and everywhere by a pipe whose read end the
  engine inherits (`GREENROOM_KEEPER_FD`) and our launchers watch;
* it drains the engine's output into a bounded log, reaps it, and leaves `capsule.json` and `exit.json`.

Messages are JSON lines, on standard input (a socket pair, the first connection) and on `keeper.sock`:
`start`, `hold`, `leave` and `stop` come in; `spawned`, `failed`, `state`, `halted`, `continued`, `stopping`
and `exited` go out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from greenroom.runner.engines.keeper_log import BoundedLog
from greenroom.runner.systems import here

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Maximum bytes of an incoming message, more than any system allows for a command line; beyond it the
connection is dropped.
"""
DRAIN_SECONDS = 0.2
"""How long to wait for the end of the output once the whole process group is dead."""
LADDER = (("SIGINT", 5.0), ("SIGTERM", 5.0), ("SIGKILL", 0.0))
"""Signals to the process group, each with the seconds before the next."""

_SIGNALS = {int(one): one.name for one in signal.Signals}
_NAMES = frozenset(_SIGNALS.values())
_NO_LINKS = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
)
"""Errors of file systems without hard links."""
_CONNECTIONS = 16
"""More are closed at once: a daemon has one, and commands use one briefly."""
_LOOK_SECONDS = 10.0
"""Seconds between two checks of the engine's memory and the socket files."""


def write_atomically(path: str, value: dict[str, Any]) -> None:
    """Readers see the old file or the new one, never a part."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(temporary, path)


def create_claim(path: str, value: dict[str, Any]) -> bool:
    """Create the claim with all its content; False if it exists."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        return _create_claim_without_links(path, value)
    finally:
        os.unlink(temporary)
    return True


def _create_claim_without_links(path: str, value: dict[str, Any]) -> bool:
    """Exclusive too, but briefly empty: the best that memory cards and network shares can do."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    return True


class DaemonConnection:
    """One connection of a daemon; it keeps the engine once it has sent `hold`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.holds = False
        self._received = b""
        sock.setblocking(False)

    def receive(self) -> list[dict[str, Any]] | None:
        """Complete messages received; None when the other side is gone."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > MESSAGE_LIMIT:
            return None
        try:
            return [dict(json.loads(line)) for line in lines if line.strip()]
        except (ValueError, TypeError, RecursionError):
            return None  # not our protocol: as good as gone

    def send(self, event: str, **fields: Any) -> None:
        """Best effort: a daemon that does not read finds everything on disk."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(1.0)
            self.socket.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")
        self.socket.settimeout(0.0)


class Listener:
    """The socket on which daemons reach this keeper."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._path = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def open(self, path: str) -> None:
        """Listen at a path, and have the selector wait for callers."""
        self._path = path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.socket.bind(path)
        self.socket.listen(8)
        self.socket.setblocking(False)
        self._selector.register(self.socket, selectors.EVENT_READ)

    def keep(self, *others: str) -> None:
        """Touch it and `others`, since systems clean old files from temporary folders; recreate it if it is
        gone.
        """
        for path in (self._path, *others):
            with contextlib.suppress(OSError):
                os.utime(path)
        if not os.path.exists(self._path):
            with contextlib.suppress(OSError):
                self._selector.unregister(self.socket)
                self.socket.close()
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.open(self._path)


class Keeper:
    def __init__(self, first: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._wakeup, wakeup_write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(wakeup_write, False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._note_signal)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._told_to_end = False
        self._connections: dict[int, DaemonConnection] = {}
        self._listener = Listener(self._selector)
        self._grace: float | None = 120.0
        self._orphaned_at: float | None = None
        self._pid, self._started = 0, 0.0
        self._status: tuple[int, Any] | None = None
        self._ladder: list[tuple[str, float]] = []
        self._next_rung: float | None = None
        self._stop_reason = ""
        self._memory, self._looked_at, self._memory_kills = 0, 0.0, 0
        self._halted, self._spawn_errno = False, 0
        self._output = -1
        self._started_once = False
        self._given_up = False
        self._connect(first).holds = True

    def run(self) -> int:
        here.become_keeper()
        while self._status is None and not self._given_up:
            self._turn()
        if self._status is not None:
            self._finish(*self._status)
        return 1 if self._given_up else 0

    def _start(self, config: dict[str, Any]) -> None:
        """Claim, then spawn; or give up."""
        self._config = config
        self._grace = config["grace"]
        os.chdir(config["folder"])
        claim = {
            "engine_id": config["engine_id"],
            "boot_id": here.boot_id(),
            "keeper_pid": os.getpid(),
            "keeper_started": here.start_time(os.getpid()),
            "keeper_socket": config["keeper_socket"],
            "engine_socket": config["engine_socket"],
            "about": config.get("about", {}),
        }
        if not create_claim("claim", claim):
            self._given_up = True
            self._broadcast("failed", code="claimed", message="Another daemon has cancelled this start.")
            return
        sys.stderr = open("keeper.log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - for good
        self._log = BoundedLog("log")
        self._listener.open(config["keeper_socket"])
        if failure := self._spawn(claim):
            self._given_up = True
            self._write_end({"failed": failure, "errno": self._spawn_errno})
            self._broadcast("failed", code="spawn", errno=self._spawn_errno, message=failure)
            self._remove_sockets()
        else:
            self._broadcast("spawned", **self._state())

    def _turn(self) -> None:
        """Wait for the next event, then do what is due."""
        for key, _ in self._selector.select(self._timeout()):
            if key.fd == self._wakeup:
                self._read_wakeup()
            elif key.fd == self._output:
                self._drain()
            elif key.fileobj is self._listener.socket:
                with contextlib.suppress(OSError):
                    self._welcome(self._listener.socket.accept()[0])
            elif key.fd in self._connections:
                self._serve(self._connections[key.fd])
        now = time.monotonic()
        if self._told_to_end:
            self._told_to_end = False
            self._begin_stop("the keeper was told to end (SIGTERM)", LADDER)
        if now >= self._grace_over():
            self._begin_stop(f"no daemon came back within {self._grace:g}s", LADDER)
        if self._next_rung is not None and now >= self._next_rung:
            self._climb()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._look(now)

    def _timeout(self) -> float:
        rung = self._next_rung if self._next_rung is not None else math.inf
        return max(0.0, min(_LOOK_SECONDS, min(rung, self._grace_over()) - time.monotonic()))

    def _grace_over(self) -> float:
        if self._orphaned_at is None or self._grace is None or self._stop_reason:
            return math.inf
        return self._orphaned_at + self._grace

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._connections) < _CONNECTIONS:
            self._connect(sock)
        else:
            sock.close()

    def _connect(self, sock: socket.socket) -> DaemonConnection:
        connection = DaemonConnection(sock)
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ)
        return connection

    def _serve(self, connection: DaemonConnection) -> None:
        messages = connection.receive()
        if messages is None:
            self._disconnect(connection)
        self._obey(connection, messages or [])

    def _obey(self, connection: DaemonConnection, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            try:
                self._carry_out(connection, message)
            except (ValueError, TypeError, LookupError, ArithmeticError) as problem:
                # Whatever is received, the engine and its other connections are kept.
                event = "refused" if self._started_once else "failed"
                connection.send(event, code="refused", message=f"The keeper cannot do that: {problem}.")

    def _carry_out(self, connection: DaemonConnection, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "start" and not self._started_once:
            config = checked_start(message)
            self._started_once = True
            self._start(config)
        elif op == "hold" and self._pid:
            self._grace = seconds_of(message.get("grace", self._grace))
            connection.holds = True
            self._orphaned_at = None
            connection.send("state", **self._state())
        elif op == "leave":
            # The daemon exits cleanly and leaves the engine: from now on this grace counts.
            self._grace = seconds_of(message.get("grace"))
        elif op == "stop":
            self._begin_stop(
                str(message.get("reason", ""))[:1000] or "a stop was requested", ladder_of(message)
            )
        else:
            raise ValueError(f"{op!r} cannot be done now")

    def _disconnect(self, connection: DaemonConnection) -> None:
        self._selector.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        if connection.holds and not any(other.holds for other in self._connections.values()):
            self._orphaned_at = time.monotonic()
            self._given_up = not self._pid  # a spare keeper whose daemon has gone

    def _broadcast(self, event: str, **fields: Any) -> None:
        for connection in self._connections.values():
            connection.send(event, **fields)

    def _state(self) -> dict[str, Any]:
        return {
            "engine_id": self._config["engine_id"],
            "keeper_pid": os.getpid(),
            "pid": self._pid,
            "started": self._started,
            "engine_socket": self._config["engine_socket"],
            "about": self._config.get("about", {}),
            "stopping": self._stop_reason,
            "halted": self._halted,
        }

    def _spawn(self, claim: dict[str, Any]) -> str:
        """Start the engine; returns "" or why it could not be started.

        The child waits at a barrier until its pid is in the claim: whatever happens to the keeper, no engine
        ever runs under an unrecorded pid.
        """
        argv = [str(word) for word in self._config["argv"]]
        go_read, go_write = os.pipe()
        error_read, error_write = os.pipe()
        output_read, output_write = os.pipe()
        watch_read, watch_write = os.pipe()
        env = {str(key): str(value) for key, value in self._config["env"].items()}
        env["GREENROOM_KEEPER_FD"] = str(watch_read)
        env["GREENROOM_ENGINE_FOLDER"] = self._config["folder"]
        self._memory_kills = here.memory_kills()
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(watch_write)
            os.close(go_write)
            self._become_engine(keeper, argv, env, go_read, error_write, output_write, watch_read)
        self._watch_write = watch_write  # never written: its closing is the message
        for fd in (go_read, error_write, output_write, watch_read):
            os.close(fd)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the child does it too, in case it is first
        self._pid, self._started = pid, here.start_time(pid)
        self._output = output_read
        try:
            write_atomically("claim", {**claim, "pid": pid, "started": self._started})
            os.write(go_write, b"!")
        finally:
            os.close(go_write)
        failed = os.read(error_read, 16)
        os.close(error_read)
        if failed:
            os.waitpid(pid, 0)
            os.close(output_read)
            self._pid = 0
            self._spawn_errno = int(failed)
            return f"{argv[0]} cannot be started: {os.strerror(self._spawn_errno)}."
        os.set_blocking(output_read, False)
        self._selector.register(output_read, selectors.EVENT_READ)
        return ""

    def _become_engine(
        self, keeper: int, argv: list[str], env: dict[str, str], go: int, error: int, output: int, watch: int
    ) -> NoReturn:
        """In the child: never returns, never raises into the parent's code."""
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            here.die_with_parent()
            here.die_first()
            if self._config.get("data_limit"):
                here.limit_data(int(self._config["data_limit"]))
            if os.getppid() != keeper:  # it died before the line above
                os._exit(127)
            null = os.open(os.devnull, os.O_RDONLY)
            for theirs, ours in enumerate((null, output, output)):
                os.dup2(ours, theirs)
            os.set_inheritable(watch, True)
            if os.read(go, 1) != b"!":
                os._exit(127)
            os.execvpe(argv[0], argv, env)  # noqa: S606 - a list, no shell wanted
        except OSError as problem:
            os.write(error, str(problem.errno or errno.EINVAL).encode())
        finally:
            os._exit(127)

    def _drain(self) -> None:
        try:
            data = os.read(self._output, 262144)
        except BlockingIOError:
            return
        if data:
            self._log.write(data)
        else:
            self._selector.unregister(self._output)
            os.close(self._output)
            self._output = -1

    def _begin_stop(self, reason: str, ladder: tuple[tuple[str, float], ...]) -> None:
        self._given_up = self._given_up or not self._pid
        if self._stop_reason or not self._pid or self._status is not None:
            return
        self._stop_reason = reason
        self._ladder = [*ladder]
        self._climb()

    def _climb(self) -> None:
        """Send the next signal to the whole group and set the time of the one after."""
        # After the last one the process is stuck in the kernel: repeat SIGKILL.
        name, bound = self._ladder.pop(0) if self._ladder else ("SIGKILL", 5.0)
        self._broadcast("stopping", signal=name, reason=self._stop_reason)
        # Not yet reaped: neither its pid nor its group can have been reused.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, getattr(signal, name))
        self._next_rung = time.monotonic() + (bound if self._ladder else 5.0)

    def _note_signal(self, number: int, _frame: object) -> None:
        self._told_to_end = self._told_to_end or number == signal.SIGTERM

    def _read_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)
        self._reap()
        self._notice_halt()

    def _notice_halt(self) -> None:
        """Report when a signal has stopped the engine, and when it continues; a debugger's stops are not
        reported.
        """
        if not self._pid or self._status is not None:
            return
        with contextlib.suppress(ChildProcessError):
            while (news := here.halted(self._pid)) is not None:
                self._halted = news
                self._broadcast("halted" if self._halted else "continued")

    def _reap(self) -> None:
        here.reap_others(self._pid)
        if not self._pid or self._status is not None:
            return
        with contextlib.suppress(ChildProcessError):
            # The rest of its group dies with it.
            self._status = here.reap(self._pid)

    def _look(self, now: float) -> None:
        self._looked_at = now
        if self._pid:
            self._memory = here.resident(self._pid) or self._memory
            self._memory_kills = here.memory_kills()
            self._listener.keep(self._config["engine_socket"])
            self._reap()  # in case a signal was lost

    def _finish(self, status: int, usage: Any) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._output >= 0 and (left := deadline - time.monotonic()) > 0:
            self._end_orphans()
            for key, _ in self._selector.select(left):
                if key.fd == self._output:
                    self._drain()
                elif key.fd == self._wakeup:
                    self._read_wakeup()
        self._end_orphans()
        self._log.close()
        killed = os.WIFSIGNALED(status)
        number = os.WTERMSIG(status) if killed else 0
        self._write_end(
            {
                "pid": self._pid,
                "started": self._started,
                "code": None if killed else os.WEXITSTATUS(status),
                "signal": _SIGNALS.get(number, f"signal {number}") if killed else "",
                "stop_reason": self._stop_reason,
                "memory": self._memory,
                "peak_memory": here.peak_bytes(usage.ru_maxrss),
                "out_of_memory": number == signal.SIGKILL
                and not self._stop_reason
                and here.was_killed_for_memory(self._pid, self._memory_kills),
            }
        )
        self._broadcast("exited", **self._end)
        self._remove_sockets()

    def _write_end(self, end: dict[str, Any]) -> None:
        self._end = {
            "at": time.time(),
            "engine_id": self._config["engine_id"],
            **end,
            "first_lines": self._log.first,
            "last_lines": self._log.last,
        }
        with contextlib.suppress(OSError):  # on a full disk, a connected daemon still receives it
            capsule = {**self._end, "argv": self._config["argv"], "about": self._config.get("about", {})}
            write_atomically("capsule.json", capsule)
            write_atomically("exit.json", self._end)

    def _end_orphans(self) -> None:
        """Kill descendants that left the group; they became ours when their parent died (subreaper)."""
        for pid in here.children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        here.reap_others(0)

    def _remove_sockets(self) -> None:
        for name in ("keeper_socket", "engine_socket"):
            with contextlib.suppress(OSError):
                os.unlink(str(self._config[name]))


def checked_start(message: dict[str, Any]) -> dict[str, Any]:
    """Validate a `start` message.

    Raises:
        TypeError, ValueError, LookupError: It cannot.
    """
    for name in ("engine_id", "folder", "keeper_socket", "engine_socket"):
        if not isinstance(message[name], str):
            raise TypeError(f"{name} is not text")
    if not isinstance(message["argv"], list) or not message["argv"] or not isinstance(message["env"], dict):
        raise TypeError("there is no command line")
    return {**message, "grace": seconds_of(message["grace"])}


def seconds_of(value: Any) -> float | None:
    """Validate a bound; None for no limit."""
    if value is None:
        return None
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value!r} is not a number of seconds")
    return seconds


def ladder_of(message: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """The signals of a `stop`, each with the seconds before the next."""
    ladder = [(str(name), seconds_of(bound) or 0.0) for name, bound in message.get("ladder") or LADDER]
    for name, _ in ladder:
        if name not in _NAMES:
            raise ValueError(f"{name} is not a signal")
    return tuple(ladder)


def main() -> int:
    """Standard input is the first connection, a socket; it moves off descriptor 0, where children look."""
    os.umask(0o077)
    first = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    return Keeper(first).run()
