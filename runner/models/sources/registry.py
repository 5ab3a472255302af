"""The part of an OCI registry's API that models need: manifests, blobs' addresses, and the token dance.

Ours, since the Python clients (oras, docker) either keep whole layers in memory or cannot resume, and the
rest is four requests. OCI distribution specification 1.1; token flow as in distribution's `auth/token`.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from greenroom.runner.failures import JobFailed
from greenroom.runner.models.manifest import MANIFEST, digest_of
from greenroom.runner.models.references import Reference
from greenroom.runner.models.sources.credentials import Credentials, credentials_for

if TYPE_CHECKING:
    from greenroom.runner.installations.web import Web

_LIMIT = 4 * 2**20
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')


class Registry:
    """One repository on one registry. Thread-safe."""

    def __init__(
        self, web: Web, reference: Reference, *, token: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        """`token` is a bearer token the caller has; it goes before any other credentials."""
        environment = os.environ if environment is None else environment
        self.host = reference.registry
        self.repository = reference.repository
        address = "registry-1.docker.io" if self.host == "docker.io" else self.host
        self.base = f"{_scheme(self.host, environment)}://{address}/v2/{self.repository}"
        self._web = web
        self._given = token
        self._environment = environment
        self._lock = threading.Lock()
        self._authorization = f"Bearer {token}" if token else ""

    def manifest(self, tag_or_digest: str) -> bytes:
        """The bytes of a manifest.

        Raises:
            JobFailed: it is not there, may not be read, or is not what its digest says.
        """
        url = f"{self.base}/manifests/{tag_or_digest}"
        status, body, headers = self._send(url, {"Accept": MANIFEST, **self.headers()})
        if status == 401:
            self.authorize(headers.get("WWW-Authenticate", ""))
            status, body, headers = self._send(url, {"Accept": MANIFEST, **self.headers()})
        if status != 200:
            raise self.refused(status, body)
        found, said = digest_of(body), headers.get("Docker-Content-Digest", "")
        pinned = tag_or_digest if tag_or_digest.startswith("sha256:") else said
        if pinned.startswith("sha256:") and found != pinned:
            raise JobFailed.permanent(
                "hash_mismatch",
                f"{self.host} sent a manifest of {self.repository} that is not the one it names.",
            )
        return body

    def headers(self) -> dict[str, str]:
        """What a request for a blob must carry."""
        return {"Authorization": self._authorization} if self._authorization else {}

    def renewed(self) -> dict[str, str]:
        """The same after the token has run out."""
        with self._lock:
            status, body, headers = self._send(f"{self.base}/manifests/none", {})
            if status != 401:
                return self.headers()
            self._given = ""
            try:
                self.authorize(headers.get("WWW-Authenticate", ""))
            except JobFailed:
                raise self.refused(401, body) from None
            return self.headers()

    def authorize(self, challenge: str) -> None:
        """Answer a registry's challenge: with the password itself, or with a token got for it.

        Raises:
            JobFailed: it does not want us.
        """
        kind, _, rest = challenge.partition(" ")
        known = Credentials() if self._given else credentials_for(self.host, self._environment)
        if kind.lower() == "basic" and known:
            self._authorization = known.basic()
            return
        details = dict(_CHALLENGE.findall(rest))
        realm = details.get("realm", "")
        if kind.lower() != "bearer" or not self._may_learn(realm):
            raise self.refused(401, b"")
        query = {"service": details.get("service", ""), "scope": f"repository:{self.repository}:pull"}
        if known.identity_token:
            # In the body: URLs end up in logs.
            form = query | {
                "grant_type": "refresh_token",
                "refresh_token": known.identity_token,
                "client_id": "greenroom",
            }
            kinds = {"Content-Type": "application/x-www-form-urlencoded"}
            status, body, _ = self._send(realm, kinds, body=urlencode(form).encode())
        else:
            headers = {"Authorization": f"Bearer {self._given}"} if self._given else {}
            headers |= {"Authorization": known.basic()} if known else {}
            status, body, _ = self._send(f"{realm}?{urlencode(query)}", headers)
        if status != 200:
            raise self.refused(status, body)
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token:
            raise self.refused(401, body)
        self._authorization = f"Bearer {token}"

    def refused(self, status: int, body: bytes) -> JobFailed:
        """What a status that is no success means for the user."""
        name = f"{self.host}/{self.repository}"
        detail = f"HTTP status {status}: {body[:1_000].decode('utf-8', 'replace')}"
        if status in (401, 403):
            return JobFailed.permanent(
                "unauthorized",
                f"{self.host} does not let us read {self.repository}: it is private, or does not exist.",
                advice=f"Check the name, or log in with `docker login {self.host}`.",
                detail=detail,
            )
        if status == 404:
            return JobFailed.permanent(
                "not_found",
                f"There is no such model on {self.host}: {name}.",
                advice="Check name and tag.",
                detail=detail,
            )
        if status == 429:
            return JobFailed.transient(
                "rate_limited",
                f"{self.host} asks to slow down.",
                advice=f"Log in with `docker login {self.host}` to be let through sooner.",
                detail=detail,
            )
        if status >= 500:
            return JobFailed.transient(
                "unreachable", f"{self.host} has a problem (HTTP status {status}).", detail=detail
            )
        return JobFailed.permanent(
            "refused", f"{self.host} refused the request (HTTP status {status}).", detail=detail
        )

    def _may_learn(self, realm: str) -> bool:
        """Credentials go to a token server over TLS, or to one that is as near as an insecure registry."""
        parts = urlsplit(realm)
        if parts.scheme == "https":
            return True
        return parts.scheme == "http" and self.base.startswith("http://")

    def _send(
        self, url: str, headers: Mapping[str, str], *, body: bytes | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        response = self._web.send(url, headers=headers, method="POST" if body else "GET", body=body)
        try:
            answer = response.read(_LIMIT + 1)
        except Exception as error:
            raise self._web.failure(url, error) from error
        finally:
            response.close()
        if len(answer) > _LIMIT:
            raise JobFailed.permanent("bad_answer", f"{self.host} sent more than any manifest may hold.")
        return response.status, answer, response.headers


def _scheme(host: str, environment: Mapping[str, str]) -> str:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    near = name == "localhost" or name.endswith(".local") or name.startswith("127.") or name == "[::1]"
    insecure = environment.get("INSECURE_REGISTRY", "").lower() in ("1", "t", "true")
    return "http" if near or insecure else "https"
