"""A real daemon answers as its own description says, whatever it is sent.

schemathesis makes requests of the description; `conformity_checks` says what must hold of the answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_process import DaemonProcess, without_settings
from greenroom.runner.testing import tiny_gguf
from waiting import until

CHECKS = "no_fault_of_ours,nothing_is_left_out,status_code_conformance,response_headers_conformance"
PREFIXED = (
    r"^/engines/(\{backend\}/)?(v\d|rerank|score|responses|tokenize|detokenize|apply-template|infill|props|health)"
    r"|^/responses|^/anthropic|^/engines/\{backend\}/_configure"
)
"""The same handlers as without."""


class Conforming(DaemonProcess):
    """A daemon with a model, `tiny`, that answers with the fake engine."""

    file: Path

    def ask(self, path: str, body: object = None, method: str = "POST") -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            found: bytes = response.read()
            return found

    def try_everything(self, *options: str, limit: float) -> str:
        """Run schemathesis over all of the description; what it says if it finds nothing."""
        argv = [sys.executable, "-m", "schemathesis.cli", "run", f"{self.url}/openapi.json"]
        argv += ["--checks", CHECKS, "--request-timeout", "60", "--warnings", "off", "--no-color"]
        # These would end the daemon, and remove what is asked for.
        argv += ["--exclude-path", "/daemon/stop", "--exclude-path", "/models/purge"]
        # What is followed has no end, and a slot is held until its client leaves.
        for endless in ("/logs", "/log", "/requests", "/engines/requests", "/engines/slots"):
            argv += ["--exclude-path", endless]
        argv += ["--suppress-health-check", "all", "--max-failures", "5", *options]
        env = os.environ | {
            "CONFORMITY_MODEL": str(self.file),
            "SCHEMATHESIS_HOOKS": "conformity_checks",
            "PYTHONPATH": str(Path(__file__).parents[1] / "programs"),
        }
        done = subprocess.run(
            argv, env=env, cwd=self.home.parent, capture_output=True, text=True, timeout=limit
        )
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}\n{self.log()[-6000:]}"
        return done.stdout


@pytest.fixture
def daemon(short_path: Path, programs: Path) -> Iterator[Conforming]:
    daemon = Conforming(short_path / "h")
    daemon.home.mkdir()
    daemon.file = tiny_gguf(short_path / "tiny.gguf")
    argv = [sys.executable, str(programs / "serve_fake.py"), str(daemon.home), "0"]
    daemon.launch(argv, without_settings())
    try:
        until(daemon.listens)
        daemon.ask("/models/create", {"from": f"file:{daemon.file}"})
        (model,) = json.loads(daemon.ask("/models", method="GET"))
        daemon.ask(f"/models/{model['id']}/tag?repo=ai/tiny&tag=latest")
        yield daemon
    finally:
        daemon.end()


def test_a_few_requests_for_every_route_get_the_answers_that_are_described(daemon: Conforming) -> None:
    daemon.try_everything(
        *("--phases", "fuzzing", "--mode", "positive", "--max-examples", "1", "--no-shrink"),
        *("--exclude-path-regex", PREFIXED, "--seed", "1"),
        limit=110,
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_whatever_is_sent_gets_an_answer_that_is_described(daemon: Conforming) -> None:
    daemon.try_everything(
        "--phases", "examples,coverage,fuzzing", "--max-examples", "50", "--max-time", "600", limit=1400
    )
