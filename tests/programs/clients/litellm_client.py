"""LiteLLM over one of three APIs: `openai`, `anthropic` or `ollama_chat`."""

import sys
from typing import Any, Literal

import litellm
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

api = sys.argv[1]
asked: Any = {
    "model": f"{api}/{MODEL}",
    "api_base": {"openai": f"{BASE}/v1"}.get(api, BASE),
    "api_key": "none",
    "messages": [{"role": "user", "content": STORY}],
    "max_tokens": 8,
    "max_retries": 0,
}


class Colour(pydantic.BaseModel):
    name: Literal["red", "blue"]


@check("chat")
def _() -> None:
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8


@check("stream")
def _() -> None:
    chunks = list(litellm.completion(**asked, stream=True))
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) > 8
    assert chunks[-1].choices[0].finish_reason == "length"


@check("tools")
def _() -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER}}
    question = {"role": "user", "content": "Use the tool: what is the weather in Paris?"}
    more: Any = {"tools": [tool], "max_tokens": 200}
    if api == "ollama_chat":
        # Its API cannot require a call.
        assert litellm.completion(**{**asked, **more, "messages": [question]}).choices
        return
    answer = litellm.completion(**{**asked, **more, "messages": [question], "tool_choice": "required"})
    call, *_ = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"


@check("schema")
def _() -> None:
    question = {"role": "user", "content": "A colour."}
    answer = litellm.completion(**{**asked, "messages": [question], "max_tokens": 64}, response_format=Colour)
    assert Colour.model_validate_json(answer.choices[0].message.content)


if api != "anthropic":

    @check("embeddings")
    def _() -> None:
        answer = litellm.embedding(
            model=f"{api.removesuffix('_chat')}/{EMBEDDER}",
            input=["the sea", "a tax form"],
            api_base=asked["api_base"],
            api_key="none",
        )
        assert len(answer.data) == 2


@check("errors")
def _() -> None:
    long = [{"role": "user", "content": TOO_LONG}]
    absent = {**asked, "model": f"{api}/{ABSENT}"}
    raised(litellm.NotFoundError, lambda: litellm.completion(**absent))
    raised(litellm.BadRequestError, lambda: litellm.completion(**{**asked, "messages": long}))


@check("cancellation")
def _() -> None:
    stream = litellm.completion(**{**asked, "max_tokens": 1500}, stream=True)
    next(iter(stream))
    close = getattr(stream.completion_stream, "close", None) or stream.completion_stream.response.close
    close()
    del stream
    idle()


if api != "ollama_chat":

    @check("retries")
    def _() -> None:
        with occupied() as free:
            raised(litellm.RateLimitError, lambda: litellm.completion(**asked))
            later(1, free)
            patient: dict[str, Any] = {"num_retries": 9, "retry_strategy": "exponential_backoff_retry"}
            assert litellm.completion_with_retries(**{**asked, "max_retries": None}, **patient).choices


run()
