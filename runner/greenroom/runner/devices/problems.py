"""Why a device cannot compute, in words, each with what to do. The codes are described in docs/devices.md."""

from __future__ import annotations

from collections.abc import Iterable

from greenroom.actors.values import Failure
from greenroom.runner.devices.children import Told

_DETAIL = 4_000


def _problem(code: str, message: str, advice: str, detail: str = "") -> Failure:
    return Failure(
        kind="permanent", code=code, message=message, advice=advice, detail=detail[:_DETAIL], blame="machine"
    )


# drivers


def driver_mismatch(kernel: str, library: str, *, in_container: bool, detail: str = "") -> Failure:
    """After an update of the driver, until the next start."""
    versions = f" (the kernel runs {kernel}, the library is {library})" if kernel and library else ""
    return _problem(
        "driver_mismatch",
        f"NVIDIA's library and kernel module are of different versions{versions}: the driver was updated.",
        "Restart the container; if that does not help, restart its host."
        if in_container
        else "Restart the computer.",
        detail,
    )


def driver_not_loaded(maker: str, module: str, *, in_container: bool, detail: str = "") -> Failure:
    return _problem(
        "driver_not_loaded",
        f"{maker}'s driver is not loaded.",
        f"On the container's host, load it: sudo modprobe {module}"
        if in_container
        else f"Load it: sudo modprobe {module}. If that fails, install the driver from your distribution; "
        "with Secure Boot its modules must be signed.",
        detail,
    )


def wrong_driver(driver: str) -> Failure:
    return _problem(
        "wrong_driver",
        f"It runs with the driver {driver}, which does not support CUDA.",
        "Install NVIDIA's driver from your distribution (Debian: sudo apt install nvidia-driver; Ubuntu: "
        "sudo ubuntu-drivers install), then restart the computer.",
    )


def too_old_for_driver(driver: str) -> Failure:
    """AMD's cards of before 2012."""
    return _problem(
        "wrong_driver",
        f"It runs with the driver {driver}, which supports neither ROCm nor Vulkan.",
        "Cards from 2012 on may use amdgpu: add amdgpu.si_support=1 amdgpu.cik_support=1 radeon.si_support=0 "
        "radeon.cik_support=0 to the kernel's command line. Older ones cannot be used.",
    )


def no_runtime(maker: str, has_loader: bool) -> Failure:
    """Its kernel driver works, but nothing that programs compute through is installed."""
    missing = "its Vulkan driver is" if has_loader else "Vulkan is"
    rocm = "; for ROCm: https://rocm.docs.amd.com" if maker == "amd" else ""
    return _problem(
        "no_runtime",
        f"Its kernel driver is loaded, but {missing} not installed{' and ROCm neither' if rocm else ''}.",
        f"Debian and Ubuntu: sudo apt install libvulkan1 mesa-vulkan-drivers; Fedora: sudo dnf install "
        f"vulkan-loader mesa-vulkan-drivers{rocm}",
    )


def no_render_node(driver: str) -> Failure:
    return _problem(
        "no_render_node",
        f"The driver {driver} is loaded, but there is no file of its below /dev/dri.",
        "Restart the computer. If that does not help, look for its messages: sudo dmesg",
    )


def no_compute_driver() -> Failure:
    return _problem(
        "no_compute_driver",
        "There is no /dev/kfd, so ROCm cannot be used: the kernel is built without AMD's compute driver.",
        "Use a kernel with CONFIG_HSA_AMD, as distributions have it. Vulkan needs none.",
    )


def software(index: int) -> Failure:
    return _problem(
        "software",
        "It is the processor under another name, and slower than the backends that use the processor itself.",
        f"To use it in spite of that, for tests: GGML_VK_VISIBLE_DEVICES={index}",
    )


def device_reserved(driver: str) -> Failure:
    return _problem(
        "device_reserved",
        f"It is reserved for virtual machines (driver {driver}).",
        "Give it back to its own driver, or run Greenroom in the virtual machine that has it.",
    )


def driver_incomplete() -> Failure:
    return _problem(
        "driver_incomplete",
        "The driver's kernel module is loaded, but its library libnvidia-ml.so.1 is not there.",
        "Install the rest of the driver (Debian: sudo apt install nvidia-smi libcuda1; Ubuntu: the package "
        "nvidia-utils of the same version). In a container: --env NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    )


def driver_hangs(maker: str, seconds: float, detail: str = "") -> Failure:
    return _problem(
        "driver_hangs",
        f"{maker}'s driver did not answer within {seconds:g} seconds.",
        "Look for its messages: sudo dmesg. A restart of the computer usually helps. It is asked again in "
        "ten minutes.",
        detail,
    )


def driver_crashes(maker: str, told: Told) -> Failure:
    signal = -(told.code or 0)
    how = f"was ended by signal {signal}" if signal > 0 else "gave an answer that makes no sense"
    return _problem(
        "driver_crashes",
        f"{maker}'s driver failed: the process that asked it {how}.",
        "Install the driver again, or another version of it.",
        f"{told.errors}\n{told.output}".strip(),
    )


def no_permission(maker: str, files: Iterable[str], groups: Iterable[str], effect: str = "") -> Failure:
    """This user may not open the device's files. `effect`: what follows from that."""
    named = ",".join(groups)
    advice = (
        f"Join its group: sudo usermod -aG {named} $USER, then log out and in again. In a container: "
        f"--group-add {named.replace(',', ' --group-add ')}"
        if named
        else "Let this user read and write these files."
    )
    return _problem(
        "no_permission", f"This user may not open {', '.join(files)} of {maker}'s driver{effect}.", advice
    )


def no_device_files(files: Iterable[str], option: str) -> Failure:
    """In a container that was not given the device."""
    return _problem(
        "container_without_device",
        f"The computer has it, but this container has no {' and no '.join(files)}.",
        f"Start the container with: {option}",
    )


# devices


def device_lost(detail: str = "") -> Failure:
    return _problem(
        "device_lost",
        "It fell off the bus: the driver does not reach it any more.",
        "Restart the computer. If it happens again, look for Xid in sudo dmesg, and check its power supply, "
        "cooling and seat.",
        detail,
    )


def device_needs_reset(detail: str = "") -> Failure:
    return _problem(
        "device_needs_reset",
        "Its driver asks for a reset, after an error that cannot be corrected (ECC or Xid).",
        "Stop all programs on it and reset it: sudo nvidia-smi --gpu-reset. Or restart the computer.",
        detail,
    )


def memory_faulty() -> Failure:
    return _problem(
        "memory_faulty",
        "Parts of its memory are faulty and could not be replaced by spare ones (ECC).",
        "Have it repaired or replaced. Details: nvidia-smi -q -d ROW_REMAPPER,ECC",
    )


def divided_without_parts() -> Failure:
    return _problem(
        "no_mig_instance",
        "It is divided by MIG, but has no instance to compute on.",
        "Create one, such as: sudo nvidia-smi mig -cgi 0 -C. Or switch MIG off: sudo nvidia-smi -mig 0",
    )


def devices_withdrawn(detail: str = "") -> Failure:
    """A known fault of container runtimes: a reload of systemd takes the devices from running containers."""
    return _problem(
        "devices_withdrawn",
        "The container had the device, and has lost the permission to use it.",
        "Restart the container. To prevent it, name the devices when you start it: --device /dev/nvidiactl "
        "--device /dev/nvidia-uvm --device /dev/nvidia0",
        detail,
    )


def blocked_by_windows(detail: str = "") -> Failure:
    return _problem(
        "blocked_by_windows",
        "Windows does not let WSL use it.",
        "Update the driver in Windows, then restart WSL: wsl --shutdown",
        detail,
    )


def unexplained(maker: str, detail: str) -> Failure:
    """An error that is not in our lists: its own words are the message."""
    words = " ".join(detail.split())[:200].rstrip(".") or "it does not say why"
    return _problem(
        "driver_failed",
        f"{maker}'s driver cannot be used: {words}.",
        "Look for its messages: sudo dmesg",
        detail,
    )


def not_read(detail: str) -> Failure:
    return Failure(
        kind="permanent",
        code="not_read",
        message="The graphics devices could not be read because of a bug in Greenroom.",
        advice="Please report it and attach the file that greenroom bundle writes.",
        detail=detail[-_DETAIL:],
        blame="ours",
    )


def hidden(variable: str, value: str) -> Failure:
    return _problem(
        "hidden",
        f"The environment variable {variable}={value!r} hides it.".replace("''", '""'),
        f"Start Greenroom without {variable}, or with one that names it.",
    )
