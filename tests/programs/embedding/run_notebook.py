"""Runs a notebook, its first cell twice, then all again in a restarted kernel; prints the last outputs."""

from __future__ import annotations

import asyncio
import json
import sys

import nbformat
from nbclient import NotebookClient


async def main(path: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    running = NotebookClient(notebook, timeout=300, kernel_name="python3")
    async with running.async_setup_kernel():
        cells = list(enumerate(notebook.cells))
        first = next(number for number, cell in cells if cell.cell_type == "code")
        for number, cell in [cells[first], *cells]:
            await running.async_execute_cell(cell, number)
        await running.km.restart_kernel(now=True)
        await running.kc.wait_for_ready(timeout=60)
        for number, cell in cells:
            await running.async_execute_cell(cell, number)
    print(json.dumps(["".join(one.get("text", "") for one in cell.get("outputs", ())) for _, cell in cells]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
