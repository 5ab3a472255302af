"""Shows and ends the daemon's jobs: installs, pulls, pushes, verifications."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import OneOf, job_names
from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import client_for
from greenroom.runner.client.errors import RequestRefused, Unreachable
from greenroom.runner.client.http_client import DaemonResponse, HttpClient, path_of

NDJSON = "application/x-ndjson"


@dataclass(frozen=True)
class Installed:
    message: str
    already: bool
    version: str
    variant: str = ""


def install(
    client: HttpClient,
    backend: str,
    *,
    version: str = "",
    variant: str = "",
    build: str = "",
    reinstall: bool = False,
    announce: Callable[[str], None],
    shown: Display | None = None,
) -> Installed:
    """Install a backend and show progress; Ctrl-C cancels the job unless another client waits for it.

    Args:
        client: the daemon.
        backend: its name.
        version: one other than the default.
        variant: its build for certain devices; empty for whichever is installed, else the usual one.
        build: what to compile it for on this machine; empty to install what is published.
        reinstall: rebuild it even if it looks intact.
        announce: called with `Installing X backend...` once there is something to do.
        shown: where progress goes, when that is shared.

    Raises:
        Problem: it was refused or failed.
    """
    given = {"version": version, "variant": variant, "build": build, "reinstall": reinstall}
    body = {"backend": backend, "waiter": uuid.uuid4().hex, **{k: v for k, v in given.items() if v}}
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
                        str(installation.get("variant") or ""),
                    )
                if not said:
                    said = True
                    announce(f"Installing {backend} backend...")
                if kind == "progress":
                    bars.update({**event, "job": job})
    except KeyboardInterrupt:
        left = {name: value for name, value in body.items() if name != "reinstall"}
        _leave(client, "/engines/cancel-install", left)
        raise
    raise Unreachable(client.url, f"closed the connection while installing {backend}")


def pull(
    client: HttpClient, reference: str, *, token: str = "", force: bool = False, shown: Display | None = None
) -> str:
    """Pull a model and show progress; Ctrl-C cancels the job unless another client waits for it.

    With `force` also what cannot fit on the disk or run here. Returns what the daemon says in the end.
    Raises Problem when it was refused or failed.
    """
    given = {"bearer-token": token, "force": force}
    body = {"from": reference, "waiter": uuid.uuid4().hex, **{k: v for k, v in given.items() if v}}
    return _pulled(client, "/models/create", reference, body, shown, "could not be pulled")


def adopt(client: HttpClient, name: str, path: str, *, copy: bool, shown: Display | None = None) -> None:
    """Adopt the model at a path and show progress, as `pull` does. Raises Problem."""
    body = {"name": name, "path": path, "copy": copy, "waiter": uuid.uuid4().hex}
    _pulled(client, "/models/adopt", name, body, shown, "could not be adopted")


def _pulled(
    client: HttpClient, route: str, name: str, body: dict[str, Any], shown: Display | None, failed: str
) -> str:
    try:
        with client.open("POST", route, body, accept="application/json") as answer, _shared(shown) as bars:
            return _follow(client, f"pull/{name}", answer, bars, failed)
    except KeyboardInterrupt:
        _leave(client, "/models/cancel", {"from": name, "waiter": body["waiter"]})
        raise


def push(client: HttpClient, name: str, *, token: str = "") -> str:
    """Push a model and show progress; leaving cancels the job unless another client waits for it.

    Returns what the daemon says in the end. Raises Problem when it was refused or failed.
    """
    body = {"bearer-token": token} if token else {}
    with client.open("POST", path_of("models", name, "push"), body) as answer, display() as bars:
        return _follow(client, f"push/{name}", answer, bars, "could not be pushed")


def verify(client: HttpClient, name: str) -> str:
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


def _follow(client: HttpClient, job: str, answer: DaemonResponse, shown: Display, failed: str) -> str:
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
                # Files already stored have no lines; the daemon's own total, if sent, includes them.
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
    raise Unreachable(client.url, f"closed the connection: {subject} {failed}")


def _failure(event: dict[str, Any], otherwise: str) -> Problem:
    message = str(event.get("message") or otherwise).removeprefix("Error: ")
    return Problem(
        message,
        str(event.get("advice") or ""),
        code=exit_codes.NOT_INSTALLED
        if event.get("code") in ("backend_not_installed", "install_policy")
        else exit_codes.FAILED,
    )


def _leave(client: HttpClient, path: str, body: dict[str, Any]) -> None:
    """Stop waiting; the job continues if another client waits for it."""
    try:
        ended = (client.post(path, body | {"leave": True}, timeout=5.0) or {}).get("ended")
    except (RequestRefused, Unreachable):
        return
    subject = body.get("backend") or body.get("from")
    if ended:
        print(f"\nCancelled: {subject}.", file=sys.stderr)
    else:
        print(f"\n{subject} continues in the background: another client is waiting for it.", file=sys.stderr)


_QUIET = 0.3
"""Seconds of waiting about which nothing is said."""
_WATCH_EVERY = 0.25


class Watch:
    """Looks at the daemon's jobs on a thread of its own while the `with` block waits for something else.

    Shown are the jobs that waiting requests wait for, ours among them, and the installation of backends that
    are wanted from the start. What the command follows itself it puts into `own`.
    """

    def __init__(self, client: HttpClient, shown: Display) -> None:
        self._client = client
        self._shown = shown
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._installing: set[str] = set()
        self.own: set[str] = set()
        """Jobs whose progress the command shows itself."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        if kind is None:
            # Show what has just ended, but not after Ctrl-C or an error.
            self._thread.join(timeout=2.0)

    def _look(self) -> None:
        seen: set[str] = set()
        began = time.monotonic()
        # A second look after the end tells of jobs that ended in between.
        while not self._over.wait(_WATCH_EVERY if time.monotonic() - began > _QUIET else _QUIET):
            seen = self._show(seen)
        if seen or self._installing:
            self._show(seen)

    def _show(self, seen: set[str]) -> set[str]:
        try:
            running = self._jobs()
        except (RequestRefused, Unreachable):
            return seen
        for name in seen - running.keys():
            self._shown.finish(name)
        for name, job in running.items():
            if name.startswith("install/") and name not in self._installing:
                self._installing.add(name)
                self._shown.note(f"Installing {name.removeprefix('install/')} backend...")
            self._shown.update({**job, "job": name})
        self._tell_installed(self._installing - running.keys())
        return set(running)

    def _tell_installed(self, ended: set[str]) -> None:
        self._installing -= ended
        if not ended:
            return
        try:
            states = self._client.get("/engines/status")
        except (RequestRefused, Unreachable):
            return
        for name in sorted(job.removeprefix("install/") for job in ended):
            if str(states.get(name, "")).startswith("Running"):
                self._shown.note(f"{name} backend installed successfully")

    def _jobs(self) -> dict[str, dict[str, Any]]:
        from greenroom.runner.backends.discovery import OWN

        jobs = {str(job["job"]): job for job in self._client.get("/jobs") or ()}
        defaults = {f"install/{name}" for name, backend in OWN.items() if not backend.deferred}
        found = {name: jobs[name] for name in defaults & jobs.keys()}
        for name, job in jobs.items():
            if name.startswith("request/"):
                # Without a job to follow it waits for its turn, which is worth a line too.
                followed = str(job.get("follows") or name)
                # What an engine prints while it loads is for its log; which one it is, the request knows.
                found[followed] = job if followed.startswith("load/") else jobs.get(followed, job)
        return {name: job for name, job in found.items() if name not in self.own}


@click.command("cancel")
@click.argument("job", type=OneOf(job_names))
@click.pass_context
def cancel_command(ctx: click.Context, job: str) -> None:
    """Cancel JOB: the installation of a backend (`mlx`), one job of it (`mlx.2`), or a pull (`smollm2`).

    `greenroom status` lists the jobs. Downloaded data is kept.
    """
    client = client_for(settings_of(ctx))
    kind, _, subject = job.partition("/")
    wish = None if kind == "pull" and subject else _installation(client, job.removeprefix("install/"))
    if wish is not None:
        ended = (client.post("/engines/cancel-install", wish) or {}).get("ended")
    else:
        reference = subject if kind == "pull" and subject else job
        ended = (client.post("/models/cancel", {"from": reference}) or {}).get("ended")
    if not ended:
        raise Problem(f"There is no job {job!r} to cancel.", "List the jobs: greenroom status")
    click.echo(f"Cancelled: {job}.")


def _installation(client: HttpClient, name: str) -> dict[str, Any] | None:
    """What ends the installation of that name or id, if it is one."""
    for backend in client.get("/engines") or ():
        job = backend.get("job") or {}
        if name == backend["name"]:
            return {"backend": name}
        if name in (job.get("id"), *job.get("queue", ())):
            return {"backend": backend["name"], "job": name}
    return None
