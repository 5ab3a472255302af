"""What goes first when there is no room."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.value import least, values
from saved import NOW, chained, entry_of

entries = st.lists(
    st.builds(
        lambda parts, size, age, owner: entry_of(parts, size=size, used_at=NOW - age, owner=owner),
        st.text("ab", min_size=1, max_size=5),
        st.integers(1, 1_000),
        st.integers(0, 100_000),
        st.sampled_from(("user:1", "user:2")),
    ),
    max_size=8,
)


def test_bytes_and_age_make_an_entry_worth_less_and_seconds_more() -> None:
    plain = entry_of("a", size=1_000, used_at=NOW - 1_000, seconds=10.0)
    larger = entry_of("b", size=2_000, used_at=NOW - 1_000, seconds=10.0)
    older = entry_of("c", size=1_000, used_at=NOW - 2_000, seconds=10.0)
    slower = entry_of("d", size=1_000, used_at=NOW - 1_000, seconds=20.0)
    worth = values([plain, larger, older, slower], NOW)
    assert worth[larger.id] == worth[older.id] == worth[plain.id] / 2
    assert worth[slower.id] == worth[plain.id] * 2


def test_what_several_share_counts_for_the_one_used_last() -> None:
    agent = "s" * 8
    first = entry_of(agent + "ab", used_at=NOW - 100)
    last = entry_of(agent + "xy", used_at=NOW - 90)
    alone = values([first], NOW)[first.id]
    both = values([first, last], NOW)
    assert both[first.id] == alone * 0.2 or abs(both[first.id] - alone * 0.2) < 1e-12
    assert both[last.id] == values([last], NOW)[last.id]


def test_the_share_of_a_prefix_is_told_by_its_characters() -> None:
    first = entry_of("sab", ends=(9_000, 9_500, 10_000), tokens=1_000, used_at=NOW - 100)
    last = entry_of("sxy", used_at=NOW - 90)
    assert first.tokens_in(1) == 900
    assert first.tokens_in(3) == 1_000
    assert first.tokens_in(0) == 0
    alone = values([first], NOW)[first.id]
    assert abs(values([first, last], NOW)[first.id] / alone - 0.1) < 1e-9


def test_another_owners_conversation_takes_no_credit() -> None:
    mine, other = entry_of("ab"), entry_of("ab", owner="user:2", used_at=NOW + 1)
    assert values([mine, other], NOW)[mine.id] == values([mine], NOW)[mine.id]


@settings(max_examples=60, deadline=None)
@given(entries, st.integers(0, 3_000), st.none() | st.integers(0, 8))
def test_no_more_goes_than_must(there: list[SavedConversation], wanted: int, most: int | None) -> None:
    going = least(there, NOW, bytes_=wanted, most=most)
    ids = {one.id for one in going}
    assert len(ids) == len(going) <= len(there)

    def suffices(gone: list[SavedConversation]) -> bool:
        is_few = most is None or len(there) - len(gone) <= most
        return sum(one.size for one in gone) >= wanted and is_few

    if going:
        assert not suffices(going[:-1])
    if len(going) < len(there):
        assert suffices(going)


@settings(max_examples=40, deadline=None)
@given(entries)
def test_each_that_goes_is_the_least_of_those_left(there: list[SavedConversation]) -> None:
    left = list(there)
    for entry in least(there, NOW, bytes_=sum(one.size for one in there)):
        worth = values(left, NOW)
        assert worth[entry.id] == min(worth.values())
        left.remove(entry)
    assert not left


@settings(max_examples=40, deadline=None)
@given(entries)
def test_every_token_is_credited_to_one_entry(there: list[SavedConversation]) -> None:
    """Each part has a hundred tokens and costs a second."""
    worth = values(there, NOW)
    credited = sum(worth[one.id] * one.size * max(NOW - one.used_at, 60.0) for one in there)
    assert abs(credited - len({(one.owner, prefix) for one in there for prefix in one.chain})) < 1e-6


def test_chains_are_of_prefixes() -> None:
    assert chained("ab")[:1] == chained("a")
    assert chained("ab")[1] != chained("b")[0]
