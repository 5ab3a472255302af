"""OpenAI's Agents SDK: over `responses`, its default, or `chat` completions."""

import sys
from typing import Any, Literal

import openai
import pydantic
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    StopAtTools,
    function_tool,
    set_tracing_disabled,
)
from checks import ABSENT, BASE, MODEL, STORY, check, raised, run
from openai.types.responses import ResponseTextDeltaEvent

set_tracing_disabled(True)
kind: Any = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}[sys.argv[1]]


class Colour(pydantic.BaseModel):
    """An answer that comes to its end: one that is cut off is an error for the Agents SDK."""

    name: Literal["red", "blue"]


@function_tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"It rains in {city}."


def agent(name: str = MODEL, tokens: int = 1000, choice: str | None = None, **more: Any) -> Any:
    client = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
    return Agent(
        name="Poet",
        model=kind(model=name, openai_client=client),
        model_settings=ModelSettings(max_tokens=tokens, tool_choice=choice),
        **more,
    )


@check("chat")
async def _() -> None:
    assert (await Runner.run(agent(output_type=Colour), "A colour.")).final_output


@check("stream")
async def _() -> None:
    answer = Runner.run_streamed(agent(output_type=Colour), "A colour.")
    pieces = [
        event.data.delta
        async for event in answer.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    assert len(pieces) > 1


@check("tools")
async def _() -> None:
    stop = StopAtTools(stop_at_tool_names=["weather"])
    one = agent(tokens=200, choice="required", tools=[weather], tool_use_behavior=stop)
    answer = await Runner.run(one, "Use the tool: what is the weather in Paris?")
    assert "It rains in" in answer.final_output


@check("errors")
def _() -> None:
    assert raised(openai.NotFoundError, lambda: Runner.run_sync(agent(ABSENT), STORY)).code


run()
