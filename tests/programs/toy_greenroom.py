"""A Greenroom whose only backend is the toy, so that a test may kill it at any moment.

Arguments: data directory, folder of the toy's lock. Takes `install VERSION`, `repair`, `uninstall [VERSION]`,
`rollback` and `status`, a line each, and answers each with one line of JSON: the status as it is once all has
been looked at and what follows from the last event has been stored too.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

import msgspec

import toy
from greenroom.actors.installer.messages import Activate, Ensure, Uninstall
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.scheduler.messages import AwaitReady
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom

COMMANDS = {
    "install": lambda version: Ensure(backend="toy", version=version, wanted_by="explicit"),
    "repair": lambda: Ensure(backend="toy", repair=True, wanted_by="explicit"),
    "uninstall": lambda version="": Uninstall(backend="toy", version=version),
    "rollback": lambda: Activate(backend="toy"),
}

home, folder = map(Path, sys.argv[1:])
with Greenroom(Settings(home=home), backends={"toy": toy.toy_backend(folder)}) as greenroom:
    greenroom.system.ask(AwaitReady()).get(timeout=60)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        word, *arguments = line.split()
        refused = ""
        if word != "status":
            try:
                greenroom.system.ask(COMMANDS[word](*arguments)).get(timeout=60)  # type: ignore[operator]
            except Refused as error:
                refused = error.refusal.code
        greenroom.system.rest()
        (status,) = greenroom.statuses()
        print(json.dumps({"refused": refused, "status": msgspec.to_builtins(status)}), flush=True)
