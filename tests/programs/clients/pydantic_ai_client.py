"""pydantic-ai's agents: over `openai` chat completions, `responses` or `anthropic`."""

import sys
from typing import Any, Literal

import pydantic
from checks import ABSENT, BASE, MODEL, STORY, TOO_LONG, check, idle, later, occupied, raised, run
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput

api = sys.argv[1]


class Colour(pydantic.BaseModel):
    """A colour."""

    name: Literal["red", "blue"]


def made(name: str = MODEL) -> Any:
    if api == "anthropic":
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        # Of models that are not Claude it supposes that they take no schema.
        return AnthropicModel(
            name,
            provider=AnthropicProvider(base_url=BASE, api_key="none"),
            profile={"supports_json_schema_output": True},
        )
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{BASE}/v1", api_key="none")
    return {"openai": OpenAIChatModel, "responses": OpenAIResponsesModel}[api](name, provider=provider)


def settings(tokens: int) -> Any:
    return {"max_tokens": tokens}


@check("chat")
def _() -> None:
    assert Agent(made(), model_settings=settings(16)).run_sync(STORY).output


@check("stream")
async def _() -> None:
    async with Agent(made(), model_settings=settings(16)).run_stream(STORY) as answer:
        assert len([piece async for piece in answer.stream_text(delta=True, debounce_by=None)]) > 1


@check("tools")
def _() -> None:
    agent: Any = Agent(made(), output_type=ToolOutput(Colour), model_settings=settings(200))
    assert isinstance(agent.run_sync("Name a colour.").output, Colour)


@check("schema")
def _() -> None:
    agent: Any = Agent(made(), output_type=NativeOutput(Colour), model_settings=settings(64))
    assert isinstance(agent.run_sync("Name a colour.").output, Colour)


@check("errors")
def _() -> None:
    absent = raised(ModelHTTPError, lambda: Agent(made(ABSENT)).run_sync(STORY))
    assert absent.status_code == 404
    too_long = raised(ModelHTTPError, lambda: Agent(made()).run_sync(TOO_LONG))
    assert too_long.status_code == 400


@check("cancellation")
async def _() -> None:
    async with Agent(made(), model_settings=settings(1500)).run_stream(STORY) as answer:
        async for _ in answer.stream_text(delta=True, debounce_by=None):
            break
    idle()


@check("retries")
def _() -> None:
    with occupied() as free:
        later(1, free)
        assert Agent(made(), model_settings=settings(16)).run_sync(STORY).output


run()
