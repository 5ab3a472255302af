"""Machines with graphics devices as they were recorded: files, links, permissions and what programs printed.

A recording is a TOML file:

    about = "what it is, and where it was reported"
    [host]           system, processor, glibc, env
    [files]          name → text
    [links]          name → what it points to
    [denied]         name → group: files that this user may not open
    [sysctl]         macOS's values, as text or numbers
    [programs.X]     what a program or a script of ours answers: output, errors, code, hung; X may include
                     arguments, and the longest that fits the command line answers
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greenroom.runner.devices.children import Told
from greenroom.runner.devices.host_view import HostView


def recorded(file: Path, root: Path, **env: str) -> HostView:
    """A recorded machine, laid out below `root`; `env` adds variables."""
    told: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))
    host = told["host"]
    for name, text in told.get("files", {}).items():
        place = _placed(root, name)
        place.write_text(text)
    for name, target in told.get("links", {}).items():
        _placed(root, name).symlink_to(target)
    programs: dict[str, Any] = told.get("programs", {})
    path = root / "usr/bin"
    for name in programs:
        if not name.endswith(".py"):
            tool = _placed(root, f"/usr/bin/{name.split()[0]}")
            tool.touch(mode=0o755)
            tool.chmod(0o755)

    def run(argv: Sequence[str], _env: Mapping[str, str] | None) -> Told:
        script = next((Path(word).name for word in argv if word.endswith(".py")), "")
        line = script or " ".join([Path(argv[0]).name, *argv[1:]])
        fitting = [name for name in programs if line.startswith(name)]
        if not fitting:
            return Told(errors=f"{line}: not recorded", code=None)
        answer = programs[max(fitting, key=len)]
        return Told(
            output=answer.get("output", ""),
            errors=answer.get("errors", ""),
            code=None if answer.get("hung") else answer.get("code", 0),
            hung=answer.get("hung", False),
        )

    denied: Mapping[str, str] = told.get("denied", {})
    values: Mapping[str, str | int] = told.get("sysctl", {})

    def sysctl(name: str) -> bytes:
        value = values.get(name, b"")
        return value.to_bytes(8, "little") if isinstance(value, int) else str(value or "").encode()

    return HostView(
        root=root,
        env={"PATH": str(path), **host.get("env", {}), **env},
        run=run,
        system=host.get("system", "linux"),
        processor=host.get("processor", "x86_64"),
        glibc=host.get("glibc", ""),
        access=lambda name: (name not in denied, denied.get(name, "")),
        sysctl=sysctl,
    )


def _placed(root: Path, name: str) -> Path:
    place = root / name.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
