"""`greenroom install-runner`: install a backend."""

from __future__ import annotations

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.jobs import Installed, install
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.units import format_size

DEFAULT_BACKEND = "llama.cpp"

backend_option = click.option(
    "--backend", default=DEFAULT_BACKEND, show_default=True, metavar="NAME", help="Which backend."
)


@click.command("install-runner")
@backend_option
@click.option("--version", default="", metavar="VERSION", help="Another version than the pinned one.")
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched, and how much.")
@click.pass_context
def command(ctx: click.Context, backend: str, version: str, dry_run: bool) -> None:
    """Install a backend. If it is installed already, say so.

    Ctrl-C ends the installation, unless somebody else waits for it too.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    if dry_run:
        body = {"backend": backend, "dry_run": True} | ({"version": version} if version else {})
        plan = client.post("/engines/install-backend", body, timeout=None) or {}
        click.echo(planned(backend, plan))
        return
    report(backend, install(client, backend, version=version, announce=click.echo))


def report(backend: str, installed: Installed) -> None:
    """Say how it ended, in the words of Docker's command where there are some."""
    if installed.already:
        version = f" (version {installed.version})" if installed.version else ""
        click.echo(f"{backend} backend is already installed{version}")
    else:
        click.echo(installed.message)


def planned(backend: str, plan: dict[str, object]) -> str:
    """A plan in words."""
    packages = [str(package) for package in plan.get("packages") or ()]  # type: ignore[attr-defined]
    fetch, whole = (float(str(plan.get(name) or 0)) for name in ("download_bytes", "total_bytes"))
    count = f"{len(packages)} package{'s' if len(packages) != 1 else ''}"
    lines = [f"{backend} {plan.get('version', '')}: {count}, {format_size(whole)}".strip()]
    lines += [f"  {package}" for package in packages]
    if not fetch and whole:
        lines.append("Would fetch nothing: all of it is in the cache.")
    elif fetch < whole:
        lines.append(f"Would fetch {format_size(fetch)}; the rest is in the cache.")
    else:
        lines.append(f"Would fetch {format_size(fetch)}.")
    return "\n".join(lines)
