"""An engine's errors are translated, with one code for one mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenroom.runner.backends.base import Dialect
from greenroom.runner.http.engine_errors import engine_error
from greenroom.runner.http.engine_requests import RequestTarget

ASKED = RequestTarget("llama.cpp", "tiny")

# Answers of llama-server, mlx-lm 0.32 and vLLM, as they came.
LLAMA_LONG = (
    '{"error":{"code":400,"message":"request (9031 tokens) exceeds the available context size (8192 tokens),'
    ' try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9031,"n_ctx":8192}}'
)
VLLM_LONG = (
    '{"object":"error","message":"This model\'s maximum context length is 8192 tokens. However, you requested'
    ' 9031 tokens in the messages. SECRET","type":"BadRequestError","param":null,"code":400}'
)
VLLM_NEWER = (
    '{"error":{"message":"You passed 9031 input tokens and requested 0 output tokens. However, the model\'s'
    " context length is only 8192 tokens, resulting in a maximum input length of 8192 tokens. Please reduce"
    ' the length of the input prompt. (parameter=input_tokens, value=9031)","type":"BadRequestError",'
    '"param":"input_tokens","code":400}}'
)
VLLM_ANSWER = VLLM_NEWER.replace("9031", "31").replace(" 0 ", " 8192 ")
VLLM_ANSWER_OLDER = (
    "{\"error\":{\"message\":\"'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's"
    ' maximum context length is 8192 tokens and your request has 31 input tokens (8192 > 8192 - 31).",'
    '"code":400}}'
)
SHARED = '{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}'
CASES: list[tuple[int, str, int, str, str | None]] = [
    (400, LLAMA_LONG, 400, "context_length_exceeded", "messages"),
    (400, VLLM_LONG, 400, "context_length_exceeded", "messages"),
    (400, VLLM_NEWER, 400, "context_length_exceeded", "messages"),
    (400, VLLM_ANSWER, 400, "context_length_exceeded", "max_tokens"),
    (400, VLLM_ANSWER_OLDER, 400, "context_length_exceeded", "max_tokens"),
    (500, SHARED, 400, "context_length_exceeded", "messages"),
    (400, '{"error":{"code":400,"message":"Prompt contains invalid tokens"}}',
     400, "invalid_value", "messages"),
    (500, '{"error":{"code":500,"message":"image input is not supported - hint: SECRET"}}',
     400, "unsupported_input", "messages"),
    (404, '{"error": "Only \'text\' content type is supported."}', 400, "unsupported_input", "messages"),
    (400, '{"error":{"code":400,"message":"Pooling type \'none\' is not OAI compatible. SECRET"}}',
     422, "not_an_embedding_model", None),
    (500, '{"error":{"code":500,"message":"Failed to parse tools: SECRET; tools = [SECRET]"}}',
     400, "invalid_value", "tools"),
    (400, '{"error":{"code":400,"message":"Parser generation failed: JSON schema error at #: SECRET"}}',
     400, "invalid_schema", None),
    (400, '{"error":{"code":400,"message":"Failed to initialize samplers: failed to parse grammar"}}',
     400, "invalid_grammar", None),
    (404, '{"error": "Conversation roles must alternate SECRET"}', 400, "template_refused", "messages"),
    (400, '{"error":{"code":400,"message":"Field \'n\': Value must be between 1 <= value <= 4, but got 99"}}',
     400, "invalid_value", "n"),
    (400, '{"error":{"code":400,"message":"Field \'n_keep\': Value must be SECRET"}}',
     400, "invalid_value", "n_keep"),
    (400, '{"error": "top_k must be of type int"}', 400, "invalid_value", "top_k"),
    (422, '{"detail":[{"msg":"SECRET"}]}', 400, "engine_refused", None),
    (404, "Not Found", 404, "not_offered", None),
    (404, '{"detail":"Not Found"}', 404, "not_offered", None),
    (404, '{"error": "SECRET"}', 400, "engine_refused", None),
    (500, '{"error":{"code":500,"message":"SECRET"}}', 502, "engine_failed", None),
    (500, "<html>SECRET", 502, "engine_failed", None),
    (503, '{"error":{"code":503,"message":"Loading model"}}', 503, "engine_busy", None),
    (413, '{"error":{"message":"the prompt is too long: SECRET"}}', 413, "request_too_large", None),
    (400, '{"error":"prompt is too long"}', 400, "context_length_exceeded", "messages"),
    (400, '{"error": "the JSON schema cannot be used"}', 400, "invalid_schema", None),
    (400, '{"error": "the JSON schema cannot be enforced: SECRET"}', 400, "invalid_schema", None),
    (400, '{"error": "the JSON schema is too complex to follow"}', 400, "invalid_schema", None),
    (400, '{"error": "llguidance is not installed"}', 400, "unsupported_parameter", None),
    (302, "", 502, "engine_failed", None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "ours", "code", "param"), CASES)
def test_one_mistake_has_one_code_and_our_sentence(
    status: int, body: str, ours: int, code: str, param: str | None
) -> None:
    error = engine_error(status, body.encode(), ASKED)
    refusal, field = error.refusal, error.param
    assert (refusal.status, refusal.code, field) == (ours, code, param)
    assert "SECRET" not in refusal.sentence()


def test_the_numbers_of_a_prompt_that_is_too_long_are_kept() -> None:
    answer = engine_error(400, VLLM_ANSWER.encode(), ASKED).refusal
    assert answer.message.startswith(
        "The prompt has 31 tokens and max_tokens is 8192: together more than the 8192"
    )
    assert engine_error(400, VLLM_ANSWER_OLDER.encode(), ASKED).refusal == answer
    for body in (LLAMA_LONG, VLLM_LONG, VLLM_NEWER):
        refusal = engine_error(400, body.encode(), ASKED).refusal
        assert refusal.numbers == {"n_prompt_tokens": 9031.0, "n_ctx": 8192.0}
        assert "9031" in refusal.message


def test_a_keyword_that_cannot_be_enforced_is_named() -> None:
    body = b'{"error": "the JSON schema cannot be enforced: uniqueItems"}'
    assert '"uniqueItems"' in engine_error(400, body, RequestTarget("mlx", "tiny")).refusal.message
    body = b'{"error": "llguidance is not installed"}'
    assert "reinstall-runner mlx" in engine_error(400, body, RequestTarget("mlx", "tiny")).refusal.sentence()


def test_megabytes_that_an_engine_quotes_are_not_searched_through() -> None:
    body = json.dumps({"error": {"message": "x" * 2**20 + " grammar"}}).encode()
    assert engine_error(400, body, ASKED).refusal.code == "engine_refused"


async def test_the_same_mistake_gets_the_same_error_warm_cold_whole_and_streamed(
    open_server: Any, frames: Any
) -> None:
    server = await open_server("--answer", "400", LLAMA_LONG, "--load-seconds", "0.6", progress_after=0.1)
    # Comments have been sent before the engine could refuse.
    async with server.session.post(
        f"{server.base}/v1/chat/completions",
        json={"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]},
        headers={"Connection": "close"},
    ) as response:
        lines = (await response.text()).splitlines()
    assert (response.status, lines[0][:2]) == (200, ": ")
    (cold,) = frames(lines)
    for stream in (False, True):
        status, warm = await server.error(server.chat(stream=stream))
        assert status == 400
        assert warm == cold["error"]
    assert warm == {
        "message": warm["message"],
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
        "n_prompt_tokens": 9031,
        "n_ctx": 8192,
    }
    await server.nothing_is_held()


async def test_an_answer_without_end_that_must_be_whole_is_given_up(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.http.inference.WHOLE", 1000)
    server = await open_server("--answer", "200", "x" * 100_000, backend={"dialect": Dialect(model_name="m")})
    status, error = await server.error(server.chat())
    assert (status, error["code"]) == (502, "engine_failed")
    await server.nothing_is_held()


DELTA = 'data: {"choices":[{"delta":{"content":"say \\"error\\""}}]}'
SAID = 'data: {"error":{"code":500,"message":"SECRET went wrong","type":"server_error"}}'


async def test_an_engines_error_in_a_stream_is_translated_and_ends_it(open_server: Any, frames: Any) -> None:
    server = await open_server("--stream", f"{DELTA}\\n\\n{SAID}\\n\\ndata: [DONE]\\n\\n")
    async with server.chat(stream=True) as response:
        lines = (await response.text()).splitlines()
    delta, error = frames(lines)
    assert delta["choices"][0]["delta"]["content"] == 'say "error"'
    assert (error["error"]["code"], error["error"]["param"]) == ("engine_failed", None)
    assert "SECRET" not in str(lines)
    await server.nothing_is_held()


async def test_a_failed_stream_has_no_done_and_its_connection_is_closed(open_server: Any) -> None:
    server = await open_server("--stream", SAID + "\\n\\n")
    async with server.chat(stream=True) as response:
        text = await response.text()
        assert "[DONE]" not in text
        assert response.connection is None or response.connection.transport.is_closing()


async def test_a_stream_that_ends_without_its_last_event_is_no_whole_answer(
    open_server: Any, frames: Any
) -> None:
    server = await open_server("--stream", DELTA + "\\n\\n")
    _, lines = await server.stream()
    assert [("error" in one) for one in frames(lines)] == [False, True]


async def test_anthropics_streams_tell_of_errors_as_events(open_server: Any) -> None:
    server = await open_server("--stream", DELTA + "\\n\\n" + SAID + "\\n\\ndata: [DONE]\\n\\n")
    body = {"model": "tiny", "stream": True, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    async with server.post("/v1/messages", body) as response:
        text = await response.text()
    first, *_, last = [event for event in text.split("\n\n") if event.startswith("event: ")]
    assert first.startswith("event: message_start\n")
    name, _, data = last.partition("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["error"]["type"], error["error"]["code"]) == (
        "error", "api_error", "engine_failed",
    )  # fmt: skip
    assert "SECRET" not in text


async def test_an_anthropic_stream_that_is_cut_off_is_no_finished_message(open_server: Any) -> None:
    server = await open_server("--stream", DELTA + "\\n\\n")
    body = {"model": "tiny", "stream": True, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    async with server.post("/v1/messages", body) as response:
        assert "event: error\n" in await response.text()
    server = await open_server("--stream", DELTA + "\\n\\ndata: [DONE]\\n\\n")
    async with server.post("/v1/messages", body) as response:
        assert "event: message_stop\n" in await response.text()


@pytest.mark.parametrize("half", ["data: {}\\n", "event: message_start\\n", "data: {"])
async def test_what_follows_half_an_event_is_an_event_of_its_own(
    open_server: Any, frames: Any, half: str
) -> None:
    server = await open_server("--stream", f"data: {{}}\\n\\n{half}")
    _, lines = await server.stream()
    events = "\n".join(lines).split("\n\n")
    assert events[-1].lstrip().startswith("data: "), events
    assert json.loads(events[-1].strip().removeprefix("data: "))["error"]["code"]


async def test_a_stream_that_was_delivered_is_not_logged_as_left_when_the_client_hangs_up_at_its_end(
    open_server: Any, caplog: Any
) -> None:
    import asyncio
    import logging

    caplog.set_level(logging.INFO, logger="greenroom.access")
    server = await open_server("--tokens", "2")
    await server.stream()
    for _ in range(10):
        host, port = server.root.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "tiny", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.readuntil(b"data: [DONE]\n\n")
        writer.transport.abort()
    await server.nothing_is_held()
    chats = [one.getMessage() for one in caplog.records if "/v1/chat/completions" in one.getMessage()]
    assert len(chats) == 11
    assert all(" 200 " in one for one in chats), chats
