"""`greenroom backends`: what there is, what each can do here, how it is; and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.carry import export_command, import_command
from greenroom.runner.cli.identity import client_for, find
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.table import table, terminal_width

_HEADINGS = ("BACKEND", "FORMATS", "MODES", "INSTALLED", "VERSIONS", "STATUS")


@click.group("backends", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> int:
    """List the backends: what each serves, whether this machine can run it, and what is installed.

    Of the versions that are installed, the one new engines start from has a star.
    """
    if ctx.invoked_subcommand is not None:
        return exit_codes.OK
    from greenroom.runner.backends.base import Platform
    from greenroom.runner.backends.catalog import BACKENDS
    from greenroom.runner.diagnosis.sentences import short

    settings = settings_of(ctx)
    daemon = find(settings)
    on_disk = {} if daemon else _on_disk(settings.home)
    known: list[dict[str, Any]] = (daemon.client().get("/engines") or []) if daemon else []
    described = {one["name"]: one for one in known}
    here = Platform.here()
    rows = []
    for declared in BACKENDS.values():
        backend = declared.on(here)
        found = described.get(backend.name)
        verdict = backend.verdict(here)
        rows.append(
            (
                backend.name,
                ", ".join(backend.formats),
                ", ".join(backend.modes),
                "when asked for" if backend.deferred else "from the start",
                _versions(found) if found else ", ".join(on_disk.get(backend.name, ())),
                verdict or (_state(found) if found else "(daemon not running)"),
            )
        )
    click.echo(table(_HEADINGS, rows, spare=("INSTALLED", "MODES", "FORMATS"), width=terminal_width()))
    for one in (one for backend in known for one in backend.get("quarantines") or ()):
        from greenroom.actors.scheduler.quarantine import in_a_row

        name = short(one["model_ref"])
        click.echo(
            f"{name} is served by {one['backend']} {one['back_to_version']}: it has failed "
            f"{in_a_row(one['failures'])} on {one['version']} (greenroom why {name})."
        )
    for problem in BACKENDS.problems:
        click.echo(f"Warning: {problem}", err=True)
    return exit_codes.OK


@command.command("verify")
@click.argument("name", default="", metavar="[BACKEND]")
@click.option("--backend", default="", metavar="NAME", help="The same, as the other commands have it.")
@click.pass_context
def verify(ctx: click.Context, name: str, backend: str) -> int:
    """Read every file of what is installed, or of BACKEND, and compare it with what was installed, by hash.

    What is damaged counts as broken from then on, and install-runner builds it anew. Exits 1 then.
    """
    if name and backend and name != backend:
        raise click.UsageError(f"One backend at a time: {name} or {backend}, or none to verify all.")
    backend = backend or name
    body = {"backend": backend} if backend else {}
    found = client_for(settings_of(ctx)).post("/engines/verify-backend", body, timeout=None) or []
    broken = False
    for one in found:
        name = one["backend"]
        for installation in one["checked"]:
            complaints = one["damaged"].get(installation, ())
            click.echo(f"{name} {installation}: {'DAMAGED' if complaints else 'sound'}")
            for complaint in complaints:
                click.echo(f"  {complaint}")
        if one["damaged"]:
            broken = True
            click.echo(f"  Repair it: greenroom install-runner --backend {name}")
    if not any(one["checked"] for one in found):
        click.echo(f"{backend or 'No backend'} is not installed.")
    return exit_codes.FAILED if broken else exit_codes.OK


command.add_command(export_command)
command.add_command(import_command)


def _on_disk(home: Path) -> dict[str, list[str]]:
    """Versions by backend, as far as their folders tell: nobody has looked whether they are whole."""
    from greenroom.runner.installations.disk import InstallationStore

    versions: dict[str, list[str]] = {}
    for record in sorted(InstallationStore(home).records(), key=lambda record: record.built_at):
        versions.setdefault(record.backend, []).append(record.version)
    return versions


def _versions(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    usable = [one for one in found["installations"] if not one["retiring"]]
    return ", ".join(one["version"] + ("*" if one["current"] else "") for one in usable)


def _state(found: dict[str, Any]) -> str:
    failure = (found.get("failure") or {}).get("message") or ""
    word = str(found["state"]).replace("_", " ")
    if word == "installed" and found.get("job"):
        return f"{word}; another is being installed"
    if word == "installed" and (found.get("failure") or {}).get("code") == "configured_broken":
        return f"{word} ({failure.rstrip('.')})"
    if word == "installed" and failure:
        return f"{word} (the last attempt at another failed: {failure})"
    return f"{word}: {failure}" if failure else word
