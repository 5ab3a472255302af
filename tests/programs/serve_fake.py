"""The daemon with the fake engine as its only backend: `serve_fake.py HOME PORT [BIND] [-- ENGINE FLAGS]`.

Prints its URL once its door is open, and at the end the name of whatever it could not do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.diagnosis import freshener
from greenroom.runner.http.server import run
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend


def main() -> int:
    given, flags = sys.argv[1:], []
    if "--" in given:
        given, flags = given[: given.index("--")], given[given.index("--") + 1 :]
    freshener.LOOK_EVERY = float(os.environ.get("TEST_LOOK_EVERY", freshener.LOOK_EVERY))
    home, port, bind = Path(given[0]), int(given[1]), given[2] if len(given) > 2 else "127.0.0.1"
    settings = Settings(
        home=home,
        port=port,
        bind=bind,
        engine_grace=1.0,
        backends={"fake": ExternalBackend(binary=Path(sys.executable))},
    )
    backend = fake_backend(Path(__file__).with_name("fake_engine.py"), *flags)
    try:
        run(
            Greenroom(settings, backends={"fake": backend}),
            opened=lambda url: print(url, flush=True),
            drain=1.0,
        )
    except Exception as error:  # noqa: BLE001
        print(f"{type(error).__name__}: {error}", flush=True)
        return 9
    return 0


if __name__ == "__main__":
    sys.exit(main())
