"""Publishing to one repository on one OCI registry: the missing blobs, then a manifest.

Always to the registry itself, never to a mirror. Nothing is retried here except after an expired token: the
caller decides about retries, and existing blobs are not sent again. OCI distribution specification 1.1,
monolithic uploads.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.references import digest_of
from greenroom.runner.registry.client import Endpoint, Registry
from greenroom.runner.threads import TookTooLong, bounded

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse


_CHUNK = 256 * 1024
_ANSWER = 4_096
"""Bytes of a response to read."""
_ANSWER_SECONDS = 10.0

OnBytes = Callable[[int], None]
"""Receives how many more bytes were sent; negative if some must be sent again. May raise to abort."""


class Repository(Registry):
    """One repository to write to. Thread-safe."""

    actions = "pull,push"

    @property
    def _itself(self) -> Endpoint:
        return self._endpoints[-1]

    @property
    def _base(self) -> str:
        return self._itself.repository(self.repository)

    def has(self, digest: str) -> bool:
        """Whether the repository has a blob.

        Raises:
            JobFailed: The registry does not say.
        """
        status, _, _ = self._ask("HEAD", f"{self._base}/blobs/{digest}")
        if status in (200, 404):
            return status == 200
        raise self._not_written(status, b"")

    def mount(self, digest: str, source: str) -> bool:
        """Mount a blob from another repository of the registry; False if it does not do that."""
        query = urlencode({"mount": digest, "from": source})
        status, body, _ = self._ask("POST", f"{self._base}/blobs/uploads/?{query}")
        # Accepted means not mounted; the upload it opened is left to time out.
        if status in (201, 202):
            return status == 201
        raise self._not_written(status, body)

    def send(self, path: Path, digest: str, size: int, on_bytes: OnBytes) -> None:
        """Upload a file as a blob.

        Raises:
            JobFailed: The registry refuses it, or the connection broke.
            OSError: The file cannot be read.
        """
        for last in (False, True):
            status, body, headers = self._ask("POST", f"{self._base}/blobs/uploads/")
            place = headers.get("Location", "")
            if status != 202 or not place:
                raise self._not_written(status, body)
            place = urljoin(f"{self._base}/blobs/uploads/", place)
            place += ("&" if urlsplit(place).query else "?") + urlencode({"digest": digest})
            with _Counted(io.FileIO(path), on_bytes) as counted:
                status, body, answered = self._exchange(
                    "PUT", place, counted, size, "application/octet-stream"
                )
                if status == 201:
                    return
                counted.take_back()
            if status != 401 or last:
                raise self._not_written(status, body)
            with self._lock:
                self._authorize(self._itself, answered.get("WWW-Authenticate", ""))

    def publish(self, manifest: bytes, media_type: str, tag_or_digest: str) -> None:
        """Put a manifest under a tag, after all its blobs.

        Raises:
            JobFailed: The registry refuses it, or stores another one.
        """
        url = f"{self._base}/manifests/{tag_or_digest}"
        status, body, headers = self._ask("PUT", url, manifest, media_type)
        if status not in (200, 201):
            raise self._not_written(status, body)
        said = headers.get("Docker-Content-Digest", "")
        if said.startswith("sha256:") and said != digest_of(manifest):
            raise JobFailed.permanent(
                "hash_mismatch",
                f"{self.host} has stored a different manifest of {self.repository}.",
                advice="Its owner should investigate.",
                detail=f"sent {digest_of(manifest)}, stored {said}",
            )

    def _ask(
        self, method: str, url: str, body: bytes = b"", kind: str = ""
    ) -> tuple[int, bytes, Mapping[str, str]]:
        for last in (False, True):
            answer = self._exchange(method, url, body, len(body), kind)
            if answer[0] != 401 or last:
                break
            with self._lock:
                self._authorize(self._itself, answer[2].get("WWW-Authenticate", ""))
        return answer

    def _exchange(
        self, method: str, url: str, body: bytes | _Counted, size: int, kind: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {"Content-Type": kind} if kind else {}
        if method != "HEAD":
            headers["Content-Length"] = str(size)
        # Uploads may go to another host, which gets the bytes but not our credentials.
        if urlsplit(url)[:2] == urlsplit(self._base)[:2]:
            headers |= self._authorized(self._itself)
        if isinstance(body, bytes):
            found = self._web.fetch(
                url, headers=headers, method=method, body=body, anonymous=True, limit=_ANSWER
            )
            return found.status, found.body, found.headers
        response = self._web.send(url, headers=headers, method=method, body=body, anonymous=True)
        try:
            return response.status, _answer_of(response), response.headers
        finally:
            response.close()

    def _not_written(self, status: int, body: bytes) -> JobFailed:
        detail = f"HTTP status {status}: {body[:1_000].decode('utf-8', 'replace')}"
        if status in (401, 403):
            return JobFailed.permanent(
                "unauthorized",
                f"{self.host} does not let us write to {self.repository}.",
                advice=f"Log in with `docker login {self.host}` as a user with write access.",
                detail=detail,
            )
        if status in (405, 415):
            return JobFailed.permanent(
                "refused", f"{self.host} does not accept models: it is read-only, or too old.", detail=detail
            )
        if status in (413, 507):
            return JobFailed.permanent(
                "no_space", f"{self.host} has no room for {self.repository}.", detail=detail
            )
        return self._refused(self._itself, status, body)


def _answer_of(response: BaseHTTPResponse) -> bytes:
    """The registry's response to an upload; the status is what matters, so it may be truncated."""
    from urllib3.exceptions import HTTPError

    try:
        return bounded(
            lambda: response.read(_ANSWER),
            name="registry-answer",
            seconds=_ANSWER_SECONDS,
            left=response.shutdown,
        )
    except (HTTPError, OSError, TookTooLong):
        return b""


class _Counted(io.BufferedReader):
    """A file that reports how much of it has been read, and can be read again after a redirect."""

    def __init__(self, file: io.FileIO, on_bytes: OnBytes) -> None:
        super().__init__(file, _CHUNK)
        self._on_bytes = on_bytes
        self._told = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._told += len(data)
        self._on_bytes(len(data))
        return data

    def seek(self, target: int, whence: int = 0, /) -> int:
        self.take_back()
        return super().seek(target, whence)

    def take_back(self) -> None:
        """What was sent no longer counts."""
        told, self._told = self._told, 0
        self._on_bytes(-told)
