"""A stand-in for the daemon: hosts one engine, prints reports as JSON lines, waits to be killed.

`python host_process.py ENGINES_DIR ENGINE_ID GRACE [--die-after-claim] -- ENGINE_FLAGS…`; a line `stop` or
`leave SECONDS` on standard input ends it in order.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from greenroom.actors.progress import ProgressBoard
from greenroom.actors.reports import Happened
from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.engines.host import EngineHost

FAKE = Path(__file__).with_name("fake_engine.py")


def tell(_to: Any, report: Any) -> None:
    what = report.event if isinstance(report, Happened) else report
    one, *rest = (getattr(what, field) for field in what.__struct_fields__)
    name = type(what).__name__.removeprefix("Engine").lower()
    print(json.dumps([name, one, *[repr(word) for word in rest]]), flush=True)


def main() -> None:
    engines_dir, engine_id, grace = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    flags = sys.argv[sys.argv.index("--") + 1 :]

    def prepare(spec: Any, socket: Any) -> Any:
        argv = (sys.executable, "-I", str(FAKE), "--socket", str(socket), *flags)
        return PreparedEngine(command=CommandLine(argv=argv), readiness=Readiness())

    host = EngineHost(
        engines_dir, prepare=prepare, tell=tell, board=ProgressBoard(), grace=grace, spare_keeper=False
    )
    host.start(
        EngineSpec(engine_id=engine_id, backend="fake", installation_id="i", model_id="m", model_ref="m")
    )
    if "--die-after-claim" in sys.argv:
        # The process is gone between the spawn and any report of it.
        while not (engines_dir / engine_id / "claim").exists():
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)
    for line in sys.stdin:
        word, _, seconds = line.strip().partition(" ")
        host.shutdown(keep=float(seconds) if word == "leave" else None)
        return


if __name__ == "__main__":
    main()
