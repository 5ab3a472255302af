"""The daemon's end of its keepers: the connection to each, and one thread that watches them all.

The thread waits for messages, for a keeper's end, and for deadlines. While its connection is open, a keeper
keeps its engine. Messages are JSON lines. A keeper's environment, and its engine's, has what a program needs
here, and no secrets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenroom.actors.fork import lock_for_forks, on_fork
from greenroom.runner.engines import keeper_main
from greenroom.runner.engines.keeper import MESSAGE_LIMIT
from greenroom.runner.errors import JobFailed
from greenroom.runner.systems import here

if TYPE_CHECKING:
    from greenroom.runner.engines.handle import Handle

_log = logging.getLogger(__name__)

_NAMES = frozenset(
    """
    HOME LANG LANGUAGE LOGNAME PATH SHELL TMPDIR TZ USER LD_LIBRARY_PATH DYLD_LIBRARY_PATH
    DYLD_FALLBACK_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR __CF_USER_TEXT_ENCODING
    XDG_CACHE_HOME XDG_CONFIG_DIRS XDG_CONFIG_HOME XDG_DATA_DIRS XDG_DATA_HOME XDG_RUNTIME_DIR XDG_STATE_HOME
    MLX_BFS_MAX_WIDTH MLX_ENABLE_TF32 MLX_MAX_ACTIVE_TASKS MLX_MAX_MB_PER_BUFFER MLX_MAX_OPS_PER_BUFFER
    MLX_METAL_FAST_SYNCH
    VLLM_ALLOW_LONG_MAX_MODEL_LEN VLLM_ATTENTION_BACKEND VLLM_CACHE_ROOT VLLM_CONFIG_ROOT
    VLLM_CPU_KVCACHE_SPACE VLLM_CPU_MOE_PREPACK VLLM_CPU_NUM_OF_RESERVED_CPU VLLM_CPU_OMP_THREADS_BIND
    VLLM_CPU_SGL_KERNEL VLLM_ENABLE_V1_MULTIPROCESSING VLLM_ENGINE_ITERATION_TIMEOUT_S
    VLLM_FLASH_ATTN_VERSION VLLM_FUSED_MOE_CHUNK_SIZE VLLM_HOST_IP VLLM_KV_CACHE_LAYOUT
    VLLM_TARGET_DEVICE VLLM_USE_DEEP_GEMM VLLM_USE_FLASHINFER_SAMPLER VLLM_USE_TRITON_FLASH_ATTN VLLM_USE_V1
    VLLM_WORKER_MULTIPROC_METHOD
    """.split()
)
"""For mlx and vllm one by one: others of theirs are credentials, or log requests."""
_PREFIXES = (
    *("CUDA_", "GGML_", "GOMP_", "HIP_", "HSA_", "KMP_", "LC_", "MKL_", "MTL_", "NCCL_", "NVIDIA_"),
    *("OMP_", "OPENBLAS_", "PYTORCH_", "ROCM_", "ROCR_", "TORCH_", "VECLIB_", "VK_"),
)
"""Switches of compute libraries."""
_SECRET_WORDS = frozenset(
    """
    ACCESS AUTH AUTHORIZATION COOKIE CRED CREDENTIAL CREDENTIALS CREDS DSN KEY KEYS LOGIN PASS PASSPHRASE
    PASSWD PASSWORD PRIVATE PWD SECRET SECRETS SESSION SIGNATURE TOKEN TOKENS
    """.split()
)
"""A name with one of these between its underscores is never passed on, whatever its prefix."""


def cleaned(extra: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allowed part of our environment, then what the engine's command adds."""
    source = os.environ if base is None else base
    return {**{name: value for name, value in source.items() if _is_allowed(name, value)}, **extra}


def _is_allowed(name: str, value: str) -> bool:
    if name in _NAMES:
        return True
    if not name.startswith(_PREFIXES) or not _SECRET_WORDS.isdisjoint(name.upper().split("_")):
        return False
    return "://" not in value  # a URL may contain a password, and no switch is one


_RECEIVE_BYTES = 262_144
DETACHED: list[subprocess.Popen[bytes]] = []
"""Keepers left running; polled so that a long-lived host program collects no zombies."""

_DETACHED_LOCK = lock_for_forks()


def reap_detached() -> None:
    with _DETACHED_LOCK:
        DETACHED[:] = [process for process in DETACHED if process.poll() is None]


class KeeperGone(Exception):
    """The keeper closed the connection or refused it."""


class Channel:
    """One connection to a keeper. Sends from any thread; receives on one."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._socket = sock
        self._process = process
        self._sending = threading.Lock()
        self._received = b""
        self._closed = False
        on_fork(self)

    def forked(self) -> None:
        """A child that kept this connection open would keep the engine alive after this process has ended."""
        self._closed = True
        self._socket.close()

    @classmethod
    def spawn(cls) -> Channel:
        """Start a keeper that waits for its `start`; it exits if this process ends first."""
        reap_detached()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # -S: it imports only the standard library, and starts some milliseconds sooner.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(keeper_main.__file__))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=cleaned({}),  # it outlives us, and the user's other processes can read its variables
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(ours, process)

    @classmethod
    def connect(cls, path: str, keeper_pid: int) -> Channel:
        """Connect to a running keeper.

        Raises:
            KeeperGone: Nothing, or another process, listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(5.0)
            sock.connect(path)
            sock.setblocking(True)
        except OSError as problem:
            sock.close()
            raise KeeperGone(str(problem)) from problem
        if here.peer_pid(sock) not in (0, keeper_pid):
            sock.close()
            raise KeeperGone("another process listens on the keeper's socket")
        return cls(sock)

    @property
    def pid(self) -> int:
        """Of a keeper we spawned; 0 for one we connected to."""
        return self._process.pid if self._process is not None else 0

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill a keeper we spawned: our own child, so its pid cannot have been reused."""
        if self.alive() and self._process is not None:
            self._process.kill()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, op: str, **fields: Any) -> None:
        """Send one message.

        Raises:
            KeeperGone: The keeper has ended.
            JobFailed: The command line is far too long.
        """
        data = json.dumps({"op": op, **fields}).encode() + b"\n"
        if len(data) > MESSAGE_LIMIT:
            raise JobFailed.permanent(
                "command_line_too_long",
                f"The engine's command line and environment take {len(data) / 1e6:.1f} MB, more than "
                "the system can pass to a program.",
                advice="Shorten the model's runtime flags.",
            )
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError as problem:
                raise KeeperGone(str(problem)) from problem

    def receive(self) -> list[dict[str, Any]]:
        """Complete messages received so far, without waiting; raises `KeeperGone` at the end."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as problem:
            raise KeeperGone(str(problem)) from problem
        return self._messages(data)

    def await_event(self, event: str, seconds: float) -> dict[str, Any]:
        """Wait for one event, dropping earlier ones; raises `KeeperGone` if it does not come in time."""
        self._socket.settimeout(seconds)
        try:
            while True:
                for message in self._messages(self._socket.recv(_RECEIVE_BYTES)):
                    if message.get("event") == event:
                        return message
        except OSError as problem:
            raise KeeperGone(str(problem)) from problem
        finally:
            self._socket.setblocking(True)

    def _messages(self, data: bytes) -> list[dict[str, Any]]:
        if not data:
            raise KeeperGone("the keeper has ended")
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def close(self, *, reap: bool = True) -> None:
        """Close the connection; with `reap`, wait for a keeper that ends now, or kill it."""
        if self._closed:
            return
        self._closed = True
        self._socket.close()
        if self._process is None:
            return
        if not reap:
            with _DETACHED_LOCK:
                DETACHED.append(self._process)
            return
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()  # our own child, not reaped: its pid cannot have been reused
            self._process.wait(5.0)


class SpareKeeper:
    """A keeper that waits for the next start: it saves a cold request its start, and costs some megabytes."""

    def __init__(self, aside: Callable[[str, Callable[[], None]], None], *, wanted: bool = True) -> None:
        """`aside` runs something under a name on another thread."""
        self._aside = aside
        self._wanted = wanted
        self._lock = threading.Lock()
        self._channel: Channel | None = None

    @property
    def pid(self) -> int:
        """0 while there is none."""
        with self._lock:
            return self._channel.pid if self._channel is not None else 0

    def begin(self, **config: Any) -> Channel:
        """Give a start to it, or to a new keeper when there is none or it has died. Raises KeeperGone."""
        spare = self._take()
        if spare is not None and spare.alive():
            with contextlib.suppress(KeeperGone):
                spare.send("start", **config)
                return spare
        if spare is not None:
            spare.close()
        channel = Channel.spawn()
        try:
            channel.send("start", **config)
        except KeeperGone:
            channel.close()
            raise
        return channel

    def refill(self) -> None:
        """Start another one, unless there is one."""
        with self._lock:
            wanted = self._wanted and self._channel is None
        if wanted:
            self._aside("keeper-spare", self._spawn)

    def close(self) -> None:
        """End it, and start no other."""
        self._wanted = False
        if (spare := self._take()) is not None:
            spare.close()

    def _take(self) -> Channel | None:
        with self._lock:
            spare, self._channel = self._channel, None
        return spare

    def _spawn(self) -> None:
        try:
            channel = Channel.spawn()
        except OSError as problem:
            _log.warning("no spare keeper: %s", problem)
            return
        with self._lock:
            if self._channel is None and self._wanted:
                self._channel = channel
                return
        channel.close()


class KeeperWatch:
    """Calls back on its own thread, the only one that registers, receives on and closes channels."""

    def __init__(
        self,
        heard: Callable[[Handle, dict[str, Any]], None],
        gone: Callable[[Handle], None],
        overdue: Callable[[Handle], None],
    ) -> None:
        self._heard = heard
        self._gone = gone
        self._overdue = overdue
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_write = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_write.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._new: list[Handle] = []
        self._leaving: list[tuple[Handle, threading.Event]] = []
        self._watched: set[Handle] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-watch", daemon=True)
        self._thread.start()

    def add(self, handle: Handle) -> None:
        """Watch an engine that now has a channel."""
        with self._lock:
            self._new.append(handle)
        self.wake()

    def leave(self, handle: Handle) -> None:
        """Detach from an engine that keeps running: close its connection without reporting an end."""
        done = threading.Event()
        with self._lock:
            self._leaving.append((handle, done))
        self.wake()
        done.wait(5.0)

    def wake(self) -> None:
        """Check again: an engine was added or a deadline set."""
        try:
            self._wakeup_write.send(b"!")
        except OSError:
            return  # closed, or so full that it will wake anyway

    def close(self) -> None:
        """End the thread; closing the remaining channels starts their keepers' grace."""
        with self._lock:
            self._closed = True
        self.wake()
        self._thread.join(10.0)

    def _run(self) -> None:
        while True:
            with self._lock:
                new, self._new = self._new, []
                leaving, self._leaving = self._leaving, []
                closed = self._closed
            for handle in new:
                self._begin(handle)
            for handle, done in leaving:
                self._drop(handle, reap=False)
                done.set()
            if closed:
                break
            for key, _ in self._selector.select(self._timeout()):
                if key.data is None:
                    self._wakeup.recv(4096)
                elif key.data in self._watched:
                    self._receive(key.data)
            now = time.monotonic()
            for handle in [one for one in self._watched if 0 < one.kill_at <= now]:
                handle.kill_at = now + 5.0
                self._guarded(partial(self._overdue, handle))
        for handle in list(self._watched):
            self._drop(handle, reap=handle.over.is_set())
        self._selector.close()
        self._wakeup.close()
        self._wakeup_write.close()

    def _begin(self, handle: Handle) -> None:
        assert handle.channel is not None
        try:
            self._selector.register(handle.channel, selectors.EVENT_READ, handle)
        except (OSError, ValueError, KeyError):
            # Its end would go unnoticed: handle it as if its keeper had gone.
            _log.exception("engine %s cannot be watched", handle.engine_id)
            handle.channel.close(reap=True)
            self._guarded(partial(self._gone, handle))
            return
        self._watched.add(handle)

    def _timeout(self) -> float | None:
        due = [handle.kill_at for handle in self._watched if handle.kill_at > 0]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _receive(self, handle: Handle) -> None:
        assert handle.channel is not None
        try:
            for message in handle.channel.receive():
                self._guarded(partial(self._heard, handle, message))
        except (KeeperGone, ValueError):
            self._drop(handle, reap=True)
            self._guarded(partial(self._gone, handle))

    def _drop(self, handle: Handle, *, reap: bool) -> None:
        if handle not in self._watched or handle.channel is None:
            return
        self._watched.discard(handle)
        self._selector.unregister(handle.channel)
        handle.channel.close(reap=reap)

    def _guarded(self, call: Callable[[], None]) -> None:
        # One engine's odd message must not stop the watch over the others.
        try:
            call()
        except Exception:  # noqa: BLE001 - see above
            _log.exception("engine watch: a callback failed")
