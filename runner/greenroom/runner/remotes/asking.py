"""Which models a remote backend has: one request on a connection of its own, bounded in time and bytes.

It blocks, and runs on the watch's thread. Redirects are not followed, and proxies and credentials from other
settings are not used: only what the configuration names is contacted.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import msgspec

from greenroom import __version__
from greenroom.actors.characters import is_line
from greenroom.actors.limits import NAMED, escaped
from greenroom.actors.values import Failure
from greenroom.runner.errors import JobFailed
from greenroom.runner.remote_settings import RemoteBackend
from greenroom.runner.threads import NoThread, TookTooLong, bounded

AGENT = "greenroom-remote"
"""Begins the name by which we ask. A Greenroom that is asked leaves out others' models: they may be ours."""
WITHIN = 10.0
"""Seconds for the whole answer."""
BYTES = 4 * 2**20
"""Of an answer that are read."""
_NAME = 512
"""Characters of a model's name."""
_SAID = 200

_Models = list[dict[str, Any]]


def ask_models(remote: RemoteBackend, key: str) -> tuple[str, ...]:
    """The models that it lists and that are to be shown, by their own names, a thousand at most.

    Raises JobFailed: `unreachable`, `too_slow`, `not_trusted`, `key_refused`, `redirected`, `failing` or
    `no_models`.
    """
    sockets: list[socket.socket] = []

    def hang_up() -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    try:
        status, headers, body = bounded(
            lambda: _exchange(remote, key, sockets), name="remote", seconds=WITHIN, left=hang_up
        )
    except TookTooLong:
        raise JobFailed.transient("too_slow", f"it did not answer within {WITHIN:g}s") from None
    except ssl.SSLError as error:
        raise JobFailed(not_trusted(error)) from error
    except NoThread as error:
        raise JobFailed.transient("no_process", f"no thread could be started to ask it: {error}") from error
    except OSError as error:
        raise JobFailed.transient("unreachable", reason(error)) from error
    except (http.client.HTTPException, ValueError) as error:  # such as a chunk of a negative size
        raise JobFailed.transient("no_models", f"its answer is not HTTP ({type(error).__name__})") from error
    if status != 200:
        raise JobFailed(refused(remote, status, headers.get("Location", "")))
    if len(body) > BYTES:
        raise JobFailed.transient("no_models", f"its list of models has more than {BYTES // 2**20} MiB")
    return tuple(one for one in _listed(body, remote) if not (key and key in one))


def trust(remote: RemoteBackend) -> ssl.SSLContext | None:
    """Which certificates to trust; None without TLS. Reads files; raises OSError, such as SSLError."""
    if not remote.url.startswith("https:"):
        return None
    if remote.ca is not None:
        return ssl.create_default_context(cafile=str(remote.ca))
    import truststore

    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return context


def address(remote: RemoteBackend) -> tuple[str, int]:
    """The host and the port of one that is no unix socket."""
    parts = urlsplit(remote.url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def host_header(remote: RemoteBackend) -> str:
    """What it is called in requests."""
    return "localhost" if remote.url.startswith("unix:") else urlsplit(remote.url).netloc


def reason(error: OSError) -> str:
    """Why it cannot be reached, as a clause."""
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return escaped((error.strerror or str(error) or type(error).__name__).lower(), _SAID)


def not_trusted(error: ssl.SSLError) -> Failure:
    """It speaks no TLS, or its certificate is not trusted."""
    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason or "TLS"
    message = f"its certificate is not trusted: {escaped(str(why), _SAID)}"
    if not isinstance(error, ssl.SSLCertVerificationError):
        message = f"TLS failed: {escaped(str(why), _SAID)}"
    return _failure("not_trusted", message, "Set `ca` to a file with the certificate of its authority.")


def refused(remote: RemoteBackend, status: int, location: str = "") -> Failure:
    """Why it did not answer as asked, by the status of its answer."""
    if status in (401, 403):
        key = remote.key
        if key is None:
            return _failure("key_refused", f"it requires a key (status {status})", "Set api_key.")
        return _failure(
            "key_refused", f"it refused the key (status {status})", f"Check the key: {key.source}."
        )
    if 300 <= status < 400:
        parts = urlsplit(location)
        where = f" to {escaped(f'{parts.scheme}://{parts.hostname}', _SAID)}" if parts.hostname else ""
        return _failure(
            "redirected", f"it redirects{where}, which is not followed", "Set url to where the API is."
        )
    if status == 404:
        return _failure(
            "no_models", f"it has nothing at {remote.path}/models (status 404)", "Check the path of url."
        )
    what = "it is not ready, or overloaded" if status in (429, 503) else "it failed"
    return _failure("failing", f"{what} (status {status})", kind="transient")


def _failure(code: str, message: str, advice: str = "", *, kind: str = "permanent") -> Failure:
    make = JobFailed.transient if kind == "transient" else JobFailed.permanent
    return make(code, message, advice=advice).failure


def _exchange(
    remote: RemoteBackend, key: str, sockets: list[socket.socket]
) -> tuple[int, Mapping[str, str], bytes]:
    if remote.url.startswith("unix:"):
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(WITHIN)
        sockets.append(link)
        link.connect(remote.url.removeprefix("unix:"))
    else:
        link = socket.create_connection(address(remote), timeout=WITHIN)
        sockets.append(link)
        if (context := trust(remote)) is not None:
            link = context.wrap_socket(link, server_hostname=address(remote)[0])
            sockets.append(link)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = link
    headers = {"Host": host_header(remote), "Accept": "application/json", "Connection": "close"}
    headers["User-Agent"] = f"{AGENT}/{__version__}"
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request("GET", f"{remote.path}/models", headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers.items()), answer.read(BYTES + 1)
    finally:
        connection.close()
        link.close()


def _listed(body: bytes, remote: RemoteBackend) -> Iterator[str]:
    try:
        told = msgspec.json.decode(body)
        found = msgspec.convert(told.get("data") if isinstance(told, dict) else told, _Models)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise JobFailed.permanent(
            "no_models",
            "its answer is not a list of models",
            advice="Check url: it must lead to an OpenAI-compatible API, whose path usually ends with /v1.",
        ) from None
    ids = (one.get("id") for one in found)
    names = dict.fromkeys(one for one in ids if isinstance(one, str) and one.strip() == one != "")
    shown = (one for one in names if is_line(one, _NAME))
    fitting = (one for one in shown if any(fnmatchcase(one, pattern) for pattern in remote.models))
    yield from islice(fitting, NAMED)
