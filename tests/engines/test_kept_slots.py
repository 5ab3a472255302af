"""What mlx-lm's slots hold, and what is asked of them. mlx itself: `test_real_slots.py`."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.runner.engines.launchers.kept_slots import CannotDo, Errand, Slots, asked

PROMPT, ANSWER = [1, 2, 3], [4, 5]


def held(slots: Slots, slot: int) -> int:
    """The tokens that a slot holds, which it then forgets."""
    return slots.done(None, slot, "erase", "")["n_erased"]


def test_a_slot_holds_the_prompt_and_the_answer_of_its_last_request() -> None:
    slots = Slots("/folder")
    slots.begins(2, PROMPT)
    slots.joined("a")
    slots.begins(0, [9])
    slots.joined("b")
    slots.ended("a", PROMPT + ANSWER)
    slots.ended("b", [9, 9])
    slots.begins(0, PROMPT)
    slots.joined("c")
    slots.ended("c", PROMPT + ANSWER + ANSWER)
    assert [held(slots, number) for number in (0, 1, 2)] == [7, 0, 5]
    assert held(slots, 2) == 0


def test_a_request_that_was_cancelled_or_named_no_slot_changes_none() -> None:
    slots = Slots("/folder")
    slots.begins(0, PROMPT)
    slots.ended_alone([*PROMPT, 4])
    slots.begins(0, PROMPT)
    slots.ended_alone(None)
    slots.begins(0, PROMPT)
    slots.joined("a")
    slots.left("a")
    slots.ended("a", [1])
    for slot in (None, -1, 1024, "0", 1.0):
        slots.begins(slot, [7, 7])
        slots.joined("b")
        slots.ended("b", [7, 7, 7])
        slots.ended_alone([7, 7])
    assert held(slots, 0) == 4
    assert held(slots, 1) == 0


def test_a_slot_whose_request_was_cancelled_does_not_hold_another_conversation() -> None:
    slots = Slots("/folder")
    for number, prompt in enumerate(([*PROMPT, *ANSWER, 6], [*PROMPT, 9, 9], [7, 8, 9])):
        slots.begins(number, PROMPT)
        slots.ended_alone(PROMPT + ANSWER)
        slots.begins(number, prompt)
        slots.joined("a")
        slots.left("a")
    assert [held(slots, number) for number in range(3)] == [5, 5, 0]


def test_the_only_slot_is_everyones() -> None:
    for alone in (True, False):
        slots = Slots("/folder", alone=alone)
        slots.begins(None, PROMPT)
        slots.ended_alone(PROMPT + ANSWER)
        assert held(slots, 0) == (5 if alone else 0)


def test_without_a_folder_nothing_is_remembered() -> None:
    slots = Slots("")
    assert not slots.can
    slots.begins(0, PROMPT)
    slots.ended_alone(PROMPT)
    assert held(slots, 0) == 0


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/passwd", ".hidden"])
@pytest.mark.parametrize("action", ["save", "restore", "dance"])
def test_no_file_elsewhere_is_written_or_read(tmp_path: Path, name: str, action: str) -> None:
    slots = Slots(str(tmp_path))
    slots.begins(0, PROMPT)
    slots.ended_alone(PROMPT)
    with pytest.raises(CannotDo, match="must be a name"):
        slots.done(None, 0, action, name)
    with pytest.raises(CannotDo, match="no action 'dance'"):
        slots.done(None, 0, "dance", "name")


def test_what_is_asked_is_read_as_llama_server_reads_it() -> None:
    assert asked("/slots/3?action=save", b'{"filename": "a"}') == (3, "save", "a")
    assert asked("/slots/0?action=erase", b"") == (0, "erase", "")
    assert asked("/slots/0?action=save", b'{"filename": 3}') == (0, "save", "")
    assert asked("/slots/0?action=save", b"[]") == (0, "save", "")
    for path, body in (("/slots/x?action=save", b"{}"), ("/slots/", b"{}"), ("/slots/0", b"{")):
        with pytest.raises(ValueError, match=r"invalid literal|Expecting|column"):
            asked(path, body)


def test_an_errand_is_answered_by_another_thread_and_ends_with_it() -> None:
    def failing() -> Any:
        raise CannotDo("the disk is full")

    for run, expected in (
        (lambda: {"n_saved": 3}, (200, {"n_saved": 3})),
        (failing, (400, {"error": {"message": "the disk is full"}})),
    ):
        errand = Errand(run)
        threading.Thread(target=errand.run).start()
        assert errand.answer(lambda: True) == expected
    assert Errand(dict).answer(lambda: False)[0] == 500


def test_a_slot_whose_prompt_mlx_no_longer_keeps_is_empty(tmp_path: Path, monkeypatch: Any) -> None:
    module = SimpleNamespace(save_prompt_cache=None)
    monkeypatch.setitem(__import__("sys").modules, "mlx_lm", SimpleNamespace(models=None))
    monkeypatch.setitem(__import__("sys").modules, "mlx_lm.models", SimpleNamespace(cache=module))
    monkeypatch.setitem(__import__("sys").modules, "mlx_lm.models.cache", module)
    slots = Slots(str(tmp_path))
    slots.begins(0, PROMPT)
    slots.ended_alone(PROMPT + ANSWER)
    for found in ((None, PROMPT + ANSWER), (["cut"], [5])):
        kept = SimpleNamespace(fetch_nearest_cache=lambda *_, found=found: found)
        generator = SimpleNamespace(prompt_cache=kept, model_provider=SimpleNamespace(model_key="m"))
        assert slots.done(generator, 0, "save", "name") == {"id_slot": 0, "n_saved": 0, "n_written": 0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_windows_that_slide_and_recurrent_models_go_on_as_well(mlx_python: Path, programs: Path) -> None:
    """What such a model has read cannot be cut: where a template leaves the answer out, it goes on from the
    prompt, which is saved as well.
    """
    done = subprocess.run(
        [mlx_python, programs / "mlx_slots.py"], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: one["cuts"] for name, one in found.items()} == {
        "llama": True,
        "sliding window": False,
        "recurrent": False,
    }
    for name, one in found.items():
        assert (one["saved"], one["restored"]) == (43, 43), name
        assert one["extended"] == [43, True], name
        assert one["left out"] == [40, True], name
