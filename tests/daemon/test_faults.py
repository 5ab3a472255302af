"""A fault inside a running Greenroom costs what it is about: everyone else is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fake_greenroom import fake_greenroom
from greenroom.actors import Abandon, Configure, Pull, Refused, Serve, read_journal
from greenroom.actors.scheduler import queue as scheduler_queue
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.runner import Greenroom, tiny_gguf


@pytest.fixture
def home(short_path: Path) -> Path:
    return short_path


def serve(greenroom: Greenroom, home: Path, name: str, request_id: str) -> Any:
    file = home / f"{name}.gguf"
    if not file.exists():
        tiny_gguf(file, name)
    pulled = greenroom.system.ask(Pull(reference=str(file))).get(timeout=30)
    ask = Serve(request_id=request_id, model_id=pulled.model.id, model_ref=name)
    return greenroom.system.ask(ask)


def test_a_model_that_cannot_be_decided_on_costs_its_own_requests_in_this_life_and_the_next(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scheduler_queue.choose  # type: ignore[attr-defined]

    def picky(model: Any, *more: Any) -> Any:
        if any("bad" in tag for tag in model.tags):
            raise OverflowError("int too large to convert to float")
        return real(model, *more)

    monkeypatch.setattr(scheduler_queue, "choose", picky)
    for life in range(2):
        with fake_greenroom(home) as greenroom:
            bad, good = (serve(greenroom, home, name, f"{name}-{life}") for name in ("bad", "good"))
            granted = good.get(timeout=30)
            assert granted.endpoint
            with pytest.raises(Refused, match="Greenroom failed while deciding where bad can run") as caught:
                bad.get(timeout=30)
            assert caught.value.refusal.kind == "internal"
            greenroom.system.tell(Abandon(request_id=f"good-{life}"))
            assert greenroom.failure is None
    parked = [one for one in read_journal(home / "journal.db") if one.type == "command_parked"]
    assert {one.stream for one in parked} == {"parked/scheduler"}
    assert all("OverflowError" in one.data for one in parked)


@pytest.mark.parametrize(
    "wrong",
    [
        Serve(request_id=1, model_id="m", model_ref="m"),  # type: ignore[arg-type]
        Serve(request_id="r", model_id="m", model_ref="m", mode="chat"),  # type: ignore[arg-type]
        Serve(request_id="r", model_id="m", model_ref="m", keep_alive=float("nan")),
        Configure(model_id="m", model_ref="m", context_size=-5),
        Configure(model_id="m", model_ref="m", context_size=2**70),
        Configure(model_id="m\ud800", model_ref="m"),
        Pull(reference="a"),
    ],
    ids=repr,
)
def test_a_wrong_ask_is_an_error_for_its_caller_and_other_callers_keep_waiting(
    home: Path, wrong: Any
) -> None:
    with fake_greenroom(home) as greenroom:
        waiting = serve(greenroom, home, "good", "r1")
        with pytest.raises(Refused) as caught:
            greenroom.system.ask(wrong, to=SCHEDULER).get(timeout=10)
        assert caught.value.refusal.kind == "invalid"
        assert "disk" not in str(caught.value)
        assert waiting.get(timeout=30).endpoint
    types = [one.type for one in read_journal(home / "journal.db")]
    assert "command_parked" not in types
