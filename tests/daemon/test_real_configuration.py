"""A configuration that an engine cannot live with is taken back, and the model serves again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_bad_flag_is_taken_back_and_the_model_serves_again(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished).start()
    name = str(smollm2_gguf)
    assert daemon.chat(name).status == 200
    wrong = {"model": name, "runtime-flags": ["--cache-type-k", "q99"]}
    assert daemon.post("/engines/_configure", wrong).status == 202
    assert daemon.chat(name).status >= 500
    assert daemon.chat(name).status >= 500
    right = {"model": name, "runtime-flags": []}
    status = 409
    while status == 409:
        # It is being loaded, for the last time with these flags.
        status = daemon.post("/engines/_configure", right).status
    assert status == 202
    assert daemon.chat(name).status == 200
