"""Finds locked files in the user's package sources: simple indexes (PEP 503, PEP 691) and find-links.

The lock says which bytes are wanted, so the order of sources decides nothing but speed: folders first,
then indexes on this machine, then the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from threading import Lock
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import msgspec

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.lock_file import LockedFile
from greenroom.runner.installations.sources import (
    PackageSources,
    Setting,
    is_local,
    local_path,
    without_credentials,
)
from greenroom.runner.installations.web import Web

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class Link:
    """A file offered by a source."""

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

    def __init__(self, sources: PackageSources, web: Web) -> None:
        self._sources = sources
        self._web = web
        self._pages: dict[str, list[Link]] = {}
        self._guard = Lock()

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
        for place in (*self._sources.find_links, *self._sources.indexes):
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
                f"{others[0]} has {file.name}, but not with the contents that this release was tested with.",
                advice="Check that index; it may rebuild packages.",
            )
        asked = [without_credentials(s.value) for s in (*self._sources.find_links, *self._sources.indexes)]
        raise JobFailed.permanent(
            "not_on_index",
            f"{file.name} is not on any of the configured package sources.",
            advice=f"Asked: {', '.join(asked) or 'none'}. These are pip's and uv's own settings.",
        )

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
        page = self._web.read(url, accept=_ACCEPT)
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
        if name.endswith(".whl"):
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
        if entry.name.endswith(".whl"):
            yield Link(entry.name, entry.absolute().as_uri())
