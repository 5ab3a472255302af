"""What `run` says of variants: the better one that is fetched, and the one that answers from now on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from greenroom.actors.variants import BEST
from greenroom.runner.cli.output import announce
from greenroom.runner.client.errors import RequestRefused, Unreachable
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.units import format_size

_INDEX_SECONDS = 4.0
"""What an index gets to tell the sizes of its files before the answer."""


def fetch_better(client: HttpClient, backend: str) -> None:
    """Have better variants of the backends in use fetched for this machine's devices, in the background.

    Without a `backend`, of those that are installed without being asked for.
    """
    try:
        known = client.get("/engines") or ()
    except RequestRefused:
        return  # the answer does not depend on it
    for one in known:
        offered, wanted = one.get("offered"), one["name"] == backend if backend else not one["deferred"]
        variant = next((each for each in one.get("variants") or () if each["name"] == offered), None)
        if variant is None or not wanted or one.get("job") or variant.get("failure"):
            continue
        announce(
            f"Downloading {one['name']} {offered} in the background, {_size(client, one['name'], variant)}: "
            f"{variant['reason']} "
            f"Until then {one['variant']} serves requests; models switch when they are idle."
        )
        client.post("/engines", {"name": one["name"], "variant": BEST})


def _size(client: HttpClient, backend: str, variant: dict[str, Any]) -> str:
    """How much is fetched for a variant: `612 MB` as its index says, else `about 650 MB` as declared."""
    body = {"backend": backend, "variant": variant["name"], "dry_run": True}
    try:
        plan = client.post("/engines/install-backend", body, timeout=_INDEX_SECONDS) or {}
    except (RequestRefused, Unreachable):
        plan = {}  # the answer does not wait for a slow index, and the installation tells what is wrong
    if plan.get("total_bytes"):
        return format_size(fetched) if (fetched := plan.get("download_bytes")) else "from the cache"
    return f"about {format_size(variant.get('download_bytes') or 0)}"


class Changeovers:
    """Notices that another variant of its backend serves a model than the last time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._known = {row["engine_id"] for row in self._engines()}

    def announce(self) -> None:
        """Name each model that has changed over since the last call."""
        for told in self._new():
            announce(told)

    def _new(self) -> Iterator[str]:
        rows = self._engines()
        fresh = [row for row in rows if row["engine_id"] not in self._known and row["state"] == "ready"]
        self._known |= {row["engine_id"] for row in fresh}
        for row in fresh:
            before = [
                one
                for one in rows
                if one["engine_id"] != row["engine_id"]
                and one["since"] <= row["since"]
                and _kind(one) == _kind(row)
            ]
            if before:
                yield from self._told(max(before, key=lambda one: float(one["since"])), row)

    def _told(self, before: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
        try:
            backend = self._client.get(path_of("engines", row["backend_name"])) or {}
        except RequestRefused:
            return
        names = {one["id"]: one["variant"] for one in backend.get("installations") or ()}
        old, new = names.get(before["installation"]), names.get(row["installation"])
        if old and new and old != new:
            ranked = {one["name"]: one["reason"] for one in backend.get("variants") or ()}
            yield (
                f"{row['backend_name']} {new} now serves requests instead of {old}. "
                f"{ranked.get(new, '')}".rstrip()
            )

    def _engines(self) -> list[dict[str, Any]]:
        """Also the last that are gone."""
        try:
            return self._client.get("/engines/ps?all=true") or []
        except RequestRefused:
            return []  # the answer does not depend on it


def _kind(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["backend_name"], row["model_name"], row["mode"]
