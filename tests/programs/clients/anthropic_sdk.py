"""Anthropic's SDK."""

from typing import Any

import anthropic
from checks import ABSENT, BASE, MODEL, STORY, TOO_LONG, WEATHER, check, idle, later, occupied, raised, run

client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
story: Any = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": STORY}]}


@check("chat")
def _() -> None:
    answer = client.messages.create(**story, system="You are a poet.")
    assert answer.content[0].text
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 8)
    assert any(MODEL in model.id for model in client.models.list())
    assert client.messages.count_tokens(model=MODEL, messages=story["messages"]).input_tokens > 3


@check("stream")
def _() -> None:
    with client.messages.stream(**story) as stream:
        pieces = list(stream.text_stream)
        assert len(pieces) > 1
        assert stream.get_final_message().stop_reason == "max_tokens"


@check("tools")
def _() -> None:
    question: Any = {"role": "user", "content": "Use the tool: what is the weather in Paris?"}
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    answer = client.messages.create(
        model=MODEL, max_tokens=200, messages=[question], tools=tools, tool_choice={"type": "any"}
    )
    call, *_ = [block for block in answer.content if block.type == "tool_use"]
    assert (answer.stop_reason, call.name) == ("tool_use", "weather")
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "It rains."}
    again = client.messages.create(
        model=MODEL,
        max_tokens=8,
        tools=tools,
        messages=[
            question,
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [result]},
        ],
    )
    assert again.content


@check("schema")
def _() -> None:
    answer = client.messages.create(
        **{**story, "max_tokens": 64},
        output_config={"format": {"type": "json_schema", "schema": WEATHER}},
    )
    assert "city" in answer.content[0].text


@check("errors")
def _() -> None:
    def say(**more: Any) -> Any:
        return client.messages.create(**{**story, **more})

    absent = raised(anthropic.NotFoundError, lambda: say(model=ABSENT))
    assert absent.body["error"]["type"] == "not_found_error"
    wrong = raised(anthropic.BadRequestError, lambda: say(extra_body={"temperature": 9}))
    assert wrong.body["error"]["type"] == "invalid_request_error"
    raised(anthropic.BadRequestError, lambda: say(messages=[{"role": "user", "content": TOO_LONG}]))


@check("cancellation")
def _() -> None:
    with client.messages.create(**{**story, "max_tokens": 1500}, stream=True) as stream:
        next(iter(stream))
    idle()


@check("retries")
def _() -> None:
    with occupied() as free:
        raised(anthropic.RateLimitError, lambda: client.messages.create(**story))
        later(1, free)
        assert client.with_options(max_retries=9).messages.create(**story).content


run()
