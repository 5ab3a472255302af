"""LlamaIndex's models and embeddings: `openai` or `ollama`."""

import gc
import sys
from typing import Any, Literal

import ollama
import openai
import pydantic
from checks import ABSENT, BASE, EMBEDDER, MODEL, STORY, TOO_LONG, check, idle, later, occupied, raised, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool

api = sys.argv[1]
story = [ChatMessage(content=STORY)]


class Colour(pydantic.BaseModel):
    """A colour."""

    name: Literal["red", "blue"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"It rains in {city}."


def made(model: str = MODEL, tokens: int = 8, retries: int = 0) -> Any:
    if api == "openai":
        from llama_index.llms.openai_like import OpenAILike

        return OpenAILike(
            model=model,
            api_base=f"{BASE}/v1",
            api_key="none",
            is_chat_model=True,
            is_function_calling_model=True,
            should_use_structured_outputs=True,
            max_tokens=tokens,
            max_retries=retries,
        )
    from llama_index.llms.ollama import Ollama

    return Ollama(
        model=model,
        base_url=BASE,
        context_window=2048,
        request_timeout=120,
        additional_kwargs={"num_predict": tokens},
    )


@check("chat")
def _() -> None:
    assert made().chat(story).message.content


@check("stream")
def _() -> None:
    assert len([part.delta for part in made().stream_chat(story) if part.delta]) > 1


@check("tools")
def _() -> None:
    question = "Use the tool: what is the weather in Paris?"
    tool = FunctionTool.from_defaults(weather)
    model = made(tokens=200)
    if api == "ollama":
        # Its API cannot require a call.
        assert model.chat_with_tools([tool], user_msg=question).message
        return
    answer = model.chat_with_tools([tool], user_msg=question, tool_required=True)
    call, *_ = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, list(call.tool_kwargs)) == ("weather", ["city"])


@check("schema")
def _() -> None:
    structured = made(tokens=64).as_structured_llm(Colour)
    assert isinstance(structured.complete("Name a colour.").raw, Colour)


@check("embeddings")
def _() -> None:
    if api == "openai":
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding

        embedder: Any = OpenAILikeEmbedding(model_name=EMBEDDER, api_base=f"{BASE}/v1", api_key="none")
    else:
        from llama_index.embeddings.ollama import OllamaEmbedding

        embedder = OllamaEmbedding(model_name=EMBEDDER, base_url=BASE)
    assert len(embedder.get_text_embedding_batch(["the sea", "a tax form"])) == 2


@check("errors")
def _() -> None:
    ours = api == "openai"
    raised(openai.NotFoundError if ours else ollama.ResponseError, lambda: made(ABSENT).chat(story))
    long = [ChatMessage(content=TOO_LONG)]
    raised(openai.BadRequestError if ours else ollama.ResponseError, lambda: made().chat(long))


@check("cancellation")
def _() -> None:
    stream = made(tokens=1500).stream_chat(story)
    next(stream)
    stream.close()
    del stream
    gc.collect()
    idle()


if api != "ollama":

    @check("retries")
    def _() -> None:
        with occupied() as free:
            raised(openai.RateLimitError, lambda: made().chat(story))
            later(1, free)
            assert made(retries=9).chat(story).message.content


run()
