"""OpenAI's SDK: `chat` completions or `responses`."""

import sys
from typing import Any, Literal

import openai
import pydantic
from checks import (
    ABSENT,
    BASE,
    EMBEDDER,
    MODEL,
    STORY,
    TOO_LONG,
    WEATHER,
    check,
    idle,
    later,
    occupied,
    raised,
    run,
)

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
story: Any = {"model": MODEL, "messages": [{"role": "user", "content": STORY}]}


class Colour(pydantic.BaseModel):
    name: Literal["red", "blue"]


def chat() -> None:
    @check("chat")
    def _() -> None:
        answer = client.chat.completions.create(**story, max_tokens=8)
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8

    @check("stream")
    def _() -> None:
        chunks = list(
            client.chat.completions.create(
                **story, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 8

    @check("tools")
    def _() -> None:
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
        question: Any = {"role": "user", "content": "Use the tool: what is the weather in Paris?"}
        answer = client.chat.completions.create(
            model=MODEL, messages=[question], tools=[tool], tool_choice="required", max_tokens=200
        )
        call, *_ = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "weather")
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
        messages: Any = [question, answer.choices[0].message, result]
        again = client.chat.completions.create(model=MODEL, messages=messages, tools=[tool], max_tokens=8)
        assert again.choices[0].message.content or again.choices[0].message.tool_calls

    @check("schema")
    def _() -> None:
        answer = client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": "A colour."}],
            response_format=Colour,
            max_tokens=64,
        )
        assert isinstance(answer.choices[0].message.parsed, Colour)

    @check("embeddings")
    def _() -> None:
        answer = client.embeddings.create(model=EMBEDDER, input=["the sea", "the ocean", "a tax form"])
        sea, ocean, form = (item.embedding for item in answer.data)
        assert dot(sea, ocean) > dot(sea, form)

    @check("errors")
    def _() -> None:
        def say(**more: Any) -> Any:
            return client.chat.completions.create(**{**story, "max_tokens": 8, **more})

        assert raised(openai.NotFoundError, lambda: say(model=ABSENT)).code
        assert raised(openai.BadRequestError, lambda: say(temperature=9)).param == "temperature"
        too_long = raised(
            openai.BadRequestError, lambda: say(messages=[{"role": "user", "content": TOO_LONG}])
        )
        assert too_long.code == "context_length_exceeded"

    @check("cancellation")
    def _() -> None:
        with client.chat.completions.create(**story, max_tokens=1500, stream=True) as stream:
            next(iter(stream))
        idle()

    @check("retries")
    def _() -> None:
        with occupied() as free:
            refused = raised(
                openai.RateLimitError, lambda: client.chat.completions.create(**story, max_tokens=8)
            )
            assert refused.code == "queue_full"
            later(1, free)
            again = client.with_options(max_retries=9)
            assert again.chat.completions.create(**story, max_tokens=8).choices


def responses() -> None:
    asked: Any = {"model": MODEL, "input": STORY}

    @check("chat")
    def _() -> None:
        first = client.responses.create(**asked, max_output_tokens=8)
        assert first.output_text
        assert first.incomplete_details is not None
        assert first.incomplete_details.reason == "max_output_tokens"
        second = client.responses.create(
            model=MODEL, input="Go on.", previous_response_id=first.id, max_output_tokens=8
        )
        assert second.usage is not None
        assert first.usage is not None
        assert second.usage.input_tokens > first.usage.input_tokens

    @check("stream")
    def _() -> None:
        with client.responses.stream(**asked, max_output_tokens=8) as stream:
            kinds = [event.type for event in stream]
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.incomplete"
        assert kinds.count("response.output_text.delta") > 1
        with client.responses.create(**asked, max_output_tokens=8, background=True, stream=True) as left:
            created = next(iter(left))
        assert created.type == "response.created"
        with client.responses.stream(response_id=created.response.id, starting_after=0) as rest:
            kinds = [event.type for event in rest]
        assert (kinds[0], kinds[-1]) == ("response.queued", "response.incomplete")
        assert client.responses.retrieve(created.response.id).output_text

    @check("tools")
    def _() -> None:
        tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
        first = client.responses.create(
            model=MODEL,
            input="Use the tool: what is the weather in Paris?",
            tools=[tool],
            tool_choice="required",
            max_output_tokens=200,
        )
        call, *_ = [item for item in first.output if item.type == "function_call"]
        assert call.name == "weather"
        second = client.responses.create(
            model=MODEL,
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}],
            max_output_tokens=8,
        )
        assert second.output_text

    @check("schema")
    def _() -> None:
        answer = client.responses.parse(
            model=MODEL, input="A colour.", text_format=Colour, max_output_tokens=64
        )
        assert isinstance(answer.output_parsed, Colour)

    @check("errors")
    def _() -> None:
        def say(**more: Any) -> Any:
            return client.responses.create(**{**asked, "max_output_tokens": 8, **more})

        assert raised(openai.NotFoundError, lambda: say(model=ABSENT)).code
        assert raised(openai.BadRequestError, lambda: say(temperature=9)).param == "temperature"
        assert raised(openai.BadRequestError, lambda: say(input=TOO_LONG)).code == "context_length_exceeded"
        raised(openai.NotFoundError, lambda: client.responses.retrieve("resp_none"))

    @check("cancellation")
    def _() -> None:
        with client.responses.create(**asked, stream=True) as stream:
            assert next(iter(stream)).type == "response.created"
        idle()
        begun = client.responses.create(**asked, background=True)
        assert begun.status == "queued"
        assert client.responses.cancel(begun.id).status == "cancelled"
        idle()

    @check("retries")
    def _() -> None:
        with occupied() as free:
            raised(openai.RateLimitError, lambda: client.responses.create(**asked, max_output_tokens=8))
            later(1, free)
            again = client.with_options(max_retries=9)
            assert again.responses.create(**asked, max_output_tokens=8).output_text


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


{"chat": chat, "responses": responses}[sys.argv[1]]()
run()
