"""Commands about backends: list, verify, install, upgrade, roll back, uninstall, export, import."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import click

from greenroom.actors.variants import BEST, USUAL
from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import OneOf, backend_names
from greenroom.runner.cli.display import JsonProgress
from greenroom.runner.cli.jobs import Installed, install
from greenroom.runner.cli.main import Subcommands, settings_of
from greenroom.runner.cli.output import announce, say, table, terminal_width
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.remotes import remotes_of, remotes_table
from greenroom.runner.client.daemons import client_for, ensure_daemon, find, not_running
from greenroom.runner.client.errors import GreenroomError
from greenroom.runner.client.http_client import path_of
from greenroom.runner.config import Settings
from greenroom.runner.units import format_size

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_BACKEND = "llama.cpp"

_BUILDS = ("native", "cuda", "rocm", "vulkan")


def _one(name: str | None, backend: str | None) -> str:
    """The backend that an argument, an option, or both name; empty if neither does."""
    if name and backend and name != backend:
        raise click.UsageError(f"Name one backend, {name} or {backend}, not both.")
    if "" in (name, backend):
        # As a script with an unset variable has it.
        raise click.UsageError("The backend's name is empty.")
    return name or backend or ""


def names_backend(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command take its backend as an argument or, as Docker's does, as an option."""

    @click.argument("name", required=False, type=OneOf(backend_names), metavar="[BACKEND]")
    @click.option(
        "--backend",
        type=OneOf(backend_names),
        metavar="NAME",
        help=f"The same as the argument BACKEND. Default: {DEFAULT_BACKEND}.",
    )
    @functools.wraps(command)
    def named(*args: P.args, **options: P.kwargs) -> R:
        name, backend = options.pop("name"), options.pop("backend")
        options["backend"] = _one(name, backend) or DEFAULT_BACKEND  # type: ignore[arg-type]  # texts
        return command(*args, **options)

    return named


variant_option = click.option(
    "--variant", default="", metavar="NAME", help="Its build for certain devices, such as cu128 or cpu."
)


@click.command("install-runner")
@names_backend
@click.option("--version", default="", metavar="VERSION", help="A version other than the default one.")
@click.option(
    "--variant",
    default="",
    metavar="NAME",
    help="Its build for certain devices, such as cu128, vulkan or cpu. Default: the best for this machine.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be downloaded.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: the plan of a dry run, or lines of progress."
)
@click.option(
    "--build",
    type=click.Choice(_BUILDS),
    is_flag=False,
    flag_value="native",
    default=None,
    metavar="FOR",
    help="Compile it on this machine, for its processor (native, if nothing is named) or also for graphics "
    "devices (cuda, rocm, vulkan).",
)
@click.pass_context
def install_runner_command(
    ctx: click.Context,
    backend: str,
    version: str,
    variant: str,
    build: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Install a backend, unless it is already installed.

    If the best variant for this machine does not work here, the next one is installed; `greenroom backends`
    says why.

    --build takes minutes to hours and needs a compiler; missing tools are named.
    Ctrl-C cancels the installation, unless another client is waiting for it.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    if not (variant or version or build):
        variant = BEST
    if dry_run:
        asked = {"version": version, "build": build, "variant": variant}
        body: dict[str, object] = {"backend": backend, "dry_run": True}
        body |= {name: value for name, value in asked.items() if value}
        plan = client.post("/engines/install-backend", body, timeout=None) or {}
        click.echo(json.dumps(plan, indent=4) if as_json else planned(backend, plan))
        return
    lines = JsonProgress(sys.stdout) if as_json else None
    done = install(
        client,
        backend,
        version=version,
        variant=variant,
        build=build or "",
        announce=lines.note if lines is not None else click.echo,
        shown=lines,
    )
    if lines is not None:
        lines.end(done.message, already=done.already, version=done.version, variant=done.variant)
        return
    report(backend, done)
    if variant == BEST:
        for one in (client.get(path_of("engines", backend)) or {}).get("variants") or ():
            if failure := one.get("failure"):
                click.echo(f"{one['name']} was not installed: {failure['message']}", err=True)


def report(backend: str, installed: Installed) -> None:
    """Say how it ended, in the words of Docker's command where there are some."""
    if installed.already:
        named = " ".join(filter(None, (installed.variant, f"version {installed.version}")))
        click.echo(f"{backend} backend is already installed{f' ({named})' if installed.version else ''}")
    else:
        click.echo(installed.message)


def planned(backend: str, plan: dict[str, object]) -> str:
    packages = [str(package) for package in plan.get("packages") or ()]  # type: ignore[attr-defined]
    fetch, whole = (float(str(plan.get(name) or 0)) for name in ("download_bytes", "total_bytes"))
    count = f"{len(packages)} package{'s' if len(packages) != 1 else ''}"
    lines = [f"{backend} {plan.get('version', '')}: {count}, {format_size(whole)}".strip()]
    lines += [f"  {package}" for package in packages]
    if not fetch and whole:
        lines.append("Nothing to download: everything is in the cache.")
    elif fetch < whole:
        lines.append(f"To download: {format_size(fetch)}; the rest is in the cache.")
    else:
        lines.append(f"To download: {format_size(fetch)}.")
    return "\n".join(lines)


@click.command("start-runner")
@names_backend
@click.pass_context
def start_runner_command(ctx: click.Context, backend: str) -> None:
    """Start the daemon if it is not running, and install the backend if it is not installed.

    Engines start when a model is requested.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    report(backend, install(client, backend, announce=click.echo))
    click.echo(f"Greenroom is running at {client.url}")


@click.command("reinstall-runner")
@names_backend
@variant_option
@click.option("--version", default="", metavar="VERSION", help="A version other than the default one.")
@click.pass_context
def reinstall_runner_command(ctx: click.Context, backend: str, variant: str, version: str) -> None:
    """Rebuild a backend's installation. The old one is removed when no engine uses it."""
    client = ensure_daemon(settings_of(ctx), announce)
    done = install(client, backend, version=version, variant=variant, reinstall=True, announce=click.echo)
    report(backend, done)


@click.command("uninstall-runner")
@click.argument("name", required=False, type=OneOf(backend_names), metavar="BACKEND")
@click.option(
    "--backend", type=OneOf(backend_names), metavar="NAME", help="The same as the argument BACKEND."
)
@variant_option
@click.option("--version", metavar="VERSION", help="Remove only this version.")
@click.option("--force", is_flag=True, help="Stop its engines even while they serve requests.")
@click.pass_context
def uninstall_runner_command(
    ctx: click.Context, name: str | None, backend: str | None, variant: str, version: str | None, force: bool
) -> None:
    """Remove a backend, or a version or variant of it, when its engines have finished their requests.

    It stays removed until it is requested. If another version is installed, new engines use that one.
    """
    backend = _one(name, backend)
    if not backend:
        raise click.UsageError("Name the backend: greenroom uninstall-runner BACKEND")
    client = ensure_daemon(settings_of(ctx), announce)
    body: dict[str, object] = {"backend": backend}
    body |= ({"version": version} if version is not None else {}) | ({"force": True} if force else {})
    body |= {"variant": variant} if variant else {}
    answer = client.post("/engines/uninstall-backend", body, timeout=None) or {}
    named = " ".join(filter(None, (backend, variant, version)))
    what = named if version or variant else f"{backend} backend"
    if answer.get("was_installed") is False:
        click.echo(f"{what} is not installed")
        return
    freed = float(answer.get("freed") or 0)
    click.echo(f"Uninstalled {what}{f', {format_size(freed)} freed' if freed else ''}")


@click.command("upgrade-runner")
@names_backend
@variant_option
@click.option(
    "--version",
    default="pinned",
    metavar="VERSION",
    help="A version, or `latest`. Default: the version this release was tested with.",
)
@click.pass_context
def upgrade_runner_command(ctx: click.Context, backend: str, variant: str, version: str) -> None:
    """Install a version next to the one in use, of the same variant, test it, then switch to it.

    Running engines keep their version. The old version stays installed; rollback-runner switches back to it.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    done = install(client, backend, version=version, variant=variant, announce=click.echo)
    # Whether another one was in use until now is not told.
    word = "is installed and in use"
    if done.already:
        word = "is in use; it was already installed"
        if version == "latest":
            word = "is the newest version; it was already installed and is in use"
    click.echo(f"{backend} {done.version} {word}")


@click.command("rollback-runner")
@names_backend
@variant_option
@click.option("--version", default="", metavar="VERSION", help="Switch to this version.")
@click.pass_context
def rollback_runner_command(ctx: click.Context, backend: str, variant: str, version: str) -> None:
    """Switch back to the version that was in use before. Nothing is downloaded or built.

    Running engines keep their version; `greenroom unload` stops the idle ones.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    wish = {"backend": backend, "version": version, "variant": variant}
    chosen = (client.post("/engines/activate-backend", wish) or {})["installation"]
    click.echo(f"{backend} {' '.join(filter(None, (chosen.get('variant'), chosen['version'])))} is in use")


@click.command("export")
@click.argument("backend", type=OneOf(backend_names))
@variant_option
@click.option(
    "--version", default="", metavar="VERSION", help="Export this version instead of the one in use."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead of standard output."
)
@click.pass_context
def export_backend(ctx: click.Context, backend: str, variant: str, version: str, output: Path | None) -> None:
    """Write an installed BACKEND to one file: greenroom backends export mlx > mlx.tar

    Machines of the same kind with the same Python can import it. Needs no daemon.
    """
    from greenroom.runner.backends.base import Environment, Platform
    from greenroom.runner.backends.discovery import BACKENDS
    from greenroom.runner.backends.variants import usual
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.installations import archive
    from greenroom.runner.installations.installed import InstallationStore

    if output is None and sys.stdout.isatty():
        raise click.UsageError(f"Cannot write an archive to a terminal. Write it to a file: -o {backend}.tar")
    settings = settings_of(ctx)
    current = _in_use(settings, backend)
    found = [one for one in InstallationStore(settings.home).records() if one.backend == backend]
    here = Platform.here()
    declared = BACKENDS[backend].on(here) if backend in BACKENDS else None
    if version:
        found = [one for one in found if one.version == version]
    if variant:
        usually = usual(declared.variants, here) if declared is not None else ""
        found = [one for one in found if (one.variant or usually) == variant]
    if not found:
        what = " ".join(filter(None, (backend, variant, version)))
        raise Problem(f"{what} is not installed in {settings.home}.", "See: greenroom backends")
    chosen = max(found, key=lambda one: (one.id == current, one.built_at))
    source = declared.source if declared is not None else None
    distribution = source.distribution if isinstance(source, Environment) else backend
    with ExitStack() as stack:
        draft = output.with_name(f"{output.name}.part") if output is not None else None
        out: IO[bytes] = stack.enter_context(draft.open("wb")) if draft is not None else sys.stdout.buffer
        try:
            archive.write(settings.home, chosen, distribution, out)
        except BaseException as error:
            if draft is not None:
                draft.unlink(missing_ok=True)
            if isinstance(error, JobFailed):
                raise Problem(error.failure.message, error.failure.advice) from error
            raise
    if draft is not None and output is not None:
        draft.replace(output)
    count = len(chosen.wheels)
    click.echo(f"Exported {backend} {chosen.version}: {count} package{'' if count == 1 else 's'}.", err=True)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.pass_context
def import_backend(ctx: click.Context, file: IO[bytes]) -> None:
    """Install a backend from FILE (`-` for standard input). Needs no network."""
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.installations import archive

    settings = settings_of(ctx)
    client = ensure_daemon(settings, announce)
    daemon = find(settings)
    if daemon is None or Path(daemon.home).resolve() != settings.home.resolve():
        raise Problem(
            "The running daemon uses another data directory.",
            "Run the import on the daemon's machine, with the same GREENROOM_HOME.",
        )
    try:
        manifest = archive.read(settings.home, file)
    except JobFailed as failed:
        raise Problem(failed.failure.message, failed.failure.advice) from failed
    variant = manifest.variant or USUAL
    done = install(client, manifest.backend, version=manifest.version, variant=variant, announce=click.echo)
    report(manifest.backend, done)


def _in_use(settings: Settings, backend: str) -> str:
    """The id of the installation in use, where a daemon can tell."""
    try:
        daemon = find(settings)
        known = (daemon.client().get("/engines") or ()) if daemon is not None else ()
    except GreenroomError:
        known = ()  # another program holds the data directory, or the daemon hangs: what is there can be read
    return next(
        (
            one["id"]
            for found in known
            if found["name"] == backend
            for one in found["installations"]
            if one["current"]
        ),
        "",
    )


_HEADINGS = ("BACKEND", "FORMATS", "MODES", "INSTALLED", "VERSIONS", "STATUS")


@click.group("backends", cls=Subcommands, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.pass_context
def backends_command(ctx: click.Context, as_json: bool) -> int:
    """List the backends: what each serves, whether this machine can run it, and which versions are installed.

    A star marks the version that new engines use.
    """
    if ctx.invoked_subcommand is not None:
        return exit_codes.OK
    settings = settings_of(ctx)
    daemon = find(settings)
    if as_json and daemon is None:
        raise not_running(settings)
    problems: tuple[str, ...] = ()
    if daemon is not None:
        with daemon.client().open("GET", "/engines", timeout=60.0) as answer:
            known: list[dict[str, Any]] = json.loads(answer.read())
            problems = tuple(json.loads(answer.headers.get("x-ignored-backends", "[]")))
        remotes = remotes_of(daemon.client())
        rows = [_row(one, _versions(one), _state(one)) for one in known]
    else:
        known, remotes = (
            [],
            [
                {
                    "name": name,
                    "url": one.url,
                    "state": "unasked",
                    "models": (),
                    "inside": 0,
                    "slots": one.slots,
                }
                for name, one in settings.remote_backends.items()
            ],
        )
        rows, problems = _without_a_daemon(settings.home)
    if as_json:
        click.echo(json.dumps([*known, *remotes], indent=4, ensure_ascii=False))
        return exit_codes.OK
    click.echo(table(_HEADINGS, rows, spare=("INSTALLED", "MODES", "FORMATS"), width=terminal_width()))
    if remotes:
        click.echo(f"\n{remotes_table(remotes, terminal_width())}")
    for one in (one for backend in known for one in backend.get("quarantines") or ()):
        from greenroom.actors.scheduler.backend_choice import in_a_row
        from greenroom.runner.diagnosis.sentences import short

        name = short(one["model_ref"])
        say(
            f"{one['backend']} {one['back_to_version']} serves {name}, which failed "
            f"{in_a_row(one['failures'])} on {one['version']} (greenroom why {name})."
        )
    for line in (line for one in known for line in _told_variants(one)):
        say(line)
    for line in (line for one in known for line in _told_restoring(one)):
        say(line)
    for problem in problems:
        click.echo(f"Warning: {problem}", err=True)
    return exit_codes.OK


def _row(backend: dict[str, Any], versions: str, state: str) -> tuple[str, ...]:
    return (
        backend["name"],
        ", ".join(backend["formats"]),
        ", ".join(backend["modes"]),
        "on demand" if backend["deferred"] else "by default",
        versions,
        backend["verdict"] or state,
    )


def _without_a_daemon(home: Path) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """A row for each backend that is declared here, and what is wrong with other declarations."""
    # A running daemon has done all of this already.
    from greenroom.runner.backends.base import Platform
    from greenroom.runner.backends.discovery import BACKENDS

    here, on_disk, rows = Platform.here(), _on_disk(home), []
    for name, declared in BACKENDS.items():
        backend = declared.on(here)
        told = {
            "name": name,
            "formats": backend.formats,
            "modes": backend.modes,
            "deferred": backend.deferred,
            "verdict": backend.verdict(here),
        }
        rows.append(_row(told, ", ".join(on_disk.get(name, ())), "(daemon not running)"))
    return rows, BACKENDS.problems


def _told_restoring(backend: dict[str, Any]) -> Iterator[str]:
    """Which of a backend's installations cannot go on with saved conversations."""
    for one in backend["installations"]:
        if why := one.get("no_restore"):
            yield f"{backend['name']} {one['version']} cannot continue saved conversations: {why}."


def _told_variants(backend: dict[str, Any]) -> Iterator[str]:
    """The variants of an installed backend: the order, with the reason of each place."""
    ranked = backend.get("variants") or ()
    if not backend["installations"] or not any(one["reason"] for one in ranked):
        return
    yield f"Variants of {backend['name']} on this machine, best first:"
    for one in ranked:
        marks = ["in use" if one["name"] == backend["variant"] else "installed"] if one["installed"] else []
        marks += ["not usable"] if not one["usable"] else []
        marks += [f"hashes {one['hashes']}"]
        yield f"  {one['name']} ({', '.join(marks)}): {one['reason']}"
        if failure := one.get("failure"):
            yield f"    It was not installed: {failure['message']} {failure.get('advice') or ''}".rstrip()
    if offered := backend.get("offered"):
        size = next((one.get("download_bytes") or 0 for one in ranked if one["name"] == offered), 0)
        about = f" (about {format_size(size)})" if size else ""
        yield (
            f"{offered} is better than {backend['variant']}, which is in use. Install it{about}: "
            f"greenroom install-runner --backend {backend['name']} --variant {offered}"
        )


@backends_command.command("verify")
@click.argument("name", required=False, type=OneOf(backend_names), metavar="[BACKEND]")
@click.option(
    "--backend", type=OneOf(backend_names), metavar="NAME", help="The same as the argument BACKEND."
)
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.pass_context
def verify_backends(ctx: click.Context, name: str | None, backend: str | None, as_json: bool) -> int:
    """Compare the hash of every installed file, or of BACKEND's, with what was installed.

    Damaged installations are marked broken, and install-runner rebuilds them. Exits 1 if any is damaged.
    """
    backend = _one(name, backend)
    body = {"backend": backend} if backend else {}
    found = client_for(settings_of(ctx)).post("/engines/verify-backend", body, timeout=None) or []
    if as_json:
        click.echo(json.dumps(found, indent=4, ensure_ascii=False))
        return exit_codes.FAILED if any(one["damaged"] for one in found) else exit_codes.OK
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
            repair = "  Repair it: greenroom install-runner --backend {}"
            if set(one["damaged"]) == {"external"}:
                repair = "  Repair it, or correct config.toml; then run this command again."
            click.echo(repair.format(name))
    if not any(one["checked"] for one in found):
        click.echo(f"{backend or 'No backend'} is not installed.")
    return exit_codes.FAILED if broken else exit_codes.OK


backends_command.add_command(export_backend)
backends_command.add_command(import_backend)


def _on_disk(home: Path) -> dict[str, list[str]]:
    """Versions by backend, by the names of their folders; not verified."""
    from greenroom.runner.installations.installed import InstallationStore

    versions: dict[str, list[str]] = {}
    for record in sorted(InstallationStore(home).records(), key=lambda record: record.built_at):
        versions.setdefault(record.backend, []).append(record.version)
    return versions


def _versions(found: dict[str, Any]) -> str:
    usable = [one for one in found["installations"] if not one["retiring"]]
    return ", ".join(_named(found, one) + ("*" if one["current"] else "") for one in usable)


def _named(found: dict[str, Any], one: dict[str, Any]) -> str:
    """A version, with its variant where there are several kinds."""
    return (
        f"{one['variant']} {one['version']}"
        if one.get("variant") and found.get("variants")
        else one["version"]
    )


def _state(found: dict[str, Any]) -> str:
    failure = (found.get("failure") or {}).get("message") or ""
    word = str(found["state"]).replace("_", " ")
    if word == "installed" and found.get("job"):
        return f"{word}; installing another version"
    if word == "installed" and (found.get("failure") or {}).get("code") == "configured_broken":
        return f"{word} ({failure.rstrip('.')})"
    if word == "installed" and failure:
        return f"{word} (the last attempt to install another version failed: {failure})"
    return f"{word}: {failure}" if failure else word
