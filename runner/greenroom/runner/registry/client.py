"""One repository on one OCI registry: manifests, tags and blobs, with tokens, mirrors and redirects.

Nothing is retried here: the caller decides about retries, where they are seen and counted. Every manifest is
checked against its digest; blobs are streams, to be checked by the caller. OCI distribution specification
1.1; tokens as in distribution's `auth/token` and `auth/oauth`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.references import digest_of
from greenroom.runner.registry.credentials import Credentials, credentials_for
from greenroom.runner.setting_values import RegistrySettings

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from greenroom.runner.installations.web import Web
    from greenroom.runner.models.references import Reference

log = logging.getLogger(__name__)

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

_LIMIT = 4 * 2**20
"""Maximum bytes of a manifest, as registries must accept them by the specification."""
_TAG_PAGES = 50
_TAG_SECONDS = 120.0
"""After this no further page is requested."""
_CHALLENGE = re.compile(r'\b(bearer|basic)\b((?:\s*,?\s*[a-z_]+=(?:"[^"]*"|[^\s,"]+))*)', re.IGNORECASE)
_DETAIL = re.compile(r'([a-z_]+)=(?:"([^"]*)"|([^\s,"]+))', re.IGNORECASE)
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')

T = TypeVar("T")


class Registry:
    """One repository. Thread-safe."""

    actions = "pull"
    """What tokens are requested for."""

    def __init__(
        self,
        web: Web,
        reference: Reference,
        *,
        token: str = "",
        settings: Mapping[str, RegistrySettings] | None = None,
        environment: Mapping[str, str] | None = None,
        thing: str = "model",
    ) -> None:
        """Args:
        token: A bearer token from the caller, used before any other credentials.
        settings: Mirrors and insecure registries.
        environment: Instead of the process's own.
        thing: What is looked for, for messages.
        """
        environment = os.environ if environment is None else environment
        self.host = reference.registry
        self.repository = reference.repository
        self._endpoints = endpoints_of(self.host, settings, environment)
        self._web = web
        self._given = token
        self._environment = environment
        self._thing = thing
        self._lock = threading.RLock()
        self._now = 0
        """The endpoint that answered, which is used from then on."""
        self._authorizations: dict[Endpoint, str] = {}
        if token:
            # Meant for the named registry, not for a mirror.
            self._authorizations[self._endpoints[-1]] = f"Bearer {token}"

    @property
    def base(self) -> str:
        """The repository's URL at the endpoint that answered."""
        return self._endpoints[self._now].repository(self.repository)

    def manifest(self, tag_or_digest: str) -> bytes:
        """The bytes of a manifest or an index.

        Raises:
            JobFailed: It does not exist, may not be read, or does not match its digest.
        """
        return self._anywhere(lambda endpoint: self._manifest(endpoint, tag_or_digest))

    def tags(self) -> list[str]:
        """All tags of the repository, up to a number of pages.

        Raises:
            JobFailed: They cannot be listed.
        """
        return self._anywhere(lambda endpoint: list(self._tags(endpoint)))

    def blob(self, digest: str, offset: int = 0) -> BaseHTTPResponse:
        """A blob from an offset on, unread: status 200 (all of it), 206, or 416 (nothing there).

        Redirects are followed without our credentials; an expired token is renewed.

        Raises:
            JobFailed: It does not exist or may not be read.
        """
        return self._anywhere(lambda endpoint: self._blob(endpoint, digest, offset), begin=self._now)

    def small_blob(self, digest: str) -> bytes:
        """A blob no larger than a manifest, such as a configuration; not checked.

        Raises:
            JobFailed: It does not exist, may not be read, is too large, or does not come in time.
        """
        return self._anywhere(lambda endpoint: self._small_blob(endpoint, digest), begin=self._now)

    def refused(self, status: int, body: bytes) -> JobFailed:
        return self._refused(self._endpoints[self._now], status, body)

    def unreachable(self, error: Exception) -> JobFailed:
        return self._web.failure(self.base, error)

    def _anywhere(self, work: Callable[[Endpoint], T], *, begin: int = 0) -> T:
        """Try each endpoint in turn; a failing mirror is skipped and logged."""
        for number, endpoint in enumerate(self._endpoints[begin:], begin):
            try:
                found = work(endpoint)
            except JobFailed as failed:
                if not endpoint.mirror:
                    raise
                log.warning("the mirror %s of %s is skipped: %s", endpoint.name, self.host, failed)
            else:
                self._now = number
                return found
        raise AssertionError("the registry itself is always the last endpoint")

    def _manifest(self, endpoint: Endpoint, tag_or_digest: str) -> bytes:
        url = f"{endpoint.repository(self.repository)}/manifests/{tag_or_digest}"
        status, body, headers = self._read(endpoint, url, {"Accept": ", ".join((*MANIFESTS, *INDEXES))})
        if status != 200:
            raise self._refused(endpoint, status, body, tag_or_digest)
        said = headers.get("Docker-Content-Digest", "")
        pinned = tag_or_digest if tag_or_digest.startswith("sha256:") else said
        if pinned.startswith("sha256:") and digest_of(body) != pinned:
            raise JobFailed.permanent(
                "hash_mismatch",
                f"{endpoint.name} sent a manifest of {self.repository} that does not match its digest.",
                advice="Do not use that registry until its owner has investigated.",
                detail=f"expected {pinned}, got {digest_of(body)}",
            )
        return body

    def _tags(self, endpoint: Endpoint) -> Iterator[str]:
        url = f"{endpoint.repository(self.repository)}/tags/list?n=1000"
        deadline = time.monotonic() + _TAG_SECONDS
        for _ in range(_TAG_PAGES):
            if time.monotonic() > deadline:
                return
            status, body, headers = self._read(endpoint, url, {"Accept": "application/json"})
            if status != 200:
                raise self._refused(endpoint, status, body)
            try:
                names = json.loads(body).get("tags") or []
            except (ValueError, AttributeError, RecursionError):
                raise self._nonsense(endpoint) from None
            yield from (name for name in names if isinstance(name, str))
            following = _NEXT.search(headers.get("Link", ""))
            if following is None:
                return
            further = urljoin(url, following[1])
            # Only the same server receives our credentials.
            if urlsplit(further)[:2] != urlsplit(url)[:2]:
                return
            url = further

    def _blob(self, endpoint: Endpoint, digest: str, offset: int) -> BaseHTTPResponse:
        url = f"{endpoint.repository(self.repository)}/blobs/{digest}"
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        response = self._open(url, {**self._authorized(endpoint), **wanted})
        if response.status == 401:
            challenge = response.headers.get("WWW-Authenticate", "")
            response.close()
            with self._lock:
                self._authorize(endpoint, challenge)
            response = self._open(url, {**self._authorized(endpoint), **wanted})
        if response.status == 206:
            start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if start != str(offset):
                response.close()
                raise self._nonsense(endpoint)
        elif response.status not in (200, 416):
            status = response.status
            response.close()
            raise self._refused(endpoint, status, b"", digest)
        return response

    def _small_blob(self, endpoint: Endpoint, digest: str) -> bytes:
        url = f"{endpoint.repository(self.repository)}/blobs/{digest}"
        status, body, _ = self._read(endpoint, url, {})
        if status != 200:
            raise self._refused(endpoint, status, body, digest)
        return body

    def _read(
        self, endpoint: Endpoint, url: str, headers: Mapping[str, str]
    ) -> tuple[int, bytes, Mapping[str, str]]:
        status, body, answered = self._send(url, {**headers, **self._authorized(endpoint)})
        if status == 401:
            with self._lock:
                self._authorize(endpoint, answered.get("WWW-Authenticate", ""))
            status, body, answered = self._send(url, {**headers, **self._authorized(endpoint)})
        return status, body, answered

    def _authorized(self, endpoint: Endpoint) -> dict[str, str]:
        authorization = self._authorizations.get(endpoint, "")
        return {"Authorization": authorization} if authorization else {}

    def _authorize(self, endpoint: Endpoint, challenge: str) -> None:
        """Answer a challenge with the password, or with a token obtained for it."""
        challenges = {
            kind.lower(): {name.lower(): quoted or bare for name, quoted, bare in _DETAIL.findall(details)}
            for kind, details in _CHALLENGE.findall(challenge)
        }
        given = "" if endpoint.mirror else self._given
        known = Credentials() if given else credentials_for(endpoint.name, self._environment)
        details = challenges.get("bearer")
        if details is not None and self._may_learn(endpoint, details.get("realm", "")):
            self._authorizations[endpoint] = f"Bearer {self._token(endpoint, details, known, given)}"
        elif "basic" in challenges and known.password:
            self._authorizations[endpoint] = known.basic()
        else:
            raise self._refused(endpoint, 401, challenge.encode())

    def _token(self, endpoint: Endpoint, details: Mapping[str, str], known: Credentials, given: str) -> str:
        realm = details["realm"]
        # Mirrors may keep the repository below a path.
        name = f"{urlsplit(endpoint.base).path}/{self.repository}".strip("/")
        scope = f"repository:{name}:{self.actions}"
        query = {"service": details.get("service", ""), "scope": scope}
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
            headers = {"Authorization": f"Bearer {given}"} if given else {}
            headers |= {"Authorization": known.basic()} if known else {}
            joined = "&" if urlsplit(realm).query else "?"
            status, body, _ = self._send(f"{realm}{joined}{urlencode(query)}", headers)
        if status != 200:
            raise self._refused(endpoint, status, body)
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token or not token.isprintable():
            raise self._nonsense(endpoint)
        return token

    def _may_learn(self, endpoint: Endpoint, realm: str) -> bool:
        """Credentials go to a token server only over TLS, or over HTTP if the registry itself is insecure."""
        parts = urlsplit(realm)
        if parts.scheme == "https":
            return True
        return parts.scheme == "http" and endpoint.base.startswith("http://")

    def _open(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        # The user's pip settings and ~/.netrc are not meant for registries.
        return self._web.send(url, headers=headers, anonymous=True)

    def _send(
        self, url: str, headers: Mapping[str, str], *, body: bytes | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        method = "POST" if body is not None else "GET"
        found = self._web.fetch(url, headers=headers, method=method, body=body, anonymous=True, limit=_LIMIT)
        answer = found.body
        if len(answer) > _LIMIT:
            raise JobFailed.permanent(
                "bad_answer", f"{urlsplit(url).netloc} sent more than the largest possible manifest."
            )
        return found.status, answer, found.headers

    def _nonsense(self, endpoint: Endpoint) -> JobFailed:
        return JobFailed.transient(
            "bad_answer", f"{endpoint.name} sent an answer that no registry would send."
        )

    def _refused(self, endpoint: Endpoint, status: int, body: bytes, wanted: str = "") -> JobFailed:
        host = endpoint.name
        name, login = f"{host}/{self.repository}", f"`docker login {host}`"
        if wanted:
            name += f"@{wanted}" if ":" in wanted else f":{wanted}"
        detail = f"HTTP status {status}: {body[:1_000].decode('utf-8', 'replace')}"
        permanent = partial(JobFailed.permanent, detail=detail)
        transient = partial(JobFailed.transient, detail=detail)
        if status in (401, 403):
            message = f"{host} does not let us read {self.repository}: it is private, or does not exist."
            return permanent("unauthorized", message, advice=f"Check the name, or log in with {login}.")
        if status == 404:
            message = f"There is no such {self._thing} on {host}: {name}."
            return permanent("not_found", message, advice="Check name and tag.")
        if status == 429:
            message = f"{host} limits our requests for now."
            return transient("rate_limited", message, advice=f"Log in with {login} for a higher limit.")
        if status >= 500:
            return transient("unreachable", f"{host} has a problem (HTTP status {status}).")
        return permanent("refused", f"{host} refused the request (HTTP status {status}).")


# the servers of a registry: its mirrors first, then itself

_HUB = "docker.io"
_HUB_ADDRESS = "registry-1.docker.io"


@dataclass(frozen=True)
class Endpoint:
    base: str
    """`scheme://host[:port]`, and for mirrors their base path."""
    name: str
    """Its name in Docker's configuration of credentials: `host[:port]`."""
    mirror: bool = False

    def repository(self, repository: str) -> str:
        parts = urlsplit(self.base)
        return f"{parts.scheme}://{parts.netloc}/v2{parts.path}/{repository}"


def endpoints_of(
    registry: str,
    settings: Mapping[str, RegistrySettings] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Endpoint, ...]:
    """The servers to ask for a registry's (`host[:port]`) content, in order; itself last."""
    settings = settings or {}
    environment = os.environ if environment is None else environment
    own = settings.get(registry, RegistrySettings())
    found = [_mirror(text, settings, environment) for text in own.mirrors]
    scheme = _scheme(registry, settings, environment)
    address = _HUB_ADDRESS if registry == _HUB else registry
    return (*found, Endpoint(f"{scheme}://{address}", registry))


def _mirror(text: str, settings: Mapping[str, RegistrySettings], environment: Mapping[str, str]) -> Endpoint:
    scheme, separator, rest = text.partition("://")
    if not separator:
        rest = text
    host, _, path = rest.partition("/")
    scheme = scheme.lower() if separator else _scheme(host, settings, environment)
    path = path.strip("/")
    return Endpoint(f"{scheme}://{host}" + (f"/{path}" if path else ""), host, mirror=True)


def _scheme(host: str, settings: Mapping[str, RegistrySettings], environment: Mapping[str, str]) -> str:
    """Plain HTTP if configured, and for local addresses, as in Docker."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    near = name == "localhost" or name.endswith(".local") or name.startswith("127.") or name == "[::1]"
    said = settings.get(host, RegistrySettings()).insecure
    everywhere = environment.get("INSECURE_REGISTRY", "").lower() in ("1", "t", "true")
    return "http" if near or said or everywhere else "https"
