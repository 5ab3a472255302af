"""Follows the daemon's installs and pulls, the ones this command asked for and those it waits on."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Answer, Client, Gone, Refused, path_of
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
    body: dict[str, Any] = {"backend": backend, "waiter": uuid.uuid4().hex}
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
        left = {"backend": backend, "version": version, "waiter": body["waiter"]}
        _leave(client, "/engines/cancel-install", left)
        raise
    raise Gone(client.url, f"broke off while installing {backend}")


def pull(
    client: Client,
    reference: str,
    *,
    token: str = "",
    force: bool = False,
    shown: Display | None = None,
) -> str:
    """Have a model fetched and show how far it is; Ctrl-C ends the job if nobody else waits for it.

    With `force` also what cannot fit on the disk or run here. Returns what the daemon says in the end.
    Raises Problem when it was refused or failed.
    """
    body: dict[str, Any] = {"from": reference, "waiter": uuid.uuid4().hex}
    if token:
        body["bearer-token"] = token
    if force:
        body["force"] = True
    try:
        with (
            client.open("POST", "/models/create", body, accept="application/json") as answer,
            _shared(shown) as bars,
        ):
            return _follow(client, f"pull/{reference}", answer, bars, "could not be fetched")
    except KeyboardInterrupt:
        _leave(client, "/models/cancel", {"from": reference, "waiter": body["waiter"]})
        raise


def push(client: Client, name: str, *, token: str = "") -> str:
    """Have a model published and show how far it is; leaving ends it if nobody else waits for it.

    Returns what the daemon says in the end. Raises Problem when it was refused or failed.
    """
    body = {"bearer-token": token} if token else {}
    with client.open("POST", path_of("models", name, "push"), body) as answer, display() as bars:
        return _follow(client, f"push/{name}", answer, bars, "could not be pushed")


def verify(client: Client, name: str) -> str:
    """Have every byte of a model read. Returns what the daemon says; raises Problem when it is damaged."""
    with client.open("POST", path_of("models", name, "verify"), {}) as answer, display() as bars:
        return _follow(client, f"verify/{name}", answer, bars, "could not be verified")


@contextlib.contextmanager
def _shared(shown: Display | None) -> Iterator[Display]:
    """A display that is shared, or one of our own."""
    if shown is not None:
        yield shown
        return
    with display() as own:
        yield own


def _follow(client: Client, job: str, answer: Answer, shown: Display, failed: str) -> str:
    """Show a transfer's lines until the last one."""
    subject = job.partition("/")[2]
    parts: dict[str, dict[str, Any]] = {}
    moving = {"pull": "downloading", "push": "uploading", "verify": "verifying"}[job.partition("/")[0]]
    for event in answer.objects():
        kind, message = event.get("type"), str(event.get("message") or "")
        if kind == "error":
            raise _failure(event, f"{subject} {failed}.")
        if kind == "success":
            shown.finish(job)
            return message
        if kind == "warning":
            shown.note(f"Warning: {message}")
        elif kind == "progress":
            layer = event.get("layer") or {}
            total = int(event.get("total") or 0)
            if total or layer.get("current"):
                part: dict[str, Any] = {"id": str(layer.get("id", "")), "name": str(layer.get("name") or "")}
                part |= {"size": int(layer.get("size") or 0), "done": int(layer.get("current") or 0)}
                parts[part["id"]] = part
                # What is here already has no lines; a daemon that says how far all of it is counts that too.
                done = int(event.get("done") or sum(one["done"] for one in parts.values()))
                # The contract's message repeats the number that is shown anyway.
                step = {"phase": moving, "done": done, "total": total, "parts": list(parts.values())}
            else:
                parts.clear()
                step = {
                    "phase": str(event.get("phase") or "resolving"),
                    "message": message if event.get("phase") else "",
                    "done": int(event.get("done") or 0),
                    "total": int(event.get("of") or 0),
                }
            shown.update({"job": job, "rate": event.get("rate") or 0, **step})
    raise Gone(client.url, f"broke off: {subject} {failed}")


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
