"""Mesa's software driver, a Vulkan device that any machine can have: asked for real."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.inventory import look, read
from greenroom.runner.devices.visible import variables

ICDS = [*Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json")]
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not ICDS or not HostView().library("libvulkan.so.1"),
    reason="there is no llvmpipe: apt-get install libvulkan1 mesa-vulkan-drivers",
)


def view(**env: str) -> HostView:
    """This machine with llvmpipe alone, whatever else it has."""
    own = {name: value for name, value in os.environ.items() if name != "GGML_VK_VISIBLE_DEVICES"}
    return HostView(env={**own, "VK_DRIVER_FILES": str(ICDS[0]), "VK_ICD_FILENAMES": str(ICDS[0]), **env})


def test_software_is_listed_on_request_and_not_used() -> None:
    (device,) = [one for one in read(view(), software=True).devices if one.name == "llvmpipe"]
    assert device.problem is not None
    assert device.problem.code == "software"
    assert device.is_shared
    assert device.total > 0
    version = device.runtime("vulkan")
    assert version is not None
    assert version.startswith("1.")


def test_software_is_used_where_the_variable_of_llama_cpp_names_it() -> None:
    found = look(view(GGML_VK_VISIBLE_DEVICES="0"))
    (one,) = [one for one in found.found if one.device.name == "llvmpipe"]
    assert one.device.problem is None
    assert variables([one])["GGML_VK_VISIBLE_DEVICES"] == "0"
    hidden = look(view(GGML_VK_VISIBLE_DEVICES="7")).graphics
    assert "llvmpipe" not in [one.name for one in hidden.usable]
