"""NVIDIA's cards: by NVML in a child process, else by `nvidia-smi`, and what keeps them from computing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.values import Failure
from greenroom.runner.devices import nvidia_smi, problems
from greenroom.runner.devices.children import SECONDS, Told
from greenroom.runner.devices.containers import in_container, machine_memory
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.host_view import WSL, HostView
from greenroom.runner.devices.pci import Controller, name_of

_MAKER = "NVIDIA"
_GPUS = "/proc/driver/nvidia/gpus"
_LIBRARY = "libnvidia-ml.so.1"
_KERNEL = re.compile(r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)?)\s")
_LIBRARY_VERSION = re.compile(r"(?:NVML library version:\s*|libnvidia-ml\.so\.)(\d+\.[\d.]*\d)")
_PROFILE = re.compile(r"\d+g\.(\d+)gb")
_NEWEST = (
    *(
        (595, "13.2"),
        (590, "13.1"),
        (580, "13.0"),
        (575, "12.9"),
        (570, "12.8"),
        (565, "12.7"),
        (560, "12.6"),
    ),
    *(
        (555, "12.5"),
        (550, "12.4"),
        (545, "12.3"),
        (535, "12.2"),
        (530, "12.1"),
        (525, "12.0"),
        (520, "11.8"),
    ),
    *(
        (515, "11.7"),
        (510, "11.6"),
        (495, "11.5"),
        (470, "11.4"),
        (465, "11.3"),
        (460, "11.2"),
        (455, "11.1"),
    ),
    *((450, "11.0"), (440, "10.2"), (418, "10.1"), (410, "10.0"), (396, "9.2"), (390, "9.1"), (384, "9.0")),
)
"""The newest CUDA of each branch of drivers (NVIDIA, "CUDA Toolkit and Corresponding Driver Versions")."""

# Values of nvmlReturn_t.
_NO_PERMISSION, _NOT_LOADED, _NO_LIBRARY = 4, 9, 12
_LOST, _RESET, _SYSTEM, _MISMATCH, _UNKNOWN = 15, 16, 17, 18, 999
_CODES = (
    ("driver/library version mismatch", _MISMATCH),
    ("gpu is lost", _LOST),
    ("requires reset", _RESET),
    ("blocked by the operating system", _SYSTEM),
    ("insufficient permissions", _NO_PERMISSION),
    ("driver not loaded", _NOT_LOADED),
    ("couldn't communicate with the nvidia driver", _NOT_LOADED),
    ("couldn't find libnvidia-ml", _NO_LIBRARY),
)
"""What `nvidia-smi` prints, and the code that NVML has for it."""


class _Error(msgspec.Struct, frozen=True):
    call: str = ""
    code: int = _UNKNOWN
    text: str = ""


class _Memory(msgspec.Struct, frozen=True):
    total: int
    free: int


class _Part(msgspec.Struct, frozen=True):
    uuid: str = ""
    name: str = ""
    memory: _Memory | None = None


class _Card(msgspec.Struct, frozen=True):
    index: int
    uuid: str = ""
    name: str = ""
    bus: str = ""
    capability: str = ""
    memory: _Memory | None = None
    processes: dict[int, int | None] | None = None
    mig: int = 0
    instances: tuple[_Part, ...] = ()
    faulty_rows: int = 0
    error: _Error | None = None
    errors: dict[str, _Error] = {}


class _Answer(msgspec.Struct, frozen=True):
    """What `nvml_child.py` prints."""

    driver: str = ""
    cuda: int = 0
    devices: tuple[_Card, ...] = ()
    error: _Error | None = None


@dataclass(frozen=True)
class _Asked:
    """What the driver said: cards, or why there are none."""

    found: tuple[Probed, ...] = ()
    trouble: Failure | None = None


def look(view: HostView, controllers: Sequence[Controller]) -> tuple[tuple[Probed, ...], tuple[Failure, ...]]:
    """All cards, also those that cannot compute; and problems that belong to no card we can name.

    Without a sign of a card no process is started.
    """
    known = {one.bus: one for one in controllers if one.maker == "nvidia"}
    asked = _asked(view) if _is_worth_asking(view, known) else _Asked()
    listed = {bus: _listed(view, bus) for bus in view.names(_GPUS)}
    seen = {one.device.bus or _bus_of(one, listed) for one in asked.found}
    missed = sorted({*known, *listed} - seen)
    found = (*asked.found, *(_missed(view, bus, known.get(bus), listed, asked) for bus in missed))
    if asked.trouble is None or found:
        return found, ()
    return (), (asked.trouble,)


def ask_again(view: HostView) -> tuple[Probed, ...] | None:
    """The cards with what is free on each now; None if the driver does not say."""
    asked = _asked(view)
    return asked.found if asked.trouble is None else None


def newest_cuda_of(driver: str) -> str:
    """The newest CUDA that a driver of this version supports; empty if unknown."""
    branch = driver.partition(".")[0]
    return next((cuda for least, cuda in _NEWEST if branch.isdigit() and int(branch) >= least), "")


def _is_worth_asking(view: HostView, known: Mapping[str, Controller]) -> bool:
    if view.exists("/dev/nvidiactl") or view.exists("/dev/dxg"):
        return True
    if known or view.names(_GPUS):
        # The first program of root makes the files, but a container has only those that it was given.
        is_loaded = view.exists("/proc/driver/nvidia/version")
        return is_loaded and not in_container(view)
    return bool(view.program("nvidia-smi", WSL))


def _asked(view: HostView) -> _Asked:
    library = view.library(_LIBRARY)
    asked: _Asked | None = None
    if library:
        told = view.script("nvml_child.py", library)
        asked = _by_nvml(view, told)
        if asked.trouble is None or told.hung:
            return asked
    answer = nvidia_smi.ask(view)
    if answer is None:
        return asked or _Asked(trouble=problems.driver_incomplete())
    by_tool = _by_smi(view, answer)
    return asked if asked is not None and by_tool.trouble is not None else by_tool


# NVML


def _by_nvml(view: HostView, told: Told) -> _Asked:
    if told.hung:
        return _Asked(trouble=problems.driver_hangs(_MAKER, SECONDS, told.errors))
    try:
        answer = msgspec.json.decode(told.output, type=_Answer)
    except msgspec.DecodeError:
        return _Asked(trouble=problems.driver_crashes(_MAKER, told))
    if answer.error is not None:
        return _Asked(
            trouble=_explained(view, answer.error.code, f"{answer.error.call}: {answer.error.text}")
        )
    driver = answer.driver or _kernel_version(view)
    cuda = f"{answer.cuda // 1000}.{answer.cuda % 1000 // 10}" if answer.cuda else newest_cuda_of(driver)
    cards: list[Probed] = []
    for card in answer.devices:
        cards += _of_card(view, card, driver, cuda)
    return _Asked(tuple(cards))


def _of_card(view: HostView, card: _Card, driver: str, cuda: str) -> Iterator[Probed]:
    """A card, or its parts if it is divided (MIG)."""
    if card.error is not None and not card.bus:
        return  # without an address it is one of those that were missed
    own = card.memory
    device = GraphicsDevice(
        id=card.uuid or f"pci:{card.bus}",
        maker="nvidia",
        name=card.name or _MAKER,
        # One that says nothing of memory of its own computes in the machine's.
        total=own.total if own else machine_memory(view),
        free=own.free if own else None,
        is_shared=own is None and "memory" not in card.errors,
        driver=driver,
        runtimes=(("cuda", cuda),),
        target=card.capability,
        bus=card.bus,
        problem=_problem_of(view, card),
    )
    if not card.mig or not card.instances:
        yield Probed(device, {"cuda": str(card.index)}, _users(card.processes), uuid=_digits(card.uuid))
        return
    for part in card.instances:
        memory = part.memory
        yield Probed(
            msgspec.structs.replace(
                device,
                id=part.uuid,
                name=part.name or f"{device.name} MIG",
                total=memory.total if memory else 0,
                free=memory.free if memory else None,
                is_shared=False,
            ),
            {"cuda": part.uuid},
            _users(card.processes),
        )


def _problem_of(view: HostView, card: _Card) -> Failure | None:
    errors = [*([card.error] if card.error else []), *card.errors.values()]
    serious = next((one for one in errors if one.code in (_LOST, _RESET)), card.error)
    if serious is not None:
        return _explained(view, serious.code, serious.text)
    if card.faulty_rows:
        return problems.memory_faulty()
    return problems.divided_without_parts() if card.mig and not card.instances else None


def _users(processes: Mapping[int, int | None] | None) -> dict[int, int] | None:
    """None when one is listed without a number: then absence from the list means nothing either."""
    if processes is None or any(held is None for held in processes.values()):
        return None
    return {pid: held for pid, held in processes.items() if held is not None}


def _digits(uuid: str) -> str:
    return uuid.removeprefix("GPU-").replace("-", "")


# nvidia-smi


def _by_smi(view: HostView, answer: nvidia_smi.SmiAnswer) -> _Asked:
    told = answer.told
    if told.hung:
        return _Asked(trouble=problems.driver_hangs(_MAKER, SECONDS, told.errors))
    if not answer.cards:
        text = f"{told.output}\n{told.errors}".strip()
        if "no devices were found" in text.lower():
            return _Asked()
        return _Asked(trouble=_explained(view, _code_of(text), text))
    driver = answer.cards[0].driver or _kernel_version(view)
    cuda = nvidia_smi.newest_cuda(view) or newest_cuda_of(driver)
    parts = nvidia_smi.parts_of(view) if any(card.is_divided for card in answer.cards) else {}
    found: list[Probed] = []
    for card in answer.cards:
        users = None if answer.users is None else answer.users.get(card.id, {})
        device = GraphicsDevice(
            id=card.id,
            maker="nvidia",
            name=card.name,
            total=card.total or machine_memory(view),
            free=card.total - card.used if card.total and card.used is not None else None,
            is_shared=not card.total and not card.error,
            driver=driver,
            runtimes=(("cuda", cuda),),
            target=card.capability,
            bus=card.bus,
            problem=_explained(view, _code_of(card.error), card.error) if card.error else None,
        )
        if card.is_divided and parts.get(card.index):
            found += (_part(device, *part) for part in parts[card.index])
        elif card.is_divided:
            broken = msgspec.structs.replace(device, problem=problems.divided_without_parts())
            found.append(Probed(broken, {}, users))
        else:
            found.append(Probed(device, {"cuda": str(card.index)}, users, uuid=_digits(card.id)))
    return _Asked(tuple(found))


def _part(card: GraphicsDevice, part: str, profile: str) -> Probed:
    """Its memory is known by the profile alone, in whole GiB."""
    size = _PROFILE.search(profile)
    total = int(size[1]) * 2**30 if size else 0
    device = msgspec.structs.replace(
        card, id=part, name=f"{card.name} MIG {profile}", total=total, free=None, is_shared=False
    )
    return Probed(device, {"cuda": part})


def _code_of(text: str) -> int:
    lower = text.lower()
    return next((code for words, code in _CODES if words in lower), _UNKNOWN)


# what is wrong


def _listed(view: HostView, bus: str) -> dict[str, str]:
    """What the kernel module says of a card, even when the library does not fit it."""
    lines = (line.partition(":") for line in view.text(f"{_GPUS}/{bus}/information").splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _bus_of(one: Probed, listed: Mapping[str, Mapping[str, str]]) -> str:
    """The address of a card whose driver does not tell it."""
    return next((bus for bus, facts in listed.items() if facts.get("GPU UUID") == one.device.id), "")


def _missed(
    view: HostView,
    bus: str,
    controller: Controller | None,
    listed: Mapping[str, Mapping[str, str]],
    asked: _Asked,
) -> Probed:
    """A card that the kernel lists and the driver did not."""
    facts = listed.get(bus, {})
    name, uuid = facts.get("Model", ""), facts.get("GPU UUID", "")
    if not uuid.startswith("GPU-") or "?" in uuid:
        uuid = ""
    device = GraphicsDevice(
        id=uuid or f"pci:{bus}",
        maker="nvidia",
        name=name or (name_of(view, controller) if controller else _MAKER),
        driver=_kernel_version(view) if controller is None or controller.driver == "nvidia" else "",
        bus=bus,
        problem=_why(view, controller, asked),
    )
    return Probed(device, uuid=_digits(uuid))


def _why(view: HostView, controller: Controller | None, asked: _Asked) -> Failure:
    container = in_container(view)
    driver = "nvidia" if controller is None else controller.driver
    if not driver:
        return problems.driver_not_loaded(_MAKER, "nvidia", in_container=container)
    if driver != "nvidia":
        is_reserved = driver.startswith(("vfio", "xen", "pci-stub"))
        return problems.device_reserved(driver) if is_reserved else problems.wrong_driver(driver)
    if asked.trouble is not None:
        return asked.trouble
    if container:
        # It has others at most.
        missing = () if asked.found else ("/dev/nvidiactl",)
        return problems.no_device_files(missing or ("/dev/nvidia* of this card",), "--gpus all")
    return problems.device_lost()


def _explained(view: HostView, code: int, text: str) -> Failure:
    """What an error of NVML means here."""
    container = in_container(view)
    if code == _MISMATCH:
        library = _LIBRARY_VERSION.search(f"{text} {view.link(view.library(_LIBRARY))}")
        return problems.driver_mismatch(
            _kernel_version(view), library[1] if library else "", in_container=container, detail=text
        )
    if code == _NOT_LOADED:
        if container and not view.exists("/dev/nvidiactl"):
            return problems.no_device_files(("/dev/nvidiactl",), "--gpus all")
        return problems.driver_not_loaded(_MAKER, "nvidia", in_container=container, detail=text)
    if code == _NO_PERMISSION:
        return problems.no_permission(_MAKER, ("/dev/nvidia*",), ())
    if code == _NO_LIBRARY:
        return problems.driver_incomplete()
    if container and "init" in text.lower() and "unknown error" in text.lower():
        return problems.devices_withdrawn(text)
    plain = {_LOST: problems.device_lost, _RESET: problems.device_needs_reset}
    plain[_SYSTEM] = problems.blocked_by_windows
    return plain[code](text) if code in plain else problems.unexplained(_MAKER, text)


def _kernel_version(view: HostView) -> str:
    """Of the kernel module that runs, as it tells itself; empty if none does."""
    found = _KERNEL.search(view.text("/proc/driver/nvidia/version") + " ")
    return found[1] if found else ""
