"""The table of machines, variants and reasons in `docs/backends.md`, from the decision itself.

`.venv/bin/python tests/shared/variant_table.py docs/backends.md` updates the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

from greenroom.runner.backends.discovery import OWN
from greenroom.runner.backends.variants import order
from machines import MACHINES

BEGIN = "<!-- made by tests/shared/variant_table.py -->"
END = "<!-- end of the variants -->"


def render() -> str:
    lines = ["| machine | variants of llama.cpp, best first |", "| --- | --- |"]
    for name, (platform, graphics) in MACHINES.items():
        ranked = order(OWN["llama.cpp"].on(platform).variants, graphics, platform)
        told = [
            f"**{one.name}**: {one.reason}" if one.usable else f"{one.name}: {one.reason}" for one in ranked
        ]
        lines.append(f"| {name} | {'<br>'.join(told)} |")
    return "\n".join(lines)


def insert(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the page has no {BEGIN} … {END}"
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}"


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(insert(file.read_text("utf-8")), "utf-8")
