"""Commands about the daemon: status, stop, logs, df, version."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import click

from greenroom import __version__
from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import ModelName, OneOf, backend_names, engine_ids, model_names
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, say, table, terminal_width
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import (
    Daemon,
    Unproven,
    Unresponsive,
    await_answer,
    client_for,
    ensure_daemon,
    find,
    is_on_this_machine,
    not_running,
    note,
    noted_url,
    probe,
)
from greenroom.runner.client.errors import GreenroomError, RequestRefused, Unreachable
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.config import Settings
from greenroom.runner.daemon_lock import holder_of
from greenroom.runner.units import format_duration, format_size, parse_duration

_ORDER = ("Running", "Error", "Installing", "Not Installed")


@click.command("status")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; exits 0 even if the daemon is not running."
)
@click.pass_context
def status_command(ctx: click.Context, as_json: bool) -> int:
    """Show whether the daemon is running and ready, its jobs, and the state of its backends.

    In the table, `Running` means installed and usable, as in Docker Model Runner.
    """
    settings = settings_of(ctx)
    daemon = find(settings)
    if daemon is None:
        if as_json:
            click.echo(json.dumps({"running": False, "backends": {}, "endpoint": settings.url}))
            return exit_codes.OK
        raise not_running(settings)
    client = daemon.client()
    backends: dict[str, str] = client.get("/engines/status") or {}
    reason = _not_ready(client)
    if as_json:
        fields = {
            **_fields(daemon, backends, reason),
            "devices": _devices(client),
            "shortfalls": _shortfalls(client),
        }
        click.echo(json.dumps(fields, ensure_ascii=False))
        return exit_codes.OK
    say(f"Greenroom is running at {daemon.url} (process {daemon.pid}, version {daemon.version}).")
    say(f"Data directory: {daemon.home}")
    if reason:
        say(f"It is not ready: {reason}")
    from greenroom.runner.cli.devices import line
    from greenroom.runner.cli.display import describe, title_of

    for job in client.get("/jobs") or ():
        title = title_of(str(job.get("job", "")))
        say(f"{title}: {describe(job)}" if title else describe(job))
    for one in _devices(client):
        say(line(one))
    for told in (*_shortfalls(client), *_missing(client, daemon.home)):
        say(told)
    click.echo()
    click.echo(table(("BACKEND", "STATUS", "DETAILS"), rows(backends), width=terminal_width()))
    return exit_codes.OK


def _shortfalls(client: HttpClient) -> list[str]:
    """For each model of which less lies on devices than was planned, or than could."""
    try:
        engines = client.get("/engines/ps") or []
    except RequestRefused:
        return []
    return [
        f"{one['shortfall']} See: greenroom why {one['model_name']}"
        for one in engines
        if one.get("shortfall")
    ]


def _missing(client: HttpClient, home: str) -> Iterator[str]:
    """For each model that the daemon is to load when it starts, and that is not in the store."""
    settings = note(Path(home)).get("settings")
    for name in settings.get("warm") or () if isinstance(settings, dict) else ():
        try:
            client.get(path_of("models", name))
        except RequestRefused as refused:
            if refused.status == 404:
                yield f"{name} is to be loaded when the daemon starts (warm), but is not in the store."


def _devices(client: HttpClient) -> list[dict[str, Any]]:
    """All but software that only looks like one. A daemon of an earlier version knows none."""
    from greenroom.runner.cli.devices import is_software

    try:
        found = client.get("/engines/devices") or {}
    except RequestRefused:
        return []
    devices: list[dict[str, Any]] = found.get("devices", [])
    return [one for one in devices if not is_software(one)]


def rows(backends: dict[str, str]) -> list[tuple[str, str, str]]:
    """The table of Docker's command: usable ones first, then by name."""
    split = [(name, *_split(text)) for name, text in backends.items()]
    return sorted(split, key=lambda row: (_ORDER.index(row[1]), row[0]))


def _split(text: str) -> tuple[str, str]:
    status, _, details = text.partition(": ")
    if not status:
        return "Not Installed", details
    return (status, details) if status in _ORDER else ("Error", text)


def _not_ready(client: HttpClient) -> str:
    try:
        client.get("/readyz")
    except RequestRefused as refused:
        return refused.message
    return ""


def _fields(daemon: Daemon, backends: dict[str, str], reason: str) -> dict[str, object]:
    return {
        "running": True,
        "ready": not reason,
        "backends": backends,
        "kind": "Greenroom",
        "endpoint": f"{daemon.url}/v1/",
        "pid": daemon.pid,
        "version": daemon.version,
        "home": daemon.home,
    }


STOP_SECONDS = 90.0
"""More than a daemon gives itself before it ends whatever hangs."""
_SAY_AFTER = 5.0
_CHECK_EVERY = 0.05
LET_GO = 2.0
"""Seconds after which a daemon that has let go of its data directory has ended, whatever runs as its pid."""
_CONFIGURED = "configured"


_keep_engines_option = click.option(
    "--keep-engines",
    is_flag=False,
    flag_value=_CONFIGURED,
    metavar="[DURATION]",
    help="Leave engines running for the next daemon to adopt, for at most this long.",
)


@click.command("stop")
@click.argument("models", nargs=-1, type=ModelName())
@_keep_engines_option
@click.option(
    "-f", "--force", is_flag=True, help="Of MODELS: also those in use, once their requests are done."
)
@click.option("--wait", is_flag=True, help="Of MODELS: wait until they are unloaded.")
@click.pass_context
def stop_command(
    ctx: click.Context, models: tuple[str, ...], keep_engines: str | None, force: bool, wait: bool
) -> int:
    """Unload MODELS; without any, shut the daemon down.

    The daemon refuses new requests, stops the engines and closes the journal. It is not an error if it is not
    running. A model that is in use is not unloaded unless --force is given.
    """
    settings = settings_of(ctx)
    if models:
        from greenroom.runner.cli.engines import report, unload

        if keep_engines is not None:
            raise click.UsageError("--keep-engines is for the daemon; name no models with it.")
        client = client_for(settings)
        return report(
            [unload(client, {"models": [one], "force": force}, one, wait=wait) for one in models],
            as_json=False,
        )
    if force or wait:
        raise click.UsageError("Name the models to unload; `greenroom stop` alone stops the daemon.")
    seconds = _grace(settings, keep_engines)
    pid = stop_daemon(settings, seconds)
    if pid is None:
        click.echo(f"Greenroom is not running (nothing answers at {settings.url}).")
    elif seconds is None:
        click.echo(f"Stopped the Greenroom daemon (process {pid}).")
    else:
        click.echo(
            f"Stopped the Greenroom daemon (process {pid}); "
            f"its engines keep running for {format_duration(seconds)}."
        )
    return exit_codes.OK


@click.command("restart")
@_keep_engines_option
@click.pass_context
def restart_command(ctx: click.Context, keep_engines: str | None) -> None:
    """Stop the daemon and start it again, at the same port and with the settings that hold now.

    If it is not running, it is started.
    """
    settings = settings_of(ctx, strict=True)  # before it stops what it could not start again
    if settings.host and not is_on_this_machine(settings.host):
        raise Problem(
            f"The daemon at {settings.host} runs on another machine.",
            "Restart it there.",
            code=exit_codes.USAGE,
        )
    url = noted_url(settings.home)
    pid = stop_daemon(settings, _grace(settings, keep_engines))
    if pid is None:
        announce(f"Greenroom was not running (nothing answered at {settings.url}).")
    else:
        announce(f"Stopped the Greenroom daemon (process {pid}).")
        if url is not None and not settings.host and (port := urlsplit(url).port) != settings.port:
            # It was started with another port, and is to be found there again.
            settings = settings_of(ctx, port=str(port))
    client = ensure_daemon(settings, announce)
    daemon = find(settings)
    now = f" (process {daemon.pid}, version {daemon.version})" if daemon is not None else ""
    click.echo(f"Greenroom is running at {client.url}{now}.")


def _grace(settings: Settings, keep_engines: str | None) -> float | None:
    """Seconds for which engines outlive the daemon; None if they do not. Raises BadParameter."""
    if keep_engines is None:
        return None
    try:
        return settings.engine_grace if keep_engines == _CONFIGURED else parse_duration(keep_engines)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--keep-engines") from error


def stop_daemon(settings: Settings, keep_engines: float | None) -> int | None:
    """Stop the daemon and wait for its end; its process id, None if it does not run.

    Raises Problem if it does not end, or another program answers in its place.
    """
    try:
        daemon = find(settings)
    except Unproven as unproven:
        # Its data directory is gone, and with it the secret; but the system says that the process is ours.
        if not unproven.is_own_process:
            raise
        os.kill(unproven.daemon.pid, signal.SIGTERM)
        await_end(unproven.daemon, settings.home)
        return unproven.daemon.pid
    except Unresponsive as silent:
        if silent.holder.is_stopped:
            raise
        # It is just starting, or being stopped already.
        daemon = await_answer(settings)
        if daemon is None:
            return silent.holder.pid
    if daemon is None:
        return None
    daemon.client().post("/daemon/stop", {"keep_engines": keep_engines})
    await_end(daemon, settings.home)
    return daemon.pid


def await_end(daemon: Daemon, home: Path) -> None:
    """Until its process has exited or, on another machine, until its address no longer answers.

    One that runs in a container has another pid there: as that number some other process runs here.
    """
    began, has_said = time.monotonic(), False
    held_at = began
    while time.monotonic() < began + STOP_SECONDS:
        if not _is_there(daemon):
            return
        if not daemon.secret or holder_of(home) is not None:
            held_at = time.monotonic()
        elif time.monotonic() > held_at + LET_GO:
            return
        if not has_said and time.monotonic() > began + _SAY_AFTER:
            has_said = True
            click.echo(f"Waiting for the daemon (process {daemon.pid}) to finish…", err=True)
        time.sleep(_CHECK_EVERY)  # waiting on another process, bounded
    raise Problem(
        f"The Greenroom daemon (process {daemon.pid}) was asked to stop but is still running after "
        f"{STOP_SECONDS:g}s.",
        f"See its log: greenroom logs. Kill it: kill -9 {daemon.pid}",
    )


def _is_there(daemon: Daemon) -> bool:
    if is_on_this_machine(daemon.url):
        return _runs(daemon.pid)
    try:
        found = probe(daemon.url)
    except (RequestRefused, Unreachable):
        return False
    return isinstance(found, Daemon) and found.instance_id == daemon.instance_id and found.pid == daemon.pid


def _runs(pid: int) -> bool:
    import psutil

    try:
        # A zombie has ended; its parent has not reaped it yet.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


_POLL_EVERY = 0.2


@click.command("logs")
@click.argument("engine", required=False, type=OneOf(engine_ids, model_names, backend_names))
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="Print only the last N lines.")
@click.pass_context
def logs_command(ctx: click.Context, engine: str | None, follow: bool, lines: int | None) -> None:
    """Show the daemon's log, or that of ENGINE, given by the start of its id, its model or its backend.

    If several engines match, the latest is shown. For events as sentences, see: greenroom log.
    """
    settings = settings_of(ctx)
    if settings.host and (elsewhere := _daemon_elsewhere(settings)) is not None:
        _print_logs_of(elsewhere.client(), engine, lines, follow=follow)
        return
    files = _engine_files(settings, engine) if engine else _daemon_files(settings)
    _print("".join(file.read_text("utf-8", "replace") for file in files if file.exists()), lines)
    if follow:
        for text in _follow(files[-1] if not engine else _growing(files)):
            sys.stdout.write(text)
            sys.stdout.flush()


def _daemon_elsewhere(settings: Settings) -> Daemon | None:
    from greenroom.runner.cli.remote_journal import daemon_elsewhere

    return daemon_elsewhere(settings)


def _print_logs_of(client: HttpClient, engine: str | None, lines: int | None, *, follow: bool) -> None:
    """The log of the daemon that GREENROOM_HOST names."""
    if engine:
        raise Problem(
            "Engine logs are not sent over the network: they may quote prompts.",
            f"On the daemon's machine: greenroom logs {engine}",
        )
    query = {"no-engines": "true", "tail": "all" if lines is None else lines}
    query |= {"follow": "true"} if follow else {}
    path = f"/logs?{urlencode(query)}"
    with client.open("GET", path, accept="text/plain, application/json") as answer:
        for line in answer.lines():
            click.echo(line)
            sys.stdout.flush()


def _daemon_files(settings: Settings) -> list[Path]:
    log = settings.home / "daemon.log"
    if not log.exists():
        raise Problem(f"There is no log at {log}: no daemon has used this data directory yet.")
    return [log.with_name("daemon.log.1"), log]


def _engine_files(settings: Settings, wanted: str) -> list[Path]:
    """The head of an engine's output and, once that is full, its tail in two halves."""
    folders = sorted(
        (folder for folder in (settings.home / "engines").glob("*") if folder.is_dir()),
        key=lambda folder: folder.stat().st_mtime,
    )
    fitting = [folder for folder in folders if _fits(folder, wanted)]
    if not fitting:
        latest = [_named(folder) for folder in reversed(folders[-_NAMED:])]
        more = f", and {len(folders) - _NAMED} older ones" if len(folders) > _NAMED else ""
        known = f"The latest with a log: {', '.join(latest)}{more}." if latest else "None has a log yet."
        raise Problem(f"No engine of that name or model has a log: {wanted!r}.", known)
    return [fitting[-1] / name for name in ("log", "log.tail.old", "log.tail")]


_NAMED = 5
"""Engines that are named as a hint."""


def _named(folder: Path) -> str:
    from greenroom.runner.models.references import familiar

    model = str(_spec(folder).get("model_ref") or "")
    return f"{folder.name} ({familiar(model)})" if model else folder.name


def _fits(folder: Path, wanted: str) -> bool:
    if folder.name.startswith(wanted):
        return True
    from greenroom.runner.models.references import familiar

    spec = _spec(folder)
    return wanted == spec.get("backend") or familiar(wanted) == familiar(str(spec.get("model_ref") or ""))


def _spec(folder: Path) -> dict[str, Any]:
    """What the engine was to be, as its folder has it: in the claim while it runs, then in its capsule."""
    for name in ("capsule.json", "claim"):
        with contextlib.suppress(OSError, ValueError):
            fields = json.loads((folder / name).read_text("utf-8"))
            for holder in (fields, fields.get("about") or {}):
                if isinstance(holder.get("spec"), dict):
                    return dict(holder["spec"])
    return {}


def _growing(files: list[Path]) -> Path:
    return files[2] if files[2].exists() else files[0]


def _print(text: str, lines: int | None) -> None:
    if lines is not None:
        text = "".join(text.splitlines(keepends=True)[len(text.splitlines()) - lines :]) if lines else ""
    if text:
        click.echo(text.rstrip("\n"))


def _follow(file: Path) -> Iterator[str]:
    """What is appended to a file, also after a rotation."""
    position = file.stat().st_size if file.exists() else 0
    inode = file.stat().st_ino if file.exists() else 0
    while True:
        with contextlib.suppress(FileNotFoundError):
            now = file.stat()
            if now.st_ino != inode or now.st_size < position:
                inode, position = now.st_ino, 0
            if now.st_size > position:
                with file.open("rb") as opened:
                    opened.seek(position)
                    content = opened.read()
                position += len(content)
                yield content.decode("utf-8", "replace")
        time.sleep(_POLL_EVERY)  # files send no notification of growth; ends with Ctrl-C


_OTHERS = ("cache", "unfinished", "conversations", "engines", "journal", "other", "total")


@click.command("df")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with bytes.")
@click.pass_context
def df_command(ctx: click.Context, as_json: bool) -> None:
    """Show the disk space that models and backends use. Shared data is counted once."""
    used: dict[str, Any] = client_for(settings_of(ctx)).get("/engines/df", timeout=120.0) or {}
    if as_json:
        click.echo(json.dumps(used))
        return
    sizes = {"models": used.get("models_disk_usage", 0)}
    sizes |= {f"backend {name}": size for name, size in (used.get("backends_disk_usage") or {}).items()}
    sizes |= {word: used[f"{word}_disk_usage"] for word in _OTHERS if f"{word}_disk_usage" in used}
    rows = [(name.replace("_", " "), format_size(float(size))) for name, size in sizes.items()]
    click.echo(table(("WHAT", "SIZE"), rows, width=terminal_width()))


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def version_command(ctx: click.Context, as_json: bool) -> None:
    """Show the versions of the command and the daemon. Never fails."""
    import platform

    if as_json:
        found, problem = None, ""
        try:
            found = find(settings_of(ctx))
        except GreenroomError as unusable:
            problem = unusable.message
        server = None
        if found is not None:
            server = {"version": found.version, "url": found.url, "pid": found.pid}
        client = {"version": __version__, "python": platform.python_version()}
        client["platform"] = f"{platform.system().lower()}/{platform.machine()}"
        click.echo(json.dumps({"client": client, "server": server, "problem": problem or None}, indent=4))
        return
    click.echo(f"Client:\n Version:  {__version__}")
    click.echo(f" Python:   {platform.python_version()}")
    click.echo(f" Platform: {platform.system().lower()}/{platform.machine()}")
    try:
        daemon = find(settings_of(ctx))
    except GreenroomError as problem:
        click.echo(f"Server:\n {problem.message}")
        return
    if daemon is None:
        click.echo("Server:\n not running")
    else:
        click.echo(f"Server:\n Version:  {daemon.version}\n Address:  {daemon.url}\n Pid:      {daemon.pid}")
