"""Runs a module of the installation as `python -m` would: `launch_vllm.py MODULE [its arguments]`.

vLLM can listen on a unix socket by itself; all that is added is that it ends with its keeper.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from end_with_keeper import end_with_keeper  # type: ignore[import-not-found]

sys.path.pop(0)


def main() -> None:
    end_with_keeper()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# Worker processes import this file under another name and must not start a second server.
if __name__ == "__main__":
    main()
