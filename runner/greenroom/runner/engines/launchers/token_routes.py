"""llama-server's `/tokenize`, `/detokenize` and `/apply-template`, with the tokenizer of mlx-lm's server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Answer = Callable[[Any, Callable[[Any], Any], dict[str, Any]], dict[str, Any]]


def tokenize(provider: Any, _: Any, body: dict[str, Any]) -> dict[str, Any]:
    """`{"tokens"}` of `content`: text, or a list of text and tokens, which stay as they are."""
    tokenizer = provider.tokenizer
    content = body["content"]
    tokens: list[int] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, int):
            tokens.append(part)
            continue
        # Special tokens at the beginning belong to the first piece of text alone.
        special = bool(body.get("add_special")) and not tokens
        plain = {"split_special_tokens": True} if body.get("parse_special") is False else {}
        tokens += tokenizer.encode(part, add_special_tokens=special, **plain)
    if body.get("with_pieces"):
        return {"tokens": [{"id": one, "piece": _text(tokenizer, [one])} for one in tokens]}
    return {"tokens": tokens}


def detokenize(provider: Any, _: Any, body: dict[str, Any]) -> dict[str, Any]:
    """`{"content"}` of `tokens`."""
    tokenizer, tokens = provider.tokenizer, body["tokens"]
    known = tokenizer.vocab_size + len(tokenizer.get_added_vocab())
    if any(not 0 <= one < known for one in tokens):
        raise ValueError("token id out of range")
    return {"content": _text(tokenizer, tokens)}


def apply_template(provider: Any, flatten: Callable[[Any], Any], body: dict[str, Any]) -> dict[str, Any]:
    """The `{"prompt"}` that a chat would have."""
    tokenizer = provider.tokenizer
    if not tokenizer.has_chat_template:
        raise ValueError("this model has no chat template")
    messages = body["messages"]
    flatten(messages)
    options = {**provider.cli_args.chat_template_args, **(body.get("chat_template_kwargs") or {})}
    options = {"add_generation_prompt": True, **options, "tokenize": False}
    return {"prompt": tokenizer.apply_chat_template(messages, tools=body.get("tools") or None, **options)}


ANSWERS: dict[str, Answer] = {
    "/tokenize": tokenize,
    "/detokenize": detokenize,
    "/apply-template": apply_template,
}


def answered(answer: Answer, provider: Any, flatten: Callable[[Any], Any], body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer. What is wrong is the request's: templates raise whatever they like."""
    try:
        return 200, json.dumps(answer(provider, flatten, json.loads(body))).encode()
    except Exception as error:  # noqa: BLE001 - a template's own errors are of any kind
        return 400, json.dumps({"error": str(error)}).encode()


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
