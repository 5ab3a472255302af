"""LangChain's chat models and embeddings: `openai`, `responses`, `anthropic` or `ollama`."""

import sys
from typing import Any, Literal

import anthropic
import ollama
import openai
import pydantic
from checks import ABSENT, BASE, EMBEDDER, MODEL, STORY, TOO_LONG, check, idle, later, occupied, raised, run

api = sys.argv[1]


class Colour(pydantic.BaseModel):
    """A colour."""

    name: Literal["red", "blue"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"It rains in {city}."


def made(model: str = MODEL, tokens: int = 8, retries: int = 0) -> Any:
    if api in ("openai", "responses"):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(
            model=model,
            base_url=f"{BASE}/v1",
            api_key="none",
            max_tokens=tokens,
            max_retries=retries,
            use_responses_api=api == "responses",
        )
    if api == "anthropic":
        from langchain_anthropic import ChatAnthropic

        return ChatAnthropic(
            model=model, base_url=BASE, api_key="none", max_tokens=tokens, max_retries=retries
        )
    from langchain_ollama import ChatOllama

    return ChatOllama(model=model, base_url=BASE, num_predict=tokens)


def embedder() -> Any:
    if api == "openai":
        from langchain_openai import OpenAIEmbeddings

        # The check of lengths would send numbers of OpenAI's own tokens.
        return OpenAIEmbeddings(
            model=EMBEDDER, base_url=f"{BASE}/v1", api_key="none", check_embedding_ctx_length=False
        )
    from langchain_ollama import OllamaEmbeddings

    return OllamaEmbeddings(model=EMBEDDER, base_url=BASE)


not_found: Any = {"anthropic": anthropic.NotFoundError, "ollama": ollama.ResponseError}.get(
    api, openai.NotFoundError
)
bad: Any = {"anthropic": anthropic.BadRequestError, "ollama": ollama.ResponseError}.get(
    api, openai.BadRequestError
)
limited: Any = {"anthropic": anthropic.RateLimitError}.get(api, openai.RateLimitError)


@check("chat")
def _() -> None:
    answer = made().invoke(STORY)
    assert answer.text
    assert answer.usage_metadata["output_tokens"] == 8


@check("stream")
def _() -> None:
    pieces = [chunk.text for chunk in made().stream(STORY)]
    assert len([piece for piece in pieces if piece]) > 1


@check("tools")
def _() -> None:
    question = "Use the tool: what is the weather in Paris?"
    if api == "ollama":
        # Its API cannot require a call.
        assert made(tokens=200).bind_tools([weather]).invoke(question).usage_metadata
        return
    answer = made(tokens=200).bind_tools([weather], tool_choice="any").invoke(question)
    assert answer.tool_calls, answer
    call = answer.tool_calls[0]
    assert (call["name"], list(call["args"])) == ("weather", ["city"])


@check("schema")
def _() -> None:
    structured = made(tokens=64).with_structured_output(Colour, method="json_schema")
    assert isinstance(structured.invoke("Name a colour."), Colour)


if api in ("openai", "ollama"):

    @check("embeddings")
    def _() -> None:
        assert len(embedder().embed_documents(["the sea", "a tax form"])) == 2


@check("errors")
def _() -> None:
    raised(not_found, lambda: made(ABSENT).invoke(STORY))
    raised(bad, lambda: made().invoke(TOO_LONG))


@check("cancellation")
def _() -> None:
    stream = made(tokens=1500).stream(STORY)
    next(stream)
    stream.close()
    idle()


if api != "ollama":

    @check("retries")
    def _() -> None:
        with occupied() as free:
            raised(limited, lambda: made().invoke(STORY))
            later(1, free)
            assert made(retries=9).invoke(STORY).text


run()
