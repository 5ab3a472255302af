"""Refuses what a model is not made for, such as embeddings of one that writes, chats with one that ranks."""

from __future__ import annotations

from collections.abc import Sequence

from greenroom.actors.values import Mode, Model
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.models.purpose import is_encoder

_DOES: dict[Mode, str] = {
    "completion": "it is made for generating text",
    "embedding": "it is made for embeddings",
    "reranking": "it is made for reranking",
}


def refuse_other_uses(
    model: Model, mode: Mode, asked: str, flags: Sequence[str], *, pools_by_header: bool
) -> None:
    """Refuse what a model's files say it cannot do. Raises HttpRefusal: 422.

    Args:
        asked: The model, as the client wrote it.
        flags: Configured for this model in this mode: its user may know better.
        pools_by_header: The backend makes embeddings only of models made for it, unless flags say how.
    """
    if model.made_for in (None, mode):
        return
    does = _DOES[model.made_for]
    names = {flag.partition("=")[0] for flag in flags}
    if mode == "embedding" and pools_by_header and "--pooling" not in names:
        raise HttpRefusal(
            422,
            "not_an_embedding_model",
            f'The model "{asked}" does not make embeddings: {does}.',
            advice="Use an embedding model, or configure --pooling for this model in embedding mode.",
            param="model",
        )
    if mode == "reranking" and not names.intersection(("--pooling", "--rerank", "--reranking")):
        raise HttpRefusal(
            422,
            "not_a_reranking_model",
            f'The model "{asked}" does not rank documents: {does}.',
            advice="Use a reranking model.",
            param="model",
        )
    # Models that write texts were made into embedding models too: those can still do it.
    if mode == "completion" and is_encoder(model.architecture):
        path = "/v1/embeddings" if model.made_for == "embedding" else "/rerank"
        raise HttpRefusal(
            422,
            "not_a_chat_model",
            f'The model "{asked}" does not generate text: {does}.',
            advice=f"Use it at {path}, or use a chat model.",
            param="model",
        )
