"""Environment variables that choose devices: what ours hide from us, and what limits an engine to some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec.structs import replace as changed

from greenroom.actors.graphics import Runtime
from greenroom.runner.devices import problems
from greenroom.runner.devices.found import Probed

VULKAN = "GGML_VK_VISIBLE_DEVICES"
"""llama.cpp's own: with it, and only then, it uses software devices too."""
_VARIABLES: tuple[tuple[str, Runtime], ...] = (
    ("CUDA_VISIBLE_DEVICES", "cuda"),
    ("ROCR_VISIBLE_DEVICES", "rocm"),
    ("HIP_VISIBLE_DEVICES", "rocm"),
    (VULKAN, "vulkan"),
)
_OWN: dict[str, Runtime] = {"nvidia": "cuda", "amd": "rocm"}
"""Through what a maker's devices are mainly used: when that is hidden, the device is meant."""


def variables(chosen: Sequence[Probed]) -> dict[str, str]:
    """What limits a process to these devices, for every runtime through which it could reach others.

    Without any, it reaches none. By index, since not every library understands ids; CUDA then has to count by
    position on the bus. `HIP_VISIBLE_DEVICES` counts among those that `ROCR_VISIBLE_DEVICES` has left.
    """

    def of(runtime: Runtime) -> list[str]:
        return [one.indexes[runtime] for one in chosen if runtime in one.indexes]

    cuda, rocm, vulkan = of("cuda"), of("rocm"), of("vulkan")
    found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(cuda) or "-1"}
    if rocm:
        # HIP heeds CUDA's variable too, and counts in it as in its own.
        within = ",".join(str(place) for place in range(len(rocm)))
        found |= {"ROCR_VISIBLE_DEVICES": ",".join(rocm), "HIP_VISIBLE_DEVICES": within}
        if not cuda:
            found["CUDA_VISIBLE_DEVICES"] = within
    else:
        found |= {"ROCR_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    if vulkan or not chosen:
        found[VULKAN] = ",".join(vulkan)
    return found


def allowed(found: Sequence[Probed], env: Mapping[str, str]) -> tuple[Probed, ...]:
    """The same devices, with `hidden` as the problem of those that our own variables take from us.

    Those that a variable names come first, in its order.
    """
    devices = list(found)
    for variable, runtime in _VARIABLES:
        value = env.get(variable)
        counted = [one for one in devices if runtime in one.indexes]
        if value is None or not counted:
            continue
        if variable == "HIP_VISIBLE_DEVICES" and "ROCR_VISIBLE_DEVICES" in env:
            places = [str(place) for place in range(len(counted))]  # among those that are left
        else:
            places = [one.indexes[runtime] for one in counted]
        chosen = _named(value, dict(zip(places, counted, strict=True)))
        hidden = [_without(one, runtime, variable, env) for one in counted if one not in chosen]
        devices = [*chosen, *hidden, *(one for one in devices if one not in counted)]
    return tuple(devices)


def _named(value: str, counted: Mapping[str, Probed]) -> list[Probed]:
    """By place, id or the beginning of an id. As in CUDA itself, the list ends at the first unknown entry."""
    chosen: list[Probed] = []
    for word in (word.strip() for word in value.split(",")):
        matching = [
            one
            for place, one in counted.items()
            if word == place or (word and not word.isdigit() and one.device.id.startswith(word))
        ]
        if len(matching) != 1:
            break
        chosen += matching
    return chosen


def _without(one: Probed, runtime: Runtime, variable: str, env: Mapping[str, str]) -> Probed:
    gone: set[Runtime] = {runtime}
    if _OWN.get(one.device.maker) == runtime and VULKAN not in env:
        gone.add("vulkan")
    device = changed(one.device, runtimes=tuple(pair for pair in one.device.runtimes if pair[0] not in gone))
    if not device.runtimes and device.problem is None:
        device = changed(device, problem=problems.hidden(variable, env[variable]))
    return replace(
        one, device=device, indexes={name: at for name, at in one.indexes.items() if name not in gone}
    )
