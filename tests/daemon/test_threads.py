"""A thread that cannot begin fails its start within a bound, and never runs later."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from greenroom.runner import threads
from greenroom.runner.errors import not_begun
from greenroom.runner.threads import Cancel, Crew, JobEnding, NoThread, Thread, start_thread


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """New threads end before their first call, as without memory; what they would have done."""
    died: list[Callable[[], None]] = []
    bootstrap = threading.Thread._bootstrap  # type: ignore[attr-defined] # noqa: SLF001 - there is no other way
    monkeypatch.setattr(threading.Thread, "_bootstrap", lambda self: died.append(lambda: bootstrap(self)))
    monkeypatch.setattr(threads, "BEGINS_WITHIN", 0.05)
    return died


def test_a_thread_does_its_work_and_is_waited_for() -> None:
    gate = threading.Event()
    thread = start_thread(gate.wait, "work")
    thread.join(0.01)
    assert thread.is_alive()
    gate.set()
    thread.join(5.0)
    assert not thread.is_alive()


def test_a_thread_that_finds_no_memory_to_begin_fails_its_start_and_never_works(
    no_memory: list[Callable[[], None]],
) -> None:
    done: list[int] = []
    thread = Thread(lambda: done.append(1), "work")
    with pytest.raises(NoThread, match="did not begin") as caught:
        thread.start()
    assert not_begun(caught.value).blame == "machine"
    assert not thread.is_alive()
    no_memory[0]()
    assert not done, "its starter has done something else meanwhile"


def test_a_job_without_a_thread_is_over_and_the_next_one_begins(no_memory: list[Callable[[], None]]) -> None:
    gone: list[str] = []
    crew = Crew(1, "test")

    def work(_: Cancel) -> JobEnding:
        return JobEnding(lambda: None)

    assert crew.start("one", work, lambda: gone.append("one"))
    assert crew.start("two", work, lambda: gone.append("two"))
    assert gone == ["one", "two"]
    assert not crew.keys()
