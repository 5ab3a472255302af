"""For tests of programs that embed Greenroom: a backend that is any program which behaves like an engine.

And a model it can be given: a whole GGUF file of a few hundred bytes.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greenroom.actors.values import Mode, ModelFormat
from greenroom.runner.backends.base import (
    Backend,
    CommandLine,
    Dialect,
    Environment,
    Launch,
    Platform,
    Readiness,
)


def fake_backend(
    program: Path,
    *flags: str,
    name: str = "fake",
    formats: Sequence[ModelFormat] = ("gguf",),
    modes: Sequence[Mode] = ("completion", "embedding"),
    deferred: bool = False,
    preference: int = 1,
    readiness: Readiness | None = None,
    dialect: Dialect | None = None,
    allowed_flags: frozenset[str] = frozenset(),
    verdict: str = "",
    overhead: int = 2**20,
    uses_devices: bool = False,
    slots: int = 0,
) -> Backend:
    """A backend whose engines are `program`, a Python file run by this interpreter.

    It receives `--socket`, `--model`, then `flags`, then the user's flags. It needs no installation: name one
    with `managed=False` and any root. It answers `slots` requests at once, or any number. `overhead` is the
    memory reserved for an engine beside its model.
    """
    chosen_name, chosen_flags, chosen_deferred, chosen_preference = name, flags, deferred, preference
    chosen_readiness, chosen_dialect, chosen_allowed = readiness, dialect, allowed_flags
    chosen_formats, chosen_modes, said = tuple(formats), tuple(modes), verdict
    on_devices, at_once = uses_devices, slots

    class FakeBackend(Backend):
        name = chosen_name
        title = f"{chosen_name} (a program for tests)"
        deferred = chosen_deferred
        formats = chosen_formats
        modes = chosen_modes
        preference = chosen_preference
        install_preference = chosen_preference
        source = Environment(
            distribution=f"greenroom-{chosen_name}", lock=chosen_name, probe=(), requirements=()
        )
        readiness = chosen_readiness or Readiness()
        dialect = chosen_dialect or Dialect()
        allowed_flags = chosen_allowed
        overhead_bytes = overhead
        uses_devices = on_devices
        slots = at_once

        def verdict(self, platform: Platform) -> str:  # noqa: ARG002 - the same everywhere
            return said

        def command(self, launch: Launch) -> CommandLine:
            argv = (sys.executable, "-I", str(program), "--socket", str(launch.socket))
            model = ("--model", str(launch.model.path))
            return CommandLine(argv=(*argv, *model, *chosen_flags, *launch.spec.flags))

    return FakeBackend()


class FakeEngine:
    """Controls the fake engines of a test, and records their requests: the fixture `fake_engine`.

    The engines need no model. They generate a text word by word, each word a token. Any thread may use it.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` must exist; the engines read their text from it."""
        self._script, self._requests = folder / "script.json", folder / "requests.jsonl"
        self.backend = fake_backend(Path(__file__).with_name("fake_engine.py"), "--folder", str(folder))
        """The `backends` argument for a `Greenroom`."""
        self.says("Hello.")

    def says(self, text: str) -> None:
        """Answer all further requests with this text."""
        self._write(200, text)

    def fails(self, message: str = "The engine has failed.", *, status: int = 500) -> None:
        """Answer all further requests with this error and this HTTP status."""
        self._write(status, message)

    def _write(self, status: int, text: str) -> None:
        new = self._script.with_suffix(".new")
        new.write_text(json.dumps({"status": status, "text": text}))
        new.replace(self._script)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of the requests that reached an engine, oldest first, in OpenAI's format."""
        lines = self._requests.read_text().splitlines() if self._requests.exists() else []
        return [json.loads(line)["body"] for line in lines]


def tiny_gguf(path: Path, name: str = "tiny", numbers: Mapping[str, int] | None = None) -> Path:
    """Write a complete GGUF file with one tensor of four numbers, and return its path.

    `numbers`: further keys of its head, such as `llama.context_length`.
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    keys += text("general.name") + struct.pack("<I", 8) + text(name)
    keys += b"".join(text(key) + struct.pack("<II", 4, number) for key, number in (numbers or {}).items())
    tensor = text("weights") + struct.pack("<IQIQ", 1, 4, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2 + len(numbers or {})) + keys + tensor
    path.write_bytes(head + b"\0" * (-len(head) % 32) + struct.pack("<4f", 1, 2, 3, 4) + b"\0" * 16)
    return path
