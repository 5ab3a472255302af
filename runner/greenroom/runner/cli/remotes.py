"""Remote backends, in the lists of the command line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from greenroom.runner.cli.output import table
from greenroom.runner.client.errors import RequestRefused
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.units import format_duration

_HEADINGS = ("BACKEND", "URL", "STATE", "SINCE", "MODELS", "SLOTS")


def remotes_of(client: HttpClient) -> list[dict[str, Any]]:
    """What the daemon reports about each; none if it is of a version without remote backends."""
    try:
        return client.get("/engines/remotes") or []
    except RequestRefused:
        return []


def remotes_table(remotes: Iterable[Mapping[str, Any]], width: int | None) -> str:
    """A row for each."""
    return table(_HEADINGS, [_row(one) for one in remotes], spare=("SINCE", "SLOTS"), width=width)


def told(remote: Mapping[str, Any]) -> str:
    """A line about one that has requests or cannot be used."""
    failure = remote.get("failure") or {}
    if failure:
        again = format_duration(max(1, round(float(remote.get("next_in") or 0))))
        return f"{remote['name']}: {failure['message']} The next check is in {again}."
    return f"{remote['name']} ({remote['url']}): {remote['inside']} of {remote['slots']} slots in use"


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    since = float(one.get("since") or 0)
    return (
        str(one["name"]),
        str(one["url"]),
        {"answers": "answers", "silent": str((one.get("failure") or {}).get("message"))}.get(
            str(one["state"]), "not asked yet"
        ),
        f"{format_duration(round(max(0.0, time.time() - since)))} ago" if since else "",
        str(len(one["models"])),
        f"{one['inside']}/{one['slots']}",
    )
