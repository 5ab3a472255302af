"""The failures a model's arrival can end in, each one sentence and what to do next."""

from __future__ import annotations

import errno
import logging

from greenroom.actors.facts import Failure
from greenroom.runner.failures import JobFailed
from greenroom.runner.models.references import BadReference
from greenroom.runner.quantities import format_size

log = logging.getLogger(__name__)

NO_ANSWER = "Check the name and the network; proxies are taken from pip's and uv's settings."
"""Advice when a place models come from does not answer."""


def failure_of(error: Exception, doing: str) -> Failure:
    """What an exception of a job means for the user; what nobody foresaw is logged."""
    if isinstance(error, JobFailed):
        return error.failure
    if isinstance(error, BadReference):
        return Failure(kind="permanent", code="bad_reference", message=str(error))
    if isinstance(error, OSError):
        return from_os_error(error, doing).failure
    log.error("A job of the model store failed in a way nobody foresaw", exc_info=error)
    return Failure(
        kind="permanent",
        code="internal",
        message=f"Greenroom itself failed ({type(error).__name__}).",
        advice="Please report it; greenroom logs has the details.",
        detail=repr(error)[-4_000:],
    )


def not_a_model(reason: str) -> JobFailed:
    """The bytes are no model, or not a whole one; `reason` is a whole sentence."""
    return JobFailed.permanent("not_a_model", reason)


def hash_mismatch(what: str, expected: str, found: str) -> JobFailed:
    """What arrived is not what was pinned."""
    return JobFailed.permanent(
        "hash_mismatch",
        f"{what} does not match its pinned hash (expected {expected[:19]}…, got {found[:19]}…); "
        "nothing was kept.",
        advice="The file was changed or damaged where it is published, or on the way.",
    )


def check_pin(model_id: str, pin: str) -> None:
    """Check that a model is the one that its name is pinned to; an empty pin fits all.

    Raises:
        JobFailed: permanent, `hash_mismatch`.
    """
    if pin and model_id != pin:
        raise JobFailed.permanent(
            "hash_mismatch",
            f"What is published under this name is another model ({model_id[:19]}…) than the one "
            f"it is pinned to ({pin[:19]}…); nothing was kept.",
            advice="Leave the @sha256:… out to have it as it is now.",
        )


def no_space(needed: int, free: int, folder: str) -> JobFailed:
    """The disk is too small, known before or found while writing; bytes."""
    return JobFailed.permanent(
        "no_space",
        f"The model needs {format_size(needed)} and {folder} has {format_size(free)} free."
        if needed
        else f"The disk that holds {folder} is full.",
        advice="Free some space and try again.",
    )


def from_os_error(error: OSError, doing: str) -> JobFailed:
    """A failed system call while `doing` (such as "writing the model")."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(0, 0, str(error.filename or "the data directory"))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return JobFailed.permanent(
            "not_allowed",
            f"Permission denied while {doing}:{where}.",
            advice="Check who owns the file and its folder.",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return JobFailed.permanent("not_found", f"There is no such file:{where}.", advice="Check the path.")
    return JobFailed.transient("io_error", f"The disk failed while {doing}:{where} ({error.strerror}).")


def size_text(size: int) -> str:
    """Bytes for people, in powers of 1024: `93.81MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.2f}{unit}" if unit != "B" else f"{size}B"
        value /= 1024
    return f"{value:.2f}TiB"
