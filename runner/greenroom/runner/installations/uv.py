"""Runs uv: in an empty folder, with a clean environment and a private cache, cancellable.

Of the user's configuration, uv sees only sources and transport (`PackageSources`). Its output is kept
(bounded, redacted) and, on failure, turned into one sentence and one stable code.
"""

from __future__ import annotations

import os
import re
import signal
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal, NamedTuple

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.systems.programs import ProgramTimeout, run_program
from greenroom.runner.threads import stop_if

# Filled now, under this module's import lock: in CPython up to 3.12 a second thread can find it half
# filled (`EXE` is None), and several threads look for uv's program at once.
sysconfig.get_config_vars()

_KEPT_VARIABLES = frozenset(
    "PATH HOME USER LOGNAME TMPDIR LANG LC_ALL LC_CTYPE TZ SSL_CERT_FILE SSL_CERT_DIR".split()
)


@dataclass(frozen=True)
class UvResult:
    stdout: str
    stderr: str
    seconds: float


class Uv:
    """One uv program with a private cache and one set of sources."""

    def __init__(self, cache_dir: Path, sources: PackageSources, binary: Path | None = None) -> None:
        self.cache_dir = cache_dir
        self.sources = sources
        self._binary = binary

    @property
    def binary(self) -> Path:
        """The program: as given, else `GREENROOM_UV`, else from the `uv` package."""
        if self._binary is not None:
            return self._binary
        if named := os.environ.get("GREENROOM_UV"):
            return Path(named)
        import uv

        try:
            return Path(uv.find_uv_bin())
        except FileNotFoundError as error:
            raise JobFailed.permanent(
                "uv_missing",
                "The uv program that installs backends is missing from Greenroom's own environment.",
                advice="Reinstall Greenroom, or name a uv program in GREENROOM_UV.",
                detail=str(error),
            ) from error

    def run(
        self,
        args: Sequence[str],
        *,
        cwd: Path | None = None,
        cancel: Event | None = None,
        on_start: Callable[[int], None] | None = None,
        deadline: float = 3600.0,
        idle: float = 300.0,
    ) -> UvResult:
        """Run `uv <args>` and wait; blocks.

        Args:
            cwd: The folder to run in; by default a temporary empty one.
            cancel: Ends uv's process group and raises `JobCancelled` when set.
            on_start: Receives the pid.
            deadline: Maximum seconds for the whole run.
            idle: Maximum seconds without output, computing, reading or writing: uv prints no progress without
                a terminal, may be stopped, and may wait for a hung disk.

        Raises:
            JobFailed: It could not start, ended with an error, or exceeded a deadline.
            JobCancelled: `cancel` was set.
        """
        stop_if(cancel)
        if cwd is None:
            with tempfile.TemporaryDirectory(prefix="greenroom-uv-") as folder:
                return self.run(
                    args, cwd=Path(folder), cancel=cancel, on_start=on_start, deadline=deadline, idle=idle
                )
        variables = {name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES}
        variables |= self.sources.uv_environment()
        variables |= {
            "UV_CACHE_DIR": str(self.cache_dir.absolute()),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_CONFIG": "1",
            "UV_HTTP_RETRIES": "2",
            "UV_LOCK_TIMEOUT": "120",
            "NO_COLOR": "1",
        }
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            ended = run_program(
                [str(self.binary), *args, "--no-config", "--no-progress", "--color", "never"],
                cwd=cwd,
                env=variables,
                check=partial(stop_if, cancel),
                on_start=on_start,
                deadline=deadline,
                idle=idle,
                name="uv",
            )
        except OSError as error:
            raise os_failure(error, "The uv program could not be started") from error
        except ProgramTimeout as late:
            raise JobFailed.transient(
                "timed_out", str(late), advice="Look at the network and try again.", detail=late.stderr
            ) from late
        if ended.code != 0:
            raise classify(self.sources.redact(ended.stderr or ended.stdout), ended.code)
        return UvResult(stdout=ended.stdout, stderr=self.sources.redact(ended.stderr), seconds=ended.seconds)


class _Known(NamedTuple):
    pattern: str
    kind: Literal["transient", "permanent"]
    code: str
    message: str
    advice: str


# First match wins: permanent failures come before transient ones, since uv's chain of causes often ends
# in a general phrase ("failed to fetch") that matches both.
_FAILURES = (
    _Known(
        r"hash mismatch|no hashes? (?:matched|that match)|does not match .*hash",
        "permanent",
        "hash_mismatch",
        "A package is not the one that this release of Greenroom was tested with.",
        "Check the package index or proxy that served it; it may rewrite or rebuild packages.",
    ),
    _Known(
        r"no space left on device|os error 28|disk quota exceeded|os error 122",
        "permanent",
        "no_space",
        "The disk is full.",
        "Free some space, then install again.",
    ),
    _Known(
        r"read-only file system|os error 30\b",
        "permanent",
        "read_only",
        "The data directory cannot be written to.",
        "Make it writable, or set GREENROOM_HOME to a folder that is.",
    ),
    _Known(
        r"permission denied|os error 13\b",
        "permanent",
        "no_permission",
        "A file in the data directory cannot be written: permission denied.",
        "Make sure you can write there, or set GREENROOM_HOME to another folder.",
    ),
    _Known(
        r"network was disabled|network connectivity is disabled",
        "transient",
        "offline",
        "The package is not on this machine, and the network is switched off.",
        "Switch the network on, or name a folder with the packages in PIP_FIND_LINKS.",
    ),
    _Known(
        r"status client error \((?:401|403)|unauthorized|forbidden",
        "permanent",
        "unauthorized",
        "The package index refused our credentials.",
        "Check the user and password of the index in pip's or uv's settings, or in ~/.netrc.",
    ),
    _Known(
        r"timed? ?out|connection (?:reset|refused|closed|aborted|error)|connect error|error sending request"
        r"|dns error|name resolution|unreachable|broken pipe|incomplete message|unexpected eof|end of file"
        r"|failed to fetch.*\b(?:429|5\d\d)\b|status (?:server|client) error \((?:429|5\d\d)"
        r"|request failed after",
        "transient",
        "unreachable",
        "The package index could not be reached.",
        "Check the network and the proxy settings; pip's and uv's own settings are used.",
    ),
    _Known(
        r"no wheels with a matching|no (?:compatible|matching) wheel|doesn't have a (?:source|wheel)"
        r"|requires-python|current python version",
        "permanent",
        "unsupported_platform",
        "There is no package for this platform and Python.",
        "Use another backend, or run Greenroom with another Python.",
    ),
    _Known(
        r"no solution found|there is no version of|was not found in the package registry|not found in",
        "permanent",
        "no_such_version",
        "No such version is on the package index.",
        "Ask for another version, or leave the version out to get the one this release was tested with.",
    ),
    _Known(
        # A process uv started; machines without memory do that.
        r"failed with exit (?:status|code):? signal: 9",
        "transient",
        "uv_killed",
        "A program that the installation needs was ended by SIGKILL.",
        "See whether the machine has memory left, then try again.",
    ),
    _Known(
        r"timeout.*lock|lock.*timeout|could not acquire lock",
        "transient",
        "locked",
        "Another uv holds the lock of the package cache.",
        "Wait for it to end, then try again.",
    ),
)


_NO_NETWORK = re.compile(
    r"dns error|name resolution|failed to lookup address|network is unreachable|connect error", re.IGNORECASE
)
_HOST = re.compile(r"https?://(?:[^/\s@]*@)?([^/\s`'\")]+)")


def classify(output: str, code: int) -> JobFailed:
    """The failure that uv's output means, and whether a retry makes sense."""
    detail = output.strip()
    for known in _FAILURES:
        if re.search(known.pattern, detail, re.IGNORECASE | re.DOTALL):
            make = JobFailed.transient if known.kind == "transient" else JobFailed.permanent
            message = known.message
            if known.code == "unreachable" and (host := _HOST.search(detail)):
                # uv may have asked several, including a backend's own.
                message = f"The package index at {host[1]} could not be reached."
            failed = make(known.code, message, advice=known.advice, detail=detail)
            failed.reached = _NO_NETWORK.search(detail) is None
            return failed
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return JobFailed.transient(
            "uv_killed", f"uv was ended by {name}.", advice="Try again.", detail=detail
        )
    error = re.search(r"^error: (.{1,200})", detail, re.MULTILINE)
    reason = f": {error[1].strip().removesuffix('.')}" if error else ""
    return JobFailed.permanent(
        "uv_failed",
        f"uv ended with exit code {code}{reason}.",
        advice="`greenroom why` with the name of the backend or model shows its output.",
        detail=detail,
    )
