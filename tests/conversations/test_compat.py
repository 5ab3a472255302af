"""Which engines go on from each other's files."""

from __future__ import annotations

from msgspec.structs import replace

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Backend
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.conversations.costs import compat_of

SPEC = EngineSpec(
    engine_id="e", backend="b", installation_id="i", model_id="m", model_ref="m", slots=4, context_size=4096
)


def same(backend: Backend, **other: object) -> bool:
    spec = replace(SPEC, **other)
    return compat_of(SPEC, backend.slot_layout(SPEC)) == compat_of(spec, backend.slot_layout(spec))


def test_a_file_of_llama_cpp_is_offered_to_no_engine_with_another_number_of_slots() -> None:
    assert not same(LlamaCpp(), slots=2)
    assert same(Mlx(), slots=2)
    for backend in (LlamaCpp(), Mlx()):
        assert same(
            backend, engine_id="f", context_size=8192, memory=7, flags=("--threads", "2", "--no-mmap")
        )
        assert not same(backend, model_id="other")
        assert not same(backend, installation_id="upgraded")
    assert not same(LlamaCpp(), flags=("--cache-type-k", "q8_0"))
