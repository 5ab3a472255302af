"""How far a transfer is: a rate that falls when nothing comes, and a stall that is said."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from greenroom.actors.progress import TICK, ProgressReport
from greenroom.actors.values import Progress
from greenroom.runner.threads import repeating

MB = 1_000_000


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(steps: list[tuple[float, int]]) -> list[Progress]:
    """The reports for (seconds later, bytes done)."""
    told: list[Progress] = []
    clock = Clock()
    attempt = ProgressReport("j", told.append, clock)
    attempt.report("downloading", 0, 100 * MB)
    for later, done in steps:
        clock.now += later
        attempt.report("downloading", done, 100 * MB)
    return told


def test_the_rate_is_that_of_the_last_seconds() -> None:
    told = run([(0.5, n * MB) for n in range(1, 41)])
    assert told[-1].rate == 2 * MB
    assert told[-1].message == ""
    told = run([(0.5, n * MB) for n in range(1, 11)] + [(0.5, 10 * MB + n * MB // 2) for n in range(1, 11)])
    assert told[-1].rate == 1 * MB


def test_when_nothing_comes_the_rate_falls_and_the_stall_is_reported() -> None:
    told = run([(0.5, n * MB) for n in range(1, 21)] + [(1.0, 20 * MB)] * 12)
    rates = [one.rate for one in told[20:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[3] < rates[0]
    assert told[-1].rate == 0.0
    assert told[-1].message == "nothing received for 12s"
    assert told[-9].message == ""


def test_a_transfer_that_resumes_has_a_rate_again() -> None:
    told = run([(1.0, 5 * MB), *[(1.0, 5 * MB)] * 10, (1.0, 6 * MB), (1.0, 8 * MB)])
    assert told[-1].message == ""
    assert told[-1].rate > 0


def test_nothing_is_reported_after_the_end() -> None:
    told: list[Progress] = []
    attempt = ProgressReport("j", told.append)
    attempt.report("downloading", 1, 2)
    attempt.end()
    attempt.report("downloading", 2, 2)
    assert len(told) == 1


def test_a_disk_that_stalls_is_reported_although_no_progress_comes() -> None:
    told: list[Progress] = []
    news = threading.Condition()

    def tell(progress: Progress) -> None:
        with news:
            told.append(progress)
            news.notify_all()

    clock = Clock()
    attempt = ProgressReport("j", tell, clock)
    with repeating(attempt.tick, TICK, "progress"):
        attempt.report("importing", 5 * MB, 10 * MB, "Importing")
        clock.now += 7.0
        with news:
            assert news.wait_for(lambda: len(told) > 1, 30)
    assert told[-1].message == "Importing: nothing received for 7s"
    assert (told[-1].done, told[-1].rate) == (5 * MB, 0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_speed_of_an_installation_is_that_of_the_last_seconds(clock: Clock) -> None:
    sent: list[Any] = []
    report = ProgressReport("j", sent.append, clock)
    for second in range(20):
        clock.now = 100.0 + second
        report.bytes("Downloading", second * 1000 if second < 10 else 10_000 + second * 500, 100_000)
    assert sent[5].rate == pytest.approx(1000)
    assert sent[19].rate == pytest.approx(500)


def test_a_stall_is_reported_and_its_end_too(clock: Clock) -> None:
    sent: list[Any] = []
    report = ProgressReport("j", sent.append, clock)
    report.bytes("Downloading", 10, 100)
    clock.now += 7
    report.bytes("Downloading", 10, 100)
    assert sent[-1].message == "Downloading: nothing received for 7s"
    report.bytes("Downloading", 20, 100)
    assert sent[-1].message == "Downloading"


def test_counts_never_fall(clock: Clock) -> None:
    sent: list[Any] = []
    report = ProgressReport("j", sent.append, clock)
    report.bytes("Downloading", 50, 100)
    clock.now += 1
    report.bytes("Downloading", 0, 100)
    report.phase("verifying", "Testing whether it starts")
    assert [progress.done for progress in sent] == [50, 50, 50]
    assert {progress.total for progress in sent} == {100}
