"""The record of an engine's end, and the one sentence that says why it ended."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.scheduler.state import NO_DEVICE_MEMORY
from greenroom.actors.sizes import format_size
from greenroom.actors.values import EngineExit, EngineSpec, Failure
from greenroom.runner.engines.keeper import write_atomically
from greenroom.runner.errors import is_machines, refused_by_machine
from greenroom.runner.systems.packages import missing_library

_NO_TEMPLATE = "its chat template cannot be read"
_OTHER_TEMPLATE = (
    "package the model with another one (greenroom package --chat-template FILE), or set the runtime flag "
    "--chat-template chatml"
)
_NO_PROJECTOR = (
    "its projector (mmproj) is damaged or belongs to another model; pull the model again, or package it with "
    "the right one (greenroom package --mmproj FILE)"
)
_OUT_OF_MEMORY = (
    "it ran out of memory",
    "it could not allocate the memory it needs",
    "its graphics device had too little free memory",
)
_DEVICE_LOST = "its graphics device was lost"
_NOT_LOADED = "it could not load the model {0}"
# First match wins; each is searched from the last line back. `{0}` is the matched group. Where there is
# a remedy, the sentence names it.
_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), sentence)
    for pattern, sentence in (
        (r"unknown model architecture: '?([\w.-]+)", "this version does not support the architecture {0}"),
        (r"unusable flag: (.*)", "{0}"),
        (
            r"common_chat_templates_init: error: (?:parser: )?(.*)",
            f"{_NO_TEMPLATE} ({{0}}); {_OTHER_TEMPLATE}",
        ),
        (r"chat template parsing error", f"{_NO_TEMPLATE}; {_OTHER_TEMPLATE}"),
        (r"failed to load multimodal model", _NO_PROJECTOR),
        (
            r"quantized V cache requires flash_attn",
            "a value cache of this type (--cache-type-v) needs the runtime flag --flash-attn on",
        ),
        (
            r"failed to parse grammar",
            "the grammar in its runtime flag --grammar cannot be read; change the flag",
        ),
        (r"couldn't bind HTTP server socket", "its socket could not be created"),
        (
            r"ErrorDeviceLost|no (?:CUDA|ROCm)-capable device is detected|GPU is lost|fallen off the bus",
            _DEVICE_LOST,
        ),
        (
            (
                r"cudaMalloc failed|(?:CUDA|HIP|ROCm) error: out of memory|ErrorOutOfDeviceMemory"
                r"|(?:unable|failed) to allocate (?:CUDA|ROCm|Vulkan|SYCL)\d* buffer"
            ),
            _OUT_OF_MEMORY[2],
        ),
        (r"(?:out of memory|bad_alloc|cudaMalloc failed|OutOfMemoryError|MemoryError)", _OUT_OF_MEMORY[0]),
        (r"(?:unable|failed) to allocate (?:\w+ )?buffer|insufficient memory", _OUT_OF_MEMORY[1]),
        (r"invalid magic|not a gguf|failed to read magic", "the file is not a model it can read"),
        (
            r"tensor '?[^']*'? data is not within the file bounds|gguf_init_from_reader: failed to read",
            "the model file is truncated or damaged; remove the model and pull it again",
        ),
        (r"ModuleNotFoundError: No module named '?([\w.]+)", "its installation has no module {0}"),
        (r"(?:ImportError|OSError): (.*(?:\.so|\.dylib).*)", "a library of its installation fails: {0}"),
        (r"(?:unknown|invalid|unrecognized) argument[s]?: (.*)", "it does not know the argument {0}"),
        (r"No space left on device", "the disk is full"),
        # What our launcher adds ("Failed to init server, please check the input params") explains nothing.
        (r"(?:error loading model|failed to load model)[:, ]+((?!.*Failed to init server).*)", _NOT_LOADED),
    )
)
_LACKED = re.compile(
    r"(No space left on device|Too many open files|can't start new thread|Cannot allocate memory"
    r"|Resource temporarily unavailable|Disk quota exceeded)",
    re.IGNORECASE,
)
"""Output of an engine that could not load because the machine ran out of something."""
_LACKED_CODES = {
    "no space left on device": "no_space",
    "disk quota exceeded": "no_space",
    "too many open files": "too_many_files",
    "cannot allocate memory": "no_memory",
}
_ERROR_LINE = re.compile(r"\b(?:error|exception|failed|fatal|abort(?:ed)?|assert)", re.IGNORECASE)
_EXCEPTION_LINE = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception)\b")
"""The last line of a Python traceback: better than a log line that only mentions an error."""
_OWN_WORDS = re.compile(
    r"(?:[\w./+-]{1,200}:\d{1,6}: )?(?:GGML_ASSERT\([\w\s()<>=!&|*+.,:\[\]/%-]{1,200}\) failed|GGML_ABORT)"
    r"|terminate called after throwing an instance of '[\w:]{1,100}'"
    r"|(?:what\(\):\s+)?std::bad_alloc|(?:libc\+\+abi: )?terminating"
    r"|(?:CUDA|ROCm) error: (?:[a-z ]{1,60}|no (?:CUDA|ROCm)-capable device is detected)"
    r"|(?:what\(\):\s+)?vk::[\w:]{1,60}: ErrorDeviceLost|Segmentation fault|Killed|Aborted"
    r"|Fatal Python error: [A-Za-z ]{1,60}|mlx-lm's generation thread has ended"
)
_LINE_START = re.compile(r"^(?:\d[\d.:\-T ]*\s+)?(?:[EWI]\s+)?")


def engine_exit(
    end: Mapping[str, Any],
    spec: EngineSpec,
    *,
    expected: bool,
    was_ready: bool,
    served: bool = False,
    reason: str = "",
    speed: float = 0.0,
) -> EngineExit:
    """The value for the journal, from what the keeper wrote.

    Args:
        served: It may have been ready earlier, though it was not at its end.
        speed: Tokens a second of its answers, if known.
        reason: Why we ended it ourselves (stalled, load failed); "" if it ended on its own or by request.
    """
    first = tuple(str(line) for line in end.get("first_lines", ()))
    last = tuple(str(line) for line in end.get("last_lines", ()))
    if was_ready or served:
        # Engines print what clients ask them, and other users see what is stored.
        first, last = own_words(first), own_words(last)
    code = end.get("code")
    summary = _summary(end, (*first, *last), spec, expected, was_ready, reason)
    return EngineExit(
        at=float(end.get("at") or time.time()),
        code=None if code is None else int(code),
        signal=str(end.get("signal", "")),
        summary=summary,
        failure=None if expected else _lacked(end, last, None if was_ready else last, summary, spec),
        first_lines=first,
        last_lines=last,
        memory=int(end.get("memory") or end.get("peak_memory") or 0),
        expected=expected,
        speed=speed,
        out_of_memory=not expected
        and (bool(end.get("out_of_memory")) or cause_of((*first, *last)) in _OUT_OF_MEMORY),
    )


def _lacked(
    end: Mapping[str, Any], own: Sequence[str], lines: Sequence[str] | None, summary: str, spec: EngineSpec
) -> Failure | None:
    """What the machine ran out of while the engine loaded, or that its device or keeper was lost; else None.

    `own` are words that only the engine can have written. `lines` is None once the engine was ready: its
    output may then contain clients' text.
    """
    if (spec.device or spec.placement) and cause_of(own) == _DEVICE_LOST:
        return Failure(kind="transient", code="device_lost", message=summary, blame="machine")
    if lines is None and end.get("out_of_memory"):
        return Failure(kind="transient", code="out_of_memory", message=summary, blame="machine")
    if end.get("keeper_died"):
        return Failure(kind="transient", code="keeper", message=summary, blame="machine")
    if spec.placement and cause_of(lines or ()) == _OUT_OF_MEMORY[2]:
        return Failure(kind="transient", code=NO_DEVICE_MEMORY, message=summary, blame="machine")
    if missing_library("\n".join(lines := tuple(lines or ()))) is not None:
        return Failure(kind="transient", code="missing_library", message=summary, blame="machine")
    found = next((one for line in reversed(lines) if (one := _LACKED.search(line))), None)
    if found is None:
        return None
    code = _LACKED_CODES.get(found[1].lower(), "no_process")
    return Failure(kind="transient", code=code, message=summary, blame="machine")


def _summary(
    end: Mapping[str, Any],
    lines: tuple[str, ...],
    spec: EngineSpec,
    expected: bool,
    was_ready: bool,
    reason: str,
) -> str:
    """Subject, how it ended, when, why."""
    subject = f"The {spec.backend} engine for {spec.model_ref or spec.model_id}"
    if expected:
        return f"{subject} was stopped{f' ({reason})' if reason else ''}."
    when = "" if was_ready else " while it loaded"
    if reason:
        cause = cause_of(lines)
        return f"{subject} was ended{when}: {reason}{f'; {cause}' if cause else ''}."
    number, code = str(end.get("signal", "")), end.get("code")
    how = f"was killed by {number}" if number else "has gone" if code is None else f"exited with code {code}"
    if end.get("out_of_memory"):
        peak = format_size(float(end.get("peak_memory", 0)))
        return f"{subject} {how}{when}: the system ran out of memory (it had used {peak})."
    if end.get("keeper_died"):
        return f"{subject} was ended{when}: its keeper process had died."
    cause = cause_of(lines)
    return f"{subject} {how}{when}{f': {cause}' if cause else ''}."


def own_words(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines that can only come from the engine itself, such as a failed assertion, and not from a
    client.
    """
    return tuple(line for line in lines if _OWN_WORDS.fullmatch(line.strip()))


def cause_of(lines: Iterable[str]) -> str:
    """The likeliest cause according to the engine's output, without a full stop; "" if nothing looks like
    one.
    """
    latest = list(lines)[::-1]
    if (lacks := missing_library("\n".join(latest))) is not None:
        return f"{lacks[0]}. {lacks[1].rstrip('.')}"
    for pattern, sentence in _CAUSES:
        for line in latest:
            if found := pattern.search(line):
                groups = [group.strip(" '\".") for group in found.groups()]
                return sentence.format(*groups).strip()
    for telling in (_EXCEPTION_LINE, _ERROR_LINE):
        for line in latest:
            if telling.search(line):
                return _LINE_START.sub("", line).strip().rstrip(".")[:300]
    return ""


def read_end(path: Path) -> dict[str, Any] | None:
    """The content of a keeper's `exit.json` or `capsule.json`; None if missing or unreadable."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_end(path: Path, engine_id: str, **fields: Any) -> dict[str, Any]:
    """Write the end of an engine whose keeper died before it could."""
    end = {"at": time.time(), "engine_id": engine_id, "code": None, "signal": "", **fields}
    write_atomically(str(path), end)
    return end


def no_keeper(message: str, said: str = "") -> Failure:
    """Its keeper could not be started, or died before it spawned the engine."""
    return Failure(kind="transient", code="keeper", message=message, detail=said, blame="machine")


def not_spawned(code: str, number: int, message: str) -> Failure:
    """A keeper could not spawn it: another claimed this start, or exec or fork failed."""
    if code == "claimed":
        return Failure(kind="transient", code="claimed", message=message, blame="ours")
    if is_machines(number):
        return msgspec.structs.replace(refused_by_machine("", OSError(number, "")), message=message)
    return Failure(kind="permanent", code="cannot_start", message=message, blame="configuration")
