"""The hashes by which a prompt's beginnings are found on the disk."""

from __future__ import annotations

from greenroom.runner.conversations.prompt_hashes import HASH, chain_of
from greenroom.runner.http.engine_requests import parts_of, with_slot

HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}
CHAT = "/v1/chat/completions"


def test_prompts_share_the_hashes_of_the_parts_that_they_share() -> None:
    one, other = chain_of([{}, HELLO, HI]), chain_of([{}, HELLO, {**HI, "content": "ho"}])
    assert one.hashes[:2] == other.hashes[:2]
    assert one.hashes[2] != other.hashes[2]
    assert {len(one) for one in one.hashes} == {HASH}
    assert chain_of([{}, HELLO]).hashes == one.hashes[:2]
    assert one.ends == (2, 2 + 33, 2 + 33 + 35)


def test_a_part_counts_with_all_before_it() -> None:
    assert chain_of([HELLO, HI]).hashes[1] != chain_of([HI, HI]).hashes[1]
    assert chain_of(["ab", "c"]).hashes[-1] != chain_of(["a", "bc"]).hashes[-1]


def test_the_order_of_fields_does_not_matter() -> None:
    turned = {"content": "hello", "role": "user"}
    assert chain_of([HELLO]) == chain_of([turned])


def test_the_parts_of_a_chat_are_what_its_template_writes_first_and_its_messages() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    chat = {"messages": [HELLO, HI], "temperature": 0, "tools": tools, "seed": 4}
    assert parts_of(chat, CHAT) == ({"tools": tools}, HELLO, HI)
    assert parts_of({"messages": [HELLO], "max_tokens": 8}, CHAT) == ({}, HELLO)


def test_the_parts_of_a_raw_prompt_are_its_whole_blocks() -> None:
    text = "a" * 2_048 + "b" * 2_048 + "rest"
    blocks = ("a" * 2_048, "b" * 2_048)
    assert parts_of({"prompt": text}, "/v1/completions") == blocks
    assert parts_of({"prompt": [text]}, "/v1/completions") == blocks
    assert parts_of({"prompt": [7] * 5_000}, "/v1/completions") == ([7] * 2_048, [7] * 2_048)
    assert parts_of({"prompt": "short"}, "/v1/completions") == ()
    assert parts_of({"prompt": [text, text]}, "/v1/completions") == ()
    assert parts_of({"prompt": text}, "/infill") == ()


def test_a_slot_is_named_first_in_a_body_whatever_its_form() -> None:
    assert with_slot(b'{"messages":[]}', 3) == b'{"id_slot":3,"messages":[]}'
    assert with_slot(b' \n{ "a": {"b": 1}}', 0) == b' \n{"id_slot":0, "a": {"b": 1}}'
