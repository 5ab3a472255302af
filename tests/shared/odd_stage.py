"""An engine that misbehaves on command: `programs/odd_engine.py`."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from engine_stage import Stage
from greenroom.actors.gates import GateBoard
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines.handle import PreparedEngine


class Odd:
    """An engine that misbehaves on command, under a host, and its clients."""

    def __init__(self, stage: Stage, folder: Path, limit: float) -> None:
        self.stage = stage
        stage.readiness = Readiness(rests=True)
        self.file = folder / "wish"
        self.gates = GateBoard()
        self.spec = stage.spec()
        argv = (sys.executable, "-I", str(stage.programs / "odd_engine.py"), "--wish", str(self.file))

        def prepare(spec: Any, place: Path) -> PreparedEngine:
            return PreparedEngine(
                command=CommandLine(argv=(*argv, "--socket", str(place))), readiness=stage.readiness
            )

        self.host = stage.host(prepare=prepare, stall_after=limit, readings=self.gates.readings)
        self.host.start(self.spec)
        self.pid, _, self.endpoint = stage.heard.wait("spawned")
        stage.heard.wait("ready")
        self.gates.open(self.spec.engine_id, "m", "completion", "fake", self.endpoint)
        self.lag = stage.lag()
        self.since = time.monotonic()

    def goes(self, wrong: str) -> None:
        self.file.with_suffix(".new").write_text(wrong)
        self.file.with_suffix(".new").rename(self.file)
        self.since = time.monotonic()

    def enter(self, request: str = "r") -> None:
        assert self.gates.enter("m", "completion", "", request)

    def found_out(self) -> Any:
        (failure,) = self.stage.heard.wait("stalled", bound=90.0)
        self.took = self.stage.heard.moment("stalled") - self.since
        return failure

    def is_left_alone_for(self, seconds: float) -> None:
        threading.Event().wait(seconds)  # what must not happen has no event
        assert "stalled" not in self.stage.heard.names()
