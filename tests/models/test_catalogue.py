"""Short names: what ships, and what users add."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.runner.models.references import Reference
from greenroom.runner.models.short_names import BadCatalogue, Catalogue


@pytest.mark.parametrize(
    "name", ["smollm2", "ai/smollm2", "smollm2:latest", "SmolLM2", " ai/smollm2 ", "docker.io/ai/smollm2"]
)
def test_the_first_model_is_known_by_all_its_names_and_pinned(name: str) -> None:
    entry = Catalogue.load().find(Reference.parse(name))
    assert entry is not None
    assert Reference.parse(entry.source).scheme == "pypi"
    assert len(entry.sha256) == len(entry.package_sha256) == 64
    assert entry.size == 98_362_432


@pytest.mark.parametrize(
    "name", ["ghcr.io/ai/smollm2", "org/smollm2", "smollm2:v2", f"smollm2@sha256:{'a' * 64}", "./smollm2"]
)
def test_a_name_with_another_registry_or_a_version_is_not_looked_up_in_the_catalogue(name: str) -> None:
    assert Catalogue.load().find(Reference.parse(name)) is None


def test_the_users_short_names_win_over_ours() -> None:
    catalogue = Catalogue.load({"mine": "/models/mine.gguf", "smollm2": {"source": "hf.co/org/smollm2:Q8_0"}})
    mine, smollm2 = catalogue.find(Reference.parse("mine")), catalogue.find(Reference.parse("smollm2"))
    assert mine is not None
    assert mine.source == "/models/mine.gguf"
    assert smollm2 is not None
    assert smollm2.source == "hf.co/org/smollm2:Q8_0"
    assert {name for name, _ in catalogue} == {"mine", "smollm2"}


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"bad name": "x"}, "bad name"),
        ({"host.example/x": "y"}, "short name"),
        ({"x": {"source": "y", "sha": "1"}}, "sha"),
        ({"x": {"title": "y"}}, "source"),
        ({"x": {"source": "y", "sha256": "abc"}}, "64"),
        ({"x": {"source": "a" * 64}}, "id"),
        ({"x": 7}, "x"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_with_the_reason(extra: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadCatalogue, match=reason):
        Catalogue.load(extra)
