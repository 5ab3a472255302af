"""A stand-in for a user's own llama-server: the fake engine behind llama-server's flags."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    if "--version" in sys.argv:
        print("version: 7100 (a stand-in)")
        return
    given = {name: sys.argv[sys.argv.index(name) + 1] for name in ("--host", "--alias")}
    engine = str(Path(__file__).with_name("fake_engine.py"))
    flags = ["--socket", given["--host"], "--model", given["--alias"]]
    os.execv(sys.executable, [sys.executable, "-I", engine, *flags])


if __name__ == "__main__":
    main()
