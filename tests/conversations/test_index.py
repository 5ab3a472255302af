"""The entry that begins as a prompt does is the one that trying them all would find."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.index import PrefixIndex, shared
from saved import NOW, chained, entry_of

prompts = st.text("ab", min_size=1, max_size=6)
entries = st.builds(
    lambda parts, compat, owner, size, age: entry_of(
        parts, compat=compat, owner=owner, size=size, used_at=NOW - age
    ),
    prompts,
    st.sampled_from(("engine", "other")),
    st.sampled_from(("user:1", "user:2")),
    st.integers(1, 4),
    st.integers(0, 4),
)


def common(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> int:
    return next(
        (number for number, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def tried(
    entries: list[SavedConversation], chain: tuple[bytes, ...], *, whole: bool
) -> tuple[int, bool, int, float] | None:
    """Parts shared, whether the entry ends there, its size and age, of the best of all."""
    found = []
    for entry in entries:
        length = common(entry.chain, chain)
        is_whole = length == len(entry.chain)
        if (entry.compat, entry.owner) == ("engine", "user:1") and length and (is_whole or not whole):
            found.append((-length, not is_whole, entry.size, -entry.used_at))
    return min(found, default=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(entries, max_size=8), st.lists(st.integers(0, 7)), prompts, st.booleans())
def test_the_longest_prefix_is_found(
    there: list[SavedConversation], removed: list[int], prompt: str, whole: bool
) -> None:
    index = PrefixIndex()
    for entry in there:
        index.put(entry)
    for number in removed:
        if number < len(there):
            index.remove(there[number].id)
    left = [entry for number, entry in enumerate(there) if number not in removed]
    chain = chained(prompt)

    found = index.longest("engine", "user:1", chain, whole=whole)

    told = None
    if found is not None:
        entry, length = found
        assert length == common(entry.chain, chain)
        told = (-length, length != len(entry.chain), entry.size, -entry.used_at)
    assert told == tried(left, chain, whole=whole)
    assert {one.id for one in index} == {one.id for one in left}


@given(prompts, prompts)
def test_what_two_chains_share_is_told(one: str, other: str) -> None:
    assert shared(chained(one), chained(other)) == common(chained(one), chained(other))


def test_an_entry_that_a_longer_one_begins_with_is_superfluous() -> None:
    index = PrefixIndex()
    short, longer = entry_of("ab"), entry_of("abcd")
    index.put(short)
    assert index.extended_by(longer) == [short]
    index.put(longer)
    assert index.extended_by(longer) == [short]


def test_it_is_not_where_another_conversation_parts_from_it() -> None:
    index = PrefixIndex()
    for parts in ("ab", "abx"):
        index.put(entry_of(parts))
    assert index.extended_by(entry_of("abcd")) == []


def test_the_same_chain_is_replaced_even_where_others_go_on_from_its_beginning() -> None:
    index = PrefixIndex()
    same = entry_of("abc")
    index.put(same)
    index.put(entry_of("abx"))
    assert index.extended_by(entry_of("abc")) == [same]


def test_nothing_of_another_owner_or_engine_is_superfluous() -> None:
    index = PrefixIndex()
    index.put(entry_of("ab", owner="user:2"))
    index.put(entry_of("ab", compat="other"))
    assert index.extended_by(entry_of("abcd")) == []
