"""Follows the daemon's installs and pulls, the ones this command asked for and those it waits on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Answer, Client, Gone, Refused
from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.problem import Problem

NDJSON = "application/x-ndjson"


@dataclass(frozen=True)
class Installed:
    """How an installation ended."""

    message: str
    already: bool
    version: str


def install(
    client: Client,
    backend: str,
    *,
    version: str = "",
    reinstall: bool = False,
    announce: Callable[[str], None],
    shown: Display | None = None,
) -> Installed:
    """Have a backend installed and show how far it is; Ctrl-C ends the job if nobody else waits for it.

    Args:
        client: the daemon.
        backend: its name.
        version: another than the pinned one.
        reinstall: build it anew even when it looks whole.
        announce: told `Installing X backend...` once it is certain that there is something to do.
        shown: where progress goes, when that is shared.

    Raises:
        Problem: it was refused or failed.
    """
    body: dict[str, Any] = {"backend": backend}
    if version:
        body["version"] = version
    if reinstall:
        body["reinstall"] = True
    job = f"install/{backend}"
    said = False
    try:
        with (
            client.open("POST", "/engines/install-backend", body, accept=NDJSON) as answer,
            _shared(shown) as bars,
        ):
            for event in answer.objects():
                kind = event.get("type")
                if kind == "error":
                    raise _failure(event, f"{backend} could not be installed.")
                if kind == "success":
                    bars.finish(job)
                    installation = event.get("installation") or {}
                    if not said and not event.get("already"):
                        announce(f"Installing {backend} backend...")
                    return Installed(
                        str(event.get("message") or f"{backend} backend installed successfully"),
                        bool(event.get("already")),
                        str(installation.get("version") or ""),
                    )
                if not said:
                    said = True
                    announce(f"Installing {backend} backend...")
                if kind == "progress":
                    bars.update({**event, "job": job})
    except KeyboardInterrupt:
        _leave(client, "/engines/cancel-install", {"backend": backend, "version": version})
        raise
    raise Gone(client.url, f"broke off while installing {backend}")


def pull(client: Client, reference: str, *, token: str = "", shown: Display | None = None) -> str:
    """Have a model fetched and show how far it is; Ctrl-C ends the job if nobody else waits for it.

    Returns what the daemon says in the end. Raises Problem when it was refused or failed.
    """
    body = {"from": reference} | ({"bearer-token": token} if token else {})
    try:
        with (
            client.open("POST", "/models/create", body, accept="application/json") as answer,
            _shared(shown) as bars,
        ):
            return _follow_pull(client, reference, answer, bars)
    except KeyboardInterrupt:
        _leave(client, "/models/cancel", {"from": reference})
        raise


@contextlib.contextmanager
def _shared(shown: Display | None) -> Iterator[Display]:
    """A display that is shared, or one of our own."""
    if shown is not None:
        yield shown
        return
    with display() as own:
        yield own


def _follow_pull(client: Client, reference: str, answer: Answer, shown: Display) -> str:
    arrived: dict[str, int] = {}
    for event in answer.objects():
        kind, message = event.get("type"), str(event.get("message") or "")
        if kind == "error":
            raise _failure(event, f"{reference} could not be fetched.")
        if kind == "success":
            shown.finish(f"pull/{reference}")
            return message
        if kind == "warning":
            shown.note(f"Warning: {message}")
        elif kind == "progress":
            layer = event.get("layer") or {}
            arrived[str(layer.get("id", ""))] = int(layer.get("current") or 0)
            # The contract's message repeats the number that is shown anyway.
            total, done = int(event.get("total") or 0), sum(arrived.values())
            phase = "downloading" if total or message.startswith("Downloaded") else "resolving"
            shown.update({"job": f"pull/{reference}", "phase": phase, "done": done, "total": total})
    raise Gone(client.url, f"broke off while fetching {reference}")


def _failure(event: dict[str, Any], otherwise: str) -> Problem:
    message = str(event.get("message") or otherwise).removeprefix("Error: ")
    return Problem(
        message,
        str(event.get("advice") or ""),
        code=exit_codes.NOT_INSTALLED
        if event.get("code") in ("backend_not_installed", "install_policy")
        else exit_codes.FAILED,
    )


def _leave(client: Client, path: str, body: dict[str, Any]) -> None:
    """We wait no longer; the job goes on if somebody else does."""
    try:
        ended = (client.post(path, body | {"leave": True}, timeout=5.0) or {}).get("ended")
    except (Refused, Gone):
        return
    subject = body.get("backend") or body.get("from")
    if ended:
        print(f"\nEnded: {subject}.", file=sys.stderr)
    else:
        print(f"\n{subject} goes on in the background, since it is wanted elsewhere too.", file=sys.stderr)
