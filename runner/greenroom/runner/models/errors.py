"""The failures of storing a model, each one sentence and what to do next."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from greenroom.actors.values import Blame, Failure, Model
from greenroom.runner.errors import JobFailed, os_failure
from greenroom.runner.models.references import BadReference, familiar, shown
from greenroom.runner.units import format_size

NO_ANSWER = "Check the name and the network; proxies are taken from pip's and uv's settings."
"""Advice when a source does not answer."""
TOO_SLOW = "too_slow"
"""The code for a transfer ended because almost nothing moved, which does not count as progress."""


_BLAME: dict[Blame, str] = {
    "network": "unreachable too_slow bad_answer rate_limited offline changed untrusted_certificate refused",
    "client": "bad_reference bad_model_name not_found no_such_model no_such_quantisation unauthorized "
    "conflict name_taken not_absolute cancelled does_not_fit cannot_run_here",
    "model": "not_a_model unsupported_artifact model_damaged hash_mismatch",
    "machine": "no_space needs_copy not_allowed read_only not_a_folder too_many_files no_memory io_error "
    "store_damaged store_busy store_gone",
    "configuration": "unsupported_source bad_settings",
    "ours": "internal stopping daemon_restarted",
}
_WHOSE = {code: blame for blame, codes in _BLAME.items() for code in codes.split()}


def failure_of(error: Exception, doing: str) -> Failure:
    """The failure an exception of a job means, with its blame; unexpected ones are logged."""
    failure = _failure_of(error, doing)
    return msgspec.structs.replace(failure, blame=failure.blame or _WHOSE.get(failure.code, ""))


def _failure_of(error: Exception, doing: str) -> Failure:
    if isinstance(error, JobFailed):
        return error.failure
    if isinstance(error, BadReference):
        return Failure(kind="permanent", code="bad_reference", message=str(error))
    if isinstance(error, OSError):
        return from_os_error(error, doing).failure
    if isinstance(error, MemoryError):
        return from_os_error(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), doing).failure
    import logging  # commands import this module and log nothing

    logging.getLogger(__name__).error("A job of the model store failed unexpectedly", exc_info=error)
    return Failure(
        kind="permanent",
        code="internal",
        message=f"Greenroom failed unexpectedly ({type(error).__name__}).",
        advice="Please report it. For details, see: greenroom logs",
        detail=repr(error)[-4_000:],
    )


def not_a_model(reason: str) -> JobFailed:
    """The bytes are not a model, or not a complete one; `reason` is a sentence."""
    return JobFailed.permanent("not_a_model", reason)


def no_such_model(name: str) -> JobFailed:
    known = name[7:19] if name.startswith("sha256:") else familiar(name)
    return JobFailed.permanent(
        "no_such_model",
        f"The model {known} is not stored here.",
        advice="greenroom list shows the stored models.",
    )


def name_taken(reference: str) -> JobFailed:
    """Another model has the name that an adopted one is to get."""
    name = familiar(reference)
    return JobFailed.permanent(
        "name_taken",
        f"Another model in the store is named {name}.",
        advice=f"Adopt this one under another name (--as NAME), or remove the other: greenroom rm {name}",
    )


def model_damaged(model: Model, problem: str) -> JobFailed:
    """`problem` is a sentence, or its end."""
    name = familiar(model.tags[0]) if model.tags else model.id[7:19]
    problem = problem.rpartition(" is damaged: ")[2].rstrip(".")  # said already of its id
    sentence = f"The stored model {name} is damaged: {problem}."
    return JobFailed.permanent("model_damaged", sentence, advice=f"Pull it again: greenroom pull {name}")


def store_gone(root: Path) -> JobFailed:
    """The store's folder is missing or another one, for example because a disk was unmounted."""
    return JobFailed.transient(
        "store_gone",
        f"The model store {root} is gone or was replaced.",
        advice="If its disk was unmounted, mount it again; otherwise restart the daemon.",
    )


def hash_mismatch(what: str, expected: str, found: str) -> JobFailed:
    return JobFailed.permanent(
        "hash_mismatch",
        f"{what} does not match its pinned hash (expected {expected[:19]}…, got {found[:19]}…); "
        "nothing was kept.",
        advice="The file was changed or damaged where it is published, or on the way.",
    )


def needs_copy(name: str, status: os.stat_result, store: Path) -> JobFailed:
    """The file and the store can share no bytes."""
    if status.st_dev != store.stat().st_dev:
        why = f"it is on a different file system from the store ({shown(str(store))})"
    elif status.st_uid != os.getuid():
        why = "it belongs to another user"
    else:
        why = "the file system does not support links"
    return JobFailed.permanent(
        "needs_copy",
        f"{shown(name)} cannot be shared with the store: {why}.",
        advice=f"To copy it, which takes {format_size(status.st_size)} for this file: add --copy.",
    )


def check_pin(model_id: str, pin: str) -> None:
    """Check that a model is the one its name is pinned to; an empty pin matches any.

    Raises:
        JobFailed: permanent, `hash_mismatch`.
    """
    if pin and model_id != pin:
        raise JobFailed.permanent(
            "hash_mismatch",
            f"Another model is now published under this name ({model_id[:19]}…), not the one "
            f"it is pinned to ({pin[:19]}…); nothing was kept.",
            advice="Leave out @sha256:… to pull the current one.",
        )


def no_space(needed: int, free: int, folder: str) -> JobFailed:
    """The disk has fewer free bytes than the model needs."""
    return JobFailed.permanent(
        "no_space",
        f"The model needs {format_size(needed)} and {folder} has {format_size(free)} free.",
        advice="Free some space and try again.",
    )


def nearly_full(free: int, folder: str) -> JobFailed:
    """The disk is down to the reserve."""
    return JobFailed.permanent(
        "no_space",
        f"The disk that holds {folder} has {format_size(free)} left, which is kept for the journal.",
        advice="Free some space (greenroom df shows what uses it) and try again. Partial downloads are kept.",
    )


_CHECK_PATH = ("not_found", "Check the path.")
_IN_THE_WAY = ("not_a_folder", "Move the file that is in the way, or fix the link.")
_KNOWN = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ("no_space", "Free some space and try again.")),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("not_allowed", "Check who owns the file and its folder.")),
    errno.EROFS: ("read_only", "Mount it for writing, or use another data directory (GREENROOM_HOME)."),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _CHECK_PATH),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ELOOP), _IN_THE_WAY),
    errno.EAGAIN: ("no_memory", "Try again later."),
    errno.ENAMETOOLONG: ("not_a_model", "The file has a name longer than the disk allows: rename it."),
}
_OTHERWISE = ("io_error", "Check the system log: the disk may be failing.")


def from_os_error(error: OSError, doing: str) -> JobFailed:
    """A failed system call while `doing`, such as "writing the model"."""
    name = shown(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
    return os_failure(error, f"{doing[0].upper()}{doing[1:]} failed", name, _KNOWN, _OTHERWISE)
