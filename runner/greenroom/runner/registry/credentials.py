"""Credentials for registries, from Docker's configuration and credential helpers, which are never
modified.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenroom.runner.user_home import user_home

log = logging.getLogger(__name__)

DOCKER_HUB = "https://index.docker.io/v1/"
"""The Hub's name in Docker's configuration."""
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SECONDS = 20.0
_LIMIT = 2**20


@dataclass(frozen=True)
class Credentials:
    """A user name and password, or an identity token in place of both."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.identity_token or (self.user and self.password))

    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def credentials_for(registry: str, environment: Mapping[str, str] | None = None) -> Credentials:
    """What Docker would use for this registry (`host[:port]`): `credHelpers`, `credsStore`, `auths`.

    Names must match exactly, so that each registry only receives its own credentials.
    """
    environment = os.environ if environment is None else environment
    config = _config(environment)
    names = [DOCKER_HUB, "index.docker.io", "docker.io"] if registry == "docker.io" else [registry]
    helpers, auths = _table(config, "credHelpers"), _table(config, "auths")
    for name in names:
        helper = helpers.get(name) or config.get("credsStore")
        if isinstance(helper, str) and (found := _ask_helper(helper, name, environment)):
            return found
    for known, entry in auths.items():
        if _host(known) in {_host(name) for name in names} and isinstance(entry, dict):
            return _decoded(entry)
    return Credentials()


def _config(environment: Mapping[str, str]) -> dict[str, Any]:
    folder = environment.get("DOCKER_CONFIG") or user_home(environment) / ".docker"
    file = Path(folder, "config.json")
    try:
        if file.stat().st_size > _LIMIT:
            return {}
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, so registries are asked without credentials: %s", file, error)
        return {}
    return config if isinstance(config, dict) else {}


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    table = config.get(name)
    return table if isinstance(table, dict) else {}


def _host(name: str) -> str:
    return re.sub(r"^https?://", "", name).partition("/")[0]


def _decoded(entry: dict[str, Any]) -> Credentials:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    try:
        text = base64.b64decode(str(entry.get("auth", "")), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    user, _, password = text.partition(":")
    return Credentials(user or str(entry.get("username", "")), password or str(entry.get("password", "")))


def _ask_helper(helper: str, name: str, environment: Mapping[str, str]) -> Credentials:
    if not _HELPER.fullmatch(helper):
        return Credentials()
    program = f"docker-credential-{helper}"
    try:
        answer = json.loads(_run([program, "get"], name.encode(), environment) or b"{}")
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired) as error:
        log.warning("%s failed: %s", program, type(error).__name__)
        return Credentials()
    if not isinstance(answer, dict):
        return Credentials()
    user, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    # Docker's convention: this user means that the secret is an identity token.
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)


def _run(argv: list[str], asked: bytes, environment: Mapping[str, str]) -> bytes:
    """A helper's output; empty if it refuses. Ends in time with all its children.

    Raises:
        OSError: It cannot be started.
        subprocess.TimeoutExpired: It takes too long, or keeps its output open.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(environment), start_new_session=True
    ) as process:
        try:
            answer, _ = process.communicate(asked, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            # Including its children, which may hold its output open.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
    return answer if process.returncode == 0 else b""
