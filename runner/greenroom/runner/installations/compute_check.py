"""Proves that an installation computes on this machine, and says in plain words why it does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from threading import Event
from typing import NamedTuple

from greenroom.actors.values import Failure
from greenroom.runner.engines.keeper_watch import cleaned
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.verification import InterpreterRun, run_briefly

SECONDS = 300.0
"""A driver may compile the build's code at first use, which takes minutes."""
_NO_DEVICE = 3


class _Known(NamedTuple):
    pattern: str
    code: str
    message: str
    advice: str


_REBOOT = "After an update of the driver, reboot. In a container, check which driver libraries it is given."
_ANOTHER = "Another variant may have it, or compile one: greenroom install-runner --build"
# In the words of CUDA, HIP and Vulkan as libraries print them; the first that matches says why.
_REASONS = (
    _Known(
        r"no kernel image|invalid device function|NoBinaryForGpu|code object.*(?:not found|not supported)"
        r"|no device code compatible",
        "no_kernel",
        "has no code for this device",
        _ANOTHER,
    ),
    _Known(
        r"unsupported toolchain|unsupported PTX version|UnsupportedPtxVersion",
        "ptx_too_new",
        "needs a newer driver, which could compile its code for this device",
        "Update the driver.",
    ),
    _Known(
        r"forward compatibility was attempted|CompatNotSupportedOnDevice",
        "forward_compatibility",
        "finds a CUDA library that is newer than the driver and does not work with this device",
        "Update the driver, or take CUDA's compatibility library out of the container or the library path.",
    ),
    _Known(
        r"driver version is insufficient|InsufficientDriver|driver on your system is too old",
        "driver_too_old",
        "needs a newer driver",
        "Update the driver.",
    ),
    _Known(
        r"driver/library version mismatch|SystemDriverMismatch|unsupported display driver",
        "driver_mismatch",
        "finds a driver library that does not match the kernel's driver",
        _REBOOT,
    ),
    _Known(
        r"out of memory|OutOf(?:Device)?Memory|MemoryAllocation",
        "device_out_of_memory",
        "finds no memory left on the device",
        "Close what else uses the device, and install it again.",
    ),
)


def prove(argv: Sequence[str], name: str, *, on_device: bool, cancel: Event) -> None:
    """Have an installation compute once; on a device, if it is made for one.

    Args:
        argv: A launcher that computes, but for its last argument: on what.
        name: What is tried.
        on_device: It must find a graphics device.
        cancel: Ends it.

    Raises:
        JobFailed: It does not compute; permanent, with the library's reason translated.
        JobCancelled: `cancel` was set.
    """
    outcome = run_briefly(
        [*argv, "device" if on_device else "processor"],
        env=cleaned({"GGML_NO_BACKTRACE": "1", "PYTHONNOUSERSITE": "1"}),
        seconds=SECONDS,
        cancel=cancel,
    )
    if outcome.code != 0:
        raise JobFailed(_reason(name, outcome, on_device=on_device))


RESTORING = frozenset({"llama_cpp", "llama_server", "mlx"})
"""Launchers that can also say whether a saved slot is of use to a new server."""


def restores(argv: Sequence[str], *, cancel: Event) -> str | None:
    """Have an installation save what it has read, and go on with it in a new server.

    Args:
        argv: A launcher of `RESTORING`, but for its last argument.
        cancel: Ends it.

    Returns:
        Empty if that works; else why not, a clause: it can be used all the same. None if the machine was too
        busy to try it.

    Raises:
        JobCancelled: `cancel` was set.
    """
    outcome = run_briefly(
        [*argv, "slots"],
        env=cleaned({"GGML_NO_BACKTRACE": "1", "PYTHONNOUSERSITE": "1"}),
        seconds=SECONDS,
        cancel=cancel,
    )
    if outcome.passing:
        return None
    if outcome.code != 0:
        said = outcome.output.strip().splitlines()
        return f"saving and restoring failed when it was tried ({said[-1][:200] if said else outcome.ending})"
    return "" if outcome.output.strip() not in ("", "0") else "what is restored has no effect"


def _reason(name: str, outcome: InterpreterRun, *, on_device: bool) -> Failure:
    detail = outcome.output[-4_000:]
    told = f"{name} was installed but does not compute here: it"
    if outcome.code is None:
        return _failure(
            "does_not_answer",
            f"{told} did not finish within {SECONDS:.0f}s.",
            "The driver may hang; a reboot often helps.",
            detail,
        )
    for known in _REASONS:
        if re.search(known.pattern, detail, re.IGNORECASE):
            return _failure(known.code, f"{told} {known.message}.", known.advice, detail)
    if on_device and outcome.code == _NO_DEVICE:
        return _failure("no_device", f"{told} lists no device.", _REBOOT, detail)
    if outcome.refused is not None or outcome.passing:
        return Failure(
            kind="transient",
            code="probe_ended",
            message=f"{name} was installed but could not be tried: {outcome.ending}.",
            advice="The machine may be out of memory or too busy. Downloads are kept.",
            detail=detail,
            blame="machine",
        )
    lines = [line.strip() for line in detail.splitlines() if re.search(r"error|fail", line, re.IGNORECASE)]
    last = f": {lines[-1][:200]}" if lines else ""
    return _failure(
        "does_not_compute",
        f"{name} was installed but does not compute here ({outcome.ending}){last}.",
        "greenroom why with the backend's name shows the rest of what it printed.",
        detail,
    )


def _failure(code: str, message: str, advice: str, detail: str) -> Failure:
    return Failure(
        kind="permanent", code=code, message=message, advice=advice, detail=detail, blame="machine"
    )
