"""Ollama's inference, on an engine that speaks OpenAI's."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest

from greenroom.runner.http.cut_inputs import shortened
from greenroom.runner.http.ollama.embedding import Embed
from greenroom.runner.http.ollama.generating import Chat, Generate
from tiny_vision import base64_png
from waiting import until_async

HELLO = [{"role": "user", "content": "hi"}]
PIXEL = base64_png()
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


async def lines_of(asked: Any) -> list[Any]:
    """The objects of an answer, one a line."""
    async with asked as response:
        assert response.status == 200, await response.text()
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def refusal_of(asked: Any) -> tuple[int, str]:
    async with asked as response:
        said = await response.json()
        assert list(said) == ["error"]
        return response.status, said["error"]


def chat(server: Any, **fields: Any) -> Any:
    return server.post("/api/chat", {"model": "tiny", "messages": HELLO, **fields})


def generate(server: Any, **fields: Any) -> Any:
    return server.post("/api/generate", {"model": "tiny", "prompt": "hi", **fields})


async def test_a_chat_streams_lines_unless_it_says_otherwise(open_server: Any) -> None:
    server = await open_server("--tokens", "3")
    async with chat(server) as response:
        assert response.content_type == "application/x-ndjson"
    *pieces, last = await lines_of(chat(server))
    assert [one["message"]["content"] for one in pieces] == ["word0 ", "word1 ", "word2 "]
    assert not any(one["done"] for one in pieces)
    assert {one["model"] for one in [*pieces, last]} == {"tiny"}
    assert datetime.fromisoformat(last["created_at"]).tzinfo is not None
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 3)
    assert last["total_duration"] >= last["eval_duration"] > 0
    assert last["load_duration"] > 0

    (whole,) = await lines_of(chat(server, stream=False))
    assert whole["message"] == {"role": "assistant", "content": "word0 word1 word2 "}
    assert (whole["done"], whole["done_reason"], whole["eval_count"]) == (True, "stop", 3)


async def test_a_prompt_is_answered_with_and_without_the_models_template(open_server: Any) -> None:
    server = await open_server("--echo")
    (whole,) = await lines_of(generate(server, prompt="one two", stream=False))
    assert whole["response"] == "one two "
    *pieces, last = await lines_of(generate(server, prompt="<s> one", raw=True))
    assert [one["response"] for one in pieces] == ["<s> ", "one "]
    assert (last["response"], last["done"], last["eval_count"]) == ("", True, 2)
    (raw,) = await lines_of(generate(server, prompt="<s> one", raw=True, stream=False))
    assert raw["response"] == "<s> one "


async def test_options_become_the_fields_of_a_chat() -> None:
    options: dict[str, Any] = {
        "temperature": 0.5,
        "stop": ["x"],
        "top_k": 3,
        "num_predict": 7,
        "seed": 4,
        "num_keep": 2,
    }
    made = Chat(
        {"model": "m", "messages": HELLO, "options": {**options, "repeat_penalty": 1.1, "numa": True}}
    )
    assert made.chat == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": HELLO,
        "temperature": 0.5,
        "stop": ["x"],
        "top_k": 3,
        "n_keep": 2,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "seed": 4,
        "max_tokens": 7,
    }
    for endless in (-1, -2):
        bare = Chat({"model": "m", "messages": HELLO, "options": {"num_predict": endless, "seed": -1}}).chat
        assert not {"max_tokens", "seed"} & bare.keys()


async def test_a_format_and_a_request_to_think_are_passed_on() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = {"model": "m", "messages": HELLO}
    made = Chat({**asked, "format": schema, "think": "low"}).chat
    assert made["response_format"]["json_schema"]["schema"] == schema
    assert made["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "low"}
    made = Chat({**asked, "format": "json", "think": False}).chat
    assert made["response_format"] == {"type": "json_object"}
    assert made["chat_template_kwargs"] == {"enable_thinking": False}


async def test_calls_of_tools_and_their_results_get_ids() -> None:
    results = [{"role": "tool", "tool_name": name, "content": "3"} for name in ("mul", "add")]
    calls = [CALL, {"function": {"name": "mul", "arguments": {}}}]
    history = [*HELLO, {"role": "assistant", "tool_calls": calls}, *results]
    messages = Chat({"model": "m", "messages": history}).chat["messages"]
    made = messages[1]["tool_calls"]
    assert [one["function"]["arguments"] for one in made] == ['{"a":1}', "{}"]
    assert [one["tool_call_id"] for one in messages[2:]] == [made[1]["id"], made[0]["id"]]


async def test_an_image_is_sent_as_a_url_of_its_data(open_server: Any) -> None:
    made = Generate({"model": "m", "prompt": "what?", "system": "be brief", "images": [PIXEL]}).chat
    assert made["messages"][0] == {"role": "system", "content": "be brief"}
    assert made["messages"][1]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    server = await open_server()
    status, said = await refusal_of(generate(server, images=[PIXEL]))
    assert (status, "cannot read images" in said) == (400, True)
    status, said = await refusal_of(generate(server, images=["not base64!"]))
    assert (status, said) == (400, "images[0] must be a PNG, JPEG, GIF, BMP or WebP image in base64.")
    assert not server.engines(), "nothing was loaded for it"


def chunk(**delta: Any) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"


def call(**function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


LAST = (
    'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}\n\n'
    'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}, '
    '"timings": {"prompt_ms": 2.5, "predicted_ms": 4.0}}\n\ndata: [DONE]\n\n'
)


async def test_a_stream_tells_thoughts_and_whole_calls_and_the_engines_times(open_server: Any) -> None:
    stream = chunk(reasoning_content="hm") + chunk(**call(name="add", arguments='{"a"'))
    stream += chunk(**call(arguments=": 1}")) + LAST
    server = await open_server("--stream", stream)
    thought, called, last = await lines_of(chat(server))
    assert thought["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    function = called["message"]["tool_calls"][0]["function"]
    assert (function["name"], function["arguments"]) == ("add", {"a": 1})
    assert not called["done"]
    assert (last["done"], last["done_reason"]) == (True, "stop")
    figures = ("prompt_eval_count", "eval_count", "prompt_eval_duration", "eval_duration")
    assert [last[name] for name in figures] == [9, 5, 2_500_000, 4_000_000]


async def test_a_whole_answer_tells_calls_too_and_one_that_was_cut_off_as_text(open_server: Any) -> None:
    calls = [{"function": {"name": "add", "arguments": text}} for text in ('{"a": 1}', '{"a": ')]
    message = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": calls}
    answer = {"choices": [{"message": message, "finish_reason": "length"}], "usage": {}}
    server = await open_server("--answer", "200", json.dumps(answer))
    (whole,) = await lines_of(chat(server, stream=False))
    said = whole["message"]
    assert said["tool_calls"] == [{"function": {"index": 0, "name": "add", "arguments": {"a": 1}}}]
    assert (said["thinking"], said["content"]) == ("hm", 'add {"a": ')
    assert whole["done_reason"] == "length"


async def test_an_engine_that_dies_in_mid_stream_is_a_line_and_the_end(open_server: Any) -> None:
    server = await open_server("--tokens", "9", "--die-after-tokens", "3", "--token-delay", "0.01")
    *pieces, last = await lines_of(chat(server))
    assert pieces
    assert "SIGKILL" in last["error"]
    assert not any(one["done"] for one in pieces)
    await server.nothing_is_held()


async def test_a_client_that_leaves_ends_the_generation(open_server: Any) -> None:
    server = await open_server("--tokens", "100000", "--token-delay", "0.005")
    async with chat(server) as response:
        await response.content.readline()
        response.close()
    await server.nothing_is_held()
    assert (await server.stats())["aborted"] == 1


@pytest.mark.parametrize(
    ("path", "said"), [("/api/chat", {"messages": []}), ("/api/generate", {}), ("/api/embed", {"input": []})]
)
async def test_a_request_without_a_prompt_loads_the_model_and_one_for_no_time_unloads_it(
    open_server: Any, path: str, said: Any
) -> None:
    server = await open_server()
    asked = {"model": "tiny", **said}
    (loaded,) = await lines_of(server.post(path, asked))
    assert (loaded["model"], loaded["done"], loaded["done_reason"]) == ("tiny", True, "load")
    assert len(server.engines("ready")) == 1
    assert (await server.stats())["requests"] == 0
    (unloaded,) = await lines_of(server.post(path, {**asked, "keep_alive": 0}))
    assert unloaded["done_reason"] == "unload"
    await until_async(lambda: not server.engines())


async def test_a_field_without_a_name_changes_nothing_about_that(open_server: Any) -> None:
    server = await open_server()
    asked = {"model": "tiny", "input": [], "": {}}
    (loaded,) = await lines_of(server.post("/api/embed", asked))
    assert (loaded["done_reason"], loaded["embeddings"]) == ("load", [])


async def test_unloading_a_model_in_use_lets_it_finish(open_server: Any) -> None:
    server = await open_server("--tokens", "30", "--token-delay", "0.01")
    asked = asyncio.create_task(lines_of(chat(server)))
    await until_async(lambda: server.inside() == 1)
    (said,) = await lines_of(server.post("/api/generate", {"model": "tiny", "keep_alive": 0}))
    assert said["done_reason"] == "unload"
    assert (await asked)[-1]["eval_count"] == 30
    await until_async(lambda: not server.engines())


async def test_embeddings_have_both_forms(open_server: Any) -> None:
    server = await open_server()
    (many,) = await lines_of(server.post("/api/embed", {"model": "tiny", "input": ["x"]}))
    assert many["embeddings"] == [[0.1, 0.2, 0.3]]
    assert (many["model"], many["prompt_eval_count"]) == ("tiny", 1)
    assert many["total_duration"] > 0
    (one,) = await lines_of(server.post("/api/embeddings", {"model": "tiny", "prompt": "x"}))
    assert one == {"embedding": [0.1, 0.2, 0.3]}


async def test_an_input_that_is_too_long_is_cut_or_refused(open_server: Any) -> None:
    server = await open_server("--context", "12")
    long = "cat " * 40
    for given, count in ((long, 12), ([long, "a b", long], 28), ("a", 3)):
        (said,) = await lines_of(server.post("/api/embed", {"model": "tiny", "input": given}))
        assert said["prompt_eval_count"] == count
        assert len(said["embeddings"]) == (len(given) if isinstance(given, list) else 1)
    await lines_of(server.post("/api/embed", {"model": "tiny", "input": [long, "a"], "truncate": True}))
    assert (await server.stats())["last"]["input"] == [[101, *[1003] * 10, 102], "a"]
    (one,) = await lines_of(server.post("/api/embeddings", {"model": "tiny", "prompt": long}))
    assert one == {"embedding": [0.1]}
    for path, name in (("embed", "input"), ("embeddings", "prompt")):
        body = {"model": "tiny", name: long, "truncate": False}
        status, error = await refusal_of(server.post(f"/api/{path}", body))
        assert (status, "42 tokens" in error, "at most 12" in error) == (400, True, True), error
    async with server.post("/v1/embeddings", {"model": "tiny", "input": long}) as response:
        assert response.status == 400, "OpenAI's clients get no cut input"


async def test_an_input_is_refused_where_the_engine_cannot_count(open_server: Any) -> None:
    said = {"error": {"code": 400, "message": "input (9 tokens) is too large to process", "type": "x"}}
    server = await open_server("--answer", "400", json.dumps(said))
    status, error = await refusal_of(server.post("/api/embed", {"model": "tiny", "input": "x " * 50_000}))
    assert (status, "9 tokens" in error) == (400, True), error


def test_tokens_that_end_every_text_stay_at_the_end() -> None:
    for tokens, special, limit, found in (
        ([1, 2, 3], [1], 3, [1, 2, 3]),
        ([1, 5, 6, 7], [1], 3, [1, 5, 6]),
        ([101, 5, 6, 7, 102], [101, 102], 3, [101, 5, 102]),
        ([5, 6, 7, 2], [2], 2, [5, 2]),
        ([5, 6, 7], [], 1, [5]),
    ):
        assert shortened(tokens, special, limit) == found


async def test_shorter_embeddings_have_a_length_of_one() -> None:
    embed = Embed({"model": "m", "input": "x", "dimensions": 2})
    rows = [{"index": 1, "embedding": [0.0, 0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0, 5.0]}]
    assert json.loads(embed.whole({"data": rows}))["embeddings"] == [[0.6, 0.8], [0.0, 0.0]]


async def test_settings_without_a_meaning_here_are_listed(open_server: Any) -> None:
    server = await open_server()
    fields = {"context": [1], "shift": True, "options": {"num_gpu": 1, "temperature": 0}}
    async with generate(server, **fields) as response:
        assert response.status == 200
        assert response.headers["X-Greenroom-Ignored"] == "context, shift, options.num_gpu"
    async with generate(server, raw=True, system="x") as response:
        assert response.headers["X-Greenroom-Ignored"] == "system"
    async with chat(server) as response:
        assert "X-Greenroom-Ignored" not in response.headers


async def test_a_larger_context_is_loaded_for_a_request_and_never_configured(open_server: Any) -> None:
    server = await open_server()
    await lines_of(
        server.post("/api/create", {"model": "short", "from": "tiny", "parameters": {"num_ctx": 500}})
    )
    fields = {"model": "short", "prompt": ""}
    (loaded,) = await lines_of(server.post("/api/generate", {**fields, "options": {"num_ctx": 100}}))
    assert loaded["done_reason"] == "load"
    (first,) = server.engines("ready")
    assert first.spec.context_size == 500, "a smaller one changes nothing"
    await lines_of(server.post("/api/generate", {**fields, "prompt": "x", "options": {"num_ctx": 600}}))
    (second,) = server.engines("ready")
    assert second.spec.context_size == 600
    await lines_of(server.post("/api/generate", {**fields, "prompt": "x"}))
    assert server.engines("ready") == [second]
    async with server.get("/engines/_configure") as response:
        assert await response.json() == []


async def test_openais_requests_may_ask_for_a_larger_context_too(open_server: Any) -> None:
    server = await open_server()
    await lines_of(
        server.post("/api/create", {"model": "short", "from": "tiny", "parameters": {"num_ctx": 500}})
    )
    preload = {"X-Preload-Only": "true"}
    async with server.chat(model="short", num_ctx=600, headers=preload) as response:
        assert response.status == 200
    (loaded,) = server.engines("ready")
    assert loaded.spec.context_size == 600
    async with server.chat(model="short", num_ctx=700) as response:
        assert response.status == 200
        assert "X-Greenroom-Ignored" not in response.headers
    (loaded,) = server.engines("ready")
    assert loaded.spec.context_size == 700
    for wrong in ("much", -1, True, 2**40):
        status, error = await server.error(server.chat(model="short", num_ctx=wrong))
        assert (status, error["param"]) == (400, "num_ctx"), wrong


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"messages": [{"role": "robot"}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ("chat", {"options": {"temperature": "hot"}}, "options.temperature"),
    ("chat", {"format": "yaml"}, 'format must be "json" or a JSON schema'),
    ("chat", {"think": "sometimes"}, "think must be one of"),
    ("chat", {"tools": [{"function": {}}]}, "tools[0].function.name"),
    ("chat", {"stream": "yes"}, "stream"),
    ("chat", {"keep_alive": "soon"}, "keep_alive"),
    ("generate", {"template": "{{ .Prompt }}"}, "template is not supported"),
    ("generate", {"suffix": "return"}, "does not support insert"),
    ("generate", {"raw": True, "images": [PIXEL]}, "images need the model's chat template"),
    ("embed", {"input": [1]}, "input[0]"),
]


@pytest.mark.parametrize(("route", "fields", "said"), MISTAKES)
async def test_a_mistake_is_one_sentence_and_loads_nothing(
    open_server: Any, route: str, fields: Any, said: str
) -> None:
    server = await open_server()
    right = {"model": "tiny", "messages": HELLO, "prompt": "hi", "input": "x"}
    status, error = await refusal_of(server.post(f"/api/{route}", {**right, **fields}))
    assert (status, said in error) == (400, True), error
    assert not server.engines()


async def test_a_model_that_is_not_there_is_reported_in_ollamas_words(open_server: Any) -> None:
    server = await open_server()
    for route in ("chat", "generate", "show", "embed"):
        asked = {"model": "absent", "messages": HELLO, "prompt": "hi", "input": "x"}
        status, error = await refusal_of(server.post(f"/api/{route}", asked))
        assert (status, error) == (404, 'model "absent" not found, try pulling it first')
    assert (await refusal_of(server.post("/api/chat", {"messages": HELLO})))[0] == 400
    assert (await refusal_of(server.get("/api/nothing")))[0] == 404
    assert (await refusal_of(server.get("/api/chat")))[0] == 405
