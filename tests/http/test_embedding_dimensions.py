"""Embeddings with fewer dimensions than the model makes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from greenroom.runner.http.embedding_dimensions import shortened, shortened_if_asked
from greenroom.runner.http.errors import HttpRefusal

ANSWER = {
    "object": "list",
    "model": "m",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
    "data": [{"object": "embedding", "index": 0, "embedding": [3.0, 4.0, 12.0]}],
}


def test_a_shorter_vector_has_a_length_of_one_again() -> None:
    assert shortened([3.0, 4.0, 12.0], 2) == [0.6, 0.8]
    assert shortened([0.0, 0.0, 1.0], 2) == [0.0, 0.0]


def test_an_engine_answers_itself_where_no_dimensions_are_asked_for() -> None:
    assert shortened_if_asked({"model": "m", "input": "x"}) is None


def test_dimensions_come_as_numbers_or_in_base64() -> None:
    asked: dict[str, Any] = {"model": "m", "input": ["x"], "dimensions": 2}
    plain = shortened_if_asked(asked)
    assert plain is not None
    assert plain.chat == {"model": "m", "input": ["x"], "encoding_format": "float"}
    answer = json.loads(plain.whole(ANSWER))
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
    assert (answer["usage"], answer["model"]) == (ANSWER["usage"], "m")
    packed = shortened_if_asked({**asked, "encoding_format": "base64"})
    assert packed is not None
    text = json.loads(packed.whole(ANSWER))["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(text)) == pytest.approx((0.6, 0.8))


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    asked = shortened_if_asked({"model": "m", "input": "x", "dimensions": 4})
    assert asked is not None
    with pytest.raises(HttpRefusal, match="have 3 numbers") as caught:
        asked.whole(ANSWER)
    assert (caught.value.refusal.status, caught.value.param) == (400, "dimensions")
