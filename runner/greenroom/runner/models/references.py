"""Parses model names into their canonical form. Pure.

The rules are those of Docker Model Runner (default organisation `ai/`, default tag `latest`, `hf.co/` for
`huggingface.co/`, ids, short ids, digests), so that what works there works here, without its bugs:
`name:tag@sha256:…` pins instead of losing the digest, `name@sha256:…` is not read as a tag, and `localhost/m`
names a registry. Three schemes are our own: `pypi:PACKAGE[==VERSION]/FILE`, `file:PATH` and plain paths
(`./x.gguf`, `/abs`, `~/x`).

A reference never becomes a path by string arithmetic: only `blob_name` makes a file name from client input,
and only from a digest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from greenroom.actors.characters import is_line

if TYPE_CHECKING:
    from greenroom.actors.values import Model

Scheme = Literal["oci", "huggingface", "pypi", "path", "id"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_ORGANIZATION = "ai"
DEFAULT_TAG = "latest"

_HUB = "huggingface.co"
_NAME_LIMIT = 255
_FILE_NAME = 255
"""Bytes of a file name that every file system accepts."""

_SHORT_ID = re.compile(r"[0-9a-f]{12}")
_LONG_ID = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:]+\])(?::[0-9]{1,5})?"
)
_HUB_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class BadReference(ValueError):
    """The text names no model; the message says what is wrong and what names look like."""


class AmbiguousName(LookupError):
    """A short name matches several models; the message lists them."""


@dataclass(frozen=True)
class Reference:
    """A parsed name. `str()` is its canonical form, which is also stored as a tag."""

    scheme: Scheme
    text: str
    """The input, trimmed."""
    name: str
    """Canonical name without tag and digest: `docker.io/ai/smollm2`, `huggingface.co/org/model`, an id,
    `pypi:package==1.0/dir/file.gguf`, `file:/abs/x.gguf`."""
    tag: str = ""
    """Registry tag or Hugging Face quantisation; empty for the schemes that have none."""
    digest: str = ""
    """`sha256:<64 hex>` when the reference pins its content."""
    registry: str = ""
    """Host, for `oci` and `huggingface`."""
    repository: str = ""
    """Path below the registry; for Hugging Face in its original case, which its hub insists on."""
    explicit_registry: bool = False
    """True when the registry was typed, not assumed."""
    package: str = ""
    """Normalised distribution name, for `pypi`."""
    version: str = ""
    """Pinned version, for `pypi`; empty for the newest."""
    path: str = ""
    """File inside the distribution for `pypi`, path on disk for `path`."""

    @classmethod
    def parse(cls, text: str, *, default_registry: str = DEFAULT_REGISTRY) -> Reference:
        """Parse a name.

        Raises:
            BadReference: It cannot name a model.
        """
        text = text.strip()
        if not text:
            raise BadReference("The model name is empty. Name one, such as smollm2.")
        if not is_text(text):
            raise BadReference(f'"{shown(text)}" is not UTF-8. Rename the file or folder.')
        if not is_line(text):
            raise BadReference("A model name is one short line of printable characters.")
        if text.startswith("pypi:"):
            return _pypi(text)
        if text.startswith("file:") or _looks_like_path(text):
            return _path(text)
        if is_id(text):
            name = text.removeprefix("sha256:")
            pin = f"sha256:{name}" if len(name) == 64 else ""
            return cls(scheme="id", text=text, name=text, digest=pin)
        if _URL.match(text):
            host, slash, path = _URL.sub("", text).partition("/")
            bare = f"{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
            raise BadReference(f'"{shown(text)}" is a URL, not a model name. Try: {shown(bare)}')
        if text.startswith(("hf.co/", f"{_HUB}/")):
            return _huggingface(text)
        return _oci(text, default_registry)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        pin = f"@{self.digest}" if self.digest and self.scheme != "id" else ""
        return f"{self.name}{tag}{pin}"

    @property
    def wanted(self) -> str:
        """The canonical form for its source: Hugging Face insists on the case of its repositories."""
        if self.scheme != "huggingface":
            return str(self)
        return f"{self.registry}/{self.repository}{str(self).removeprefix(self.name)}"

    @property
    def stored_tag(self) -> str:
        """The tag a model pulled by this reference is stored under; empty if none.

        A pinned pull without a tag gets none: it must not move an existing `latest`.
        """
        if self.scheme == "id":
            return ""
        if self.digest and not self.tag:
            return ""
        return f"{self.name}:{self.tag}" if self.tag else self.name

    def anchored(self, cwd: Path, home: Path) -> Reference:
        """The same reference with an absolute path, since the daemon's working directory is not the caller's.

        Other schemes are returned unchanged. The disk is not accessed.
        """
        if self.scheme != "path":
            return self
        path = PurePosixPath(self.path)
        if self.path == "~" or self.path.startswith("~/"):
            path = PurePosixPath(home) / self.path[2:]
        elif not path.is_absolute():
            path = PurePosixPath(cwd) / path
        flat = _without_dots(path)
        return replace(self, path=flat, name=f"file:{flat}")

    def variant(self, tag: str) -> Reference:
        """The same name under another tag; for `oci` and `huggingface`."""
        if self.scheme not in ("oci", "huggingface"):
            raise BadReference(f'"{shown(self.text)}" has no tags.')
        return replace(self, tag=_checked_tag(tag, self.text), digest="")


def is_id(text: str) -> bool:
    """Shaped like a model id: 12 or 64 lower-case hex digits, or `sha256:` and 64 of them."""
    return bool(_SHORT_ID.fullmatch(text) or _LONG_ID.fullmatch(text) or _DIGEST.fullmatch(text))


def familiar(tag: str, default_registry: str = DEFAULT_REGISTRY) -> str:
    """A stored tag as shown to users: `docker.io/ai/smollm2:latest` is `smollm2`."""
    return (
        tag.removeprefix(f"{default_registry}/")
        .removeprefix(f"{DEFAULT_ORGANIZATION}/")
        .removesuffix(f":{DEFAULT_TAG}")
    )


def find_model(text: str, models: Iterable[Model]) -> Model | None:
    """The stored model a name means, the same way for every command and route; None if there is none.

    In order: an id, short id or digest; a tag; last, a partial name: the last path component of a stored tag,
    if exactly one model has it.

    Raises:
        BadReference: The text cannot name a model.
        AmbiguousName: A partial name matches several models.
    """
    models = tuple(models)
    reference = Reference.parse(text)
    if is_id(text.strip()):
        wanted = _match_id(text.strip(), [m.id for m in models])
        if wanted:
            return next(m for m in models if m.id == wanted)
    if reference.digest:
        return next((m for m in models if m.id == reference.digest), None)
    if reference.scheme == "id":
        # An unknown short id may still be a name: `1234567890ab` is also `ai/1234567890ab`.
        reference = _oci(reference.text, DEFAULT_REGISTRY)
    for model in models:
        if reference.stored_tag in model.tags:
            return model
    if reference.scheme != "oci" or reference.explicit_registry or "/" in reference.text:
        return None
    part = reference.text.partition(":")[0].lower()
    tag = reference.tag if ":" in reference.text else ""
    fitting = [m for m in models if any(_is_partial(part, tag, stored) for stored in m.tags)]
    if len(fitting) > 1:
        names = ", ".join(familiar(m.tags[0]) for m in fitting)
        raise AmbiguousName(f'"{shown(text)}" matches several models: {names}. Use one of these names.')
    return fitting[0] if fitting else None


def listed_names(model: Model) -> list[str]:
    """The names a model is listed by: its tags, but for those of files where it has others, else its id."""
    return [tag for tag in model.tags if not tag.startswith(("file:", "pypi:"))] or [shown_name(model)]


def shown_name(model: Model) -> str:
    """The name a model is listed by: a tag like a registry's where it has one, else any tag, else its id."""
    for tag in model.tags:
        if not tag.startswith(("file:", "pypi:")):
            return tag
    return model.tags[0] if model.tags else model.id


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    import hashlib  # commands that hash nothing start sooner without it

    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blob_name(digest: str) -> str:
    """The file name of a digest's blob: the only way from a name to a path.

    Raises:
        BadReference: not a SHA-256 digest.
    """
    if not _DIGEST.fullmatch(digest):
        raise BadReference(f'"{shown(digest)}" is not a SHA-256 digest.')
    return digest.removeprefix("sha256:")


def relative_name(text: str) -> PurePosixPath:
    """A path that stays inside its folder, from an annotation, an archive or a reference.

    Raises:
        BadReference: Absolute, empty, too long, or with `..`, backslashes or control characters.
    """
    path = PurePosixPath(text)
    parts = text.split("/")
    if (
        not text
        or len(text) > 1_024
        or path.is_absolute()
        or any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > _FILE_NAME for part in parts)
        or "\\" in text
        or not is_line(text, 1_024)
        or any(len(part.encode()) > _NAME_LIMIT for part in parts)
    ):
        raise BadReference(f'"{shown(text)}" is not a file name inside a model.')
    return path


def is_text(text: str) -> bool:
    """False for bytes that are not UTF-8, which file names, arguments and variables may contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """A name as shown in a message: one line, bounded."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 120 else clean[:117] + "..."


def _match_id(text: str, ids: Collection[str]) -> str:
    wanted = f"sha256:{text.removeprefix('sha256:')}"
    return next((i for i in ids if i == wanted or (len(text) == 12 and i.startswith(wanted))), "")


def _is_partial(part: str, tag: str, stored: str) -> bool:
    reference = Reference.parse(stored)
    last = reference.name.rpartition("/")[2].lower()
    return last == part and tag in ("", reference.tag)


def _looks_like_path(text: str) -> bool:
    return text in (".", "..", "~") or text.startswith(("./", "../", "/", "~/"))


def _path(text: str) -> Reference:
    path = text.removeprefix("file:")
    if path.startswith("//"):
        host, _, rest = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise BadReference(f'"{shown(text)}" names another host. A file: reference is a path here.')
        path = f"/{rest}"
    if not path:
        raise BadReference(f'"{shown(text)}" names no file. Write file:/path/to/model.gguf.')
    return Reference(scheme="path", text=text, name=f"file:{path}", path=path)


def _pypi(text: str) -> Reference:
    requirement, slash, path = text.removeprefix("pypi:").partition("/")
    package, pinned, version = requirement.partition("==")
    if not slash or not path or not _PACKAGE.fullmatch(package):
        raise BadReference(f'"{shown(text)}" should look like pypi:PACKAGE==VERSION/FILE.')
    if pinned and not _VERSION.fullmatch(version):
        raise BadReference(f'"{shown(version)}" in "{shown(text)}" is not a version.')
    relative_name(path)
    package = re.sub(r"[-_.]+", "-", package).lower()
    name = f"pypi:{package}{pinned}{version}/{path}"
    return Reference(scheme="pypi", text=text, name=name, package=package, version=version, path=path)


def _huggingface(text: str) -> Reference:
    rest = text.removeprefix("hf.co/").removeprefix(f"{_HUB}/")
    rest, digest = _split_digest(rest, text)
    repository, tag = _split_tag(rest)
    parts = repository.split("/")
    if len(parts) > 2 or not all(_HUB_COMPONENT.fullmatch(p) and ".." not in p for p in parts):
        raise BadReference(f'"{shown(text)}" should look like hf.co/ORGANIZATION/MODEL[:QUANTIZATION].')
    return Reference(
        scheme="huggingface",
        text=text,
        name=f"{_HUB}/{repository.lower()}",
        tag=_checked_tag(tag, text) if tag or not digest else "",
        digest=digest,
        registry=_HUB,
        repository=repository,
        explicit_registry=True,
    )


def _oci(text: str, default_registry: str) -> Reference:
    rest, digest = _split_digest(text, text)
    name, tag = _split_tag(rest)
    name = name.lower()
    first, slash, below = name.partition("/")
    explicit = bool(slash) and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, below) if explicit else (default_registry, name)
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if "/" not in repository and registry in (DEFAULT_REGISTRY, default_registry):
        repository = f"{DEFAULT_ORGANIZATION}/{repository}"
    if (
        not _HOST.fullmatch(registry)
        or not all(_COMPONENT.fullmatch(part) for part in repository.split("/"))
        or len(registry) + len(repository) > _NAME_LIMIT
    ):
        raise BadReference(
            f'"{shown(text)}" is not a model name. Names look like smollm2, ORGANIZATION/MODEL:TAG, '
            "hf.co/ORGANIZATION/MODEL, or ./file.gguf."
        )
    return Reference(
        scheme="oci",
        text=text,
        name=f"{registry}/{repository}",
        tag=_checked_tag(tag, text) if tag or not digest else "",
        digest=digest,
        registry=registry,
        repository=repository,
        explicit_registry=explicit,
    )


def _split_digest(text: str, whole: str) -> tuple[str, str]:
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise BadReference(f'"{shown(whole)}" has a pin that is not sha256: and 64 lower-case hex digits.')
    return rest, digest


def _split_tag(text: str) -> tuple[str, str]:
    colon = text.rfind(":")
    return (text[:colon], text[colon + 1 :]) if colon > text.rfind("/") else (text, "")


def _checked_tag(tag: str, text: str) -> str:
    tag = tag or DEFAULT_TAG
    if not _TAG.fullmatch(tag):
        raise BadReference(f'"{shown(tag)}" in "{shown(text)}" is not a tag: letters, digits, "_", ".", "-".')
    return tag


def _without_dots(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts[1:]:
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/" + "/".join(parts)
