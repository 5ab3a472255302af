"""Rerankings in the forms of Jina and Cohere, and scores in vLLM's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenroom.runner.backends.base import Dialect

RANKED = json.dumps(
    {
        "model": "x",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [
            {"index": 0, "relevance_score": -2.5},
            {"index": 1, "relevance_score": 4},
            {"index": 2, "relevance_score": 0.5},
        ],
    }
)
RANKS: dict[str, Any] = {"modes": ("completion", "reranking"), "allowed_flags": frozenset({"--reranking"})}
LACKS_SCORE = {**RANKS, "dialect": Dialect(lacks=frozenset({"/score"}))}


async def ranking(open_server: Any, answer: str, backend: dict[str, Any]) -> Any:
    """A server whose model ranks documents, by its configuration."""
    server = await open_server("--answer", "200", answer, backend=backend)
    body = {"model": "tiny", "mode": "reranking", "runtime-flags": ["--reranking"]}
    async with server.post("/engines/_configure", body) as response:
        assert response.status == 202, await response.text()
    return server


@pytest.mark.parametrize(
    "path", ["/v1/rerank", "/v2/rerank", "/engines/v1/rerank", "/engines/fake/v1/rerank"]
)
async def test_a_reranking_is_as_jina_and_cohere_have_it(open_server: Any, path: str) -> None:
    server = await ranking(open_server, RANKED, LACKS_SCORE)
    body = {"model": "tiny", "query": "q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2}
    async with server.post(path, {**body, "return_documents": True}) as response:
        answer = await response.json()
        assert response.status == 200, answer
    assert answer["model"] == "tiny"
    assert answer["results"] == [
        {"index": 1, "relevance_score": 4.0, "document": {"text": "b"}},
        {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}},
    ]
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    async with server.post(path, {**body, "top_n": None}) as response:
        results = (await response.json())["results"]
    assert [sorted(one) for one in results] == [["index", "relevance_score"]] * 3


async def test_a_score_is_made_of_a_reranking_where_the_engine_has_none(open_server: Any) -> None:
    server = await ranking(open_server, RANKED, LACKS_SCORE)
    body = {"model": "tiny", "text_1": "q", "text_2": ["a", "b", "c"]}
    for path in ("/score", "/engines/score", "/engines/fake/score"):
        async with server.post(path, body) as response:
            answer = await response.json()
            assert response.status == 200, answer
        assert [(one["index"], one["score"]) for one in answer["data"]] == [(0, -2.5), (1, 4.0), (2, 0.5)]
        assert (answer["object"], answer["model"]) == ("list", "tiny")
    status, error = await server.error(server.post("/score", {**body, "text_1": ["q", "r"]}))
    assert (status, error["param"]) == (400, "text_1")
    status, error = await server.error(server.post("/score", {"model": "tiny", "text_1": "q"}))
    assert (status, error["param"]) == (400, "text_2")


async def test_a_score_is_the_engines_own_where_it_has_one(open_server: Any) -> None:
    own = json.dumps({"data": [{"index": 0, "score": 0.25}]})
    server = await ranking(open_server, own, RANKS)
    async with server.post(
        "/score", {"model": "tiny", "text_1": ["q", "r"], "text_2": ["a", "b"]}
    ) as response:
        assert (response.status, await response.json()) == (200, json.loads(own))


@pytest.mark.parametrize("path", ["/rerank", "/engines/rerank", "/engines/fake/rerank"])
async def test_documents_may_be_objects_where_the_answer_is_the_engines_own(
    open_server: Any, path: str
) -> None:
    server = await ranking(open_server, RANKED, LACKS_SCORE)
    body = {"model": "tiny", "query": "q", "documents": ["a", {"text": "b", "title": "B"}, {"text": "c"}]}
    async with server.post(path, body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        assert "title" in response.headers["X-Greenroom-Ignored"]
    assert (answer["model"], answer["results"]) == ("tiny", json.loads(RANKED)["results"])
    async with server.post(path, {**body, "return_documents": True, "rank_fields": ["text"]}) as response:
        answer = await response.json()
        assert "rank_fields" in response.headers["X-Greenroom-Ignored"]
    assert [one["document"] for one in answer["results"]] == [{"text": text} for text in "abc"]
