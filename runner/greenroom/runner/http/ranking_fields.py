"""What requests for rerankings and scores may hold."""

from __future__ import annotations

from typing import Any

from greenroom.runner.http.fields import Dialogue, array, count, either, flag, record, text, unread
from greenroom.runner.http.wrong_fields import missing

_document = either(
    "a string or an object", (str, text()), (dict, record({"text": text()}, required=("text",)))
)


def _either(fields: dict[str, Any]) -> None:
    if "documents" not in fields and "texts" not in fields:
        raise missing("documents")


RERANKING = Dialogue(
    {
        "model": text(least=1),
        "query": text(),
        "documents": array(_document, least=1),
        "texts": array(text(), least=1),
        "top_n": count,
        "return_documents": flag,
        **dict.fromkeys(("max_tokens_per_doc", "max_chunks_per_doc", "rank_fields"), unread),
    },
    required=("query",),
    together=_either,
)


def _documents(fields: dict[str, Any]) -> None:
    if "documents" not in fields:
        raise missing("documents")


RANKED = Dialogue(
    {name: check for name, check in RERANKING.fields.items() if name != "texts"},
    required=("query",),
    together=_documents,
)
"""Jina's fields, which are Cohere's too."""
_scored = either("a string or a list of strings", (str, text()), (list, array(text(), least=1)))
SCORED = Dialogue(
    {"model": text(least=1), "text_1": _scored, "text_2": _scored}, required=("text_1", "text_2")
)
