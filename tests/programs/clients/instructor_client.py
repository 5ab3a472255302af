"""instructor over `openai` or `anthropic`: objects out of answers."""

import sys
from typing import Any, Literal

import instructor
import pydantic
from checks import ABSENT, BASE, MODEL, check, raised, run

api = sys.argv[1]


class Colour(pydantic.BaseModel):
    """A colour."""

    name: Literal["red", "blue"]


def made(mode: str) -> Any:
    if api == "openai":
        import openai

        return instructor.from_openai(
            openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0), mode=instructor.Mode[mode]
        )
    import anthropic

    return instructor.from_anthropic(
        anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0), mode=instructor.Mode[mode]
    )


def colour(mode: str, **more: Any) -> Any:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 200}
    return made(mode).chat.completions.create(response_model=Colour, max_retries=0, **{**asked, **more})


@check("tools")
def _() -> None:
    mode = "TOOLS" if api == "openai" else "ANTHROPIC_TOOLS"
    assert isinstance(colour(mode), Colour)


if api == "openai":

    @check("stream")
    def _() -> None:
        parts = made("JSON_SCHEMA").chat.completions.create_partial(
            response_model=Colour,
            model=MODEL,
            messages=[{"role": "user", "content": "Name a colour."}],
            max_tokens=64,
        )
        assert list(parts)[-1].name in ("red", "blue")

    @check("schema")
    def _() -> None:
        assert isinstance(colour("JSON_SCHEMA"), Colour)


@check("errors")
def _() -> None:
    import anthropic
    import openai

    not_found = {"openai": openai, "anthropic": anthropic}[api].NotFoundError
    mode = "JSON_SCHEMA" if api == "openai" else "ANTHROPIC_TOOLS"
    error = raised(Exception, lambda: colour(mode, model=ABSENT))
    assert isinstance(error, not_found) or isinstance(error.__cause__, not_found) or "404" in str(error)


run()
