"""Computes one token through `xllamacpp`, to see whether this build works on this machine.

`compute_llama_cpp.py device|processor|slots`. Prints a JSON object with the devices it lists; the exit code
is 3 if a device is wanted and none is listed, 1 if the token did not come. llama.cpp's own reasons are on
stderr. With `slots` it prints how many tokens of a saved slot a new server does not read again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from slot_continuity import CONTEXT, not_read_again  # type: ignore[import-not-found]
from tiny_model import gguf  # type: ignore[import-not-found]

sys.path.pop(0)

NO_DEVICE = 3


def _params(library: Any, folder: Path, context: int) -> Any:
    """Those of a server with the tiny model."""
    model = folder / "tiny.gguf"
    model.write_bytes(gguf())
    params = library.CommonParams()
    params.model.path = str(model)
    # A socket in a folder that no one else can enter.
    params.hostnames = [str(folder / "tiny.sock")]
    params.n_ctx, params.n_parallel = context, 1
    params.n_gpu_layers = -2  # all
    params.warmup = False
    return params


def computed(library: Any, folder: Path) -> int:
    """How many tokens it has computed, one if all is well."""
    answer = library.Server(_params(library, folder, 32)).handle_completions(
        {"prompt": "a", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    )
    return int(answer["usage"]["completion_tokens"])


@contextlib.contextmanager
def saving(library: Any, folder: Path) -> Iterator[Path]:
    """A server that saves its slots; yields its socket."""
    params = _params(library, folder, CONTEXT)
    params.slot_save_path = f"{folder}/"
    (folder / "tiny.sock").unlink(missing_ok=True)
    server = library.Server(params)
    yield folder / "tiny.sock"
    del server  # which ends it


def main() -> int:
    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    if sys.argv[1:] == ["slots"]:
        if not hasattr(xllamacpp.CommonParams(), "slot_save_path"):
            raise SystemExit("it has no slot_save_path")
        with tempfile.TemporaryDirectory(prefix="greenroom-tiny-") as folder:
            sys.stdout.write(str(not_read_again(lambda: saving(xllamacpp, Path(folder)))))
        sys.stdout.flush()
        return 0
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
