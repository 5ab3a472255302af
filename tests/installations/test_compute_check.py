"""Real builds compute, or say why they do not, before they count as installed."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest

from greenroom.runner.backends.base import Environment
from greenroom.runner.backends.discovery import OWN
from greenroom.runner.backends.source_build import SourceBuild
from greenroom.runner.engines.launchers import launcher
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.compute_check import RESTORING, prove, restores
from greenroom.runner.installations.verification import InterpreterRun

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


def test_mlx_goes_on_with_what_it_has_saved(mlx_python: Path) -> None:
    argv = (str(mlx_python), "-I", str(launcher("mlx", "compute")))
    assert restores(argv, cancel=Event()) == ""


def test_what_has_no_effect_or_fails_is_not_used_and_says_why(tmp_path: Path, monkeypatch: Any) -> None:
    def said(code: int | None, output: str) -> str | None:
        outcome = InterpreterRun(code=code, output=output)
        monkeypatch.setattr(
            "greenroom.runner.installations.compute_check.run_briefly", lambda *_, **__: outcome
        )
        return restores(("x",), cancel=Event())

    assert said(0, "24") == ""
    assert said(0, "0") == said(0, "") == "what is restored has no effect"
    failed = said(-6, "noise\nGGML_ASSERT(false) failed\n")
    assert failed == "saving and restoring failed when it was tried (GGML_ASSERT(false) failed)"
    assert said(1, "") == "saving and restoring failed when it was tried (exit code 1)"
    assert said(None, "") is said(-9, "") is None


def test_what_saves_its_slots_is_tried_when_it_is_installed() -> None:
    for backend in OWN.values():
        sources = [backend.source, *(one.source for one in backend.variants), *backend.builds.values()]
        computing = [one for one in sources if isinstance(one, Environment | SourceBuild)]
        tried = {one.computes in RESTORING for one in computing}
        assert tried <= {backend.conversations == "slots"}, backend.name
