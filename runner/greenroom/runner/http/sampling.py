"""Parameters of sampling by Ollama's names: what they may be, and what they are called in a chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenroom.actors.limits import CONTEXT
from greenroom.runner.http.fields import Check, array, either, number, text, whole

_INT32 = 2**31 - 1

_at_least_nothing = number(0)
_any_number = whole(-1, _INT32)

PARAMETERS: Mapping[str, Check] = {
    "temperature": number(0, 100),
    "seed": whole(),
    "stop": either("a string or a list of strings", (str, text(1)), (list, array(text(1), most=64))),
    "top_k": _any_number,
    "top_p": number(0, 1),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "num_predict": whole(-2, _INT32),
    "num_ctx": whole(0, CONTEXT),
    "num_keep": _any_number,
    "repeat_last_n": _any_number,
    "repeat_penalty": _at_least_nothing,
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "mirostat": whole(0, 2),
    "mirostat_tau": _at_least_nothing,
    "mirostat_eta": _at_least_nothing,
}
"""Those that mean something here."""

_SAME = ("temperature", "stop", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
_LLAMA_CPP = {
    "typical_p": "typical_p",
    "repeat_last_n": "repeat_last_n",
    "repeat_penalty": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "num_keep": "n_keep",
}
"""Parameters that are llama.cpp's own, by its names for them."""
PARAMETER_OF: Mapping[str, str] = {
    **{name: name for name in (*_SAME, "seed")},
    **{theirs: name for name, theirs in _LLAMA_CPP.items()},
    "max_tokens": "num_predict",
}
"""The parameter that a field of a chat comes from."""


def chat_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as fields of a chat completion. A negative seed is a random one, and so is none."""
    chat = {name: parameters[name] for name in _SAME if name in parameters}
    chat |= {theirs: parameters[name] for name, theirs in _LLAMA_CPP.items() if name in parameters}
    if "repeat_penalty" in parameters:
        chat["repetition_penalty"] = parameters["repeat_penalty"]  # as mlx and vllm call it
    if parameters.get("seed", -1) >= 0:
        chat["seed"] = parameters["seed"]
    if parameters.get("num_predict", 0) > 0:
        chat["max_tokens"] = parameters["num_predict"]
    return chat


def left_out(parameters: Mapping[str, Any]) -> frozenset[str]:
    """The fields of a chat that these parameters decide to leave out, so that no default stands in."""
    decided = {"seed": "seed", "num_predict": "max_tokens"}
    return frozenset(field for name, field in decided.items() if name in parameters)
