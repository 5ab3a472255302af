"""Real builds compute, or say why they do not, before they count as installed."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from greenroom.runner.backends.base import Environment
from greenroom.runner.backends.discovery import OWN
from greenroom.runner.engines.launchers import launcher
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.compute_check import prove

pytestmark = pytest.mark.real


def tried(python: Path, *, on_device: bool, computes: str = "mlx") -> str:
    """The code of its failure; empty if it computes."""
    argv = (str(python), "-I", str(launcher(computes, "compute")))
    try:
        prove(argv, computes, on_device=on_device, cancel=Event())
    except JobFailed as failed:
        return failed.failure.code
    return ""


def test_mlx_multiplies_matrices_on_the_processor_and_has_no_device_without_a_card(mlx_python: Path) -> None:
    assert tried(mlx_python, on_device=False) == ""
    assert tried(mlx_python, on_device=True) == "no_device"


def test_what_computes_must_be_there(mlx_python: Path) -> None:
    assert tried(mlx_python, on_device=False, computes="vllm") == "does_not_compute", "it has no torch"


def test_every_environment_must_compute_and_those_for_cards_on_one() -> None:
    for backend in OWN.values():
        for one in backend.variants:
            source = one.source or backend.source
            if isinstance(source, Environment):
                assert source.computes, f"{backend.name} {one.name}"
                is_for_cards = one.runtime not in (None, "metal")
                assert source.on_device == is_for_cards, f"{backend.name} {one.name}"
