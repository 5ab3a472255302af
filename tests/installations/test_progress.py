from __future__ import annotations

from typing import Any

import pytest

from greenroom.runner.installations.maker import ProgressReport


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_speed_is_that_of_the_last_seconds(clock: Clock) -> None:
    sent: list[Any] = []
    report = ProgressReport("j", sent.append, clock)
    for second in range(20):
        clock.now = 100.0 + second
        report.bytes("Downloading", second * 1000 if second < 10 else 10_000 + second * 500, 100_000)
    assert sent[5].rate == pytest.approx(1000)
    assert sent[19].rate == pytest.approx(500)


def test_a_stall_is_said_and_its_end_too(clock: Clock) -> None:
    sent: list[Any] = []
    report = ProgressReport("j", sent.append, clock)
    report.bytes("Downloading", 10, 100)
    clock.now += 7
    report.bytes("Downloading", 10, 100)
    assert sent[-1].message == "Downloading: nothing received for 7 s"
    report.bytes("Downloading", 20, 100)
    assert sent[-1].message == "Downloading"


def test_counts_never_fall(clock: Clock) -> None:
    sent: list[Any] = []
    report = ProgressReport("j", sent.append, clock)
    report.bytes("Downloading", 50, 100)
    report.bytes("Downloading", 0, 100)
    report.phase("verifying", "Starting it once")
    assert [progress.done for progress in sent] == [50, 50, 50]
    assert {progress.total for progress in sent} == {100}
