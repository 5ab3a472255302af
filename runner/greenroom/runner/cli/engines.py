"""`greenroom ps` and `greenroom unload`: the engines that run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import ModelName, OneOf, backend_names
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, own, style, table, terminal_width, wrapped
from greenroom.runner.cli.remotes import remotes_of, told
from greenroom.runner.client.daemons import client_for
from greenroom.runner.client.errors import RequestRefused
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.units import format_duration, format_size, parse_keep_alive

_HEADINGS = (
    *(
        "MODEL NAME",
        "BACKEND",
        "MODE",
        "STATE",
        "PID",
        "RESERVED",
        "USED",
        "LAYERS",
        "SLOTS",
        "CONTEXT",
        "QUEUE",
        "IDLE",
    ),
    *("UNTIL", "CONVERSATIONS", "ENGINE", "CAUSE"),
)
_SPARE = ("CONTEXT", "CAUSE", "ENGINE", "CONVERSATIONS", "PID", "IDLE", "MODE", "QUEUE", "USED", "LAYERS")
_EVERY = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.option(
    "--all", "-a", "everything", is_flag=True, help="Include the latest engines that stopped, and why."
)
@click.option(
    "--watch",
    "-w",
    is_flag=False,
    flag_value=str(_EVERY),
    type=click.FloatRange(min=0.1),
    metavar="[SECONDS]",
    help="Refresh every second, or every SECONDS, until Ctrl-C.",
)
@click.pass_context
def ps_command(ctx: click.Context, as_json: bool, everything: bool, watch: float | None) -> None:
    """List the running engines: reserved and used memory, slots, queued requests, time until unload."""
    settings = settings_of(ctx)
    client = client_for(settings)
    if watch is None:
        click.echo(_picture(client, as_json, everything, settings.keep_alive))
        return
    while True:
        picture = _picture(client, as_json, everything, settings.keep_alive)
        click.echo(f"{own(_HOME_AND_CLEAR)}{picture}" if sys.stdout.isatty() else picture)
        time.sleep(watch)  # the daemon sends no notification of changes; ends with Ctrl-C


def _picture(client: HttpClient, as_json: bool, everything: bool, keep_alive: float) -> str:
    engines = client.get("/engines/ps?all=true" if everything else "/engines/ps") or []
    if as_json:
        return json.dumps(engines, indent=4, ensure_ascii=False)
    listed = sorted(_row(engine, keep_alive) for engine in engines)
    width = terminal_width()
    rows = table(_HEADINGS, listed, spare=_SPARE, width=width)
    ends = [(engine.get("engine_id"), (engine.get("exit") or {}).get("summary")) for engine in engines]
    try:
        queue = [_waiting(one) for one in client.get("/engines/queue") or []]
    except RequestRefused as refused:
        # What runs is known without the scheduler, who waits is not.
        queue = [f"queue unknown: {refused.message}"]
    remotes = [told(one) for one in remotes_of(client) if one["inside"] or one["failure"]]
    below = [*remotes, *(f"{one}: {summary}" for one, summary in ends if summary), *queue]
    return "\n".join([rows, *(wrapped(one, width, 2) for one in below)])


def _waiting(entry: dict[str, Any]) -> str:
    waited = format_duration(round(float(entry.get("waited") or 0)))
    what = ": ".join(str(entry[key]) for key in ("message", "progress") if entry.get(key))
    place = f"{entry['place']}. " if entry.get("place") else ""
    name = shown_name(str(entry.get("model_ref", "")))
    return f"in the queue: {place}{name} for {waited}, {what or 'just come'}"


def _row(engine: dict[str, Any], keep_alive: float) -> tuple[str, ...]:
    gone = engine.get("state") == "gone"
    return (
        shown_name(str(engine.get("model_name", ""))),
        str(engine.get("backend_name", "")),
        str(engine.get("mode", "")),
        str(engine.get("state", "")),
        str(engine.get("pid") or ""),
        _memory(engine, "memory"),
        "" if gone else _memory(engine, "measured", "not measured"),
        "" if gone else str(engine.get("where") or ""),
        _slots(engine),
        str(engine.get("context_size") or ""),
        str(engine.get("queue") or ""),
        _idle(engine),
        _ended(engine) if gone else _until(engine, keep_alive),
        "" if gone else _conversations(engine),
        str(engine.get("engine_id", "")),
        str(engine.get("cause") or ""),
    )


def shown_name(name: str) -> str:
    """As in other lists, without registry and tag."""
    # As `references.familiar`, which would import a good deal for three prefixes.
    return name.removeprefix("docker.io/").removeprefix("ai/").removesuffix(":latest")


def _size(size: Any, otherwise: str = "") -> str:
    return format_size(float(size)) if size else otherwise


def _memory(engine: dict[str, Any], key: str, otherwise: str = "") -> str:
    """The machine's; for an engine on a graphics device that device's too, told apart by `gpu`."""
    size = _size(engine.get(key), otherwise)
    if not engine.get("device_memory"):
        return size
    return f"{size} + gpu {_size(engine.get(f'device_{key}'), otherwise)}"


def _slots(engine: dict[str, Any]) -> str:
    """How many of its slots are taken; how many requests are inside where it takes all that come."""
    slots = engine.get("slots")
    if not slots or engine.get("state") == "gone":
        return str(engine.get("inside") or "")
    return f"{engine.get('slots_used') or 0}/{slots}"


def _conversations(engine: dict[str, Any]) -> str:
    """How many its slots hold, and what of all that it has had was not read again."""
    held, restored = engine.get("conversations"), engine.get("restored_tokens")
    told = str(held or "")
    return f"{told or 0}, {int(restored):,} tokens restored" if restored else told


def _idle(engine: dict[str, Any]) -> str:
    idle = engine.get("idle_seconds")
    return "" if idle is None else format_duration(round(float(idle)))


def _until(engine: dict[str, Any], otherwise: float) -> str:
    if engine.get("loading"):
        return "Loading..."
    if engine.get("state") == "stopping":
        return "Stopping..."
    try:
        keep_alive = parse_keep_alive(str(engine.get("stays") or engine.get("keep_alive") or otherwise))
    except ValueError:
        keep_alive = otherwise
    if keep_alive < 0:
        return "Forever"
    idle = 0.0 if engine.get("in_use") else _seconds_since(str(engine.get("last_used") or ""))
    left = keep_alive - idle
    return f"{format_duration(round(left))} from now" if left > 0 else "Expiring"


def _ended(engine: dict[str, Any]) -> str:
    since = float(engine.get("since") or 0)
    return f"ended {format_duration(round(max(0.0, time.time() - since)))} ago" if since else ""


def _seconds_since(moment: str) -> float:
    """How long ago an RFC 3339 time was; 0 for the zero time, which stands for now."""
    from datetime import datetime

    if not moment or moment.startswith("0001-"):
        return 0.0
    try:
        # Nanoseconds are more than `fromisoformat` takes.
        head, _, rest = moment.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :] or ("" if rest else head[19:])
        text = f"{head[:19]}.{digits[:6]:0<6}{zone}".replace("Z", "+00:00")
        return max(0.0, time.time() - datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0.0


@click.command("unload")
@click.argument("models", nargs=-1, type=ModelName())
@click.option("--all", "everything", is_flag=True, help="Unload all idle models.")
@click.option(
    "--backend", default="", type=OneOf(backend_names), metavar="NAME", help="Unload only from this backend."
)
@click.option("-f", "--force", is_flag=True, help="Also models in use, once their requests are done.")
@click.option("--wait", is_flag=True, help="Wait until they are unloaded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def unload_command(
    ctx: click.Context,
    models: tuple[str, ...],
    everything: bool,
    backend: str,
    force: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Unload MODELS, unless they are in use. The exit code is 1 if one is in use or not in the store."""
    if not models and not everything:
        raise click.UsageError("Name a model, or use --all.")
    if models and everything:
        raise click.UsageError("Name models or use --all, not both.")
    client = client_for(settings_of(ctx))
    if everything:
        outcomes = [unload(client, {"all": True, "backend": backend, "force": force}, "", wait=wait)]
    else:
        how = {"backend": backend, "force": force}
        outcomes = [unload(client, {"models": [one], **how}, one, wait=wait) for one in models]
    return report(outcomes, as_json=as_json)


def report(outcomes: Sequence[Unloading], *, as_json: bool) -> int:
    """Print what became of each wish; the exit code."""
    if as_json:
        click.echo(json.dumps([one.fields for one in outcomes], indent=4, ensure_ascii=False))
    else:
        for one in outcomes:
            one.tell()
    return exit_codes.OK if all(one.worked or not one.model for one in outcomes) else exit_codes.FAILED


@dataclass(frozen=True)
class Unloading:
    """What became of one wish to unload."""

    model: str
    """Empty for all."""
    unloaded: int
    in_use: Sequence[str]
    known: bool

    @property
    def worked(self) -> bool:
        """Whether nothing that was asked for is still loaded, or will be."""
        return self.known and not self.in_use

    @property
    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model or None,
            "unloaded": self.unloaded,
            "in_use": list(self.in_use),
            "known": self.known,
        }

    def tell(self) -> None:
        """Print it, and what to do."""
        if not self.known:
            problem(f"There is no model {self.model} in the store.", "See: greenroom list")
        elif self.unloaded and not self.model:
            click.echo(f"Unloaded {self.unloaded} model{'' if self.unloaded == 1 else 's'}.")
        elif self.unloaded:
            click.echo(f"Unloaded {self.model}.")
        elif not self.in_use:
            announce(f"{self.model} is not loaded." if self.model else "No model is loaded.")
        for sentence in self.in_use:
            if self.model:
                problem(sentence, "Use --wait to wait for that, or --force to unload it after its requests.")
            else:
                announce(f"Left alone: {sentence}")


def problem(message: str, advice: str) -> None:
    """Say that one of several things failed."""
    announce(f"{style('Error:', fg='red')} {message} {advice}")


_LOOK_AGAIN = 0.2
"""Seconds before the second look; each later one comes after half as much again."""
_LOOK_EVERY = 2.0


def unload(client: HttpClient, body: dict[str, Any], model: str, *, wait: bool) -> Unloading:
    """Have it unloaded; with `wait`, return when that is over, however long it takes."""
    unloaded, ending, has_said, pause = 0, set[str](), False, _LOOK_AGAIN
    while True:
        answer = client.post("/engines/unload", body) or {}
        unloaded += int(answer.get("unloaded_runners") or 0)
        ending |= set(answer.get("ending") or ())
        in_use = [str(one) for one in answer.get("in_use") or ()]
        if not wait or not in_use:
            break
        if not has_said:
            has_said = True
            announce(f"Waiting: {in_use[0]}")
        time.sleep(pause)  # the daemon sends no notification of changes
        pause = min(_LOOK_EVERY, 1.5 * pause)
    while wait and ending & {str(one.get("engine_id")) for one in client.get("/engines/ps") or ()}:
        time.sleep(_LOOK_AGAIN)  # as above
    return Unloading(model, unloaded, in_use, not answer.get("unknown"))
