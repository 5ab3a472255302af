"""A client's mistake: one status and one code, before any engine is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenroom.runner.backends.base import Dialect
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.http.anthropic.fields import MESSAGES
from greenroom.runner.http.completion_fields import COMPLETION, EMBEDDING
from greenroom.runner.http.engine_requests import check_now, refuse_what_it_cannot, routing_of, translate
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import CHAT, Dialogue
from greenroom.runner.http.ollama.fields import OLLAMA_CHAT
from greenroom.runner.http.ranking_fields import RERANKING
from greenroom.runner.http.responses.fields import RESPONSES
from tiny_vision import base64_png

HELLO = [{"role": "user", "content": "hi"}]
OTHER = {"type": "function", "function": {"name": "v"}}
TOOL = {"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, **fields}


def said(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def called(arguments: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": arguments}}
    return {"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]}


IMAGE = f"data:image/png;base64,{base64_png()}"
CHAT_MISTAKES: dict[str, dict[str, Any]] = {
    "messages": {"messages": []},
    "messages[0].role": {"messages": [{"role": "robot", "content": "x"}]},
    "messages[0].content": {"messages": [{"role": "user", "content": 5}]},
    "messages[0].content[0].type": said({"type": "smell"}),
    "messages[0].content[0].text": said({"type": "text"}),
    "messages[0].content[0].image_url": said({"type": "image_url", "image_url": "file:///etc/passwd"}),
    "messages[1].tool_calls[0].function.arguments": called("{no JSON"),
    "n": chat(n=0),
    "max_tokens": chat(max_tokens=0),
    "max_completion_tokens": chat(max_completion_tokens="5"),
    "temperature": chat(temperature=9),
    "top_p": chat(top_p="all"),
    "stop": chat(stop=5),
    "seed": chat(seed=10**30),
    "stream": chat(stream="yes"),
    "logit_bias": chat(logit_bias={"word": 1}),
    "top_logprobs": chat(top_logprobs=5),
    "tools[0].type": chat(tools=[{"type": "custom", "custom": {"name": "x"}}]),
    "tools[0].function.name": chat(tools=[{"type": "function", "function": {}}]),
    "tools[0].function.parameters": chat(
        tools=[{"type": "function", "function": {"name": "x", "parameters": "none"}}]
    ),
    "tool_choice": chat(tools=[TOOL], tool_choice="sometimes"),
    "tool_choice.function": chat(tools=[TOOL], tool_choice={"type": "function"}),
    "response_format.type": chat(response_format={"type": "yaml"}),
    "response_format.json_schema": chat(response_format={"type": "json_schema"}),
    "reasoning_format": chat(reasoning_format="nope"),
    "modalities": chat(modalities=["audio"]),
    "functions": chat(functions=[{"name": "x"}]),
}


def refused(body: dict[str, Any] | bytes, dialogue: Dialogue) -> HttpRefusal:
    with pytest.raises(HttpRefusal) as caught:
        check_now(body if isinstance(body, bytes) else json.dumps(body).encode(), dialogue)
    return caught.value


@pytest.mark.parametrize("param", CHAT_MISTAKES)
def test_a_mistake_in_a_chat_is_400_and_names_its_field(param: str) -> None:
    error = refused(CHAT_MISTAKES[param], CHAT)
    assert (error.refusal.status, error.param) == (400, param)
    assert error.refusal.message.startswith(param.removesuffix(".function")), error.refusal.message


@pytest.mark.parametrize(
    ("fields", "param", "dialogue"),
    [
        ({"messages": [{"role": "user"}]}, "messages[0].content", CHAT),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", CHAT),
        (chat(tool_choice="required"), "tool_choice", CHAT),
        (
            chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "v"}}),
            "tool_choice",
            CHAT,
        ),
        ({}, "prompt", COMPLETION),
        ({"prompt": 5}, "prompt", COMPLETION),
        ({"prompt": []}, "prompt", COMPLETION),
        ({"prompt": ["a", 5]}, "prompt[1]", COMPLETION),
        ({"prompt": [1, -5]}, "prompt[1]", COMPLETION),
        ({"input": ""}, "input", EMBEDDING),
        ({"input": None}, "input", EMBEDDING),
        ({"input": ["a", ""]}, "input[1]", EMBEDDING),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", EMBEDDING),
        ({"messages": HELLO}, "max_tokens", MESSAGES),
        ({"messages": HELLO, "max_tokens": 5, "temperature": 1.5}, "temperature", MESSAGES),
        ({"messages": [{"role": "tool", "content": "x"}], "max_tokens": 5}, "messages[0].role", MESSAGES),
        ({"query": "x"}, "documents", RERANKING),
        ({"query": "x", "documents": "y"}, "documents", RERANKING),
        ({"query": "x", "documents": ["y", {"title": "z"}]}, "documents[1].text", RERANKING),
    ],
)
def test_a_mistake_in_another_family_names_its_field_too(
    fields: dict[str, Any], param: str, dialogue: Dialogue
) -> None:
    assert refused(fields, dialogue).param == param


def test_a_body_that_is_not_utf_8_is_400_whatever_the_engine() -> None:
    error = refused(b'{"messages": [{"role": "user", "content": "caf\xe9"}]}', CHAT)
    assert (error.refusal.status, error.refusal.code) == (400, "invalid_request")
    assert "UTF-8" in error.refusal.message
    assert refused(b'{"extra": "\xff", "prompt": "x"}', COMPLETION).refusal.status == 400
    assert refused(b'{"prompt": "\\ud800"}', COMPLETION).refusal.status == 400


def test_a_refusal_never_repeats_what_was_sent() -> None:
    secret = "SECRET"
    for fields in (
        {"messages": [{"role": secret, "content": "x"}]},
        said({"type": secret}),
        called("{" + secret),
        chat(tools=[{"type": secret}]),
        chat(tool_choice=secret),
        chat(response_format={"type": secret}),
        chat(temperature=secret),
        chat(logit_bias={secret: 1}),
    ):
        assert secret not in refused(fields, CHAT).refusal.sentence()


def test_minus_one_token_means_no_limit_as_some_clients_say_it() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        right = check_now(json.dumps({"model": "m", "messages": HELLO, name: -1}).encode(), CHAT)
        assert json.loads(right.body) == {"model": "m", "messages": HELLO}


def test_null_means_left_out_and_nulls_inside_of_schemas_stay() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [None, 1], "default": None}}}
    body = {
        "model": "m",
        "messages": [
            {"role": "user", "content": "hi", "name": None},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "w", "arguments": ""}}
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "x", "name": None},
        ],
        "tools": [{"type": "function", "function": {"name": "w", "description": None, "parameters": schema}}],
        "temperature": None,
        "stop": None,
        "unknown": None,
        "kept": {"inner": None},
    }  # fmt: skip
    right = msgspec.json.decode(check_now(json.dumps(body).encode(), CHAT).body)
    assert right == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "w", "arguments": "{}"}}
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "w", "parameters": schema}}],
        "kept": {"inner": None},
    }  # fmt: skip


def test_a_correct_request_passes_byte_for_byte() -> None:
    body = b'{ "model":"m","messages" : [{"role":"user","content":"h\\u00e9"}],"temperature":1.50,"x":1e400}'
    assert check_now(body, CHAT).body is body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        "role content type text function name arguments image_url url source x".split()
    ), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("dialogue", [CHAT, COMPLETION, EMBEDDING, MESSAGES, RERANKING])
def test_whatever_is_sent_is_right_or_refused_with_a_sentence(dialogue: Dialogue) -> None:
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(st.sampled_from(sorted(dialogue.fields)), JSON, max_size=6))
    def hostile(fields: dict[str, Any]) -> None:
        body = json.dumps(fields).replace("NaN", "1e999").encode()
        try:
            assert None not in check_now(body, dialogue).fields.values()
        except HttpRefusal:
            refusal = refused(body, dialogue).refusal
            assert (refusal.status, bool(refusal.message)) == (400, True)

    hostile()


MLX_CANNOT: dict[str, tuple[dict[str, Any], Dialogue]] = {
    "prompt": ({"prompt": ["a", "b"]}, COMPLETION),
    "n": (chat(n=2), CHAT),
    "grammar": (chat(grammar='root ::= "a"'), CHAT),
    "logprobs": (chat(stream=True, logprobs=True), CHAT),
    "echo": ({"prompt": "a", "echo": True}, COMPLETION),
    "seed": (chat(seed=-1), CHAT),
    "top_logprobs": (chat(logprobs=True, top_logprobs=20), CHAT),
}


@pytest.mark.parametrize("param", MLX_CANNOT)
def test_what_mlx_cannot_do_is_refused_and_not_ignored(param: str) -> None:
    body, dialogue = MLX_CANNOT[param]
    fields = check_now(json.dumps(body).encode(), dialogue).fields
    with pytest.raises(HttpRefusal, match=f"{param}: mlx cannot do this") as caught:
        refuse_what_it_cannot("mlx", Mlx.dialect, fields)
    assert (caught.value.refusal.status, caught.value.param) == (400, param)


def test_what_engines_can_do_is_not_refused() -> None:
    for body, dialogue in [
        (chat(logprobs=True, top_logprobs=5, tools=[TOOL], tool_choice="auto", n=1), CHAT),
        (chat(response_format={"type": "text"}, stream=True), CHAT),
        (chat(response_format={"type": "json_object"}, json_schema={"type": "object"}), CHAT),
        (chat(tools=[TOOL], tool_choice="required"), CHAT),
        (chat(tools=[TOOL], tool_choice="none"), CHAT),
        ({"prompt": "a", "best_of": 1, "echo": False}, COMPLETION),
        ({"input": ["a", "b"]}, EMBEDDING),
    ]:
        fields = check_now(json.dumps(body).encode(), dialogue).fields
        refuse_what_it_cannot("mlx", Mlx.dialect, fields)
        refuse_what_it_cannot("llama.cpp", LlamaCpp.dialect, fields)


# through the front door


async def test_mistakes_are_reported_before_an_engine_is_loaded_streamed_or_not(open_server: Any) -> None:
    server = await open_server("--load-forever", progress_after=0.05)
    for stream in (False, True):
        for path, fields, param in (
            ("/v1/chat/completions", {"messages": []}, "messages"),
            ("/engines/v1/completions", {"prompt": 7}, "prompt"),
            ("/v1/chat/completions", said({"type": "image_url", "image_url": {"url": IMAGE}}),
             "messages[0].content[0]"),
            ("/v1/completions", {"prompt": [1] * 9000}, "prompt"),
        ):  # fmt: skip
            status, error = await server.error(
                server.post(path, {"model": "tiny", "stream": stream, **fields})
            )
            assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert server.greenroom.engines() == ()


async def test_what_a_backend_cannot_do_is_refused_before_it_is_loaded(open_server: Any) -> None:
    server = await open_server("--load-forever", backend={"dialect": Mlx.dialect})
    status, error = await server.error(server.chat(n=2))
    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", "n")
    assert "fake cannot do this" in error["message"]
    assert server.greenroom.engines() == ()


async def test_a_model_that_makes_no_embeddings_is_422_before_it_is_loaded(
    open_server: Any, short_path: Path
) -> None:
    server = await open_server("--load-forever", backend={"dialect": Dialect(pools_by_header=True)})
    status, error = await server.error(server.post("/v1/embeddings", {"model": "tiny", "input": "x"}))
    assert (status, error["code"]) == (422, "not_an_embedding_model")
    assert server.greenroom.engines() == ()
    async with server.get("/models/tiny") as response:
        serving = (await response.json())["serving"]
    assert [one["mode"] for one in serving] == ["completion"], "inspect offers what is refused"


async def test_anthropics_clients_get_errors_in_their_own_shape(open_server: Any) -> None:
    server = await open_server()
    for fields, status, kind in (
        ({"model": "tiny", "messages": HELLO}, 400, "invalid_request_error"),
        ({"model": "absent", "messages": HELLO, "max_tokens": 5}, 404, "not_found_error"),
        ({"model": 5}, 400, "invalid_request_error"),
    ):
        async with server.post("/v1/messages", fields) as response:
            body = await response.json()
            assert (response.status, body["type"], body["error"]["type"]) == (status, "error", kind)
            assert body["request_id"] == response.headers["X-Request-Id"]


async def test_comments_go_only_to_clients_of_streams(open_server: Any) -> None:
    server = await open_server("--load-seconds", "0.5", progress_after=0.1)
    asked = server.post("/v1/embeddings", {"model": "tiny", "input": "x", "stream": True})
    async with asked as response:
        assert response.status == 200
        assert (await response.json())["data"]


@pytest.mark.parametrize(("param", "value"), [("stream", "yes"), ("n", "two"), ("user", 5), ("n", 10**30)])
async def test_errors_in_fields_that_routing_reads_are_like_all_others(
    open_server: Any, param: str, value: Any
) -> None:
    server = await open_server()
    status, error = await server.error(server.chat(**{param: value}))
    assert (status, error["param"]) == (400, param)
    assert error["code"] in ("invalid_type", "invalid_value")


def test_each_answer_and_each_prompt_takes_a_slot() -> None:
    from greenroom.runner.http.admission import slots_of

    for fields, slots in [
        ({}, 1),
        ({"n": 3}, 3),
        ({"prompt": "x"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [[1], [2], [3]]}, 3),
        ({"prompt": ["a"] * 200, "n": 100}, 256),
    ]:
        assert slots_of(fields) == slots, fields  # type: ignore[arg-type]


ABOVE = {"type": "array", "minItems": 5, "maxItems": 2}


@pytest.mark.parametrize(
    "schema",
    [
        ABOVE,
        {"type": "object", "properties": {"a": {"anyOf": [ABOVE]}}},
        {"type": "string", "minLength": 3, "maxLength": 1},
        {"type": "array", "maxItems": -1},
        {"type": "array", "minItems": 5, "maxItems": 2**32 + 2},
        {"type": "string", "pattern": "^a{5,2}$"},
        {"type": "string", "pattern": f"^a{{5,{2**32 + 2}}}$"},
        {"type": "string", "pattern": "^a{" + "9" * 5000 + ",2}$"},
    ],
)
def test_a_schema_that_asks_for_more_than_it_allows_never_reaches_an_engine(schema: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "w", "parameters": schema}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    anthropic = {"max_tokens": 5, "tools": [{"name": "w", "input_schema": schema}]}
    for fields, dialogue in (
        (chat(tools=[tool]), CHAT),
        (chat(response_format=named), CHAT),
        (chat(response_format={"type": "json_object", "schema": schema}), CHAT),
        (chat(json_schema=schema), CHAT),
        (chat(**anthropic), MESSAGES),
        ({"prompt": "x", "json_schema": schema}, COMPLETION),
        ({"input": "x", "tools": [{"type": "function", "name": "w", "parameters": schema}]}, RESPONSES),
        (chat(format=schema), OLLAMA_CHAT),
    ):
        with pytest.raises(HttpRefusal) as refused:
            check_now(msgspec.json.encode({"model": "m", **fields}), dialogue)
        assert refused.value.refusal.code == "invalid_schema"
        assert "allows no answer" in refused.value.refusal.message


def test_schemas_and_grammars_with_bounds_in_order_pass() -> None:
    schema = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"pattern": r"^a{2,5}\{5,2}[{5,2}]$"}}
    grammar = 'root ::= "{5,2}" [{5,2}] "a"{2,5} # {5,2}'
    body = msgspec.json.encode({"model": "m", **chat(json_schema=schema, grammar=grammar)})
    assert check_now(body, CHAT).fields["grammar"] == grammar


@pytest.mark.parametrize("times", ["{5,2}", "{05,2}", f"{{5,{2**32 + 2}}}"])
def test_a_grammar_with_a_repetition_that_never_ends_is_refused(times: str) -> None:
    body = msgspec.json.encode({"model": "m", **chat(grammar=f'root ::= "a"{times}')})
    with pytest.raises(HttpRefusal) as refused:
        check_now(body, CHAT)
    assert refused.value.refusal.code == "invalid_grammar"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model": 5}', "model must be a string, not a whole number"),
        (b'{"model": "m", "keep_alive": {}}', "keep_alive must be a number or a string, not an object"),
        (b"[]", "the body must be an object, not a list"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_in_words_whoever_decodes_it(body: bytes, said: str) -> None:
    with pytest.raises(HttpRefusal) as caught:
        routing_of(body)
    assert caught.value.refusal.message == f"invalid request: {said}"


@pytest.mark.parametrize("nothing", ["", [""]])
def test_an_empty_stop_is_none(nothing: Any) -> None:
    right = check_now(json.dumps(chat(stop=nothing)).encode(), CHAT)
    assert "stop" not in msgspec.json.decode(right.body)
    assert refused(chat(stop=["a", ""]), CHAT).param == "stop[1]"


def test_a_format_of_a_completion_reaches_an_engine_that_knows_only_schemas() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    formats = {
        "json_schema": {"json_schema": {"name": "x", "schema": schema}},
        "json_object": {},
        "text": {},
    }
    sent = [
        msgspec.json.decode(translate(json.dumps(body).encode(), LlamaCpp.dialect, None))
        for kind, more in formats.items()
        for body in ({"prompt": "x", "response_format": {"type": kind, **more}},)
    ]
    assert sent == [
        {"prompt": "x", "json_schema": schema},
        {"prompt": "x", "json_schema": {"type": "object"}},
        {"prompt": "x"},
    ]
    unchanged = b'{"messages": [], "response_format": {"type": "json_object"}}'
    assert msgspec.json.decode(translate(unchanged, LlamaCpp.dialect, None)) == json.loads(unchanged)


def test_numbers_beyond_a_bound_are_told_both_bounds_and_objects_how_much_they_may_hold() -> None:
    fields: dict[str, tuple[Any, str]] = {
        "max_tokens": (10**18, "max_tokens must be from 1 to 2147483647."),
        "top_k": (2**40, "top_k must be from -1 to 2147483647."),
        "seed": (10**30, "seed must be a number that fits into 64 bits."),
        "logit_bias": ({str(i): 1 for i in range(5000)}, "logit_bias has 5000 tokens; the limit is 4096."),
    }
    for name, (value, said) in fields.items():
        assert refused(chat(**{name: value}), CHAT).refusal.message == said
    many = chat(**{f"field{i}": i for i in range(2000)})
    assert "2001 fields; the limit is 1000" in refused(many, CHAT).refusal.message
