"""The keeper: the small parent process of one engine. Standard library only, run as `python -I -S keeper.py`.

It stands between the daemon and the engine, so that either may die without taking the truth along:

* its first act is to create `claim` exclusively; whoever comes second (a late keeper, or a daemon that
  settles an unsettled start) gives up;
* every connection that said `hold` is a life line. When the last one is gone, the grace begins, and when
  that is over, the engine is ended;
* its own death ends the engine: parent-death signal on Linux, and everywhere a pipe whose read end the
  engine inherits (`GREENROOM_KEEPER_FD`) and our launchers watch;
* it drains the engine's output into a bounded log, reaps, and leaves `capsule.json` and `exit.json`.

Messages are JSON lines, both on standard input (a socket pair, the first life line) and on `keeper.sock`:
`start`, `hold`, `leave`, `stop` come in; `spawned`, `failed`, `state`, `halted`, `continued`, `stopping`
and `exited` go out.
"""

from __future__ import annotations

import calendar
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

SYSTEM: str = sys.platform
FIRST_LINES = 20
LAST_LINES = 40
LINE_LIMIT = 500
"""Characters of a kept line; the log has it whole."""
HEAD_BYTES = 256 * 1024
"""Kept for ever from the start of the output (`log`)."""
TAIL_BYTES = 512 * 1024
"""Then a ring of two files of this size (`log.tail`, `log.tail.old`)."""
MESSAGE_LIMIT = 1024 * 1024
"""Bytes of one incoming message, beyond which the connection is dropped."""
DRAIN_SECONDS = 0.2
"""How long to wait for the end of the output once the whole process group is dead."""
LADDER = (("SIGINT", 5.0), ("SIGTERM", 5.0), ("SIGKILL", 0.0))
"""Signals to the process group, each with the seconds before the next rung."""

_SIGNALS = {int(one): one.name for one in signal.Signals}
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def boot_id() -> str:
    """Changes with every boot, so that a pid of before can never be taken for one of now; "" if unknown."""
    if SYSTEM != "linux":
        return _output_of("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def start_time(pid: int) -> float:
    """Kernel start time of a process; 0.0 when there is none, or it is a zombie. Only compared for equality.

    On Linux clock ticks since boot (they do not move when the wall clock is set), elsewhere seconds since
    the epoch.
    """
    if SYSTEM != "linux":
        return start_time_by_ps(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return 0.0
    return 0.0 if fields[0] in (b"Z", b"X") else float(fields[19])


def start_time_by_ps(pid: int) -> float:
    """The same to the second, from `ps`, for systems without /proc."""
    state, _, started = _output_of("/bin/ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)).partition(" ")
    if not started or state.startswith("Z"):
        return 0.0
    return float(calendar.timegm(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y")))


def _output_of(*argv: str) -> str:
    import subprocess

    done = subprocess.run(argv, capture_output=True, check=False, env={"LC_ALL": "C", "TZ": "UTC"})
    return done.stdout.decode("ascii", "replace").strip()


def write_atomically(path: str, value: dict[str, Any]) -> None:
    """Readers see the old file or the new one, never a part."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(temporary, path)


def create_claim(path: str, value: dict[str, Any]) -> bool:
    """Create the claim with its whole content, or find that somebody else has: then False."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


class BoundedLog:
    """The engine's output on disk, head and tail, and its first and last lines in memory."""

    def __init__(self, path: str, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        self._path = path
        self._head_left = head
        self._tail_limit = tail
        self._tail_left = tail
        self._file: Any = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in `close`
        self._partial = b""
        self.first: list[str] = []
        self.last: list[str] = []

    def write(self, data: bytes) -> None:
        """Keep what came. A full disk loses the log, never the engine: draining goes on."""
        self._keep_lines(data)
        with contextlib.suppress(OSError):
            if self._head_left:
                part, data = data[: self._head_left], data[self._head_left :]
                self._file.write(part)
                self._head_left -= len(part)
            while data:
                self._roll()
                part, data = data[: self._tail_left], data[self._tail_left :]
                self._file.write(part)
                self._tail_left -= len(part)

    def _roll(self) -> None:
        """Make room in the tail: its first file begins after the head, the ring turns when it is full."""
        tail = f"{self._path}.tail"
        if self._file.name != tail:
            self._file.close()
            self._file = open(tail, "ab", buffering=0)  # noqa: SIM115
        elif self._tail_left <= 0:
            self._file.close()
            os.replace(tail, f"{tail}.old")
            self._file = open(tail, "ab", buffering=0)  # noqa: SIM115
            self._tail_left = self._tail_limit

    def _keep_lines(self, data: bytes) -> None:
        # A carriage return redraws a progress bar: what it overwrites is no line worth keeping.
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-4 * LINE_LIMIT :]
        for raw in whole[:FIRST_LINES] + whole[FIRST_LINES:][-LAST_LINES:]:
            self._keep_line(raw)

    def _keep_line(self, raw: bytes) -> None:
        line = raw.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace").rstrip()[:LINE_LIMIT]
        if not line:
            return
        if len(self.first) < FIRST_LINES:
            self.first.append(line)
        self.last.append(line)
        del self.last[:-LAST_LINES]

    def close(self) -> None:
        """Keep an unfinished last line too."""
        self._keep_line(self._partial)
        self._partial = b""
        self._file.close()


class Connection:
    """One connection of a daemon; a life line once it has said so."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.holds = False
        self._received = b""
        sock.setblocking(False)

    def receive(self) -> list[dict[str, Any]] | None:
        """Whole messages that have come; None when the other side is gone."""
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
        except (ValueError, TypeError):
            return None  # not our protocol: as good as gone

    def send(self, event: str, **fields: Any) -> None:
        """Best effort: whoever does not read will find everything on disk."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(1.0)
            self.socket.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")
        self.socket.settimeout(0.0)


class Keeper:
    """Keeps one engine until it has ended."""

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
        self._connections: dict[int, Connection] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._grace: float | None = 120.0
        self._orphaned_at: float | None = None
        self._pid, self._started = 0, 0.0
        self._status: tuple[int, Any] | None = None
        self._ladder: list[tuple[str, float]] = []
        self._next_rung: float | None = None
        self._stop_reason = ""
        self._memory, self._memory_at, self._oom_before = 0, 0.0, 0
        self._halted, self._spawn_errno = False, 0
        self._output = -1
        self._prctl: Any = None
        self._given_up = False
        self._connect(first).holds = True

    def run(self) -> int:
        """From the first message to the engine's end."""
        if SYSTEM == "linux":
            import ctypes  # now, so that a spare keeper has it ready

            self._prctl = ctypes.CDLL(None, use_errno=True).prctl
            # Orphans of the engine become our children: they can be found, ended and reaped.
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
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
            "boot_id": boot_id(),
            "keeper_pid": os.getpid(),
            "keeper_started": start_time(os.getpid()),
            "keeper_socket": config["keeper_socket"],
            "engine_socket": config["engine_socket"],
            "about": config.get("about", {}),
        }
        if not create_claim("claim", claim):
            self._given_up = True
            self._broadcast("failed", code="claimed", message="This start was already settled by another.")
            return
        sys.stderr = open("keeper.log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - for good
        self._log = BoundedLog("log")
        self._listen(config["keeper_socket"])
        if failure := self._spawn(claim):
            self._given_up = True
            self._write_end({"failed": failure, "errno": self._spawn_errno})
            self._broadcast("failed", code="spawn", errno=self._spawn_errno, message=failure)
            self._remove_sockets()
        else:
            self._broadcast("spawned", **self._state())

    def _turn(self) -> None:
        """One round: wait for whatever comes first, then do what is due."""
        for key, _ in self._selector.select(self._timeout()):
            if key.fd == self._wakeup:
                self._read_wakeup()
            elif key.fd == self._output:
                self._drain()
            elif key.fileobj is self._listener:
                with contextlib.suppress(OSError):
                    self._connect(self._listener.accept()[0])
            elif key.fd in self._connections:
                self._serve(self._connections[key.fd])
        now = time.monotonic()
        if self._told_to_end:
            self._told_to_end = False
            self._begin_stop("the keeper was told to end (SIGTERM)", LADDER)
        if now >= self._grace_over():
            self._begin_stop(f"no daemon came back within {self._grace:g} s", LADDER)
        if self._next_rung is not None and now >= self._next_rung:
            self._climb()
        if now - self._memory_at >= 10.0:
            self._measure()

    def _timeout(self) -> float:
        rung = self._next_rung if self._next_rung is not None else math.inf
        return max(0.0, min(10.0, min(rung, self._grace_over()) - time.monotonic()))

    def _grace_over(self) -> float:
        if self._orphaned_at is None or self._grace is None or self._stop_reason:
            return math.inf
        return self._orphaned_at + self._grace

    def _connect(self, sock: socket.socket) -> Connection:
        connection = Connection(sock)
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ)
        return connection

    def _listen(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(8)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _serve(self, connection: Connection) -> None:
        messages = connection.receive()
        if messages is None:
            self._disconnect(connection)
        for message in messages or []:
            op = message.get("op")
            if op == "start":
                self._start(message)
            elif op == "hold":
                connection.holds = True
                self._orphaned_at = None
                self._grace = message.get("grace", self._grace)
                connection.send("state", **self._state())
            elif op == "leave":
                # The daemon goes in order and leaves the engine: from now on this grace counts.
                self._grace = message.get("grace")
            elif op == "stop":
                ladder = tuple((str(name), float(bound)) for name, bound in message.get("ladder") or LADDER)
                self._begin_stop(str(message.get("reason", "")) or "asked to stop", ladder)

    def _disconnect(self, connection: Connection) -> None:
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
        """Start the engine; empty, or why it could not be started.

        The child waits at a barrier until its pid stands in the claim: whatever happens to us, no engine
        ever runs whose pid nobody can find.
        """
        argv = [str(word) for word in self._config["argv"]]
        go_read, go_write = os.pipe()
        error_read, error_write = os.pipe()
        output_read, output_write = os.pipe()
        watch_read, watch_write = os.pipe()
        env = {str(key): str(value) for key, value in self._config["env"].items()}
        env |= {"GREENROOM_KEEPER_FD": str(watch_read), "GREENROOM_ENGINE_FOLDER": self._config["folder"]}
        self._oom_before = _oom_kills()
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
            os.setpgid(pid, pid)  # the child does it too; whoever comes first
        self._pid, self._started = pid, start_time(pid)
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
            if self._prctl is not None:
                self._prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
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
        """The next rung: a signal to the whole group, and the bound until the one after."""
        # Past the last one the process is stuck in the kernel: knock again, for ever.
        name, bound = self._ladder.pop(0) if self._ladder else ("SIGKILL", 5.0)
        self._broadcast("stopping", signal=name, reason=self._stop_reason)
        # Not yet reaped: neither its pid nor its group can have been recycled.
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
        """Tell when a signal has stopped the engine, and when it goes on; a debugger's stops are not told."""
        if not self._pid or self._status is not None or not hasattr(os, "waitid"):
            return
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG):
                self._halted = found.si_code == os.CLD_STOPPED
                self._broadcast("halted" if self._halted else "continued")

    def _reap(self) -> None:
        while True:
            try:
                pid = self._next_dead()
                if pid == 0:
                    return
                if pid == self._pid:
                    # Whom it leaves in its group dies with it. Still a zombie, it holds the group's number.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
            except ChildProcessError:
                return
            if pid == self._pid:
                self._status = (status, usage)

    def _next_dead(self) -> int:
        """Pid of a child that is dead and not yet reaped; 0 when there is none."""
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return 0 if found is None else found.si_pid
        # Before Python 3.13 macOS has no look without reaping; and no subreaper: one child is all there is.
        return self._pid if self._pid and not start_time(self._pid) else 0

    def _measure(self) -> None:
        self._memory_at = time.monotonic()
        if SYSTEM == "linux" and self._pid:
            path = f"/proc/{self._pid}/statm"
            with contextlib.suppress(OSError, IndexError, ValueError), open(path, "rb") as file:
                self._memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

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
        peak = usage.ru_maxrss if SYSTEM == "darwin" else usage.ru_maxrss * 1024
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
                "peak_memory": peak,
                "out_of_memory": number == signal.SIGKILL and _oom_kills() > self._oom_before,
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
        with contextlib.suppress(OSError):  # a full disk: the daemon that listens hears it all the same
            capsule = {**self._end, "argv": self._config["argv"], "about": self._config.get("about", {})}
            write_atomically("capsule.json", capsule)
            write_atomically("exit.json", self._end)

    def _end_orphans(self) -> None:
        """Descendants that left the group came to us when their parent died (subreaper): end them."""
        if SYSTEM != "linux":
            return
        path = f"/proc/self/task/{os.getpid()}/children"
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            for word in file.read().split():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(word), signal.SIGKILL)
        self._reap()

    def _remove_sockets(self) -> None:
        for name in ("keeper_socket", "engine_socket"):
            with contextlib.suppress(OSError):
                os.unlink(str(self._config[name]))


def _oom_kills() -> int:
    """How often this kernel has killed for want of memory; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/vmstat", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"oom_kill "))
    return 0


def main() -> int:
    """Standard input is the life line, a socket; it moves away from 0, where children look."""
    os.umask(0o077)
    first = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    return Keeper(first).run()


if __name__ == "__main__":
    sys.exit(main())
