from __future__ import annotations

import pytest

from greenroom.runner.diagnosis.times import clock, moment, parse_time, precise

NOON = 1_700_049_600.0
"""2023-11-15 12:00:00 UTC."""


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOON),
        ("10m", NOON - 600),
        ("2h30m", NOON - 9000),
        ("1d", NOON - 86_400),
        ("500ms", NOON - 0.5),
        ("11:59", NOON - 60),
        ("11:59:58.5", NOON - 1.5),
        ("12:01", NOON + 60 - 86_400),
        ("today", NOON - 43_200),
        ("yesterday", NOON - 43_200 - 86_400),
        ("2023-11-14", NOON - 43_200 - 86_400),
        ("2023-11-14T10:00", NOON - 7200 - 86_400),
        ("2023-11-14 10:00:00.250", NOON - 7200 - 86_400 + 0.25),
        ("2023-11-14T10:00+02:00", NOON - 4 * 3600 - 86_400),
        ("2023-11-14T10:00Z", NOON - 7200 - 86_400),
        ("1700049600.5", NOON + 0.5),
        (" 10m ", NOON - 600),
    ],
)
def test_times_are_read_as_people_write_them(text: str, at: float) -> None:
    assert parse_time(text, NOON) == pytest.approx(at)


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "12:60", "90", "-10m", "2023-13-01", "10 minutes", "nan"]
)
def test_what_is_not_a_time_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_time(text, NOON)


def test_a_moment_is_shown_with_its_distance_from_now() -> None:
    assert moment(NOON - 300, NOON) == "11:55:00 (5m ago)"
    assert moment(NOON + 90, NOON) == "12:01:30 (in 1m30s)"
    assert moment(NOON - 0.4, NOON) == "11:59:59 (just now)"
    assert moment(NOON - 90_000, NOON) == "2023-11-14 11:00:00 (1d1h ago)"


def test_times_of_other_days_have_a_date() -> None:
    assert clock(NOON, NOON + 60) == "12:00:00"
    assert clock(NOON, NOON + 86_400) == "2023-11-15 12:00:00"
    assert precise(NOON + 0.25) == "2023-11-15 12:00:00.250"
