"""Saves and restores slots of tiny random models in mlx's own environment; prints what came of it as JSON.

Of each model: whether its cache can be cut, how many tokens a following prompt finds after a restore where it
extends the answer and where it leaves the answer out, and whether the model then says what it says without.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LAUNCHERS = Path(__file__).parents[2] / "runner/greenroom/runner/engines/launchers"
sys.path.insert(0, str(LAUNCHERS))

import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
from kept_slots import Slots  # type: ignore[import-not-found]  # noqa: E402
from mlx_lm.models import gemma3_text, llama, mamba  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
from mlx_lm.models.cache import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    LRUPromptCache,
    can_trim_prompt_cache,
    make_prompt_cache,
)

PROMPT, ANSWER, NEXT = list(range(1, 41)), [50, 51, 52], [7, 8]
WIDTH = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2}
MADE: dict[str, Any] = {
    "llama": lambda: llama.Model(
        llama.ModelArgs(
            model_type="llama", intermediate_size=64, num_attention_heads=2, rms_norm_eps=1e-5, **WIDTH
        )
    ),
    "sliding window": lambda: gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text",
            intermediate_size=64,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=16,
            sliding_window_pattern=2,
            **WIDTH,
        )
    ),
    "recurrent": lambda: mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            intermediate_size=64,
            state_size=8,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=4,
            **WIDTH,
        )
    ),
}


def generator(model: Any) -> Any:
    """Stands in for mlx-lm's: what it keeps of prompts, and the model."""
    provider = SimpleNamespace(model_key="tiny", model=model)
    return SimpleNamespace(prompt_cache=LRUPromptCache(), model_provider=provider)


def tried(model: Any, folder: str) -> dict[str, Any]:
    first = generator(model)
    cache = make_prompt_cache(model)
    model(mx.array([PROMPT]), cache=cache)
    # As mlx-lm does: at the end of a user's text, and of the answer.
    first.prompt_cache.insert_cache("tiny", PROMPT, copy.deepcopy(cache), cache_type="user")
    model(mx.array([ANSWER]), cache=cache)
    first.prompt_cache.insert_cache("tiny", PROMPT + ANSWER, cache)
    slots = Slots(folder)
    slots.begins(0, PROMPT)
    slots.ended_alone(PROMPT + ANSWER)
    saved = slots.done(first, 0, "save", "one")
    found: dict[str, Any] = {"cuts": can_trim_prompt_cache(cache), "saved": saved["n_saved"]}
    again = generator(model)
    found["restored"] = Slots(folder).done(again, 3, "restore", "one")["n_restored"]
    for name, tokens in (("extended", PROMPT + ANSWER + NEXT), ("left out", PROMPT + NEXT)):
        restored, rest = again.prompt_cache.fetch_nearest_cache("tiny", tokens)
        said = model(mx.array([rest]), cache=restored)[0, -1]
        whole = model(mx.array([tokens]), cache=make_prompt_cache(model))[0, -1]
        found[name] = [len(tokens) - len(rest), bool(mx.allclose(said, whole, atol=1e-4).item())]
    return found


def main() -> None:
    told = {}
    for name, make in MADE.items():
        mx.random.seed(1)
        with tempfile.TemporaryDirectory() as folder:
            told[name] = tried(make(), folder)
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
