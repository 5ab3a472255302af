"""One file to attach to a bug report: what happened, on what, with which settings. No secrets, no prompts.

Each part is collected by itself, and what cannot be collected is said: a bundle is made when things are
broken, the journal included.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import platform
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import IO, Any

import msgspec

from greenroom.actors.journal.port import JournalError, Record
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.schema import SQLITE_VERSION
from greenroom.runner.config import NAMES, Settings
from greenroom.runner.devices.inventory import read as read_devices
from greenroom.runner.diagnosis.explain import answer
from greenroom.runner.diagnosis.history import History
from greenroom.runner.diagnosis.redaction import GONE, Redactor, is_secret_name
from greenroom.runner.diagnosis.replay import as_builtins
from greenroom.runner.diagnosis.sentences import Narrator
from greenroom.runner.diagnosis.times import precise
from greenroom.runner.engines.exit_report import own_words
from greenroom.runner.memory import MemoryReader
from greenroom.runner.record.table import RecordReader, RowFilter
from greenroom.runner.units import format_size

EVENTS = 5_000
"""The latest ones are taken along."""
_LOG_BYTES = 512 * 1024
_ENGINES = 10
_REQUESTS = 1_000
_LOOPBACK = frozenset({"127.0.0.1", "::1"})
_EXPLAINED = 40
_UNBROKEN = 2**20
"""Characters of a line in `why.txt`. Lines are not wrapped, since prompts are redacted line by line."""
_OURS = ("GREENROOM_", "MODEL_RUNNER_", "PIP_", "UV_", "HF_", "SSL_", "REQUESTS_", "VLLM_")
_DEVICES = ("CUDA_", "HIP_", "ROCR_", "HSA_", "GGML_", "VK_", "NVIDIA_")
_TAKEN = (*_OURS, *_DEVICES)
_ALSO = (
    "PATH",
    "LANG",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_DATA_HOME",
    "VIRTUAL_ENV",
    "NO_PROXY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)


class BundleFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    about: str
    """For people, in a few words."""
    content: bytes


class Bundle:
    """Collects the parts of one bundle."""

    def __init__(
        self,
        settings: Settings,
        redactor: Redactor,
        *,
        journal: Path | None = None,
        with_requests: bool = True,
    ) -> None:
        """`journal` is read instead of the data directory's own."""
        self._with_requests = with_requests
        self._settings = settings
        self._redactor = redactor
        self._journal = journal or settings.home / "journal.db"
        self._events: deque[Record] = deque(maxlen=EVENTS)
        self._history = History("")
        self._damage = ""
        self.problems: list[str] = []
        """What could not be collected, a sentence each."""

    def parts(self) -> list[BundleFile]:
        """Everything there is. Raises nothing for what is broken or not there."""
        with contextlib.ExitStack() as stack:
            self._read_journal(stack)
            return self._collected()

    def _collected(self) -> list[BundleFile]:
        collectors: tuple[Callable[[], Iterator[BundleFile]], ...] = (
            self._versions,
            self._devices,
            self._config,
            self._happened,
            self._state,
            self._why,
            self._installations,
            self._engines,
            self._requests,
            self._logs,
        )
        parts: list[BundleFile] = []
        for collect in collectors:
            try:
                parts += collect()
            except Exception as error:  # noqa: BLE001 - one part that fails must not cost the others
                name = collect.__name__.strip("_")
                self.problems.append(self._redactor.text(f"{name}: {type(error).__name__}: {error}"))
        return [self._readme(parts), *parts]

    def _read_journal(self, stack: contextlib.ExitStack) -> None:
        try:
            reader = stack.enter_context(JournalReader(self._journal, strict=False))
            self.problems += reader.notices
            self._history = History("", reader)
            self._history.read(self._keeping(reader.read()))
        except FileNotFoundError:
            self._damage = "there is no journal"
        except (JournalError, OSError) as error:
            self._damage = str(error)
        self._damage = self._damage or next((one for one in self._history.notices), "")
        if self._damage:
            self.problems.append(self._redactor.text(f"journal: {self._damage}"))

    def _keeping(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            self._events.append(record)
            yield record

    # the parts

    def _versions(self) -> Iterator[BundleFile]:
        import psutil

        memory, home = MemoryReader().now(), self._settings.home
        disk = psutil.disk_usage(str(home)) if home.exists() else None
        names = {one.partition(";")[0].strip() for one in requires("greenroom") or ()}
        libraries = sorted(
            {"".join(itertools.takewhile(lambda c: c.isalnum() or c in "_-.", one)) for one in names}
        )
        fields = {
            "greenroom": _version("greenroom"),
            "python": sys.version,
            "executable": sys.executable,
            "platform": platform.platform(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "memory": {"total": memory.total, "available": memory.available, "limited_by": memory.limited_by},
            "disk": {"total": disk.total, "free": disk.free} if disk is not None else None,
            "sqlite": SQLITE_VERSION,
            "libraries": {name: _version(name) for name in libraries},
            "environment": self._environment(),
            "made_at": precise(time.time()),
        }
        yield self._json("versions.json", f"Greenroom {fields['greenroom']}, {platform.platform()}", fields)

    def _environment(self) -> dict[str, str]:
        taken = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(_TAKEN) or name.upper() in _ALSO or name.upper().endswith("_PROXY")
        }
        # That a secret is set is worth knowing; even its length is not.
        return {name: "***" if is_secret_name(name) else value for name, value in sorted(taken.items())}

    def _devices(self) -> Iterator[BundleFile]:
        graphics = read_devices()
        about = ", ".join(one.name for one in graphics.devices) or "no graphics device"
        yield self._json("devices.json", about, msgspec.to_builtins(graphics))

    def _config(self) -> Iterator[BundleFile]:
        settings = self._settings
        fields: dict[str, Any] = {
            name: {"value": getattr(settings, name), "origin": settings.origin(name)} for name in NAMES
        }
        yield self._json("config.json", "every setting and its source", fields)
        if settings.config_file is not None:
            text = settings.config_file.read_text("utf-8", "replace")
            yield self._text("config.toml", "the config file", text)

    def _happened(self) -> Iterator[BundleFile]:
        if not self._events:
            return
        narrator = Narrator()
        lines, told = [], []
        for record in self._events:
            sentence = narrator.tell(record)
            told.append(f"{precise(record.at)}  {record.id:<22}  {sentence}  {record.cause}".rstrip())
            fields = {name: getattr(record, name) for name in Record.__struct_fields__ if name != "data"}
            data = self._redactor.value(json.loads(record.data))
            lines.append(json.dumps(self._redactor.value(fields) | {"data": data}, ensure_ascii=False))
        count, first = self._history.count, precise(self._events[0].at)
        which = (
            f"the last {len(self._events)} of {count} events"
            if count > len(self._events)
            else f"all {count} events"
        )
        yield BundleFile(name="journal.jsonl", about=f"{which}, from {first} on", content=_bytes(lines))
        yield self._text("log.txt", "the events as sentences", "\n".join(told))

    def _state(self) -> Iterator[BundleFile]:
        if not self._history.count:
            return
        yield self._json("state.json", "the state of every actor", as_builtins(self._history.snapshot))

    def _why(self) -> Iterator[BundleFile]:
        now = self._history.last.at if self._history.last is not None else time.time()
        names = [*self._history.backends, *self._history.library.models, "daemon"][:_EXPLAINED]
        told = []
        for name in names if self._history.count else ():
            found = answer(self._history, name, now)
            told.append(f"== {found.name} ==\n\n{found.text(now, width=_UNBROKEN)}")
        if told:
            yield self._text("why.txt", "greenroom why, for each backend and model", "\n\n\n".join(told))

    def _installations(self) -> Iterator[BundleFile]:
        found = {}
        for file in sorted((self._settings.home / "backends").glob("*/*/installation.json")):
            try:
                fields = json.loads(file.read_text("utf-8"))
            except (OSError, ValueError) as error:
                fields = {"unreadable": str(error)}
            if isinstance(fields, dict) and isinstance(fields.get("files"), list | dict):
                fields["files"] = f"{len(fields['files'])} files"
            found[f"{file.parent.parent.name}/{file.parent.name}"] = fields
        if found:
            yield self._json("installations.json", ", ".join(found), found)

    def _engines(self) -> Iterator[BundleFile]:
        folders = [one for one in (self._settings.home / "engines").glob("*") if one.is_dir()]
        for folder in sorted(folders, key=lambda one: one.stat().st_mtime)[-_ENGINES:]:
            for name in ("claim", "exit.json", "capsule.json"):
                file = folder / name
                if file.is_file():
                    try:
                        fields: Any = json.loads(file.read_text("utf-8", "replace"))
                    except ValueError:
                        fields = {"unreadable": len(file.read_bytes())}
                    if isinstance(fields, dict):
                        # Its last output may hold what clients have said; the log stays with its owner.
                        for lines in ("first_lines", "last_lines"):
                            if isinstance(fields.get(lines), list):
                                fields[lines] = own_words(map(str, fields[lines]))
                    yield self._json(f"engines/{folder.name}/{name}", "how an engine ran and stopped", fields)

    def _requests(self) -> Iterator[BundleFile]:
        """Who asked stays with the owner of the record, and what was said does too."""
        if not self._with_requests:
            self.problems.append("requests: they are only for callers on the daemon's machine.")
            return
        try:
            with RecordReader(self._settings.home) as reader:
                rows = reader.rows(RowFilter(), _REQUESTS)
        except FileNotFoundError:
            return
        lines = []
        for row in rows:
            fields = msgspec.to_builtins(row)
            for name in ("address", "caller"):
                if fields[name] and fields["caller_kind"] != "process" and fields["address"] not in _LOOPBACK:
                    fields[name] = GONE
                    self._redactor.taken["clients of requests"] += 1
            asked = fields["asked"]
            if " " in asked:
                # Names of models have no spaces: a client has sent something else there.
                fields |= {"asked": GONE, "sentence": fields["sentence"].replace(asked, GONE)}
                self._redactor.taken["possible prompts"] += 1
            lines.append(json.dumps(self._redactor.value(fields), ensure_ascii=False))
        yield BundleFile(
            name="requests.jsonl",
            about=f"the last {len(lines)} requests, without bodies",
            content=_bytes(lines),
        )

    def _logs(self) -> Iterator[BundleFile]:
        home = self._settings.home
        text = _tail(home / "daemon.log.1", _LOG_BYTES) + _tail(home / "daemon.log", _LOG_BYTES)
        if text:
            yield self._text("daemon.log", "the end of the daemon's log", text[-_LOG_BYTES:])
        errors = _tail(home / "cli-errors.log", _LOG_BYTES // 4)
        if errors:
            yield self._text("cli-errors.log", "errors of commands", errors)

    def _readme(self, parts: list[BundleFile]) -> BundleFile:
        lines = [
            f"Diagnostics of this Greenroom, collected by `greenroom bundle` at {precise(time.time())}.",
            "",
            *(f"{part.name:<40} {part.about}" for part in parts),
            "",
            taken_out(self._redactor),
            "",
        ]
        if self.problems:
            lines += ["Not collected:", *(f"- {one}" for one in self.problems), ""]
        return self._text("README.txt", "the contents, and what was removed", "\n".join(lines))

    # making them

    def _json(self, name: str, about: str, value: Any) -> BundleFile:
        plain = self._redactor.value(msgspec.to_builtins(value, enc_hook=_plain))
        text = json.dumps(plain, indent=1, ensure_ascii=False, default=str)
        return BundleFile(name=name, about=about, content=_bytes([text]))

    def _text(self, name: str, about: str, text: str) -> BundleFile:
        return BundleFile(name=name, about=about, content=_bytes([self._redactor.text(text)]))


def write(parts: list[BundleFile], target: Path, stem: str) -> int:
    """Write the parts into one archive, readable by its owner only; its size in bytes.

    Raises FileExistsError, OSError.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            pack(parts, file, stem)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def pack(parts: list[BundleFile], file: IO[bytes], stem: str) -> None:
    """Write the parts as one archive, in a folder of this name."""
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for part in parts:
            entry = tarfile.TarInfo(f"{stem}/{part.name}")
            entry.size, entry.mode, entry.mtime = len(part.content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(part.content))


def taken_out(redactor: Redactor) -> str:
    if not redactor.taken:
        return "It contained no secrets or prompts."
    kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(redactor.taken.items()))
    return f"Removed: {kinds}."


def contents(parts: list[BundleFile]) -> list[tuple[str, str, str]]:
    """Name, size and meaning of each part, those of one folder together."""
    rows: list[tuple[str, str, str]] = []
    for folder, group in itertools.groupby(
        parts, key=lambda part: part.name.rpartition("/")[0].partition("/")[0]
    ):
        members = list(group)
        if not folder:
            rows += [(one.name, format_size(len(one.content)), one.about) for one in members]
            continue
        size = format_size(sum(len(one.content) for one in members))
        rows.append((f"{folder}/ ({len(members)} files)", size, members[0].about))
    return rows


def _tail(file: Path, limit: int) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - limit))
            return opened.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else str(value)


def _bytes(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
