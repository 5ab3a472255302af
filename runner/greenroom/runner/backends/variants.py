"""Variants of a backend: builds for different devices, and which of them a machine can use.

What the variants of llama.cpp are compiled for comes from xllamacpp's own description (its tables "GPU
Architecture Coverage", release 2026.10); those of mlx and vllm from their pages about installation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greenroom.actors.graphics import Graphics, GraphicsDevice, Maker, Runtime
from greenroom.actors.variants import RankedVariant
from greenroom.runner.backends.base import Environment, Platform

_LINUX = (("linux", "x86_64"), ("linux", "arm64"))
MACS = (("darwin", "arm64"), ("darwin", "x86_64"))
_MAKERS: Mapping[Runtime, Maker] = {"cuda": "nvidia", "rocm": "amd", "metal": "apple"}
"""Whose devices a runtime is for; Vulkan is for all."""
_NAMES: Mapping[Maker, str] = {"nvidia": "NVIDIA", "amd": "AMD", "apple": "Apple"}
_TITLES: Mapping[Runtime, str] = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan", "metal": "Metal"}
_DRIVERS = {"12.0": "525", "12.4": "550", "12.8": "570", "13.0": "580"}
"""NVIDIA's first driver for each version of CUDA, by its release notes; others are not named."""


@dataclass(frozen=True)
class Variant:
    name: str
    title: str
    runtime: Runtime | None = None
    """What it computes through; None for the processor."""
    targets: tuple[str, ...] = ()
    """Compute capabilities or gfx targets that it has code for; empty if the driver compiles everything."""
    compiled_from: str = ""
    """The lowest compute capability for which the driver can compile its PTX; empty if it has none."""
    needs: str = ""
    """The oldest version of the runtime for its code."""
    below: str = ""
    """The first version of the runtime that is too new."""
    compiler: str = ""
    """The oldest version of the runtime that can compile its PTX."""
    glibc: str = ""
    """The oldest C library."""
    machines: tuple[tuple[str, str], ...] = _LINUX
    """Systems and processors that it is built for."""
    source: Environment | None = None
    """What it is installed from; None if that is the backend's own source."""
    download_bytes: int = 0
    """About how much that fetches."""

    def runs_on(self, platform: Platform) -> bool:
        return (platform.system, platform.machine) in self.machines


def usual(variants: Sequence[Variant], platform: Platform) -> str:
    """The name of the variant that the backend's own source is; empty without variants."""
    return next((one.name for one in variants if one.source is None and one.runs_on(platform)), "")


@dataclass(frozen=True)
class _Match:
    """What a variant is worth on one device."""

    device: GraphicsDevice
    usable: bool
    reason: str
    is_compiled: bool = False
    """The driver compiles its code when it is first used."""

    def place(self, runtime: Runtime) -> tuple[bool, int, bool, bool]:
        return (self.device.is_shared, -self.device.total, runtime == "vulkan", self.is_compiled)


def order(variants: Sequence[Variant], graphics: Graphics, platform: Platform) -> tuple[RankedVariant, ...]:
    """All variants of this system, the one to use first.

    1. One for another system is left out; one for another processor cannot be used.
    2. Nor can one that needs a newer C library.
    3. The one for the processor can always be used.
    4. Another one needs a device with its runtime. If there is none, the reason is that of a device or of the
       machine that has a problem, where one is known.
    5. Its code must be for that device and its driver: native, or compiled by the driver at first use.
    6. Usable ones are ordered by their best device: memory of its own before the machine's, more before less.
       On one device Vulkan comes last, native code before what the driver must compile; then as declared.
    7. The processor comes last, but before Vulkan on a device that shares the machine's memory, unless the
       device is AMD's: such a device is seldom faster.
    """
    here = [one for one in variants if platform.system in {system for system, _ in one.machines}]  # 1
    ranked = [_ranked(one, graphics, platform) for one in here]
    return tuple(told for _, told in sorted(ranked, key=lambda pair: pair[0]))


_Rank = tuple[int, bool, int, bool, bool]
_FIRST, _PROCESSOR, _SELDOM, _UNUSABLE = range(4)


def _ranked(one: Variant, graphics: Graphics, platform: Platform) -> tuple[_Rank, RankedVariant]:
    match, place = None, _UNUSABLE
    if reason := _unfit(one, graphics, platform):  # 1, 2
        pass
    elif one.runtime is None:  # 3
        place, reason = _PROCESSOR, "It runs on the processor."
    elif (match := _best_match(one, one.runtime, graphics)) is None:  # 4
        reason = _no_device(one, one.runtime, graphics)
    elif not match.usable:  # 5
        reason, match = match.reason, None
    else:
        place, reason = _FIRST, match.reason
        if one.runtime == "vulkan" and match.device.is_shared and match.device.maker != "amd":  # 7
            place, reason = _SELDOM, f"{reason} It is seldom faster there than the processor."
    told = RankedVariant(
        name=one.name,
        usable=place != _UNUSABLE,
        reason=reason,
        runtime=one.runtime,
        device=match.device.id if match is not None else "",
        download_bytes=one.download_bytes,
    )
    if match is None or one.runtime is None:
        return (place, False, 0, False, False), told
    return (place, *match.place(one.runtime)), told  # 6


def _unfit(one: Variant, graphics: Graphics, platform: Platform) -> str:
    """Why it cannot run on this machine, whatever its devices."""
    if not one.runs_on(platform):  # 1
        built = " and ".join(machine for system, machine in one.machines if system == platform.system)
        return f"It is built for {built}; this machine is {platform.machine}."
    if one.glibc and platform.system == "linux":  # 2
        if not graphics.glibc:
            return f"It needs glibc {one.glibc} or newer; this system has another C library."
        if _numbers(graphics.glibc) < _numbers(one.glibc):
            return f"It needs glibc {one.glibc} or newer; this system has {graphics.glibc}."
    return ""


def _best_match(one: Variant, runtime: Runtime, graphics: Graphics) -> _Match | None:
    matches = [
        _match(one, device, version)
        for device in graphics.usable
        if (version := device.runtime(runtime)) is not None
    ]
    return min(matches, key=lambda match: (not match.usable, *match.place(runtime)), default=None)


def _match(one: Variant, device: GraphicsDevice, version: str) -> _Match:  # 5
    has, title = _numbers(version), _TITLES[one.runtime] if one.runtime is not None else ""
    native = not one.targets or device.target in one.targets
    compiled = bool(one.compiled_from) and device.target != ""
    compiled = compiled and _numbers(device.target) >= _numbers(one.compiled_from)
    if not native and not compiled:
        return _Match(device, usable=False, reason=_no_code(one, device))
    wanted = one.needs if native else one.compiler
    if wanted and has < _numbers(wanted):
        return _Match(device, usable=False, reason=_too_old(one, device, title, wanted, version))
    if one.below and has >= _numbers(one.below):
        reason = f"It needs {title} {one.needs.split('.')[0]}; {version} is installed, which cannot run it."
        return _Match(device, usable=False, reason=reason)
    with_target = f" ({device.target})" if one.targets and device.target else ""
    if native:
        return _Match(device, usable=True, reason=f"It runs on the {device.name}{with_target}.")
    return _Match(
        device,
        usable=True,
        reason=f"It runs on the {device.name}{with_target}, after the driver has compiled its code at the "
        "first use.",
        is_compiled=True,
    )


def _no_code(one: Variant, device: GraphicsDevice) -> str:
    target = device.target or "target unknown"
    return f"It has no code for the {device.name} ({target}); it is made for {', '.join(_made_for(one))}."


def _made_for(one: Variant) -> list[str]:
    newer = [f"{one.compiled_from} and newer"] if one.compiled_from else []
    covered = _numbers(one.compiled_from) if one.compiled_from else (10**6,)
    return [target for target in one.targets if _numbers(target) < covered or not one.compiled_from] + newer


def _too_old(one: Variant, device: GraphicsDevice, title: str, wanted: str, version: str) -> str:
    if one.runtime == "cuda":
        driver = f"driver {device.driver}" if device.driver else "its driver"
        newer = _DRIVERS.get(wanted, "")
        update = f"update the driver to {newer} or newer" if newer else "update the driver"
        return f"It needs CUDA {wanted}; {driver} of the {device.name} supports {version}: {update}."
    major = wanted.split(".", maxsplit=1)[0]
    update = f"install {title} {major}" if one.runtime == "rocm" else "update its driver"
    return f"It needs {title} {wanted} or newer; the {device.name} has {version}: {update}."


def _no_device(one: Variant, runtime: Runtime, graphics: Graphics) -> str:  # 4
    title, maker = _TITLES[runtime], _MAKERS.get(runtime)
    theirs = [device for device in graphics.devices if maker in (None, device.maker)]
    for device in theirs:
        if device.problem is not None:
            return f"The {device.name} cannot be used: {device.problem.sentence()}"
        if one.targets and device.target and device.target not in one.targets and not one.compiled_from:
            return _no_code(one, device)
    if theirs:
        wanted = f"{title} {one.needs.split('.')[0]}" if runtime == "rocm" else title
        return f"It needs {wanted}, which is not installed for the {theirs[0].name}."
    whose = _NAMES.get(maker, "graphics") if maker is not None else "graphics"
    others = [name for one, name in _NAMES.items() if maker not in (None, one)]
    # What is wrong with another maker's driver hides nothing of this one's.
    told = [one.sentence() for one in graphics.problems if not any(name in one.message for name in others)]
    return " ".join((f"No {whose} device was found.", *told))


def _numbers(version: str) -> tuple[int, ...]:
    """`12.8` and `gfx1100` as what can be compared."""
    parts = version.removeprefix("gfx").split(".")
    return tuple(int(digits) if (digits := "".join(filter(str.isdigit, part))) else 0 for part in parts)


def _xllamacpp(variant: str) -> Environment:
    return Environment(
        distribution="xllamacpp",
        lock=f"llama.cpp-{variant}",
        probe=("xllamacpp",),
        requirements=("xllamacpp",),
        computes="llama_cpp",
        on_device=True,
        own_index=f"https://xorbitsai.github.io/xllamacpp/whl/{variant}",
        universal=False,
    )


_RDNA_2_3 = ("gfx1030", "gfx1031", "gfx1032", "gfx1100", "gfx1101", "gfx1102")
_MB = 10**6

LLAMA_CPP = (
    Variant(
        "cu132",
        "NVIDIA, CUDA 13",
        "cuda",
        targets=("7.5", "8.6", "8.9", "12.0", "12.1"),
        compiled_from="8.0",
        needs="13.0",
        compiler="13.2",
        glibc="2.35",
        source=_xllamacpp("cu132"),
        download_bytes=400 * _MB,
    ),
    Variant(
        "cu128",
        "NVIDIA, CUDA 12",
        "cuda",
        targets=("8.6", "8.9", "12.0"),
        compiled_from="5.0",
        needs="12.0",
        compiler="12.8",
        glibc="2.35",
        source=_xllamacpp("cu128"),
        download_bytes=500 * _MB,
    ),
    Variant(
        "rocm-7.2.4",
        "AMD, ROCm 7",
        "rocm",
        targets=(*_RDNA_2_3, "gfx1150", "gfx1151", "gfx1200", "gfx1201", "gfx950"),
        needs="7.0",
        below="8.0",
        glibc="2.35",
        source=_xllamacpp("rocm-7.2.4"),
        download_bytes=300 * _MB,
    ),
    Variant(
        "rocm-6.4.1",
        "AMD, ROCm 6",
        "rocm",
        targets=_RDNA_2_3,
        needs="6.0",
        below="7.0",
        glibc="2.35",
        source=_xllamacpp("rocm-6.4.1"),
        download_bytes=200 * _MB,
    ),
    Variant(
        "vulkan",
        "any device with a Vulkan driver",
        "vulkan",
        needs="1.2",
        glibc="2.35",
        source=_xllamacpp("vulkan"),
        download_bytes=50 * _MB,
    ),
    Variant("cpu", "the processor", download_bytes=34 * _MB),
    Variant("metal", "Apple's graphics", "metal", machines=MACS, download_bytes=12 * _MB),
)

MLX = (
    Variant(
        "cuda",
        "NVIDIA, CUDA 12",
        "cuda",
        targets=("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"),
        compiled_from="7.5",
        needs="12.4",
        compiler="12.4",
        glibc="2.35",
        source=Environment(
            distribution="mlx-lm",
            lock="mlx-cuda",
            probe=("mlx.core", "mlx_lm.server"),
            requirements=("mlx-lm>=0.32.0", "mlx>=0.32", "mlx[cuda12]>=0.32"),
            computes="mlx",
            on_device=True,
        ),
        download_bytes=2_800 * _MB,
    ),
    Variant("cpu", "the processor", glibc="2.35"),
    Variant("metal", "Apple's graphics", "metal", machines=(("darwin", "arm64"),)),
)

VLLM_CUDA = Variant(
    "cuda",
    "NVIDIA, CUDA 13",
    "cuda",
    targets=("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0"),
    compiled_from="7.5",
    needs="13.0",
    compiler="13.0",
    glibc="2.35",
    download_bytes=4_000 * _MB,
)
VLLM_ROCM = Variant(
    "rocm",
    "AMD, ROCm 7",
    "rocm",
    targets=(
        *("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101"),
        *("gfx1150", "gfx1151", "gfx1200", "gfx1201"),
    ),
    needs="7.0",
    below="8.0",
    glibc="2.35",
    machines=(("linux", "x86_64"),),
    source=Environment(
        distribution="vllm",
        lock="vllm-rocm",
        probe=("vllm",),
        requirements=("vllm",),
        computes="vllm",
        on_device=True,
        own_index="https://wheels.vllm.ai/rocm/",
        universal=False,
    ),
    download_bytes=5_000 * _MB,
)
VLLM_CPU = Variant("cpu", "the processor", download_bytes=600 * _MB)
