"""Answers that follow JSON schemas on mlx, in every family, whatever the temperature, and several at once.
Schemas that are made to harm."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from waiting import until

jsonschema_rs: Any = importlib.import_module("jsonschema_rs")

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

CHAT = "/v1/chat/completions"
ASK: Any = [{"role": "user", "content": "Tell me about a city."}]
CITY: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
        "on": {"anyOf": [{"type": "null"}, {"enum": ["a hill", "<tool_call>", "</think>"]}]},
    },
    "required": ["name", "size", "on"],
}
HOT = 1.8
TOOLS = Path(__file__).parents[1] / "programs" / "clients" / "tools.jinja"


def check(text: str | None, schema: Any = CITY) -> None:
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(json.loads(text or "")), text


def by_schema(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}


def weather(city: Any) -> Any:
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    return {"type": "function", "function": {"name": "weather", "parameters": parameters}}


def test_an_answer_follows_its_schema_in_every_family(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_mlx: Path
) -> None:
    import anthropic
    import ollama
    import openai

    daemon = make_daemon(furnished).start()
    daemon.bound = 500.0
    model = str(smollm2_mlx)
    chats: Any = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    asked: Any = {"model": model, "messages": ASK, "temperature": HOT, "response_format": by_schema(CITY)}
    for more in ({}, {"seed": 5}, {"top_p": 0.3, "presence_penalty": 2}, {"logit_bias": {"30": -100}}):
        check(chats.chat.completions.create(**asked, **more).choices[0].message.content)
    with chats.chat.completions.stream(**asked) as stream:
        check(stream.get_final_completion().choices[0].message.content)
    form = {"type": "json_schema", "name": "n", "schema": CITY, "strict": True}
    response = chats.responses.create(
        model=model, input="A city.", temperature=HOT, text={"format": form}, max_output_tokens=200
    )
    check(response.output_text)
    completed = daemon.post(
        "/v1/completions", {"model": model, "prompt": "A city:", "temperature": HOT, "json_schema": CITY}
    )
    check(completed.json["choices"][0]["text"])

    client = ollama.Client(daemon.url)
    check(client.chat(model, ASK, format=CITY, options={"temperature": HOT}).message.content)
    said = "".join(
        part.message.content or ""
        for part in client.chat(model, ASK, format=CITY, options={"temperature": HOT}, stream=True)
    )
    check(said)
    free = client.generate(model, "A city.", format="json", options={"num_predict": 40, "temperature": HOT})
    assert (free.response or "").startswith("{")

    messages: Any = anthropic.Anthropic(base_url=daemon.url, api_key="none", max_retries=0).messages
    message = messages.create(
        model=model,
        max_tokens=200,
        messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": CITY}},
        extra_body={"temperature": 1},
    )
    check(message.content[0].text)
    assert len(daemon.events("engine_spawned")) == 1


def test_clients_with_different_schemas_and_without_any_are_answered_together(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_mlx: Path
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.bound = 800.0
    model = str(smollm2_mlx)
    schemas: list[Any] = [
        {"enum": ["yes", "no"]},
        {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 4},
        CITY,
        None,
        None,
    ]
    references = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 3} for n in range(30)}
    bottomless = {"$ref": "#/$defs/a0", "$defs": {**references, "a30": {"type": "string", "pattern": "a+"}}}
    answers: dict[int, Any] = {}

    def ask(number: int, schema: Any) -> None:
        form = {} if schema is None else {"response_format": by_schema(schema)}
        asked = {"model": model, "messages": ASK, "max_tokens": 80 if schema else 20, "temperature": HOT}
        answers[number] = daemon.post(CHAT, {**asked, **form})

    asking = [
        threading.Thread(target=ask, args=one) for one in enumerate([*schemas, bottomless, *schemas[:2]])
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    hostile = answers.pop(len(schemas))
    assert (hostile.status, hostile.json["error"]["code"]) == (400, "invalid_schema")
    for number, answer in answers.items():
        assert answer.status == 200, answer.body
        choice = answer.json["choices"][0]
        if number in (3, 4):
            assert choice["finish_reason"] in ("length", "stop")
        else:
            check(choice["message"]["content"], [*schemas, None, *schemas[:2]][number])
    assert len(daemon.events("engine_spawned")) == 1


def test_a_template_with_tools_is_kept_to_the_choice_that_was_made(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_mlx: Path, tmp_path: Path
) -> None:
    import openai

    daemon = make_daemon(furnished).start()
    daemon.bound = 500.0
    model = str(tmp_path / "with-tools")
    shutil.copytree(smollm2_mlx, model)
    (tmp_path / "with-tools" / "chat_template.jinja").write_text(TOOLS.read_text())
    daemon.pull(model)
    tools = [weather({"$ref": "#/$defs/c"}), weather({"enum": ["Rome"]})]
    tools[0]["function"]["parameters"]["$defs"] = {"c": {"enum": ["Oslo", "</tool_call>"]}}
    tools[1]["function"]["name"] = "forecast"
    forecast = {"type": "function", "function": {"name": "forecast"}}
    asked = {"model": model, "messages": ASK, "tools": tools, "temperature": HOT}
    for choice in ("required", forecast):
        answer = daemon.post(CHAT, {**asked, "tool_choice": choice}).json["choices"][0]
        (call,) = answer["message"]["tool_calls"]
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        assert (name, arguments["city"]) in (
            ("forecast", "Rome"),
            ("weather", "Oslo"),
            ("weather", "</tool_call>"),
        )
        assert choice == "required" or name == "forecast"
        assert answer["finish_reason"] == "tool_calls"
    cut = daemon.post(
        CHAT,
        {
            **asked,
            "tools": [weather({"type": "string", "minLength": 500})],
            "tool_choice": "required",
            "max_tokens": 40,
        },
    )
    assert cut.json["choices"][0]["finish_reason"] == "length"
    (call,) = cut.json["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"].startswith("{")
    chats: Any = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    with chats.chat.completions.stream(**asked, tool_choice="required") as stream:
        (made,) = stream.get_final_completion().choices[0].message.tool_calls
    assert made.function.name in ("weather", "forecast")
    cold = {**asked, "temperature": 0, "max_tokens": 40}
    assert daemon.post(CHAT, cold).json["choices"][0]["message"].get("tool_calls"), "this model likes tools"
    none = daemon.post(CHAT, {**cold, "tool_choice": "none"}).json["choices"][0]["message"]
    assert none["content"]
    assert not none.get("tool_calls")


def nested(begin: str, end: str, depth: int) -> str:
    return begin * depth + '{"type": "string"}' + end * depth


def of_names(size: int) -> Any:
    return {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(size)}}


REFERENCES = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 3} for n in range(30)}
HOSTILE: dict[str, Any] = {
    "lists, ten thousand deep": nested('{"type": "array", "items": ', "}", 10_000),
    "alternatives, ten thousand deep": nested('{"anyOf": [', "]}", 10_000),
    "100,000 properties": of_names(100_000),
    "10,000 properties": of_names(10_000),
    "100,000 words": {"enum": [f"word {n}" for n in range(100_000)]},
    "references without an end": {
        "$ref": "#/$defs/a0",
        "$defs": {**REFERENCES, "a30": {"type": "string", "pattern": "a+"}},
    },
    "more than the most": {"type": "array", "items": {}, "minItems": 5, "maxItems": 4},
    "a number of 40 digits": {"type": "string", "maxLength": 10**40},
}


@pytest.mark.parametrize("engine", ["llama.cpp", "mlx"])
def test_a_hostile_schema_is_refused_soon_in_every_family_and_others_are_answered(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path, smollm2_mlx: Path, engine: str
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.bound = 300.0
    model = str(smollm2_gguf if engine == "llama.cpp" else smollm2_mlx)
    assert daemon.chat(model, max_tokens=1).status == 200
    (row,) = daemon.engines()
    asked = {"messages": ASK, "max_tokens": 4}
    families: dict[str, Callable[[Any], Any]] = {
        CHAT: lambda schema: {**asked, "response_format": by_schema(schema)},
        "/v1/responses": lambda schema: {
            "input": "x",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
        },
        "/v1/messages": lambda schema: {
            **asked,
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
        },
        "/api/chat": lambda schema: {"messages": ASK, "format": schema, "options": {"num_predict": 4}},
    }
    families[f"{CHAT}?tools"] = lambda schema: {
        **asked,
        "tools": [{"type": "function", "function": {"name": "w", "parameters": schema}}],
        "tool_choice": "required",
    }
    for name, schema in HOSTILE.items():
        for path, fields in families.items():
            body = json.dumps({"model": model, **fields("SCHEMA")})
            text = schema if isinstance(schema, str) else json.dumps(schema)
            status, said = post_text(daemon, path.partition("?")[0], body.replace('"SCHEMA"', text))
            assert status == 400, (name, path, said[:300])
            assert any(word in said for word in ("schema", "JSON", "format")), (name, path, said[:300])
        # The engine has not been kept at work, and takes the next request.
        assert daemon.chat(model, max_tokens=1).status == 200
    assert [one["pid"] for one in daemon.engines()] == [row["pid"]]
    assert psutil.Process(row["pid"]).memory_info().rss < 2 * 2**30


def post_text(daemon: Any, path: str, body: str) -> tuple[int, str]:
    request = urllib.request.Request(daemon.url + path, data=body.encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=daemon.bound) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_an_engine_that_works_on_a_grammar_in_vain_is_ended_and_the_next_request_is_served(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.bound = 300.0
    model = str(smollm2_gguf)
    assert daemon.chat(model, max_tokens=1).status == 200
    words = " | ".join(f'"a{n}"' for n in range(200_000))
    body = json.dumps({"model": model, "messages": ASK, "max_tokens": 50, "grammar": f"root ::= ({words})+"})
    daemon.bound = 5.0
    with pytest.raises(TimeoutError):
        post_text(daemon, CHAT, body)
    daemon.bound = 300.0
    until(lambda: daemon.events("engine_stop_requested"), 300)
    (_, stopped), *_ = daemon.events("engine_stop_requested")
    assert stopped["failure"]["code"] == "engine_abandoned"
    assert "for a client that had left" in stopped["failure"]["message"]
    assert daemon.chat(model, max_tokens=1).status == 200
    why = daemon.run("why", model).stdout
    assert "for a client that had left" in " ".join(why.split())
