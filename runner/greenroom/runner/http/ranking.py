"""Rerankings as Jina's and Cohere's clients ask for them, and scores as vLLM's do, over `/rerank`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.context import Context
from greenroom.runner.http.engine_requests import Kind, routing_of
from greenroom.runner.http.errors import HttpRefusal, frame
from greenroom.runner.http.inference import Exchange
from greenroom.runner.http.port import JSON, AnyResponse, Handler, Request
from greenroom.runner.http.ranking_fields import RANKED, SCORED
from greenroom.runner.http.translation import Translation

_encode = msgspec.json.Encoder().encode


class _Ranking(Translation):
    """An answer in one piece, made of an engine's rerankings."""

    content_type = JSON
    answers = "results"

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def begin(self) -> bytes:
        return b""

    def event(self, chunk: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - there are no streams
        return b""

    def end(self) -> bytes:
        return b""

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return frame(refusal, param, "openai", request_id)

    def _asked(self, query: str, documents: list[str]) -> dict[str, Any]:
        routing = {name: self._fields[name] for name in ("model", "user") if name in self._fields}
        return {**routing, "query": query, "documents": documents}


class Ranking(_Ranking):
    """`POST /v1/rerank`, and Cohere's `/v2/rerank`: the most relevant document first."""

    @property
    def chat(self) -> dict[str, Any]:
        return self._asked(self._fields["query"], [_text(one) for one in self._fields["documents"]])

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        documents = self._fields["documents"]
        results = sorted(_scores_of(completion), key=lambda one: -one[1])[: self._fields.get("top_n")]
        rows: list[dict[str, Any]] = []
        for index, score in results:
            row: dict[str, Any] = {"index": index, "relevance_score": score}
            if self._fields.get("return_documents"):
                document = documents[index]
                row["document"] = {"text": document} if isinstance(document, str) else document
            rows.append(row)
        tokens = _tokens_of(completion)
        return _encode(
            {
                "id": f"rerank-{secrets.token_hex(12)}",
                "object": "list",
                "model": self._fields["model"],
                "results": rows,
                "usage": tokens,
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"search_units": 1},
                    "tokens": {"input_tokens": tokens["prompt_tokens"]},
                },
            }
        )


class Native(_Ranking):
    """`POST /rerank` with documents that are objects, or that are asked for: engines rank texts."""

    @property
    def chat(self) -> dict[str, Any]:
        ours = ("documents", "return_documents")
        rest = {name: one for name, one in self._fields.items() if name not in ours}
        return rest | {"documents": [_text(one) for one in self._fields["documents"]]}

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        rows = completion["results"]
        if self._fields.get("return_documents"):
            rows = [
                {**one, "document": {"text": _text(self._fields["documents"][one["index"]])}} for one in rows
            ]
        return _encode({**completion, "model": self._fields["model"], "results": rows})


def native(fields: Mapping[str, Any]) -> Native | None:
    """None where the engine's own answer will do."""
    documents = fields.get("documents") or ()
    asked = fields.get("return_documents") or not all(isinstance(one, str) for one in documents)
    return Native(fields) if documents and asked else None


class Scores(_Ranking):
    """`POST /score`: how well one text fits to others, in their order."""

    @property
    def chat(self) -> dict[str, Any]:
        one, others = self._fields["text_1"], self._fields["text_2"]
        if isinstance(one, list) and len(one) > 1:
            raise HttpRefusal(
                400,
                "unsupported_parameter",
                "text_1 is a list, and this backend scores only one text against others.",
                advice="Send one request for each text.",
                param="text_1",
            )
        text = one if isinstance(one, str) else one[0]
        return self._asked(text, [others] if isinstance(others, str) else others)

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in sorted(_scores_of(completion))
        ]
        return _encode(
            {
                "id": f"score-{secrets.token_hex(12)}",
                "object": "list",
                "created": int(time.time()),
                "model": self._fields["model"],
                "data": data,
                "usage": _tokens_of(completion),
            }
        )


RERANK: Kind = Kind("reranking", "/rerank", RANKED, param="documents", translate=Ranking)
NATIVE_SCORE: Kind = Kind("reranking", "/score", SCORED, param="text_1")
_SCORE = replace(NATIVE_SCORE, path="/rerank", translate=Scores)


def scoring(context: Context) -> Handler:
    """`POST /score`: the engine's own where it has it."""

    async def serve(request: Request) -> AnyResponse:
        backend = request.backend
        kind = NATIVE_SCORE if await _has_own(context, request, backend) else _SCORE
        return await Exchange(context, request, kind, backend).serve()

    return context.clients.attended(serve)


async def _has_own(context: Context, request: Request, backend: str) -> bool:
    request.known_body = body = await read_body(request, context.greenroom.settings.max_body)
    model = context.greenroom.model(routing_of(body).model)
    serving = context.abilities.serving(model, "reranking", backend)
    return serving is not None and "/score" not in context.greenroom.backends[serving].dialect.lacks


def _text(document: Any) -> str:
    return document if isinstance(document, str) else str(document["text"])


def _scores_of(completion: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Index and score of each document, as llama.cpp and vLLM give them."""
    return [
        (int(one["index"]), float(one.get("relevance_score", one.get("score", 0.0))))
        for one in completion["results"]
    ]


def _tokens_of(completion: Mapping[str, Any]) -> dict[str, int]:
    usage = completion.get("usage") or {}
    total = int(usage.get("total_tokens") or usage.get("prompt_tokens") or 0)
    return {"prompt_tokens": total, "total_tokens": total}
