"""Computes one token with a compiled `llama-server`, to see whether it works on this machine.

`compute_llama_server.py PROGRAM device|processor|slots`. The exit code is 3 if a device is wanted and the
program lists none, 1 if the token did not come. The program's own reasons are on stderr. With `slots` it
prints how many tokens of a saved slot a new server does not read again.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from slot_continuity import CONTEXT, ask, not_read_again  # type: ignore[import-not-found]
from tiny_model import gguf  # type: ignore[import-not-found]

sys.path.pop(0)

NO_DEVICE = 3
_ASK_EVERY = 0.05
_END_SECONDS = 10.0
_DEVICE = re.compile(r"^\s*[A-Za-z]+\d+: ", re.MULTILINE)
_REQUEST = {"prompt": "a", "n_predict": 1, "temperature": 0, "ignore_eos": True}


@contextlib.contextmanager
def served(program: str, folder: Path, *options: str) -> Iterator[Path]:
    """A server with the tiny model, ready; yields its socket. Raises OSError if it ends before that."""
    model, place = folder / "tiny.gguf", folder / "tiny.sock"
    model.write_bytes(gguf())
    place.unlink(missing_ok=True)
    argv = [program, "--model", str(model), "--host", str(place), "-ngl", "99", *options]
    server = subprocess.Popen([*argv, "--parallel", "1", "--no-warmup"], stdout=sys.stderr.fileno())
    try:
        while not _is_ready(place):
            if server.poll() is not None:
                raise OSError(f"it ended with {server.returncode}")
            time.sleep(_ASK_EVERY)
        yield place
    finally:
        server.terminate()
        try:
            server.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_ready(place: Path) -> bool:
    try:
        return bool(ask(place, "/health")[0] == 200)
    except OSError:
        return False  # it does not listen yet


def computed(program: str, folder: Path) -> int:
    """How many tokens it has computed, one if all is well."""
    try:
        with served(program, folder, "--ctx-size", "32") as place:
            status, answer = ask(place, "/completion", _REQUEST)
            return int(json.loads(answer)["tokens_predicted"]) if status == 200 else 0
    except OSError:
        return 0


def main() -> int:
    program, where = sys.argv[1:]
    if where == "slots":
        with tempfile.TemporaryDirectory(prefix="greenroom-tiny-") as folder:
            options = ("--ctx-size", str(CONTEXT), "--slot-save-path", f"{folder}/")
            sys.stdout.write(str(not_read_again(lambda: served(program, Path(folder), *options))))
        return 0
    listed = subprocess.run(
        [program, "--list-devices"], stdout=subprocess.PIPE, text=True, errors="replace", check=False
    )
    sys.stderr.write(listed.stdout)
    if listed.returncode != 0:
        return 1
    if where == "device" and not _DEVICE.search(listed.stdout):
        return NO_DEVICE
    with tempfile.TemporaryDirectory(prefix="greenroom-tiny-") as folder:
        return 0 if computed(program, Path(folder)) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
