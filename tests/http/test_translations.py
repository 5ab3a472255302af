"""The families that are translated: whatever is sent becomes a request for an engine, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenroom.runner.http.anthropic.fields import MESSAGES, TOKEN_COUNT
from greenroom.runner.http.anthropic.messages import MessageTokens, MessageTranslation
from greenroom.runner.http.engine_requests import check_now
from greenroom.runner.http.errors import DoorRefusal, HttpRefusal
from greenroom.runner.http.fields import Dialogue
from greenroom.runner.http.ollama.embedding import Embed, Embedding
from greenroom.runner.http.ollama.fields import EMBED, EMBEDDINGS, GENERATE, OLLAMA_CHAT
from greenroom.runner.http.ollama.generating import Chat, Generate, Raw
from greenroom.runner.http.responses.fields import RESPONSES
from greenroom.runner.http.responses.input import items_of
from greenroom.runner.http.responses.response import ResponseTranslation, TokenCount
from greenroom.runner.http.translation import Translation


class Family(NamedTuple):
    dialogue: Dialogue
    translate: Callable[[Mapping[str, Any]], Translation]
    hello: dict[str, Any]
    """A request that is right, without the model."""


HELLO = [{"role": "user", "content": "hi"}]
FAMILIES = {
    "messages": Family(MESSAGES, MessageTranslation, {"messages": HELLO, "max_tokens": 5}),
    "count_tokens": Family(TOKEN_COUNT, MessageTokens, {"messages": HELLO}),
    "responses": Family(
        RESPONSES, lambda fields: ResponseTranslation(fields, items_of(fields["input"])), {"input": "hi"}
    ),
    "input_tokens": Family(
        RESPONSES, lambda fields: TokenCount(fields, items_of(fields["input"])), {"input": "hi"}
    ),
    "api/chat": Family(OLLAMA_CHAT, Chat, {"messages": HELLO}),
    "api/generate": Family(GENERATE, Generate, {"prompt": "hi"}),
    "api/generate, raw": Family(GENERATE, Raw, {"prompt": "hi", "raw": True}),
    "api/embed": Family(EMBED, Embed, {"input": "hi"}),
    "api/embeddings": Family(EMBEDDINGS, Embedding, {"prompt": "hi"}),
}
NAMES = (
    "role content type text name arguments input output call_id id tool_use_id image_url source data url "
    "media_type function tool_calls thinking summary format schema options num_predict stop"
).split()
WORDS = st.sampled_from(
    "user assistant system tool message text input_text output_text image tool_use tool_result function "
    "function_call function_call_output reasoning json_schema auto any none required low {}".split()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(-1, 3) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
QUICKLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_sent_becomes_a_request_for_the_engine_or_a_refusal(family: str) -> None:
    dialogue, translate, hello = FAMILIES[family]
    refusals: list[HttpRefusal] = []

    @QUICKLY
    @given(st.dictionaries(st.sampled_from(sorted({*dialogue.fields} - {"model"})), JSON, max_size=4))
    def hostile(fields: dict[str, Any]) -> None:
        body = json.dumps({"model": "m", **hello, **fields}).encode()
        try:
            translation = translate(check_now(body, dialogue).fields)
            sent = translation.chat
        except HttpRefusal as error:
            refusals.append(error)
            return
        assert sent["model"] == "m"
        json.dumps([sent, [*translation.ignored], translation.context_size])

    hostile()
    assert {error.refusal.status for error in refusals} <= {400}
    assert all(len(error.refusal.message.split()) >= 3 for error in refusals)


DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.none() | st.text(max_size=3),
        "reasoning_content": st.none() | st.text(max_size=3),
        "tool_calls": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(0, 2)},
                optional={
                    "id": st.none() | st.text(max_size=3),
                    "function": st.fixed_dictionaries(
                        {},
                        optional={
                            "name": st.none() | st.just("f"),
                            "arguments": st.none() | st.sampled_from(["", "{}", '{"a": 1}', "{"]),
                        },
                    ),
                },
            ),
            max_size=2,
        ),
    },
)
USAGE = st.none() | st.fixed_dictionaries(
    {}, optional={"prompt_tokens": st.none() | st.integers(0, 9), "completion_tokens": st.integers(0, 9)}
)
CHOICE = st.fixed_dictionaries(
    {"delta": DELTA},
    optional={"finish_reason": st.none() | st.sampled_from(["stop", "length", "tool_calls", "odd"])},
)
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, max_size=1)}, optional={"usage": USAGE, "timings": st.none() | st.just({})}
)


@pytest.mark.parametrize("family", ["messages", "responses", "api/chat", "api/generate"])
def test_whatever_an_engine_streams_becomes_whole_events(family: str) -> None:
    dialogue, translate, hello = FAMILIES[family]

    @QUICKLY
    @given(st.lists(CHUNK, max_size=5), st.booleans())
    def streamed(chunks: list[dict[str, Any]], fails: bool) -> None:
        body = json.dumps({"model": "m", "stream": True, **hello}).encode()
        translation = translate(check_now(body, dialogue).fields)
        translation.entered()
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        told = b"".join(translation(line.encode()) for line in lines)
        if fails:
            told += translation.error(DoorRefusal(code="x", message="It failed.", status=500), None, "r-1")
        else:
            told += translation(b"data: [DONE]\n\n")
        if family.startswith("api/"):
            rows = [json.loads(line) for line in told.splitlines()]
            assert [row.get("done", False) for row in rows][-1:] == [not fails]
        else:
            events = [event.partition(b"data: ")[2] for event in told.split(b"\n\n") if event]
            assert all(isinstance(json.loads(event), dict) for event in events)

    streamed()
