"""Runs a Python file that may `await` at its top, as people write it in documentation."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    source = Path(sys.argv[1]).read_text("utf-8")
    code = compile(source, sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "__main__"}
    found = eval(code, names)
    if inspect.iscoroutine(found):
        asyncio.run(found)


if __name__ == "__main__":
    main()
