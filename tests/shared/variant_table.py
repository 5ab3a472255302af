"""The table of machines, variants and reasons in `docs/backends.md`, of recorded machines.

`.venv/bin/python tests/shared/variant_table.py docs/backends.md` updates the page.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from pathlib import Path

from greenroom.actors.graphics import Graphics
from greenroom.actors.variants import RankedVariant
from greenroom.runner.backends.base import Platform
from greenroom.runner.backends.device_users import described, device_users
from greenroom.runner.backends.discovery import OWN
from greenroom.runner.backends.variants import order
from greenroom.runner.cli.devices import picture
from greenroom.runner.devices.inventory import read
from recorded_machine import recorded

BEGIN = "<!-- made by tests/shared/variant_table.py -->"
END = "<!-- end of the variants -->"
MACHINES = Path(__file__).parents[1] / "devices" / "machines"


def ranked_on(machine: Path, backend: str = "llama.cpp") -> tuple[RankedVariant, ...]:
    """The variants of a backend on a recorded machine."""
    graphics, platform = played(machine)
    return order(OWN[backend].on(platform).variants, graphics.lasting, platform)


def played(machine: Path) -> tuple[Graphics, Platform]:
    """What a recorded machine is found to be."""
    with tempfile.TemporaryDirectory() as folder:
        view = recorded(machine, Path(folder))
        graphics = read(view)
    return graphics, Platform(
        system=view.system,
        machine={"aarch64": "arm64"}.get(view.processor, view.processor),
        python=(3, 12),
        macos=(15, 0) if view.system == "darwin" else None,
        cuda=any(one.runtime("cuda") is not None for one in graphics.usable),
        graphics=graphics.lasting,
    )


def devices_shown(name: str) -> str:
    """What `greenroom devices` prints on a recorded machine that has no backend yet."""
    graphics, platform = played(MACHINES / f"{name}.toml")
    backends = [one.on(platform) for one in OWN.values()]
    return picture(described(graphics, device_users(backends, graphics, platform)))


def render() -> str:
    lines = ["| machine | variants of llama.cpp, best first |", "| --- | --- |"]
    for machine in sorted(MACHINES.glob("*.toml")):
        about = tomllib.loads(machine.read_text("utf-8"))["about"].partition("; ")[0].rstrip(".")
        lines.append(f"| {about} | {'<br>'.join(_told(ranked_on(machine)))} |")
    return "\n".join(lines)


def _told(ranked: tuple[RankedVariant, ...]) -> list[str]:
    """Those that cannot be used for the same reason share a line."""
    named: dict[tuple[bool, str], list[str]] = {}
    for one in ranked:
        named.setdefault((one.usable, one.reason), []).append(f"**{one.name}**" if one.usable else one.name)
    return [f"{', '.join(names)}: {reason}" for (_, reason), names in named.items()]


def insert(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the page has no {BEGIN} … {END}"
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}"


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(insert(file.read_text("utf-8")), "utf-8")
