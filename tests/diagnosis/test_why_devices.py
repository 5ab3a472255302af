"""`why devices`: what can be used, and why something cannot."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from greenroom.actors.daemon_log import DevicesChanged
from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.values import Failure

CARD = GraphicsDevice(id="GPU-1", maker="nvidia", name="RTX 4070", total=12_000_000_000)
PERMANENT: Any = partial(Failure, kind="permanent")
TOO_OLD = PERMANENT(code="driver_too_old", message="Its driver is too old.", advice="Install driver 580.")
HANGS = PERMANENT(code="driver_hangs", message="NVIDIA's driver does not answer.", advice="Restart.")


@pytest.mark.parametrize("name", ["devices", "GPU", "why is the gpu unused"])
def test_a_device_that_cannot_be_used_is_told_first_with_its_reason(script: Any, name: str) -> None:
    other = replace(CARD, id="GPU-2", name="GTX 980", problem=TOO_OLD)
    script.add(DevicesChanged(after=(CARD, other), problems=(HANGS,)))
    found = script.why(name)
    assert (found.kind, found.state, found.cause) == ("devices", "usable", "problem")
    assert found.answer == "GTX 980 cannot be used: Its driver is too old. Install driver 580."
    assert found.also == ("NVIDIA's driver does not answer. Restart.", "RTX 4070 (12.0 GB) can be used.")
    assert found.remedies[0].command == "greenroom devices"


def test_without_a_device_that_can_be_used_models_run_on_the_processor(script: Any) -> None:
    assert script.why("devices").answer == "No graphics device was found. Models run on the processor."
    script.add(DevicesChanged(after=(replace(CARD, problem=TOO_OLD),)))
    found = script.why("devices")
    assert (found.state, found.answer.partition(". ")[2]) == (
        "none",
        "Install driver 580. Models run on the processor.",
    )
    script.add(DevicesChanged(before=(CARD,), after=(replace(CARD, is_shared=True),)))
    assert script.why("devices").answer == "RTX 4070 (12.0 GB of shared main memory) can be used."


def test_before_the_first_daemon_nothing_is_known(empty_script: Any) -> None:
    assert empty_script.why("devices").cause == "never_started"
