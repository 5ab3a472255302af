"""Short names and their sources: a small shipped list, and the user's additions in the config.

A name here is a name everywhere: `smollm2`, `ai/smollm2` and `smollm2:latest` are the same entry. Who types
a registry (`docker.io/ai/smollm2`) means that registry, and the catalogue stays out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import msgspec

from greenroom.runner.models.references import BadReference, Reference

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BadCatalogue(ValueError):
    """An entry cannot be used; the message names it and says why."""


class CatalogueEntry(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    source: str
    """A reference of any scheme but an id."""
    title: str = ""
    sha256: str = ""
    """Of the model file; empty if not pinned."""
    size: int = 0
    """Bytes of the model file; 0 if unknown."""
    package_sha256: str = ""
    """Of the distribution that contains it, for `pypi:`."""
    license: str = ""


class Catalogue:
    def __init__(self, entries: Mapping[str, CatalogueEntry]) -> None:
        self._entries: dict[str, tuple[str, CatalogueEntry]] = {}
        for name, entry in entries.items():
            self._entries[_key(name)] = (name, entry)

    @classmethod
    def load(cls, extra: Mapping[str, Any] | None = None) -> Catalogue:
        """The shipped list and the user's (`{name: {"source": …}}` or `{name: "source"}`), which takes
        precedence.

        Raises:
            BadCatalogue: One of the user's entries cannot be used.
        """
        import tomllib

        shipped = resources.files("greenroom.runner.models").joinpath("short_names.toml").read_text("utf-8")
        return cls(
            {
                **{name: _entry(name, value) for name, value in tomllib.loads(shipped).items()},
                **{name: _entry(name, value) for name, value in (extra or {}).items()},
            }
        )

    def find(self, reference: Reference) -> CatalogueEntry | None:
        # The registry may be written out: a stored tag always has it, and one name means one model.
        if reference.scheme != "oci" or reference.digest:
            return None
        found = self._entries.get(str(reference))
        return found[1] if found else None

    def __iter__(self) -> Iterator[tuple[str, CatalogueEntry]]:
        return iter(self._entries.values())


def _key(name: str) -> str:
    try:
        reference = Reference.parse(name)
    except BadReference as error:
        raise BadCatalogue(f"The model name {name!r} in the config cannot be used: {error}") from error
    if reference.scheme != "oci" or reference.explicit_registry or reference.digest:
        raise BadCatalogue(f"The model name {name!r} in the config should be a short name, such as my-model.")
    return str(reference)


def _entry(name: str, value: Any) -> CatalogueEntry:
    try:
        entry = msgspec.convert({"source": value} if isinstance(value, str) else value, CatalogueEntry)
        source = Reference.parse(entry.source)
    except (msgspec.ValidationError, BadReference) as error:
        raise BadCatalogue(f"The model {name!r} in the config cannot be used: {error}") from error
    if source.scheme == "id":
        raise BadCatalogue(
            f"The model {name!r} in the config has an id as its source; name where it comes from."
        )
    for pin in (entry.sha256, entry.package_sha256):
        if pin and not _SHA256.fullmatch(pin):
            raise BadCatalogue(
                f"The model {name!r} in the config has a hash that is not 64 lower-case hex digits."
            )
    return entry
