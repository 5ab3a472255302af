"""Computes one token through `xllamacpp`, to see whether this build works on this machine.

`compute_llama_cpp.py device|processor`. Prints a JSON object with the devices it lists; the exit code is 3 if
a device is wanted and none is listed, 1 if the token did not come. llama.cpp's own reasons are on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from tiny_model import gguf  # type: ignore[import-not-found]

sys.path.pop(0)

NO_DEVICE = 3


def computed(library: Any, folder: Path) -> int:
    """How many tokens it has computed, one if all is well."""
    model = folder / "tiny.gguf"
    model.write_bytes(gguf())
    params = library.CommonParams()
    params.model.path = str(model)
    # A socket in a folder that no one else can enter.
    params.hostnames = [str(folder / "tiny.sock")]
    params.n_ctx, params.n_parallel = 32, 1
    params.n_gpu_layers = -2  # all
    params.warmup = False
    answer = library.Server(params).handle_completions(
        {"prompt": "a", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    )
    return int(answer["usage"]["completion_tokens"])


def main() -> int:
    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    found = [one for one in xllamacpp.get_device_info() if str(one["type"]).endswith("GPU")]
    sys.stdout.write(json.dumps({"devices": [str(one["description"] or one["name"]) for one in found]}))
    sys.stdout.flush()
    if sys.argv[1:] == ["device"] and not found:
        return NO_DEVICE
    with tempfile.TemporaryDirectory(prefix="greenroom-tiny-") as folder:
        return 0 if computed(xllamacpp, Path(folder)) == 1 else 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # What has been proven need not be taken down in order, which some drivers take seconds for.
    os._exit(code)
