"""What an environment is made of, from the arguments of `ensure`. They are checked before it starts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from greenroom.actors.retry import RetryPolicy, given_policy
from greenroom.actors.values import DeclaredEnvironment
from greenroom.runner.backends.base import Environment
from greenroom.runner.environments.errors import BadRequirement
from greenroom.runner.installations.lock_file import normalized
from greenroom.runner.installations.sources import is_local, local_path, redact, without_credentials

_LONGEST = 48
"""The maximum number of characters of a distribution's name in its environment's name."""
_PYTHON = re.compile(r"[\w.][\w.+-]{0,39}")
_MAKE_LOCK = "Make one with: uv pip compile --generate-hashes -o requirements.lock requirements.in"


@dataclass(frozen=True)
class Declaration:
    name: str
    """Identical for identical declarations; the name of its folder and in its events."""
    fact: DeclaredEnvironment
    source: Environment
    policy: RetryPolicy | None
    """When to retry a failed attempt; None for the policy of backends."""


def declaration_of(
    requirement: str,
    python: str | os.PathLike[str] | None = None,
    index: str | Sequence[str] | None = None,
    lock: str | os.PathLike[str] | None = None,
    retry: object = None,
) -> Declaration:
    """Raises TypeError, and BadRequirement, which is a ValueError."""
    distribution, text = _requirement(requirement, has_lock=lock is not None)
    indexes, locked, target = _indexes(index), _lock(lock), _python(python)
    digest = hashlib.sha256(locked.encode()).hexdigest() if locked else ""
    shown = tuple(redact(without_credentials(url)) for url in indexes)
    fact = DeclaredEnvironment(requirement=text, python=target, indexes=shown, lock=digest)
    name = distribution[:_LONGEST]
    if fact != DeclaredEnvironment(requirement=name):
        name += f"-{hashlib.sha256(msgspec.json.encode(fact)).hexdigest()[:8]}"
    source = Environment(
        distribution=distribution,
        lock="",
        probe=(),
        requirements=(text,),
        universal=False,
        tested="latest",
        only_indexes=indexes,
        python=target,
        given_lock=locked,
    )
    return Declaration(name, fact, source, None if retry is None else given_policy(retry))


def _requirement(text: object, *, has_lock: bool) -> tuple[str, str]:
    """The distribution, and the requirement as it is compared and resolved."""
    if not isinstance(text, str):
        raise TypeError(f"a requirement must be text such as 'black>=26', not {type(text).__name__}")
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0]
        raise BadRequirement(
            f"{redact(text)[:120]!r} is not a valid requirement: {why}.", "Write it like `black>=26,<27`."
        ) from error
    if found.url or found.marker:
        what = "a URL" if found.url else "a marker"
        raise BadRequirement(
            f"{redact(text)[:120]!r} has {what}, which is not supported.",
            "Give a distribution, optionally with versions: `black>=26,<27`.",
        )
    if has_lock and (found.specifier or found.extras):
        raise BadRequirement(
            f"{text!r} has extras or versions, but the lock decides those.",
            f"Give only the name: {found.name!r}.",
        )
    name = normalized(found.name)
    extras = f"[{','.join(sorted(map(normalized, found.extras)))}]" if found.extras else ""
    return name, f"{name}{extras}{found.specifier}"


def _python(python: object) -> str:
    if python is None:
        return ""
    if not isinstance(python, str | os.PathLike):
        raise TypeError(f"python must be text such as '3.12', or a path, not {type(python).__name__}")
    text = os.fspath(python)
    if not isinstance(text, str):
        raise TypeError("python must be text")
    if os.sep in text:
        return str(local_path(text).absolute())
    if not _PYTHON.fullmatch(text):
        raise BadRequirement(
            f"{text[:60]!r} is not a Python version.", "Give a version such as '3.12', or a path."
        )
    return text


def _indexes(index: object) -> tuple[str, ...]:
    if index is None:
        return ()
    given = (index,) if isinstance(index, str) else index
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise TypeError("index must be a URL, or a list of URLs")
    if not given:
        raise BadRequirement(
            "The list of indexes is empty.", "Leave index out to use pip's and uv's settings."
        )
    return tuple(_index(one) for one in given)


def _index(url: str) -> str:
    if is_local(url) and os.path.isdir(local_path(url)):
        return local_path(url).absolute().as_uri()
    if urlsplit(url).scheme not in ("http", "https"):
        raise BadRequirement(
            f"{redact(url)[:120]!r} is not a package index.",
            "Give a URL that begins with https://, or an existing folder.",
        )
    return url


def _lock(lock: object) -> str:
    """Its text; empty if there is none."""
    if lock is None:
        return ""
    if not isinstance(lock, str | os.PathLike):
        raise TypeError(f"lock must be the path of a file, not {type(lock).__name__}")
    from greenroom.runner.installations.given_lock import read as read_lock

    path = local_path(os.fspath(lock))
    try:
        text = Path(path).read_text(encoding="utf-8")
        read_lock(text)
    except OSError as error:
        why = error.strerror or str(error)
        raise BadRequirement(
            f"The lock {path} cannot be read: {why}.", _MAKE_LOCK, code="bad_lock"
        ) from error
    except ValueError as error:
        raise BadRequirement(
            f"{path} cannot be used as a lock: {error}.", _MAKE_LOCK, code="bad_lock"
        ) from error
    return text
