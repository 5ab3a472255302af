"""The two exceptions that effects raise, with the sentence for the user; and whose failure it was.

Exception
├── JobFailed      a step did not work: `failure` says whether to retry and what to do
└── JobCancelled   the job was asked to end
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Literal

import msgspec

from greenroom.actors.values import Blame, Failure

_DETAIL_LIMIT = 4_000
_MODELS = frozenset({"model_damaged", "not_a_model", "unsupported_model"})
"""Codes of problems with the model itself, found before an engine runs."""
_CONFIGURATIONS = frozenset({"socket_path", "bad_settings", "cannot_start"})
_MACHINES = frozenset(
    {
        "keeper",
        "no_space",
        "noexec",
        "read_only",
        "not_allowed",
        "not_a_folder",
        "too_many_files",
        "no_memory",
        "io_error",
        "device_gone",
        "store_damaged",
        "unsupported_platform",
    }
)
_SYSTEM: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no_space", "Free some space on the disk that holds Greenroom's data directory."),
    errno.EDQUOT: ("no_space", "The user's disk quota is used up: free some space."),
    errno.EROFS: ("read_only", "Greenroom's data directory must be writable."),
    errno.EMFILE: ("too_many_files", "Raise the limit on open files (ulimit -n) and restart Greenroom."),
    errno.ENFILE: ("too_many_files", "The machine has no file descriptors left: end some other programs."),
    errno.EAGAIN: (
        "no_process",
        "The limit on processes is reached: end some programs, or raise it (ulimit -u).",
    ),
    errno.ENOMEM: ("no_memory", "The machine has no memory left: end some other programs."),
    errno.EACCES: ("not_allowed", "Check who owns Greenroom's data directory."),
    errno.EPERM: ("not_allowed", "Check who owns Greenroom's data directory."),
}
"""Code and advice by errno."""


_PASSING_CODES = frozenset({"io_error", "too_many_files", "no_memory", "no_process"})
"""Of these, a job may be tried again."""
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN})
"""Errors that pass after a while."""


class JobFailed(Exception):
    """A step of an install, pull or load did not work."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.reached = True
        """False if no server answered at all: there may be no network."""

    @classmethod
    def transient(cls, code: str, message: str, *, advice: str = "", detail: str = "") -> JobFailed:
        """Worth a retry: network, index, a lock held by another process."""
        return cls(_failure("transient", code, message, advice, detail))

    @classmethod
    def permanent(cls, code: str, message: str, *, advice: str = "", detail: str = "") -> JobFailed:
        """A retry would fail the same way: platform, hash, space, no such version."""
        return cls(_failure("permanent", code, message, advice, detail))


def refused_by_machine(doing: str, problem: OSError) -> Failure:
    """The failure of a system call of our own while `doing`, a clause."""
    code, advice = _SYSTEM.get(problem.errno or 0, ("io_error", "Ask again; greenroom logs has the details."))
    why = problem.strerror or str(problem)
    return Failure(kind="transient", code=code, message=f"{doing}: {why}.", advice=advice, blame="machine")


def os_failure(
    error: OSError,
    what: str,
    name: str,
    known: Mapping[int, tuple[str, str] | tuple[str, str, str]],
    otherwise: tuple[str, str],
) -> JobFailed:
    """The failure of a job by a failed system call.

    Args:
        error: What the system raised.
        what: The beginning of the sentence, such as "The installation could not be written".
        name: The file, as shown to users; may be empty.
        known: Code, advice and perhaps the whole sentence by errno, where they differ from the usual ones.
        otherwise: Code and advice for any other errno.
    """
    number = error.errno or 0
    code, advice, *sentence = known.get(number) or _SYSTEM.get(number) or otherwise
    named = f" ({name})" if name and code not in _PASSING_CODES - {"io_error"} else ""
    make = JobFailed.transient if code in _PASSING_CODES else JobFailed.permanent
    message = sentence[0] if sentence else f"{what}: {error.strerror or error}{named}."
    return make(code, message, advice=advice, detail=f"{type(error).__name__}: {error}")


def machine_failure(error: BaseException) -> Failure | None:
    """The failure if the machine refused us something while answering a request; None for any other error."""
    doing = "Greenroom could not answer"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "new thread" in str(error)):
        return refused_by_machine(doing, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    if isinstance(error, OSError) and error.errno in _PASSING:
        return refused_by_machine(doing, error)
    return None


def not_begun(error: Exception, what: str = "It") -> Failure:
    """Why an effect could not even begin: its job, which would have reported its own end, has not raised."""
    if isinstance(error, JobFailed):
        return error.failure
    if isinstance(error, RuntimeError) and "new thread" in str(error):
        error = OSError(errno.EAGAIN, "no more threads can be started")
    elif isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if isinstance(error, OSError):
        return refused_by_machine(f"{what} could not be started", error)
    return Failure(
        kind="permanent",
        code="internal",
        message=f"Greenroom failed unexpectedly ({type(error).__name__}).",
        advice="Please report it. For details, see: greenroom logs",
        detail=_text(repr(error)[-_DETAIL_LIMIT:]),
        blame="ours",
    )


def is_machines(number: int) -> bool:
    """Whether an errno says that the machine lacks something, which has nothing to do with the program to
    run.
    """
    return number in _SYSTEM and number not in (errno.EACCES, errno.EPERM)


def blamed(failure: Failure) -> Failure:
    """A failure from before an engine ran, with its blame: the model's only if its files are at fault."""
    if failure.blame:
        return failure
    blame: Blame = "ours"
    for one, codes in (("model", _MODELS), ("configuration", _CONFIGURATIONS), ("machine", _MACHINES)):
        if failure.code in codes:
            blame = one  # type: ignore[assignment]
    return msgspec.structs.replace(failure, blame=blame)


class JobCancelled(Exception):
    """The job was cancelled; what it built so far is removed."""


def _failure(
    kind: Literal["transient", "permanent"], code: str, message: str, advice: str, detail: str
) -> Failure:
    detail = _text(detail[-_DETAIL_LIMIT:])
    return Failure(kind=kind, code=code, message=_text(message), advice=_text(advice), detail=detail)


def _text(text: str) -> str:
    """Names, arguments and output may contain bytes that are not text; what is stored must not."""
    return text.encode("utf-8", "backslashreplace").decode()
