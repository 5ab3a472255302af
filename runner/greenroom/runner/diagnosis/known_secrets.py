"""The secrets that this machine's settings hold, so that they can be found wherever they turn up."""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from greenroom.runner.config import Settings
from greenroom.runner.diagnosis.redaction import Redactor, is_secret_name
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.remote_settings import NoKey, RemoteBackend
from greenroom.runner.user_home import user_home

_DOCKER = ("auth", "password", "identitytoken", "registrytoken")


def redactor_here(settings: Settings) -> Redactor:
    """One that knows this machine's secrets, and the keys of the backends of `settings`."""
    home = user_home()
    return Redactor(known_secrets(os.environ, home) | set(_keys(settings)), home=home)


def _keys(settings: Settings) -> Iterator[str]:
    for backend in settings.backends.values():
        if isinstance(backend, RemoteBackend) and backend.key is not None:
            with contextlib.suppress(NoKey):
                yield backend.key.read()


def known_secrets(environment: Mapping[str, str], home: Path) -> set[str]:
    """From the environment, and from the files of Hugging Face, netrc, Docker, pip and uv.

    What cannot be read is left out; it cannot have been used either.
    """
    found: set[str] = set()
    for name, value in environment.items():
        if is_secret_name(name):
            found.add(value)
        found |= _in_urls(value)
    found |= _of_hugging_face(environment, home)
    for line in _lines(Path(environment.get("NETRC") or home / ".netrc")):
        words = itertools.pairwise(line.split())
        found |= {value for word, value in words if word in ("password", "account")}
    found |= _of_docker(Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    found |= _of_packages(environment, home)
    # What names a file that holds a secret is none itself, and is in every other line of a log.
    return {one.strip() for one in found if one.strip() and not (one[0] in "~/" and os.path.exists(one))}


def _in_urls(value: str) -> set[str]:
    found = set()
    for word in value.split():
        with contextlib.suppress(ValueError):
            parts = urlsplit(word)
            # A token stands alone where others write their name.
            secret = parts.password or (parts.username if "@" in parts.netloc else "")
            if secret:
                found |= {secret, unquote(secret)}
    return found


def _of_hugging_face(environment: Mapping[str, str], home: Path) -> set[str]:
    folder = Path(environment.get("HF_HOME") or home / ".cache" / "huggingface")
    token = Path(environment.get("HF_TOKEN_PATH") or folder / "token")
    found = set(_lines(token))
    for line in _lines(folder / "stored_tokens"):
        name, equals, value = line.partition("=")
        if equals and "token" in name:
            found.add(value.strip())
    return found


def _of_docker(file: Path) -> set[str]:
    try:
        auths = json.loads(file.read_text("utf-8")).get("auths", {})
    except (OSError, ValueError, AttributeError):
        return set()
    found = set()
    for entry in auths.values() if isinstance(auths, dict) else ():
        if not isinstance(entry, dict):
            continue
        found |= {str(entry[name]) for name in _DOCKER if entry.get(name)}
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            found.add(base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")[2])
    return found


def _of_packages(environment: Mapping[str, str], home: Path) -> set[str]:
    sources = PackageSources.discover(environment, home=home)
    found = {value for name, value in sources.secrets.items() if name.endswith("_PASSWORD")}
    settings = [sources.index, *sources.extra_indexes, *sources.find_links, *sources.proxies]
    settings += [sources.proxy] if sources.proxy is not None else []
    for setting in settings:
        found |= _in_urls(setting.value)
    return found


def _lines(file: Path) -> Iterator[str]:
    try:
        text = file.read_text("utf-8", "replace")
    except OSError:
        return
    yield from (line.strip() for line in text.splitlines() if line.strip())
