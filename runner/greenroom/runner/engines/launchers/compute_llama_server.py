"""Computes one token with a compiled `llama-server`, to see whether it works on this machine.

`compute_llama_server.py PROGRAM device|processor`. The exit code is 3 if a device is wanted and the program
lists none, 1 if the token did not come. The program's own reasons are on stderr.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tiny_model import gguf  # type: ignore[import-not-found]

sys.path.pop(0)

NO_DEVICE = 3
_ASK_EVERY = 0.05
_END_SECONDS = 10.0
_DEVICE = re.compile(r"^\s*[A-Za-z]+\d+: ", re.MULTILINE)
_REQUEST = {"prompt": "a", "n_predict": 1, "temperature": 0, "ignore_eos": True}


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _ask(path: Path, route: str, body: object = None) -> tuple[int, bytes]:
    connection = _Connection(path)
    try:
        connection.request(
            "POST" if body else "GET",
            route,
            json.dumps(body) if body else None,
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def computed(program: str, folder: Path) -> int:
    """How many tokens it has computed, one if all is well."""
    model, place = folder / "tiny.gguf", folder / "tiny.sock"
    model.write_bytes(gguf())
    argv = [program, "--model", str(model), "--host", str(place), "-ngl", "99", "--ctx-size", "32"]
    server = subprocess.Popen([*argv, "--parallel", "1", "--no-warmup"], stdout=sys.stderr.fileno())
    try:
        while server.poll() is None:
            try:
                if _ask(place, "/health")[0] == 200:
                    status, answer = _ask(place, "/completion", _REQUEST)
                    return int(json.loads(answer)["tokens_predicted"]) if status == 200 else 0
            except OSError:
                pass  # it does not listen yet; when it ends, the loop does
            time.sleep(_ASK_EVERY)
        return 0
    finally:
        server.terminate()
        try:
            server.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()


def main() -> int:
    program, where = sys.argv[1:]
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
