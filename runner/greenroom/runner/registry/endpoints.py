"""Where a registry is asked: its mirrors first, then itself, each by the scheme it speaks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from greenroom.runner.config import RegistrySettings

DOCKER_HUB = "docker.io"
_HUB_ADDRESS = "registry-1.docker.io"


@dataclass(frozen=True)
class Endpoint:
    """One server that may have a repository."""

    base: str
    """`scheme://host[:port]`, and for mirrors the path below which they keep what they mirror."""
    name: str
    """What Docker's configuration calls it when it keeps credentials for it: `host[:port]`."""
    mirror: bool = False

    def repository(self, repository: str) -> str:
        """The URL below which the API keeps a repository."""
        parts = urlsplit(self.base)
        return f"{parts.scheme}://{parts.netloc}/v2{parts.path}/{repository}"


def endpoints_of(
    registry: str,
    settings: Mapping[str, RegistrySettings] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Endpoint, ...]:
    """The servers to ask for what a registry (`host[:port]`) has, in order; it is itself the last of them."""
    settings = settings or {}
    environment = os.environ if environment is None else environment
    own = settings.get(registry, RegistrySettings())
    found = [_mirror(text, settings, environment) for text in own.mirrors]
    scheme = _scheme(registry, settings, environment)
    address = _HUB_ADDRESS if registry == DOCKER_HUB else registry
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
    """Plain HTTP where the user said so, and on this machine, as Docker does it."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    near = name == "localhost" or name.endswith(".local") or name.startswith("127.") or name == "[::1]"
    said = settings.get(host, RegistrySettings()).insecure
    everywhere = environment.get("INSECURE_REGISTRY", "").lower() in ("1", "t", "true")
    return "http" if near or said or everywhere else "https"
