"""`greenroom devices`: the graphics devices, who uses them, and why one cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import table, terminal_width, wrapped
from greenroom.runner.client.daemons import find
from greenroom.runner.units import format_size

_HEADINGS = ("DEVICE", "MEMORY", "FREE", "DRIVER", "COMPUTES WITH", "USED BY")
_SPARE = ("COMPUTES WITH", "DRIVER")
_SECONDS = 30.0
"""Three drivers that hang, one after another."""
_RUNTIMES = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan", "metal": "Metal"}


@click.command("devices")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with bytes.")
@click.pass_context
def devices_command(ctx: click.Context, as_json: bool) -> None:
    """Show the graphics devices: memory, driver, which backends use them, and what is wrong with them.

    It looks at the machine of the daemon, or at this one if no daemon is running.
    """
    daemon = find(settings_of(ctx))
    if daemon is not None:
        found: dict[str, Any] = daemon.client().get("/engines/devices?refresh=true", timeout=_SECONDS)
    else:
        found = _here()
    if as_json:
        click.echo(json.dumps(found, indent=4, ensure_ascii=False))
        return
    click.echo(picture(found, width=terminal_width()))


def picture(found: Mapping[str, Any], width: int | None = None) -> str:
    """The table, and below it what is wrong, from the answer of `GET /engines/devices`."""
    devices, problems = found["devices"], [_sentence(one) for one in found["problems"]]
    if not devices:
        none = "No graphics device was found: models run on the processor."
        return "\n".join(wrapped(one, width) for one in (none, *problems))
    # Software that only looks like a device is worth a line where there is nothing else.
    real = [one for one in devices if not is_software(one)] or devices
    rows = table(_HEADINGS, [_row(one) for one in real], spare=_SPARE, width=width)
    return "\n".join((rows, *(wrapped(one, width) for one in (*_notes(real), *problems))))


def is_software(one: Mapping[str, Any]) -> bool:
    """The processor under another name, which is not used."""
    return (one["problem"] or {}).get("code") == "software"


def line(one: Mapping[str, Any]) -> str:
    """One device in a line, for `greenroom status`."""
    if one["problem"] is not None:
        return f"{one['name']}: cannot be used. {_sentence(one['problem'])}"
    size = format_size(one["memory"]) if one["memory"] else "memory of unknown size"
    free = f", {format_size(one['memory_free'])} free" if one["memory_free"] is not None else ""
    whose = " of the machine's memory" if one["shared"] else ""
    return f"{one['name']}: {size}{whose}{free}"


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    memory = format_size(one["memory"]) if one["memory"] else "?"
    free = "" if one["memory_free"] is None else format_size(one["memory_free"])
    runtimes = ", ".join(f"{_RUNTIMES[name]} {text}".strip() for name, text in one["runtimes"].items())
    target = f" ({one['target']})" if one["target"] else ""
    users = [
        f"{user['backend']} ({user['variant']})" + ("" if user["installed"] else "*")
        for user in one["used_by"]
        if user["variant"]
    ]
    used = ", ".join(users) or ("none" if one["used_by"] else "")
    return (
        one["name"],
        f"{memory}{' shared' if one['shared'] else ''}",
        free,
        one["driver"],
        f"{runtimes}{target}".strip(),
        "cannot be used" if one["problem"] is not None else used,
    )


def _notes(devices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    missing = [
        user["backend"]
        for one in devices
        for user in one["used_by"]
        if user["variant"] and not user["installed"]
    ]
    if missing:
        commands = [f"greenroom install-runner {name}" for name in dict.fromkeys(missing)]
        yield f"* not installed; to install it: {', '.join(commands)}"
    seen: set[str] = set()
    for text in _remarks(devices):
        # Two cards of a kind have the same.
        if text not in seen:
            seen.add(text)
            yield text


def _remarks(devices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in devices:
        if one["problem"] is not None:
            yield f"{one['name']}: {_sentence(one['problem'])}"
        unable: dict[str, list[str]] = {}
        for user in one["used_by"]:
            if not user["variant"]:
                unable.setdefault(user["reason"], []).append(user["backend"])
        for reason, backends in unable.items():
            yield f"{one['name']}: {_listed(backends)} cannot use it. {reason}"


def _listed(names: Sequence[str]) -> str:
    *some, last = names
    return f"{', '.join(some)} and {last}" if some else last


def _sentence(problem: Mapping[str, str]) -> str:
    return f"{problem['message']} {problem['advice']}".strip()


def _here() -> dict[str, Any]:
    from greenroom.runner.backends.base import Platform
    from greenroom.runner.backends.device_users import described, device_users
    from greenroom.runner.backends.discovery import BACKENDS
    from greenroom.runner.devices.inventory import read

    graphics = read(software=True)
    here = Platform.here(graphics)
    return described(graphics, device_users([one.on(here) for one in BACKENDS.values()], graphics, here))
