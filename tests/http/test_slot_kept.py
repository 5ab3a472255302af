from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from greenroom.actors.gates import GateBoard
from greenroom.actors.values import Model
from greenroom.runner.http.admission import Admission
from waiting import until_async


async def test_a_slot_is_kept_until_what_works_in_it_has_ended() -> None:
    gates = GateBoard()
    gates.open("e1", "m", "completion", "llama.cpp", "/e1.sock", 1)
    model = cast("Model", SimpleNamespace(id="m"))
    unused = cast("Any", None)
    admission = Admission(
        cast("Any", SimpleNamespace(gates=gates)), unused, unused, model, "m", "completion", first_id="r1"
    )
    may_end = threading.Event()

    await admission.enter()
    restoring = asyncio.create_task(admission.in_slot(may_end.wait))
    await asyncio.sleep(0)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    admission.leave(early=True)

    assert gates.inside("e1") == {"r1"}
    may_end.set()
    await until_async(lambda: not gates.inside("e1"))
