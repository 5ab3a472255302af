"""Variables that choose devices: what ours hide, and what engines get."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from greenroom.actors.graphics import GraphicsDevice, Maker, Runtime
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.visible import allowed, variables

_OWN: Mapping[Maker, Runtime] = {"nvidia": "cuda", "amd": "rocm"}


def card(maker: Maker, name: str, place: int, vulkan: int | None = None) -> Probed:
    """A card at a place among its maker's, and at one among Vulkan's."""
    indexes: dict[Runtime, str] = {}
    if maker in _OWN:
        indexes[_OWN[maker]] = str(place)
    if vulkan is not None:
        indexes["vulkan"] = str(vulkan)
    runtimes: tuple[tuple[Runtime, str], ...] = tuple((runtime, "1") for runtime in indexes)
    return Probed(GraphicsDevice(id=name, maker=maker, name=name, runtimes=runtimes), indexes)


NVIDIA = card("nvidia", "GPU-a", 0, vulkan=1)
FIRST, SECOND = card("amd", "amd-1", 0, vulkan=0), card("amd", "amd-2", 1, vulkan=2)
INTEL = card("intel", "intel", 0, vulkan=3)
ALL = (NVIDIA, FIRST, SECOND, INTEL)


@pytest.mark.parametrize(
    ("env", "usable"),
    [
        (
            {},
            {
                "GPU-a": "cuda vulkan",
                "amd-1": "rocm vulkan",
                "amd-2": "rocm vulkan",
                "intel": "vulkan",
            },
        ),
        (
            {"CUDA_VISIBLE_DEVICES": ""},
            {
                "amd-1": "rocm vulkan",
                "amd-2": "rocm vulkan",
                "intel": "vulkan",
            },
        ),
        (
            {"HIP_VISIBLE_DEVICES": "1"},
            {"GPU-a": "cuda vulkan", "amd-2": "rocm vulkan", "intel": "vulkan"},
        ),
        ({"ROCR_VISIBLE_DEVICES": "-1"}, {"GPU-a": "cuda vulkan", "intel": "vulkan"}),
        (
            {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"},
            {"GPU-a": "cuda vulkan", "amd-2": "rocm vulkan", "intel": "vulkan"},
        ),
        (
            {"GGML_VK_VISIBLE_DEVICES": "0"},
            {"GPU-a": "cuda", "amd-1": "rocm vulkan", "amd-2": "rocm"},
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": "1"},
            {"GPU-a": "vulkan", "amd-1": "rocm", "amd-2": "rocm"},
        ),
    ],
)
def test_our_own_variables_take_devices_or_runtimes_from_us(
    env: Mapping[str, str], usable: Mapping[str, str]
) -> None:
    found = [one.device for one in allowed(ALL, env)]
    left = {one.id: " ".join(name for name, _ in one.runtimes) for one in found if one.problem is None}
    assert left == usable


def test_a_hidden_device_names_the_variable_and_its_value() -> None:
    found = [one.device for one in allowed(ALL, {"CUDA_VISIBLE_DEVICES": "-1"})]
    ((name, problem),) = [(one.id, one.problem) for one in found if one.problem is not None]
    assert (name, problem.code) == ("GPU-a", "hidden")
    assert problem.message == "The environment variable CUDA_VISIBLE_DEVICES='-1' hides it."


def test_an_engine_on_an_nvidia_card_sees_no_other_by_any_runtime() -> None:
    assert variables([NVIDIA]) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0",
        "ROCR_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
        "GGML_VK_VISIBLE_DEVICES": "1",
    }


def test_hip_counts_among_those_that_rocr_has_left() -> None:
    found = variables([SECOND])
    assert (found["ROCR_VISIBLE_DEVICES"], found["HIP_VISIBLE_DEVICES"]) == ("1", "0")
    assert found["GGML_VK_VISIBLE_DEVICES"] == "2"


def test_an_engine_on_a_device_that_only_vulkan_knows_sees_no_card_of_cuda_and_rocm() -> None:
    found = variables([INTEL])
    assert found["GGML_VK_VISIBLE_DEVICES"] == "3"
    assert {found["CUDA_VISIBLE_DEVICES"], found["ROCR_VISIBLE_DEVICES"]} == {"-1"}


def test_several_devices_of_one_kind_are_given_together() -> None:
    found = variables([FIRST, SECOND])
    assert (found["ROCR_VISIBLE_DEVICES"], found["HIP_VISIBLE_DEVICES"]) == ("0,1", "0,1")
