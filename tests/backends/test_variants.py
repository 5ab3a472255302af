"""Which variant a machine uses, and why not another."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from greenroom.actors.graphics import Graphics
from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.values import Installation
from greenroom.actors.variants import RankedVariant
from greenroom.runner.backend_facts import facts_of
from greenroom.runner.backends.discovery import OWN
from greenroom.runner.backends.variants import LLAMA_CPP, order, usual
from greenroom.runner.http.backends import hashes_of
from machines import MACHINES, device, nvidia, platform
from variant_table import MACHINES as RECORDED
from variant_table import insert, ranked_on

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backends.md"


def ranked(machine: str, backend: str = "llama.cpp") -> tuple[RankedVariant, ...]:
    here, graphics = MACHINES[machine]
    return order(OWN[backend].on(here).variants, graphics, here)


def reason(machine: str, variant: str) -> str:
    return next(one.reason for one in ranked(machine) if one.name == variant)


@pytest.mark.parametrize(
    ("machine", "usable"),
    [
        ("no device", "cpu"),
        ("RTX 4070, driver 580", "cu132 cu128 vulkan cpu"),
        ("RTX 3060, driver 535", "cu128 vulkan cpu"),
        ("GTX 1080, driver 535", "vulkan cpu"),
        ("GTX 1080, driver 570", "cu128 vulkan cpu"),
        ("H100, driver 580, container without Vulkan", "cu128 cpu"),
        ("H100, driver 595", "cu132 cu128 cpu"),
        ("RTX 4090, updated driver before a reboot", "cpu"),
        ("RX 7900 XTX, ROCm 6.4", "rocm-6.4.1 vulkan cpu"),
        ("RX 9070 XT, no ROCm", "vulkan cpu"),
        ("Radeon 780M, which shares memory, ROCm 7.2", "vulkan cpu"),
        ("RX 7600 in a container without its device", "cpu"),
        ("Intel UHD 770, which shares memory", "cpu vulkan"),
        ("Intel Arc A770 and UHD 770", "vulkan cpu"),
        ("RTX 3060 on Debian 11", "cpu"),
        ("RTX 4070 on Alpine", "cpu"),
        ("GB10 on arm64, driver 580", "cu132 cu128 cpu vulkan"),
        ("Apple M3", "metal"),
    ],
)
def test_a_machine_uses_what_its_devices_and_drivers_can_run(machine: str, usable: str) -> None:
    assert [one.name for one in ranked(machine) if one.usable] == usable.split()


def test_an_old_driver_is_named_with_both_versions_and_the_one_to_update_to() -> None:
    assert reason("GTX 1080, driver 535", "cu128") == (
        "It needs CUDA 12.8; driver 535.104 of the NVIDIA GeForce GTX 1080 supports 12.2: "
        "update the driver to 570 or newer."
    )
    assert "needs CUDA 13.2; driver 580.82.07" in reason(
        "H100, driver 580, container without Vulkan", "cu132"
    )


def test_a_card_that_a_toolkit_has_dropped_is_told_what_the_build_is_made_for() -> None:
    assert reason("GTX 1080, driver 570", "cu132") == (
        "It has no code for the NVIDIA GeForce GTX 1080 (6.1); it is made for 7.5, 8.0 and newer."
    )
    assert "gfx1103" in reason("Radeon 780M, which shares memory, ROCm 7.2", "rocm-7.2.4")


def test_what_is_wrong_with_a_device_or_the_machine_is_the_reason() -> None:
    assert reason("RTX 4090, updated driver before a reboot", "cu132").endswith("580.82.07. Reboot.")
    assert "--device /dev/kfd" in reason("RX 7600 in a container without its device", "rocm-7.2.4")
    assert reason("no device", "cu128") == "No NVIDIA device was found."
    assert "ROCm 7, which is not installed" in reason("RX 9070 XT, no ROCm", "rocm-7.2.4")
    assert "needs ROCm 7.0 or newer" in reason("RX 7900 XTX, ROCm 6.4", "rocm-7.2.4")


def test_what_is_wrong_with_one_makers_driver_is_no_reason_for_anothers_variant() -> None:
    ranked = {one.name: one for one in ranked_on(RECORDED / "ryzen-7840u-780m.toml")}
    assert ranked["cu128"].reason == "No NVIDIA device was found."
    assert ranked["vulkan"].usable


def test_an_old_c_library_is_named_with_both_versions() -> None:
    assert reason("RTX 3060 on Debian 11", "cu128") == ("It needs glibc 2.35 or newer; this system has 2.31.")
    assert "another C library" in reason("RTX 4070 on Alpine", "cu132")


def test_the_device_with_the_most_memory_of_its_own_decides_the_order() -> None:
    small = nvidia("GeForce GTX 1650", 4, "7.5", "580.95.05", "13.0", vulkan=False)
    large = device("amd", "AMD Radeon RX 7900 XTX", 24, "gfx1100", runtimes=(("rocm", "7.2"),))
    both = Graphics(devices=(small, large), glibc="2.39")
    names = [one.name for one in order(LLAMA_CPP, both, platform()) if one.usable]
    assert names == ["rocm-7.2.4", "cu132", "cu128", "cpu"]
    shared = replace(large, is_shared=True)
    names = [
        one.name for one in order(LLAMA_CPP, Graphics(devices=(small, shared), glibc="2.39"), platform())
    ]
    assert names[:3] == ["cu132", "cu128", "rocm-7.2.4"]


def test_native_code_is_preferred_to_what_the_driver_must_compile() -> None:
    turing = nvidia("GeForce RTX 2080", 8, "7.5", "595.45", "13.2")
    found = order(tuple(reversed(LLAMA_CPP)), Graphics(devices=(turing,), glibc="2.39"), platform())
    assert [one.name for one in found[:3]] == ["cu132", "cu128", "vulkan"]
    assert "compiled its code at the first use" in next(one.reason for one in found if one.name == "cu128")


def test_mlx_and_vllm_have_their_own_builds() -> None:
    assert [one.name for one in ranked("RTX 4070, driver 580", "mlx") if one.usable] == ["cuda", "cpu"]
    assert [one.name for one in ranked("RTX 4070, driver 580", "vllm") if one.usable] == ["cuda", "cpu"]
    assert [one.name for one in ranked("no device", "vllm") if one.usable] == ["cpu"]


def test_hashes_ship_for_the_tested_version_and_are_resolved_for_any_other() -> None:
    facts = facts_of(OWN["llama.cpp"], platform())
    one = Installation(id="a", backend="llama.cpp", version=facts.version, built_at=1.0)

    def told(*installed: Installation) -> dict[str, str]:
        status = BackendStatus(name="llama.cpp", state="installed", installations=installed)
        return {variant.name: hashes_of(variant, facts, status) for variant in facts.variants}

    resolved = "resolved at installation"
    assert facts.version
    assert told() == told(one) == dict.fromkeys(told(), resolved) | {"cpu": "shipped"}
    assert told(one, replace(one, id="b", version="9", built_at=2.0))["cpu"] == resolved
    assert told(replace(one, id="cu128-a", variant="cu128"))["cpu"] == "shipped"


def test_the_usual_variant_is_the_one_without_a_source_of_its_own() -> None:
    assert usual(LLAMA_CPP, platform()) == "cpu"
    assert usual(LLAMA_CPP, platform("darwin", "arm64")) == "metal"
    vllm = OWN["vllm"]
    assert usual(vllm.on(platform()).variants, platform()) == "cpu"
    assert usual(vllm.on(platform(cuda=True)).variants, platform(cuda=True)) == "cpu"
    assert usual((), platform()) == ""


def test_the_table_of_recorded_machines_is_what_the_decision_says() -> None:
    text = PAGE.read_text("utf-8")
    assert text == insert(text), (
        "run: .venv/bin/python tests/shared/variant_table.py docs/backends.md, and read what has changed"
    )
