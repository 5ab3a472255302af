from __future__ import annotations

from greenroom.runner.conversations.budget import Written, default_cache

HOUR = 3_600.0


def test_a_tenth_of_what_is_free_is_kept_and_at_most_ten_gigabytes() -> None:
    assert default_cache(50 * 10**9, 0) == 5 * 10**9
    assert default_cache(10**12, 0) == 10**10
    assert default_cache(45 * 10**9, 5 * 10**9) == 5 * 10**9, "what is kept does not make the budget smaller"
    assert default_cache(0, 0) == 0


def test_what_was_written_counts_for_a_day() -> None:
    written = Written().plus(100, 1_000 * HOUR).plus(10, 1_000 * HOUR).plus(1, 1_010 * HOUR)
    assert written.today(1_010 * HOUR) == 111
    assert written.today(1_023 * HOUR) == 111
    assert written.today(1_024 * HOUR) == 1
    assert written.today(1_034 * HOUR) == 0


def test_hours_of_a_clock_that_was_ahead_do_not_count() -> None:
    written = Written().plus(100, 2_000 * HOUR)
    assert written.today(1_000 * HOUR) == 0
    assert written.plus(1, 1_000 * HOUR).hours == {1_000: 1}
