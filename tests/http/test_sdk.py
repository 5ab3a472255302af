"""OpenAI's own SDK against the front door."""

from __future__ import annotations

from typing import Any

import pytest

# The SDK is imported where it is used: each test process collects this file, and the import takes a second.


@pytest.fixture
async def client(open_server: Any) -> Any:
    import openai

    server = await open_server("--tokens", "4", "--die-after-tokens", "40", "--token-delay", "0.002")
    client = openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)
    client.server = server  # type: ignore[attr-defined]
    yield client
    await client.close()


HELLO: Any = [{"role": "user", "content": "hi"}]


async def test_the_sdk_chats(client: Any) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].message.content == "word0 word1 word2 word3 "
    assert answer.usage.completion_tokens == 4


async def test_the_sdk_streams(client: Any) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(words) == "word0 word1 word2 word3 "


async def test_the_sdk_streams_past_comments(open_server: Any) -> None:
    import openai

    server = await open_server("--load-seconds", "0.8", progress_after=0.1)
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        assert len([chunk async for chunk in stream]) == 6


async def test_the_sdk_completes_and_embeds(client: Any) -> None:
    answer = await client.completions.create(model="tiny", prompt="x")
    assert answer.choices[0].text == "word0 word1 word2 word3 "
    vectors = await client.embeddings.create(model="tiny", input="x", encoding_format="float")
    assert vectors.data[0].embedding == [0.1, 0.2, 0.3]


async def test_the_sdk_lists_models(client: Any) -> None:
    import openai

    (model,) = [model async for model in client.models.list()]
    assert model.id == "docker.io/ai/tiny:latest"
    assert (await client.models.retrieve("tiny")).id == "tiny"
    assert (model.object, model.owned_by, model.created > 0) == ("model", "docker", True)
    assert model.model_extra["dmr"]["architecture"] == "llama"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


async def test_the_sdk_finds_a_model_by_each_of_its_names(client: Any) -> None:
    server = client.server
    names = ["registry.example:5000/org/m:v1", "docker.io/some/model:latest"]
    for name in names:
        repository, _, tag = name.rpartition(":")
        async with server.post(f"/models/tiny/tag?repo={repository}&tag={tag}") as response:
            assert response.status == 201, await response.text()
    async with server.get("/models") as response:
        (model,) = await response.json()
    listed = await client.models.list()
    assert {one.id for one in listed.data} == {"docker.io/ai/tiny:latest", *names}, "and not by its path"
    digest = f"registry.example:5000/org/m@{model['id']}"
    for name in [*names, *model["tags"], "some/model", "m:v1", model["id"], model["id"][7:19], digest]:
        found = await client.models.retrieve(name)
        assert found == listed.data[0].model_copy(update={"id": name}), name
        assert (await client.chat.completions.create(model=name, messages=HELLO)).model == name


async def test_the_sdk_raises_what_is_refused(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gemma3", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "greenroom pull gemma3" in caught.value.message
    bound = openai.AsyncOpenAI(base_url=f"{client.server.base}/engines/absent/v1", api_key="x", max_retries=0)
    async with bound:
        with pytest.raises(openai.APIStatusError) as refused:
            await bound.chat.completions.create(model="tiny", messages=HELLO)
    assert refused.value.status_code == 412
    assert refused.value.code == "backend_not_installed"


async def test_the_sdk_raises_what_ends_a_stream(open_server: Any) -> None:
    import openai

    server = await open_server("--tokens", "9", "--die-after-tokens", "3", "--token-delay", "0.01")
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as caught:
            [chunk async for chunk in stream]
    assert "SIGKILL" in str(caught.value)


async def test_the_sdk_raises_a_mistake_as_a_bad_request_and_sends_it_once(open_server: Any) -> None:
    import openai

    server = await open_server()
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none") as client:
        for mistake in ({"n": 0}, {"temperature": 9}, {"tools": [{"type": "custom", "custom": {}}]}):
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError) as caught:
                    await client.chat.completions.create(
                        model="tiny", messages=HELLO, stream=stream, extra_body=mistake
                    )
                assert isinstance(caught.value.code, str)
                assert str(caught.value.param).startswith(next(iter(mistake)))
    assert server.greenroom.engines() == ()


async def test_the_sdk_raises_what_an_engine_refuses_with_a_code_of_ours(open_server: Any) -> None:
    import openai

    said = '{"error":{"code":500,"message":"image input is not supported","type":"server_error"}}'
    server = await open_server("--answer", "500", said)
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("unsupported_input", "messages")
    assert (await server.stats())["requests"] == 1, "an SDK sends what is answered 500 three times"


async def test_the_sdk_does_not_send_what_killed_an_engine_again(open_server: Any) -> None:
    import openai

    server = await open_server("--die-of", "hi", "--die-by", "SIGABRT")
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none") as client:
        for _ in range(2):
            with pytest.raises(openai.UnprocessableEntityError) as caught:
                await client.chat.completions.create(model="tiny", messages=HELLO)
            assert caught.value.code == "request_ended_engine"
    assert len(server.greenroom.engines()) == 1
