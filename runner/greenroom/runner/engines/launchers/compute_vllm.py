"""Multiplies small matrices through the torch of a vLLM build, to see whether it works on this machine.

`compute_vllm.py device|processor`. Prints a JSON object with the devices it lists; the exit code is 3 if a
device is wanted and none is listed, 1 if the product is wrong. torch's own reasons are on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

NO_DEVICE = 3
_SIZE = 64


def computed(torch: Any, where: str) -> bool:
    """Whether a product in 16 bits, as engines compute, is right."""
    ones = torch.ones((_SIZE, _SIZE), dtype=torch.bfloat16, device=where)
    return bool((ones @ (2 * ones)).float().sum().item() == 2.0 * _SIZE**3)


def main() -> int:
    import torch  # type: ignore[import-not-found,unused-ignore]

    # AMD's devices are named so too. Why there is none is a warning of its first question.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_name(number) for number in range(count)]
    sys.stdout.write(json.dumps({"devices": found}))
    sys.stdout.flush()
    if sys.argv[1:] != ["device"]:
        return 0 if computed(torch, "cpu") else 1
    if not found:
        return NO_DEVICE
    return 0 if computed(torch, "cuda") else 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # What has been proven need not be taken down in order, which some drivers take seconds for.
    os._exit(code)
