"""A temporary fault of the machine is reported as the machine's, and no request waits forever for it."""

from __future__ import annotations

import _thread
import errno
import os

import pytest

from greenroom.runner import threads
from greenroom.runner.http.errors import refusal_of, status_of
from greenroom.runner.threads import in_thread


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 503, "too_many_files"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 507, "no_space"),
        (MemoryError(), 503, "no_memory"),
        (RuntimeError("can't start new thread"), 503, "no_memory"),
        (RuntimeError("a fault of ours"), 500, "internal_error"),
        (OSError(errno.EINVAL, os.strerror(errno.EINVAL)), 500, "internal_error"),
    ],
)
def test_a_refusal_of_the_machine_is_no_fault_of_ours(error: Exception, status: int, code: str) -> None:
    refusal = refusal_of(error)
    assert (status_of(refusal), refusal.code) == (status, code)
    assert refusal.advice


async def test_a_thread_that_never_starts_blocks_neither_the_loop_nor_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one does that finds no memory to begin with."""
    monkeypatch.setattr(threads, "BEGUN_WITHIN", 0.05)
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, arguments: 1)
    with pytest.raises(MemoryError):
        await in_thread(lambda: 1)


async def test_work_that_takes_longer_than_a_thread_may_take_to_begin_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "BEGUN_WITHIN", 0.05)
    assert await in_thread(lambda: __import__("time").sleep(0.2) or 7) == 7
