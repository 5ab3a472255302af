"""Multiplies small matrices through MLX, to see whether this build works on this machine.

`compute_mlx.py device|processor|slots`. Prints a JSON object with the device that it uses; the exit code is 3
if a graphics device is wanted and MLX has none, 1 if the products are wrong. MLX's own reasons are on stderr.
With `slots` it prints how many tokens of a saved slot need not be read again.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kept_slots import Slots  # type: ignore[import-not-found]

sys.path.pop(0)

NO_DEVICE = 3
_SIZE = 64
"""Of a side: the smallest group that MLX quantises."""


def computed(mx: Any) -> bool:
    """Whether products of plain and of quantised matrices are right."""
    ones, twos = mx.ones((_SIZE, _SIZE)), mx.full((_SIZE, _SIZE), 2.0)
    plain = mx.matmul(ones, twos)
    weights, scales, biases = mx.quantize(twos, group_size=_SIZE, bits=4)
    quantised = mx.quantized_matmul(
        ones, weights, scales=scales, biases=biases, transpose=True, group_size=_SIZE, bits=4
    )
    sums = [mx.sum(one).item() for one in (plain, quantised)]
    return all(abs(one - 2.0 * _SIZE**3) < 1.0 for one in sums)


def not_read_again(mx: Any, folder: str) -> int:
    """Of a prompt that a tiny model has read and saved: how many tokens come from the file; none if the next
    answer is another one then.
    """
    from mlx_lm.models import llama  # type: ignore[import-not-found,unused-ignore]
    from mlx_lm.models.cache import (  # type: ignore[import-not-found,unused-ignore]
        LRUPromptCache,
        make_prompt_cache,
    )

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = llama.Model(llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, vocab_size=64, **sizes))
    tokens, following = list(range(24)), [30]
    cache = make_prompt_cache(model)
    model(mx.array([tokens]), cache=cache)
    kept = LRUPromptCache()
    kept.insert_cache("tiny", tokens, copy.deepcopy(cache))
    provider = SimpleNamespace(model_key="tiny", model=model)
    slots = Slots(folder)
    slots.begins(0, tokens)
    slots.ended_alone(tokens)
    slots.done(SimpleNamespace(prompt_cache=kept, model_provider=provider), 0, "save", "slot")
    kept = LRUPromptCache()
    generator = SimpleNamespace(prompt_cache=kept, model_provider=provider)
    Slots(folder).done(generator, 0, "restore", "slot")
    restored, rest = kept.fetch_nearest_cache("tiny", tokens + following)
    if rest != following:
        return 0
    live, again = (model(mx.array([following]), cache=one) for one in (cache, restored))
    return len(tokens) if mx.allclose(live, again).item() else 0


def main() -> int:
    import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]

    if sys.argv[1:] == ["slots"]:
        with tempfile.TemporaryDirectory(prefix="greenroom-tiny-") as folder:
            sys.stdout.write(str(not_read_again(mx, folder)))
        sys.stdout.flush()
        return 0

    device = mx.default_device()
    is_graphics = device.type == mx.DeviceType.gpu
    sys.stdout.write(json.dumps({"devices": [str(device)] if is_graphics else []}))
    sys.stdout.flush()
    if sys.argv[1:] == ["device"] and not is_graphics:
        return NO_DEVICE
    return 0 if computed(mx) else 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # What has been proven need not be taken down in order, which some drivers take seconds for.
    os._exit(code)
