"""Tokens, as the ends of engines' answers tell them."""

from __future__ import annotations

import pytest

from greenroom.runner.record.counts import Counts, counts_of

LAST = (
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1,"timings":'
    b'{"cache_n":12,"prompt_n":8,"prompt_ms":21.5,"predicted_n":40,"predicted_ms":400.0,'
    b'"predicted_per_second":97.5}}\n\n'
)
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":'
    b'{"cached_tokens":0}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def test_llama_cpp_tells_its_timings_without_being_asked() -> None:
    assert counts_of(b"", LAST, DONE) == Counts(20, 40, 97.5, 12)


def test_usage_counts_where_a_client_asked_for_it() -> None:
    assert counts_of(b"", USAGE, DONE) == Counts(9, 4, None, 0)
    assert counts_of(b"", LAST, USAGE + DONE) == Counts(9, 4, 97.5, 12)


def test_a_whole_answer_may_tell_it_at_either_end() -> None:
    vectors = b'{"model":"m","usage":{"prompt_tokens":7,"total_tokens":7},"data":[' + b"0.5," * 20_000
    assert counts_of(vectors[:4_096], b"", vectors[-4_096:]) == Counts(7, None, None)
    assert counts_of(b'{"choices":[', b"", b'],"usage":{"completion_tokens":3}}') == Counts(None, 3, None)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        DONE,
        b'data: {"usage":null}\n\n',
        b'data: {"usage":{"prompt_tokens":-1,"completion_tokens":true}}\n\n',
        b'data: {"usage":{"prompt_tokens":1e99,"completion_tokens":"4"}}\n\n',
        b'data: {"usage":{"prompt_tokens":7',
        b'"usage":' + b'{"a":' * 4_000,
        # An answer that quotes one: inside a string the quotes are escaped.
        rb'data: {"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":7}"}}]}',
    ],
)
def test_what_is_no_number_of_tokens_counts_as_not_told(said: bytes) -> None:
    assert counts_of(b"", said, DONE) == Counts()
