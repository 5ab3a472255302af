"""A backend that is really installed, in a fraction of a second: its wheel lies in a folder."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

from greenroom.runner.backends.base import Backend, Environment, Launch
from greenroom.runner.backends.base import CommandLine as Program
from greenroom.runner.backends.variants import Variant
from greenroom.runner.installations.lock_file import LockedFile, LockedPackage, render
from greenroom.runner.testing import fake_backend

ENGINE = Path(__file__).parents[1] / "programs" / "fake_engine.py"


def make_wheel(folder: Path, version: str = "1.0") -> None:
    """`toy` as a wheel in a folder, and beside the folder the locks of version 1.0, one for each variant."""
    info = f"toy-{version}.dist-info"
    contents = {
        "toy/__init__.py": b"VALUE = 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: toy\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    contents[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    name, data = f"toy-{version}-py3-none-any.whl", out.getvalue()
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    if version != "1.0":
        return
    file = LockedFile(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    for lock in ("toy", "toy-cuda"):
        text = render([LockedPackage("toy", "1.0", "", (file,))], [f"{lock} for tests"])
        (folder.parent / f"{lock}.txt").write_text(text)


def sources(wheels: Path) -> dict[str, str]:
    """The environment in which packages come from that folder and from nowhere else."""
    return {"PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


def toy_backend(
    folder: Path, *flags: str, name: str = "toy", deferred: bool = True, for_cards: bool = False
) -> Backend:
    """The backend whose lock is in `folder`. Its engines are the fake one, run by the installed Python.

    `for_cards`: it has a variant for NVIDIA's cards, which is made of the same wheel.
    """
    fake = fake_backend(ENGINE, *flags, name=name, deferred=deferred)

    usual = Environment(distribution=name, lock=str(folder / name), probe=(name,), requirements=(name,))

    class Toy(type(fake)):  # type: ignore[misc]
        source = usual

        def command(self, launch: Launch) -> Program:
            return Program(argv=(str(launch.python), *super().command(launch).argv[1:]))

    if for_cards:
        source = replace(usual, lock=str(folder / "toy-cuda"))
        declared = (
            Variant("cuda", "NVIDIA, CUDA", "cuda", source=source, download_bytes=650 * 10**6),
            Variant("cpu", "the processor"),
        )
        Toy.variants = declared
    made: Backend = Toy()  # pyright: ignore[reportAbstractUsage] - the base is only known at run time
    return made
