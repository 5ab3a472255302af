"""Which variants of backends would use which graphics device, and why none would."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from greenroom.actors.graphics import Graphics, GraphicsDevice
from greenroom.actors.values import Fact, Failure
from greenroom.runner.backends.base import Backend, Platform
from greenroom.runner.backends.variants import order, usual


class DeviceUser(Fact, frozen=True, kw_only=True):
    """What one backend makes of a device."""

    backend: str
    variant: str = ""
    """The variant that it would use there; empty if none can."""
    is_installed: bool = False
    reason: str = ""
    """Why this one, or why none."""


def device_users(
    backends: Iterable[Backend],
    graphics: Graphics,
    platform: Platform,
    installed: Collection[tuple[str, str]] = (),
) -> dict[str, tuple[DeviceUser, ...]]:
    """By id of each device that can compute. `installed`: backends with their variants."""
    declared = [one for one in backends if one.variants and not one.verdict(platform)]
    found: dict[str, tuple[DeviceUser, ...]] = {}
    for device in graphics.usable:
        alone = replace(graphics, devices=(device,), problems=())
        found[device.id] = tuple(
            user for one in declared if (user := _user(one, alone, platform, installed)) is not None
        )
    return found


def _user(
    backend: Backend, graphics: Graphics, platform: Platform, installed: Collection[tuple[str, str]]
) -> DeviceUser | None:
    """None if it has no variant for what the device offers."""
    offered = dict(graphics.devices[0].runtimes)
    for name, build in backend.builds.items():
        if build.sees.lower() in offered and (backend.name, name) in installed:
            reason = "It was compiled on this machine."
            return DeviceUser(backend=backend.name, variant=name, is_installed=True, reason=reason)
    ranked = [one for one in order(backend.variants, graphics, platform) if one.runtime in offered]
    for one in ranked:
        if one.usable:
            named = {one.name} | ({""} if one.name == usual(backend.variants, platform) else set())
            is_installed = any((backend.name, name) in installed for name in named)
            return DeviceUser(
                backend=backend.name, variant=one.name, is_installed=is_installed, reason=one.reason
            )
    # The last that is declared for a runtime asks the least of it.
    nearest = [one for one in ranked if one.runtime == ranked[0].runtime][-1:]
    return DeviceUser(backend=backend.name, reason=nearest[0].reason) if nearest else None


def described(graphics: Graphics, users: Mapping[str, Sequence[DeviceUser]]) -> dict[str, Any]:
    """As JSON: what `GET /engines/devices` answers. Sizes are bytes."""
    return {
        "devices": [_device(one, users.get(one.id, ())) for one in graphics.devices],
        "problems": [_problem(one) for one in graphics.problems],
        "glibc": graphics.glibc,
    }


def _device(one: GraphicsDevice, users: Sequence[DeviceUser]) -> dict[str, Any]:
    return {
        "id": one.id,
        "maker": one.maker,
        "name": one.name,
        "memory": one.total,
        "memory_free": one.free,
        "shared": one.is_shared,
        "driver": one.driver,
        "runtimes": dict(one.runtimes),
        "target": one.target,
        "bus": one.bus,
        "used_by": [
            {
                "backend": user.backend,
                "variant": user.variant or None,
                "installed": user.is_installed,
                "reason": user.reason,
            }
            for user in users
        ],
        "problem": None if one.problem is None else _problem(one.problem),
    }


def _problem(one: Failure) -> dict[str, str]:
    return {"code": one.code, "message": one.message, "advice": one.advice, "detail": one.detail}
