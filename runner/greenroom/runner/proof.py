"""How a daemon proves that it serves a data directory: by knowing the secret in it, without revealing it.

A client sends a challenge; the answer is a hash over the secret, the challenge and the address at which the
daemon was reached. Another user of this machine may listen at our daemon's address, and even pass challenges
on to it: without the secret, or at another address, the answer is wrong.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

CHALLENGE = "Greenroom-Challenge"
"""The request header of `GET /livez` that asks for a proof."""
_FILE = "secret"
_BYTES = 32
_LONGEST = 128
"""Maximum characters of a challenge."""


def make_challenge() -> str:
    return os.urandom(_BYTES).hex()


def prove(secret: bytes, challenge: str, address: str) -> str:
    """The answer to a challenge, given at `host:port`; empty if it cannot be given."""
    if not secret or not 0 < len(challenge) <= _LONGEST or not challenge.isalnum():
        return ""
    return hmac.digest(secret, f"greenroom {challenge} {address}".encode(), "sha256").hex()


def is_proof(answer: object, secret: bytes, challenge: str, address: str) -> bool:
    """Whether the answer comes from a process that knows the secret."""
    expected = prove(secret, challenge, address)
    if not expected or not isinstance(answer, str):
        return False
    return hmac.compare_digest(answer.encode("utf-8", "replace"), expected.encode())


def read_secret(home: Path) -> bytes:
    """A data directory's secret; empty if there is none, or it is unreadable."""
    try:
        return (home / _FILE).read_bytes().strip()
    except OSError:
        return b""


def keep_secret(home: Path) -> bytes:
    """A data directory's secret, created if there is none or others could read it. Raises OSError."""
    file = home / _FILE
    try:
        with file.open("rb") as open_file:
            is_private = not os.fstat(open_file.fileno()).st_mode & 0o077
            secret = open_file.read().strip()
        if is_private and len(secret) >= _BYTES:
            return secret
    except FileNotFoundError:
        pass
    secret = os.urandom(_BYTES).hex().encode()
    write_privately(file, secret + b"\n")
    return secret


def write_privately(file: Path, content: bytes) -> None:
    """Replace a file by one that only its owner may read, whatever the umask. Raises OSError."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # a leftover file may have another mode
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    fresh.replace(file)


def address_of(name: object) -> str:
    """`host:port` of a socket's end, from `getsockname`; empty for other kinds of sockets."""
    if isinstance(name, tuple) and len(name) >= 2:
        return f"{str(name[0]).partition('%')[0]}:{name[1]}"
    return ""


def instance_id(home: Path) -> str:
    """The id by which clients know this data directory; created once."""
    file = home / "instance"
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        text = ""
    if not text:
        text = os.urandom(16).hex()
        write_privately(file, f"{text}\n".encode())
    return text
