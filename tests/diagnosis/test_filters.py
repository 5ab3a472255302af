from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.library.events import PullCancelled, PullRequested
from greenroom.runner.diagnosis.filters import Filter, unknown_kinds


def shown(script: Any, **wanted: Any) -> list[str]:
    chosen = Filter(**wanted)
    return [record.id for record in script.records if chosen.takes(record)]


@pytest.fixture
def life(script: Any) -> Any:
    """Two models on two backends, one of which makes room for the other."""
    script.model("qwen3", kind="safetensors-mlx")
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    script.wait(100.0)
    script.smollm2 = script.load(request="r-1")
    script.evict(script.smollm2, "room", cause="r-2", in_favour_of="docker.io/ai/qwen3:latest")
    script.qwen3 = script.load("qwen3", backend="mlx", installation=mlx, request="r-2")
    return script


def test_without_filters_every_event_is_shown(life: Any) -> None:
    assert shown(life) == [record.id for record in life.records]


def test_a_model_is_shown_by_any_name_with_its_pull_and_its_engines(life: Any) -> None:
    about = shown(life, model="smollm2")

    assert about == shown(life, model="docker.io/ai/smollm2:latest") == shown(life, model="ai/smollm2")
    assert about[:2] == ["library/1", "library/2"]
    assert "runner/llama.cpp/3" in about, "it names an engine only"
    assert not [one for one in about if one.startswith(("runner/mlx", "install/"))]


def test_a_model_shows_whose_room_it_took(life: Any) -> None:
    kinds = {record.id: record.type for record in life.records}

    about = [kinds[one] for one in shown(life, model="qwen3")]

    assert about.count("eviction_decided") == 1


def test_a_model_is_found_by_its_id(life: Any) -> None:
    model_id = f"sha256:{b'smollm2'.hex():0<64}"

    assert shown(life, model=model_id) == shown(life, model=model_id[7:19])
    assert "library/2" in shown(life, model=model_id)


def test_a_backend_is_shown_with_its_engines(life: Any) -> None:
    about = shown(life, backend="mlx")

    assert about[:2] == ["install/mlx/1", "install/mlx/2"]
    assert {one.partition("/")[0] for one in about} == {"install", "scheduler", "runner"}
    assert not [one for one in about if "llama.cpp" in one]


def test_an_engine_is_found_by_the_beginning_of_its_id(life: Any) -> None:
    whole = shown(life, engine=life.smollm2)

    assert len(whole) == 7
    assert set(whole) < set(shown(life, engine=life.smollm2[:8]))


def test_kinds_are_types_or_patterns_and_any_counts(life: Any) -> None:
    kinds = {record.id: record.type for record in life.records}

    found = {kinds[one] for one in shown(life, kinds=["install_*", "engine_ready"])}

    assert found == {"install_requested", "engine_ready"}


def test_a_cause_shows_all_it_led_to(life: Any) -> None:
    led_to = shown(life, cause="r-1")

    assert led_to[:2] == ["scheduler/1", "scheduler/2"]
    assert "runner/llama.cpp/3" in led_to, "caused by what the request caused"
    assert not [one for one in led_to if one.startswith("runner/mlx")]
    assert shown(life, cause="install/mlx/1") == ["install/mlx/1", "install/mlx/2"]


def test_events_are_filtered_by_time(life: Any) -> None:
    middle = life.records[0].at + 50.0

    assert shown(life, until=middle) + shown(life, since=middle) == shown(life)
    assert shown(life, since=middle)[0] == "scheduler/1"


def test_all_filters_must_match(life: Any) -> None:
    assert shown(life, model="qwen3", backend="mlx", kinds=["engine_*"], stream="runner/mlx") == [
        "runner/mlx/1",
        "runner/mlx/2",
        "runner/mlx/3",
    ]
    assert shown(life, model="smollm2", backend="mlx") == []


def test_an_unknown_name_shows_nothing(life: Any) -> None:
    assert shown(life, model="no such model!") == []


def test_a_pull_is_found_by_the_name_that_was_requested(script: Any) -> None:
    script.add(PullRequested(job="pull.9", reference="huggingface.co/org/model:Q4_K_M"))
    script.add(PullCancelled(job="pull.9", reason="cancelled"))

    assert shown(script, model="hf.co/org/model:Q4_K_M") == ["library/3", "library/4"]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"backend": "mlxx"}, "The journal has no backend mlxx. Did you mean mlx?"),
        ({"model": "smollm"}, "The journal has no model smollm. Did you mean smollm2?"),
        ({"engine": "zz"}, "The journal has no engine zz."),
        (
            {"stream": "install/mlxx"},
            "The journal has no stream install/mlxx. Did you mean install/mlx or install/llama.cpp?",
        ),
        ({"cause": "r-9"}, "The journal has no event or request r-9."),
    ],
)
def test_for_a_name_that_no_event_has_a_similar_one_is_suggested(
    life: Any, wanted: Any, sentence: str
) -> None:
    chosen = Filter(**wanted)
    assert not [record for record in life.records if chosen.takes(record)]
    assert chosen.unknown_names() == [sentence]


@pytest.mark.parametrize(
    "wanted",
    [{"backend": "mlx"}, {"model": "qwen3"}, {"stream": "install/mlx"}, {"cause": "r-2"}],
)
def test_a_name_that_is_known_is_known_even_where_nothing_is_shown(life: Any, wanted: Any) -> None:
    chosen = Filter(**wanted, since=9e9)
    assert not [record for record in life.records if chosen.takes(record)]
    assert chosen.unknown_names() == []


def test_an_engine_is_known_by_the_beginning_of_its_id(life: Any) -> None:
    chosen = Filter(engine=life.qwen3[:-1], since=9e9)
    assert not [record for record in life.records if chosen.takes(record)]
    assert chosen.unknown_names() == []


def test_for_unknown_kinds_a_similar_one_is_suggested() -> None:
    assert unknown_kinds(["load_*", "engine_ready"]) == []
    assert unknown_kinds(["install_fialed"]) == [
        "Greenroom has no event type install_fialed. Did you mean install_failed?"
    ]
