from __future__ import annotations

import pytest

from greenroom.actors import limits
from greenroom.runner.units import (
    FOREVER,
    LARGEST,
    LONGEST,
    format_duration,
    format_size,
    parse_duration,
    parse_keep_alive,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("1.5h", 5400), (7, 7), ("0", 0)],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "five", "5 minutes", "5x", "-1", "m5", "nan", "inf", True, None, -3])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises((TypeError, ValueError), match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["-1", "-5m", "forever", "Forever", -1, -0.5])
def test_a_negative_keep_alive_is_infinite(text: str) -> None:
    assert parse_keep_alive(text) == FOREVER


def test_a_keep_alive_of_nothing_is_nothing() -> None:
    assert parse_keep_alive("0s") == 0
    assert parse_keep_alive("10m0s") == 600


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 2**20),
        ("10MiB", 10 * 2**20),
        ("10m", 10 * 2**20),
        ("8GB", 8 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        (5, 5),
        ("0", 0),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "10 apples", "-5", -5, True, 1.5, "2.5 b", "1e3"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size|sizes are not"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0003, "0.3ms"),
        (0.0452, "45ms"),
        (0.0999, "100ms"),
        (0.42, "0.42s"),
        (0.999, "1s"),
        (1.24, "1.2s"),
        (4.0, "4s"),
        (9.96, "10s"),
        (42, "42s"),
        (300, "5m"),
        (5400, "1h30m"),
        (90061, "1d1h"),
        (-1, "forever"),
    ],
)
def test_a_duration_is_shown_in_at_most_two_units_and_two_decimals(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (93_195_000, "93.2 MB"), (1_610_000_000, "1.61 GB"), (999_900, "1.00 MB")],
)
def test_a_size_is_shown_in_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("text", [10**320, "9" * 400, "9" * 400 + "h", "11y", 4e8, "1e300", "99999999h"])
def test_a_duration_of_more_than_ten_years_is_refused_in_a_short_line(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"ten years|not a duration") as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", [10**320, 2**70, "9" * 400, "9" * 400 + "GB", "9999999999TB", "9" * 10_000])
def test_a_size_beyond_any_machine_is_refused_in_a_short_line(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"too large|not a size") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


def test_the_bounds_are_those_of_the_one_table() -> None:
    assert (LONGEST, LARGEST) == (limits.DURATION, limits.SIZE)
