"""What a compiled llama-server must do before it counts, against programs that stand in for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from greenroom.runner.engines.launchers import launcher

DEVICES = "Available devices:\n  Vulkan0: llvmpipe (2048 MiB, 2048 MiB free)\n"
NONE = "Available devices:\n  (none)\n"
SERVER = """\
import http.server, json, os, socketserver, sys
if "--list-devices" in sys.argv:
    print({listed!r}, end="")
    sys.exit({listing})
with open(sys.argv[sys.argv.index("--model") + 1], "rb") as model:
    assert model.read(4) == b"GGUF"
if {dies}:
    sys.exit("ggml_vulkan: out of device memory")
class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return ""
    def answer(self, body):
        self.send_response({status} if self.path == "/completion" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        self.answer({{"status": "ok"}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({{"tokens_predicted": asked["n_predict"]}})
socketserver.UnixStreamServer(sys.argv[sys.argv.index("--host") + 1], Handler).serve_forever()
"""


def run(
    folder: Path,
    where: str,
    *,
    listed: str = DEVICES,
    listing: int = 0,
    dies: bool = False,
    status: int = 200,
) -> subprocess.CompletedProcess[str]:
    program = folder / "llama-server"
    code = SERVER.format(listed=listed, listing=listing, dies=dies, status=status)
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    script = launcher("llama_server", "compute")
    argv = [sys.executable, "-I", str(script), str(program), where]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_a_program_that_computes_a_token_on_its_device_is_good(tmp_path: Path) -> None:
    assert run(tmp_path, "device").returncode == 0
    assert run(tmp_path, "processor", listed=NONE).returncode == 0


def test_a_program_for_devices_that_lists_none_says_so_by_its_exit_code(tmp_path: Path) -> None:
    done = run(tmp_path, "device", listed=NONE)
    assert done.returncode == 3
    assert "(none)" in done.stderr


@pytest.mark.parametrize("fault", [{"listing": 1}, {"dies": True}, {"status": 500}])
def test_a_program_that_does_not_compute_is_not(tmp_path: Path, fault: dict[str, int]) -> None:
    done = run(tmp_path, "device", **fault)  # type: ignore[arg-type]
    assert done.returncode == 1
    if "dies" in fault:
        assert "out of device memory" in done.stderr
