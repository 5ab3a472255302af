"""Why a backend's conversations end with their engine."""

from __future__ import annotations

import pytest

from greenroom.actors.values import Mode
from greenroom.runner.backends.base import Backend
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.backends.vllm import Vllm


@pytest.mark.parametrize(
    ("backend", "mode", "no_restore", "prompt_cache", "said"),
    [
        (LlamaCpp(), "completion", "", None, ""),
        (LlamaCpp(), "completion", None, 0, ""),
        (
            LlamaCpp(),
            "completion",
            "its server has no slots",
            None,
            "go on with what it saves: its server has",
        ),
        (LlamaCpp(), "embedding", "", None, "only those of chats"),
        (Mlx(), "completion", "", 10**9, ""),
        (Mlx(), "completion", "", None, ""),
        (Mlx(), "completion", "", 0, "mlx has no memory for prompts"),
        (Vllm(), "completion", "", None, "vllm keeps what it has read only while it runs"),
    ],
)
def test_the_reason_is_that_of_the_backend_its_installation_or_its_memory(
    backend: Backend, mode: Mode, no_restore: str | None, prompt_cache: int | None, said: str
) -> None:
    found = backend.why_not_saved(mode, no_restore, prompt_cache)
    assert said in found
    assert bool(found) == bool(said)
