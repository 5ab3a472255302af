"""Multiplies small matrices through MLX, to see whether this build works on this machine.

`compute_mlx.py device|processor`. Prints a JSON object with the device that it uses; the exit code is 3 if a
graphics device is wanted and MLX has none, 1 if the products are wrong. MLX's own reasons are on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

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


def main() -> int:
    import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]

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
