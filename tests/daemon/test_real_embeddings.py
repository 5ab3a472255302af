"""Real models for embeddings and reranking on llama.cpp, through every API that has a route for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

PAIRS = (
    ("The cat sits outside", "The dog plays in the garden", 0.2838),
    ("A man is playing guitar", "A woman watches TV", -0.0327),
    ("The new movie is awesome", "The new movie is so great", 0.8939),
)
"""What the makers of the model publish for it."""
SENTENCE, TOKENS = PAIRS[0][0], [101, 1996, 4937, 7719, 2648, 102]
VECTOR = (0.139191, 0.003029, 0.047015, 0.039574)
"""How the vector of this sentence begins: computed with numpy from the weights as published."""
QUERY = "a cat"
SCORES = {PAIRS[0][0]: -2.4543, PAIRS[0][1]: -2.8397, PAIRS[1][0]: -2.5860}
"""Of documents for the query, computed the same way, of the tokens that llama.cpp makes of the two."""


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def refused(call: Callable[[], Any]) -> tuple[int, str | None, str | None]:
    import openai

    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value.status_code, caught.value.code, caught.value.param


def test_an_engine_that_makes_no_embeddings_is_never_loaded_for_them(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path, smollm2_mlx: Path
) -> None:
    import openai

    daemon = make_daemon(furnished).start()
    daemon.pull(str(smollm2_mlx))
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    for model, status, code, advice in (
        (smollm2_gguf, 422, "not_an_embedding_model", "Use an embedding model"),
        (smollm2_mlx, 422, "unsupported_model", "Use one in another format: gguf, safetensors."),
    ):
        with pytest.raises(openai.APIStatusError, match=advice) as caught:
            client.embeddings.create(model=str(model), input="x")
        assert (caught.value.status_code, caught.value.code) == (status, code)
    assert not daemon.events("engine_spawned")


def test_embeddings_are_those_of_the_model_in_every_form(
    furnished: Path, make_daemon: Callable[..., Any], minilm_gguf: Path
) -> None:
    import ollama
    import openai

    daemon = make_daemon(furnished).start()
    daemon.pull(str(minilm_gguf))
    model = str(minilm_gguf)
    # Without a mode it is configured for what it is made for, and loaded.
    daemon.configure(model, slots=2)
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)

    def embed(given: Any, **more: Any) -> list[list[float]]:
        """As the SDK asks, which is base64 unless something else is asked for."""
        answer = client.embeddings.create(model=model, input=given, **more)
        assert answer.model == model
        assert [one.index for one in answer.data] == list(range(len(answer.data)))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
        return [one.embedding for one in answer.data]

    # values
    for one, other, published in PAIRS:
        assert cosine(*embed([one, other])) == pytest.approx(published, abs=0.001)
    (vector,) = embed(SENTENCE)
    assert vector[:4] == pytest.approx(VECTOR, abs=0.001)
    assert len(vector) == 384
    assert math.hypot(*vector) == pytest.approx(1)

    # forms of the input and of the answer
    assert embed(SENTENCE, encoding_format="float")[0] == pytest.approx(vector, abs=1e-5)
    assert embed(TOKENS)[0] == pytest.approx(vector, abs=0.001)
    assert embed([TOKENS, TOKENS])[1] == pytest.approx(vector, abs=0.001)
    for more in ({}, {"encoding_format": "float"}):
        (short,) = embed(SENTENCE, dimensions=64, **more)
        assert len(short) == 64
        assert math.hypot(*short) == pytest.approx(1)
        assert cosine(short, vector[:64]) == pytest.approx(1)
    assert len(embed(["cat"] * 100)) == 100

    # any input up to the context, beside others
    longest, short = embed(["cat " * 510, SENTENCE])
    assert short == pytest.approx(vector, abs=0.001)
    assert embed([101, *[4937] * 510, 102])[0] == pytest.approx(longest, abs=0.001)
    (engine,) = daemon.engines()
    assert (engine["mode"], engine["slots"]) == ("embedding", 2)
    too_long = 400, "context_length_exceeded", "input"
    assert refused(lambda: embed("cat " * 511)) == too_long
    assert refused(lambda: embed(["cat", "cat " * 2000])) == too_long
    assert refused(lambda: embed([4937] * 513)) == too_long

    # other mistakes
    assert refused(lambda: embed([10**9]))[0] == 400
    assert refused(lambda: embed(""))[::2] == (400, "input")
    assert refused(lambda: embed(["cat", ""]))[::2] == (400, "input[1]")
    assert refused(lambda: embed(["cat"] * 2049))[::2] == (400, "input")
    assert refused(lambda: embed("cat", dimensions=385))[::2] == (400, "dimensions")
    assert refused(lambda: embed("cat", dimensions=0))[::2] == (400, "dimensions")

    # Ollama's client
    theirs = ollama.Client(daemon.url)
    assert theirs.embed(model, [SENTENCE, "x"]).embeddings[0] == pytest.approx(vector, abs=1e-4)
    assert len(theirs.embed(model, SENTENCE, dimensions=64).embeddings[0]) == 64
    assert theirs.embeddings(model, SENTENCE).embedding == pytest.approx(vector, abs=1e-4)
    assert theirs.show(model).capabilities == ["embedding"]
    cut = theirs.embed(model, ["cat " * 2000, SENTENCE])
    assert cut.prompt_eval_count == 512 + len(TOKENS)
    assert cut.embeddings[0] == pytest.approx(longest, abs=1e-3)
    assert cut.embeddings[1] == pytest.approx(vector, abs=1e-3)
    assert theirs.embeddings(model, "cat " * 2000).embedding == pytest.approx(longest, abs=1e-3)
    with pytest.raises(ollama.ResponseError, match=r"has 2002 tokens.*at most 512") as whole:
        theirs.embed(model, "cat " * 2000, truncate=False)
    assert whole.value.status_code == 400

    # it writes no text, and ranks nothing
    chat: Any = [{"role": "user", "content": "hi"}]
    said = refused(lambda: client.chat.completions.create(model=model, messages=chat))
    assert said == (422, "not_a_chat_model", "model")
    ranked = daemon.post("/rerank", {"model": model, "query": "x", "documents": ["y"]})
    assert (ranked.status, ranked.json["error"]["code"]) == (422, "not_a_reranking_model")
    assert len(daemon.engines()) == len(daemon.events("engine_spawned")) == 1


def test_documents_are_ranked_by_a_model_that_is_made_for_it(
    furnished: Path, make_daemon: Callable[..., Any], minilm_ranker_gguf: Path, smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.pull(str(minilm_ranker_gguf))
    model = str(minilm_ranker_gguf)
    daemon.configure(model)

    def ask(path: str, **fields: Any) -> Any:
        return daemon.post(path, {"model": model, **fields})

    answer = ask("/rerank", query=QUERY, documents=list(SCORES))
    assert answer.status == 200, answer.body
    found = {one["index"]: one["relevance_score"] for one in answer.json["results"]}
    assert [found[index] for index in range(3)] == pytest.approx(list(SCORES.values()), abs=0.01)

    best = sorted(SCORES.values(), reverse=True)[:2]
    jina = ask("/v1/rerank", query=QUERY, documents=list(SCORES), top_n=2, return_documents=True).json
    assert [one["relevance_score"] for one in jina["results"]] == pytest.approx(best, abs=0.01)
    assert jina["results"][0]["document"] == {"text": max(SCORES, key=lambda one: SCORES[one])}
    cohere = ask("/v2/rerank", query=QUERY, documents=list(SCORES), top_n=1).json
    assert cohere["results"] == [{"index": 0, "relevance_score": pytest.approx(best[0], abs=0.01)}]
    scores = ask("/score", text_1=QUERY, text_2=list(SCORES)).json["data"]
    assert [one["score"] for one in scores] == pytest.approx(list(SCORES.values()), abs=0.01)

    long = ask("/rerank", query="cat", documents=["cat " * 505, "dog"])
    assert long.status == 200, long.body
    too_long = ask("/rerank", query="cat", documents=["cat " * 600, "dog"])
    assert (too_long.status, too_long.json["error"]["code"]) == (400, "context_length_exceeded")
    assert too_long.json["error"]["param"] == "documents"
    assert ask("/v1/embeddings", input="x").json["error"]["code"] == "not_an_embedding_model"
    other = daemon.post("/rerank", {"model": str(smollm2_gguf), "query": "x", "documents": ["y"]})
    assert (other.status, other.json["error"]["code"]) == (422, "not_a_reranking_model")
    modes = {}
    for one in daemon.get("/models").json:
        told = daemon.get(f"/models/{one['id']}").json
        modes[one["config"]["architecture"]] = [offered["mode"] for offered in told["serving"]]
    assert modes == {"bert": ["reranking"], "llama": ["completion"]}
    assert len(daemon.events("engine_spawned")) == 1
