"""Downloads whose every byte is verified: a file enters the store only if its SHA-256 is the locked one.

Files (wheels and image layers) are fetched in parallel, and broken transfers resumed. uv could fetch wheels,
but prints no byte counts without a terminal and restarts a broken file from zero; image layers come the same
way.

`Finder` finds wheels in the user's package sources: simple indexes (PEP 503, PEP 691) and find-links. The
lock says which bytes are wanted, so the order of sources decides nothing but speed: folders first, then
indexes on this machine, then the network.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from threading import Event
from typing import Protocol
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import msgspec
import urllib3

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.lock_file import FileStore, LockedFile, file_sha256
from greenroom.runner.installations.sources import (
    PackageSources,
    Setting,
    is_local,
    local_path,
    without_credentials,
)
from greenroom.runner.installations.web import NOT_HERE, Web
from greenroom.runner.threads import Flag, side_by_side, stop_if

_CHUNK = 256 * 1024
_WORKERS = 8
_TICK = 0.1
_RESUMES = 3
"""How often one attempt resumes a file whose connection broke, as long as each try brings new bytes."""

SILENCE = 300.0
_LEAST = 16_000
"""Bytes that must arrive within `SILENCE` seconds, all files together; less would never finish."""
UNKNOWN_MOST = 16 * 2**30
"""Maximum bytes of a file of unknown size."""
_ROOM_EVERY = 32 * 2**20

OnBytes = Callable[[int, int], None]
"""Receives the bytes present and the bytes of all files."""


class AnyOf:
    def __init__(self, *flags: Flag) -> None:
        self._flags = flags

    def is_set(self) -> bool:
        return any(flag.is_set() for flag in self._flags)


class Origin(Protocol):
    """Where the files of one fetch come from; called on several threads."""

    def local(self, file: LockedFile) -> Path | None:
        """The file's path, if it lies on this machine.

        Raises:
            JobFailed: No source has it.
        """

    def open(self, file: LockedFile, offset: int) -> urllib3.BaseHTTPResponse:
        """The file from an offset on, unread: status 200 (from the start), 206, or 416 (nothing there).

        Raises:
            JobFailed: The file is not available.
        """
        ...

    def broken(self, file: LockedFile, error: Exception) -> JobFailed: ...

    def strange(self, file: LockedFile, detail: str) -> JobFailed: ...


class Fetcher:
    def __init__(
        self, store: FileStore, origin: Origin | PackageSources, *, room: Callable[[], None] | None = None
    ) -> None:
        """`PackageSources` stand for a `PackageOrigin`. `room` is called regularly while files are written,
        and raises when the disk is too full.
        """
        self.store = store
        self._origin: Origin = PackageOrigin(Finder(origin)) if isinstance(origin, PackageSources) else origin
        self._room = room or (lambda: None)

    def fetch(
        self,
        files: Sequence[LockedFile],
        *,
        cancel: Flag | None = None,
        on_bytes: OnBytes | None = None,
        on_file: Callable[[LockedFile], None] | None = None,
    ) -> None:
        """Get all files into the store; blocks.

        Args:
            files: In the order in which to start them.
            cancel: Aborts transfers at once when set; partial files are kept for the next attempt.
            on_bytes: Called at the beginning, at the end, about ten times a second while bytes arrive, and
                once a second while none do.
            on_file: Called for each file once it is in the store, on any thread.

        Raises:
            JobFailed: The first failure of any file; partial files are kept for the next attempt.
            JobCancelled: `cancel` was set.
        """
        transfer = _Transfer(self.store, self._origin, files, on_file or (lambda _: None), self._room)
        transfer.run(cancel or Event(), on_bytes or (lambda *_: None))


class PackageOrigin:
    """The user's package indexes and folders of wheels."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        self._urls: dict[str, str] = {}

    def local(self, file: LockedFile) -> Path | None:
        url = self._urls[file.sha256] = self._finder.find(file)
        return local_path(url) if url.startswith("file:") or is_local(url) else None

    def open(self, file: LockedFile, offset: int) -> urllib3.BaseHTTPResponse:
        url = self._urls[file.sha256]
        response = self._finder.web.open(url, headers={"Range": f"bytes={offset}-"} if offset else {})
        if response.status in NOT_HERE:
            response.close()
            raise JobFailed.permanent(
                "not_on_index",
                f"The package index lists {file.name}, but does not have it (HTTP status {response.status}).",
                advice="Check the index or mirror in pip's or uv's settings.",
            )
        return response

    def tail(self, file: LockedFile, size: int) -> bytes | None:
        """The last bytes of a file; None if its server does not support ranges."""
        url = self._urls.get(file.sha256) or self._finder.find(file)
        if file.size <= size:
            size = file.size
        found = self._finder.web.fetch(url, headers={"Range": f"bytes=-{size}"}, limit=size)
        return found.body if found.status == 206 and len(found.body) == size else None

    def broken(self, file: LockedFile, error: Exception) -> JobFailed:
        return self._finder.web.failure(self._urls[file.sha256], error)

    def strange(self, file: LockedFile, detail: str) -> JobFailed:
        return JobFailed.permanent(
            "hash_mismatch",
            f"{file.name} on the package index is not the file in the lock: its hash differs.",
            advice="Check the package index or proxy that served it; it may rewrite or rebuild packages.",
            detail=detail,
        )


class _Transfer:
    """One call of `fetch`."""

    def __init__(
        self,
        store: FileStore,
        origin: Origin,
        files: Sequence[LockedFile],
        on_file: Callable[[LockedFile], None],
        room: Callable[[], None],
    ) -> None:
        self._room = room
        self._store = store
        self._origin = origin
        self._on_file = on_file
        missing = store.missing(files)
        self._missing = missing
        self._present = [file for file in files if file not in missing]
        self._total = sum(file.size for file in files)
        self._here = {file.sha256: store.arrived(file) for file in files}
        self._stop = Event()
        self._guard = threading.Lock()
        self._open: set[urllib3.BaseHTTPResponse] = set()
        self._ended = 0
        """Files fetched so far."""

    def run(self, cancel: Flag, on_bytes: OnBytes) -> None:
        stop_if(cancel)
        said, said_at = sum(self._here.values()), time.monotonic()
        sign, sign_at = (said, 0), said_at
        on_bytes(said, self._total)
        for file in self._present:
            self._on_file(file)

        def look() -> None:
            nonlocal said, said_at, sign, sign_at
            stop_if(cancel)
            done, now = sum(self._here.values()), time.monotonic()
            if done != said or now - said_at >= 1.0:
                said, said_at = done, now
                on_bytes(min(done, self._total), self._total)
            if self._ended != sign[1] or done - sign[0] >= _LEAST:
                sign, sign_at = (done, self._ended), now
            elif now - sign_at > SILENCE:
                raise _too_slow(done - sign[0])

        calls = [partial(self._one, file) for file in self._missing]
        # Not a moment to end: an attempt to connect cannot be interrupted, and delays nothing.
        side_by_side(calls, _WORKERS, "fetch", tick=look, halt=self._halt, patience=0.0)
        stop_if(cancel)
        if said != self._total:
            on_bytes(self._total, self._total)

    def _halt(self) -> None:
        """Wake all threads that wait for bytes; those still connecting find `_stop` set afterwards."""
        self._stop.set()
        with self._guard:
            for response in self._open:
                with suppress(OSError, ValueError, RuntimeError, NotImplementedError):
                    response.shutdown()

    def _one(self, file: LockedFile) -> None:
        lock = self._store.only_one(file)
        while not lock.acquire(timeout=_TICK):
            if self._stop.is_set():
                return
            # Another job is fetching it; its bytes count too.
            self._here[file.sha256] = self._store.arrived(file)
        try:
            if not self._store.has(file):
                self._bring(file)
            self._here[file.sha256] = file.size
            if self._store.has(file):
                self._on_file(file)
        except OSError as error:
            raise os_failure(error, "A package could not be stored") from error
        finally:
            self._ended += 1
            lock.release()

    def _bring(self, file: LockedFile) -> None:
        part = self._store.part(file)
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = False
        if (here := self._origin.local(file)) is not None:
            digest = self._copy(file, here, part)
        else:
            digest, resumed = self._download(file, part)
        if self._stop.is_set():
            return
        if digest.hexdigest() != file.sha256:
            part.unlink(missing_ok=True)
            if resumed:
                # An earlier attempt's bytes were never flushed and may be garbage: restart from zero.
                raise JobFailed.transient(
                    "cache_damaged",
                    f"A partial download of {file.name} was damaged and has been removed.",
                    advice="The next attempt fetches it again.",
                )
            raise self._origin.strange(file, f"expected sha256 {file.sha256}, got {digest.hexdigest()}")
        target = self._store.path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def _copy(self, file: LockedFile, here: Path, part: Path) -> hashlib._Hash:
        digest, out = hashlib.sha256(), _Growing(file, self._here, self._room)
        with here.open("rb") as content, part.open("wb") as copy:
            while not self._stop.is_set() and (chunk := content.read(_CHUNK)):
                out.grows(len(chunk))
                copy.write(chunk)
                digest.update(chunk)
        return digest

    def _download(self, file: LockedFile, part: Path) -> tuple[hashlib._Hash, bool]:
        """Download the rest of the file, resuming while each try brings new bytes.

        Returns the hash, and whether some bytes come from an earlier attempt.
        """
        digest = file_sha256(part) if part.exists() else hashlib.sha256()
        resumes = 0
        with part.open("a+b") as out:
            growing = _Growing(file, self._here, self._room, out.seek(0, os.SEEK_END))
            resumed = growing.size > 0
            while not self._stop.is_set() and (growing.size < file.size or not file.size):
                began, broken = growing.size, urllib3.exceptions.HTTPError("the answer ended early")
                response = self._begin(file, began)
                try:
                    if began and response.status != 206:
                        # The server cannot resume: restart from zero.
                        digest, growing.size, resumed = hashlib.sha256(), out.truncate(0), False
                    while not self._stop.is_set() and (chunk := response.read1(_CHUNK)):
                        if growing.grows(len(chunk)):
                            part.unlink(missing_ok=True)
                            raise self._origin.strange(file, f"more than {growing.most} bytes")
                        out.write(chunk)
                        digest.update(chunk)
                except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                    broken = (
                        error
                        if isinstance(error, urllib3.exceptions.HTTPError)
                        else urllib3.exceptions.HTTPError(str(error))
                    )
                else:
                    if not file.size:
                        break
                finally:
                    self._close(response)
                resumes += 1
                # Without a size, only the break itself shows that something is missing.
                missing = not file.size or growing.size < file.size
                if missing and (resumes > _RESUMES or growing.size <= began) and not self._stop.is_set():
                    raise self._origin.broken(file, broken)
        return digest, resumed

    def _begin(self, file: LockedFile, offset: int) -> urllib3.BaseHTTPResponse:
        response = self._origin.open(file, offset)
        length = response.headers.get("Content-Length", "")
        expected = file.size - (offset if response.status == 206 else 0)
        if response.status == 416 or (file.size and length.isdigit() and int(length) != expected):
            response.close()
            self._store.part(file).unlink(missing_ok=True)
            raise self._origin.strange(file, f"expected {expected} bytes, not {length or 'fewer'}")
        with self._guard:
            self._open.add(response)
        return response

    def _close(self, response: urllib3.BaseHTTPResponse) -> None:
        with self._guard:
            self._open.discard(response)
        response.close()


class _Growing:
    """A file being written: how much of it there is, and whether the disk has room for more."""

    def __init__(
        self, file: LockedFile, here: dict[str, int], room: Callable[[], None], size: int = 0
    ) -> None:
        self.size = size
        self.most = file.size or UNKNOWN_MOST
        self._sha256 = file.sha256
        self._here = here
        self._room = room
        self._unlooked = _ROOM_EVERY

    def grows(self, more: int) -> bool:
        """Account for bytes about to be written; True when the file exceeds its maximum."""
        self.size += more
        self._unlooked += more
        if self._unlooked > _ROOM_EVERY:
            self._unlooked = 0
            self._room()
        self._here[self._sha256] = self.size
        return self.size > self.most


def _too_slow(came: int) -> JobFailed:
    return JobFailed.transient(
        "unreachable",
        f"Only {came} bytes arrived in {SILENCE:.0f}s.",
        advice="Check the network, and the index or mirror in the settings. Partial downloads are kept.",
    )


_FILES = (".whl", ".tar.gz")
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class Link:
    name: str
    target: str
    """As written on the page."""
    sha256: str = ""
    """Empty if the source gives none."""
    page: str = ""
    """The page's URL if the target is relative to it, else empty."""

    @property
    def url(self) -> str:
        """Absolute: `http(s):`, or `file:` for a local file."""
        return urljoin(self.page, self.target)


class _OnPage(msgspec.Struct, frozen=True, gc=False):
    """A file in a simple index's JSON (PEP 691), with the fields needed here."""

    filename: str
    url: str
    hashes: dict[str, str] | None = None


class _Page(msgspec.Struct, frozen=True):
    files: list[_OnPage]


class Finder:
    """Finds locked files, reading each page once; thread-safe."""

    def __init__(self, sources: PackageSources) -> None:
        self._sources = sources
        self._web: Web | None = None
        self._pages: dict[str, list[Link]] = {}
        self._guard = threading.Lock()

    @property
    def web(self) -> Web:
        """Made when it is first needed: a folder of wheels needs none."""
        with self._guard:
            self._web = self._web or Web(self._sources)
            return self._web

    def find(self, file: LockedFile) -> str:
        """The URL of the wheel with exactly these bytes.

        Raises:
            JobFailed: Permanent when every source answered and none has it; else the first source's failure
                to answer.
        """
        if file.url:
            return file.url
        others: list[str] = []
        unanswered: JobFailed | None = None
        for place in self._sources.places:
            try:
                links = self._links(place, file.project)
            except JobFailed as failed:
                unanswered = unanswered or failed
                continue
            for link in links:
                if link.name != file.name:
                    continue
                if link.sha256 in ("", file.sha256):
                    return link.url
                others.append(without_credentials(place.value))
        if unanswered is not None:
            raise unanswered
        if others:
            raise JobFailed.permanent(
                "hash_mismatch",
                f"{others[0]} has {file.name}, but its hash is not the one in the lock.",
                advice="Check that index; it may rebuild packages.",
            )
        asked = [without_credentials(place.value) for place in self._sources.places]
        raise JobFailed.permanent(
            "not_on_index",
            f"{file.name} is not on any of the configured package sources.",
            advice=f"Asked: {', '.join(asked) or 'none'}. These are pip's and uv's own settings.",
        )

    def links(self, project: str) -> list[Link]:
        """All files of a project, of all sources.

        Raises:
            JobFailed: A source did not answer, and no other has any.
        """
        found: list[Link] = []
        unanswered: JobFailed | None = None
        for place in (*self._sources.find_links, *self._sources.indexes):
            try:
                found += self._links(place, project)
            except JobFailed as failed:
                unanswered = unanswered or failed
        if unanswered is not None and not found:
            raise unanswered
        return found

    def _links(self, place: Setting, project: str) -> list[Link]:
        in_index = place not in self._sources.find_links
        base = place.value.rstrip("/") + "/"
        key = f"{base}{project}/" if in_index else base
        with self._guard:
            if key in self._pages:
                return self._pages[key]
        if is_local(place.value):
            folder = local_path(place.value)
            links = list(_local_index(folder / project) if in_index else _local_links(folder))
        else:
            links = self._remote(f"{base}{project}/" if in_index else place.value)
        with self._guard:
            self._pages[key] = links
        return links

    def _remote(self, url: str) -> list[Link]:
        page = self.web.read(url, accept=_ACCEPT)
        if page is None:
            return []
        text, media, final = page
        try:
            if media.endswith("json"):
                return list(_json_links(text, final))
            return list(_html_links(text, final))
        except (ValueError, msgspec.DecodeError) as error:
            # Captive portals and company proxies answer 200 with a page of their own.
            raise JobFailed.transient(
                "unreachable",
                f"{urlsplit(url).hostname} did not respond like a package index.",
                advice="Check the network and the index address in pip's or uv's settings.",
                detail=f"{without_credentials(url)}: {error}",
            ) from error


def _json_links(text: str, base: str) -> Iterator[Link]:
    # Pages of old projects list thousands of files, of which one is needed.
    for file in msgspec.json.decode(text, type=_Page).files:
        yield Link(file.filename, file.url, (file.hashes or {}).get("sha256", ""), base)


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.base = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "base" and target:
            self.base = target
        elif tag == "a" and target:
            self.links.append(target)


def _html_links(text: str, base: str) -> Iterator[Link]:
    parser = _Anchors()
    parser.feed(text)
    base = urljoin(base, parser.base)
    for target in parser.links:
        url, fragment = urldefrag(urljoin(base, target))
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        if name.endswith(_FILES):
            found = re.search(r"sha256=([0-9a-f]{64})", fragment)
            yield Link(name, url, found[1] if found else "")


def _local_index(folder: Path) -> Iterator[Link]:
    """A project's folder in a local index: a page, or the files themselves."""
    page = folder / "index.html"
    try:
        yield from _html_links(page.read_text(encoding="utf-8"), page.absolute().as_uri())
    except (FileNotFoundError, NotADirectoryError):
        yield from _local_links(folder)


def _local_links(place: Path) -> Iterator[Link]:
    """A local `find-links`: a folder of wheels, or a page."""
    if place.is_file():
        yield from _html_links(place.read_text(encoding="utf-8"), place.absolute().as_uri())
        return
    try:
        entries = sorted(place.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in entries:
        if entry.name.endswith(_FILES):
            yield Link(entry.name, entry.absolute().as_uri())
