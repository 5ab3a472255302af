"""What is cancelled or closed ends, whatever it waits for, and its slot is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.values import Model
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models import puller as puller_module
from greenroom.runner.threads import Cancel, Crew, JobEnding, side_by_side
from trickle import HANGS, Trickle

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]
Bring = Callable[..., Model]
BOUND = 20.0
PATIENCE = 0.5


@pytest.fixture(params=HANGS)
def server(request: pytest.FixtureRequest) -> Iterator[Trickle]:
    server = Trickle(request.param)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of the developer."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def test_cancelled_pulls_end_and_others_have_their_slots(
    server: Trickle, new_puller: NewPuller, recorder: Any, tmp_path: Path, gguf: Make
) -> None:
    puller = new_puller(patience=PATIENCE)
    for job in ("one", "two"):
        server.asked.clear()
        puller.start(job, f"{server.host}/x/{job}")
        assert server.asked.wait(BOUND)
    (tmp_path / "m.gguf").write_bytes(gguf())
    puller.start("three", str(tmp_path / "m.gguf"))
    puller.start("four", f"{server.host}/x/four")
    puller.cancel("four")
    assert recorder.outcome("four")[0] == "cancelled", "it waits for no other job"
    began = time.monotonic()
    puller.cancel("one")
    assert recorder.outcome("one")[0] == "cancelled"
    assert recorder.outcome("three")[0] == "committed"
    puller.cancel("two")
    assert recorder.outcome("two")[0] == "cancelled"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("what", ["pull", "push", "look up"])
def test_closing_is_bounded_whatever_a_server_does(
    what: str, server: Trickle, new_puller: NewPuller, recorder: Any, store: Any, bring: Bring
) -> None:
    puller = new_puller(patience=PATIENCE)
    model = bring(store, "a")
    cancel = Cancel()
    ended: list[Exception] = []
    if what == "pull":
        puller.start("job", f"{server.host}/x/y")
    elif what == "push":
        puller.push(model.id, f"{server.host}/x/y:latest")
    else:

        def look_up() -> None:
            try:
                puller.look_up(f"{server.host}/x/y", cancel)
            except (JobCancelled, JobFailed) as error:
                ended.append(error)

        threading.Thread(target=look_up, daemon=True).start()
    assert server.asked.wait(BOUND)
    began = time.monotonic()
    cancel.set()
    puller.close()
    assert time.monotonic() - began < 5
    if what == "pull":
        assert recorder.outcome("job")[0] == "cancelled"
    elif what == "push":
        assert recorder.answer("push_failed")[1].code == "cancelled"


def test_a_call_that_cannot_be_interrupted_is_left_alone(
    new_puller: NewPuller, recorder: Any, tmp_path: Path, gguf: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that does not answer, a disk that is frozen."""
    frozen, real = threading.Event(), puller_module.source_for  # type: ignore[attr-defined]
    entered = threading.Semaphore(0)

    def hangs(reference: Any, context: Any) -> Any:
        if reference.scheme == "oci":
            entered.release()
            frozen.wait(BOUND)
        return real(reference, context)

    monkeypatch.setattr(puller_module, "source_for", hangs)
    puller = new_puller(patience=PATIENCE)
    for job in ("one", "two"):
        puller.start(job, f"127.0.0.1:1/x/{job}")
        assert entered.acquire(timeout=BOUND)
    (tmp_path / "m.gguf").write_bytes(gguf())
    puller.start("three", str(tmp_path / "m.gguf"))
    began = time.monotonic()
    puller.cancel("one")
    assert recorder.outcome("one")[0] == "cancelled"
    assert recorder.outcome("three")[0] == "committed"
    puller.close()
    assert recorder.outcome("two")[0] == "cancelled"
    assert time.monotonic() - began < 5
    frozen.set()
    hanging = [one for one in threading.enumerate() if one.name == "pull"]
    assert all(one.daemon for one in hanging), "the interpreter's end waits for none of them"
    assert [what for what, a in recorder.told if what in ("failed", "cancelled") and a[0] == "one"] == [
        "cancelled"
    ]


# the crew itself


def test_a_crew_runs_a_few_at_once_and_the_others_in_order() -> None:
    crew = Crew(2, "test")
    gates = {key: threading.Event() for key in "abcd"}
    began: list[str] = []
    ended: list[str] = []
    news = threading.Condition()

    def work(key: str) -> Callable[[Cancel], JobEnding]:
        def run(_: Cancel) -> JobEnding:
            with news:
                began.append(key)
                news.notify_all()
            gates[key].wait(BOUND)
            return JobEnding(lambda: ended.append(key))

        return run

    for key in "abcd":
        assert crew.start(key, work(key), lambda: None)
        assert not crew.start(key, work(key), lambda: None)
    with news:
        assert news.wait_for(lambda: len(began) == 2, BOUND)
    assert crew.keys() == ("a", "b", "c", "d")
    for key, after in (("b", "c"), ("a", "d")):
        gates[key].set()
        with news:
            assert news.wait_for(lambda: after in began, BOUND)  # noqa: B023
    for gate in gates.values():
        gate.set()
    crew.close()
    assert began == ["a", "b", "c", "d"]
    assert sorted(ended) == ["a", "b", "c", "d"]
    assert not crew.start("e", work("a"), lambda: None)


def test_changes_of_a_cancelled_job_are_still_reported() -> None:
    crew = Crew(1, "test", patience=0.05)
    go, told = threading.Event(), threading.Event()
    heard: list[str] = []

    def tell() -> None:
        heard.append("done")
        told.set()

    def run(_: Cancel) -> JobEnding:
        go.wait(BOUND)
        return JobEnding(tell, late=True)

    crew.start("a", run, lambda: heard.append("gone"))
    crew.close()
    assert heard == ["gone"]
    go.set()
    assert told.wait(BOUND)
    assert heard == ["gone", "done"]


def test_a_job_that_raises_gives_its_slot_back() -> None:
    crew = Crew(1, "test")
    gone = threading.Event()

    def fails(_: Cancel) -> JobEnding:
        raise RuntimeError("not foreseen")

    crew.start("a", fails, gone.set)
    assert gone.wait(BOUND)
    done = threading.Event()
    crew.start("b", lambda _: JobEnding(done.set), lambda: None)
    assert done.wait(BOUND)
    crew.close()


def test_a_cancel_ends_what_is_registered_while_it_is_and_at_once_when_it_was_set() -> None:
    cancel = Cancel()
    calls: list[str] = []
    with cancel.ends(lambda: calls.append("over")):
        pass
    with cancel.ends(lambda: 1 / 0), cancel.ends(lambda: calls.append("a")):  # type: ignore[arg-type]
        cancel.set()
    with cancel.ends(lambda: calls.append("late")):
        pass
    assert calls == ["a", "late"]


def test_calls_side_by_side_end_with_the_first_failure_and_wake_the_others() -> None:
    woken, began = threading.Event(), threading.Semaphore(0)

    def waits() -> int:
        began.release()
        assert woken.wait(BOUND)
        return 1

    def fails() -> int:
        began.acquire()
        raise ValueError("one of them")

    with pytest.raises(ValueError, match="one of them"):
        side_by_side([waits, fails, waits], 2, "test", tick=lambda: None, halt=woken.set)
    assert woken.is_set()
    numbers = [lambda: 1, lambda: 2, lambda: 3]
    assert side_by_side(numbers, 2, "test", tick=lambda: None, halt=lambda: None) == [1, 2, 3]
    assert side_by_side([], 2, "test", tick=lambda: None, halt=lambda: None) == []
