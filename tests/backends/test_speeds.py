"""How fast a model would answer: by where its layers lie, or by what its engine says."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.values import LayersOn, ModelLayers
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.speeds import estimated, of_device, of_memory

GB = 10**9
CARD = GraphicsDevice(id="GPU-1", maker="nvidia", name="NVIDIA GeForce RTX 4070")
LLAMA_8B = ModelLayers(weights=(140_000_000,) * 32, output=430_000_000)
"""In four bits; users of this card report about 70 tokens a second."""


def test_bandwidth_decides_how_fast_a_model_answers() -> None:
    bandwidths = {CARD.id: of_device(CARD), "": 40 * GB}
    whole = estimated(LLAMA_8B, [LayersOn(device=CARD.id, layers=33)], bandwidths)
    assert whole == pytest.approx(65, rel=0.1)
    part = estimated(LLAMA_8B, [LayersOn(device=CARD.id, layers=25)], bandwidths)
    assert part == pytest.approx(24, rel=0.1)
    assert estimated(LLAMA_8B, [], bandwidths) == pytest.approx(8.1, rel=0.1)


@pytest.mark.parametrize(
    ("name", "gb"),
    [("NVIDIA GeForce RTX 4070", 504), ("NVIDIA GeForce RTX 5090", 1792), ("NVIDIA A100-SXM4-80GB", 2039)],
)
def test_a_bandwidth_follows_from_what_the_maker_specifies(name: str, gb: int) -> None:
    assert of_device(replace(CARD, name=name)) == pytest.approx(0.65 * gb * 10**9)


def test_what_is_not_known_is_not_estimated() -> None:
    assert of_device(replace(CARD, name="NVIDIA GeForce RTX 4070 Laptop GPU")) == 0
    assert estimated(LLAMA_8B, [LayersOn(device="GPU-2", layers=33)], {"": 40 * GB}) == 0
    assert estimated(ModelLayers(), [], {"": 40 * GB}) == 0
    assert of_memory() > 10**8


def test_answers_that_were_made_alone_tell_the_speed_of_an_engine() -> None:
    timing = "print_timing: id  0 | task {} | {}eval time = {:10.2f} ms / {:5} tokens ({:8.2f} ms per token, "
    timing += "{:8.2f} tokens per second)"

    def told(task: int, tokens: int, speed: float, kind: str = "       ") -> str:
        return timing.format(task, kind, 1000 * tokens / speed, tokens, 1000 / speed, speed)

    lines = [
        "slot launch_: id  0 | task 1 | processing task",
        told(1, 900, 400.0, "prompt "),
        told(1, 25, 60.0),
    ]
    lines += [told(1, 3, 9.0), "slot release: id  0 | task 1 | stop processing"]
    for task in (2, 3):
        lines.append(f"slot launch_: id  {task} | task {task} | processing task")
    lines += [told(2, 25, 20.0), told(3, 25, 20.0)]
    log = "\n".join(lines)
    assert LlamaCpp().answer_speed(log) == 60.0
    assert LlamaCpp().prompt_speed(log) == 400.0
    assert LlamaCpp().answer_speed("nothing of the kind") == 0.0
