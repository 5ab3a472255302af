"""How a GGUF model is divided among its layers: weights by the names of tensors, cache by the header's keys.

llama.cpp names what belongs to layer N `blk.N.…`. It keeps the input in the machine's memory, and counts the
output as one layer more; a model without a matrix of its own for the output uses the input's for both
(llama.cpp, `llama_model::load_tensors`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from greenroom.actors.values import ModelLayers
from greenroom.runner.models.purpose import is_encoder

_LAYER = re.compile(r"blk\.(\d{1,5})\.")
_INPUTS = ("token_embd.", "token_types.", "position_embd.", "per_layer_token_embd.")
_MOST_LAYERS = 2_048
"""Models have some hundred; a header may claim anything."""
_MOST_CACHE = 2**40
_MOST_ELEMENTS = 2**24
"""Of a vector, or entries of a vocabulary."""
_FLOAT = 4

Values = Mapping[str, object]


@dataclass(frozen=True)
class WeightsByLayer:
    """Bytes of tensors."""

    layers: Mapping[int, int] = field(default_factory=dict[int, int])
    input: int = 0
    output: int = 0
    largest: int = 0
    """The largest tensor of a layer."""
    tokens: int = 0
    """Elements of the matrix with a vector for each token."""
    has_output: bool = False
    """It has a matrix of its own for the output."""
    has_ranking_head: bool = False
    """It has a matrix that makes a score of a text."""

    def __add__(self, other: WeightsByLayer) -> WeightsByLayer:
        layers = dict(self.layers)
        for number, size in other.layers.items():
            layers[number] = layers.get(number, 0) + size
        return WeightsByLayer(
            layers,
            self.input + other.input,
            self.output + other.output,
            max(self.largest, other.largest),
            max(self.tokens, other.tokens),
            self.has_output or other.has_output,
            self.has_ranking_head or other.has_ranking_head,
        )


class WeightsCounter:
    """Adds up the tensors of one file."""

    def __init__(self) -> None:
        self._layers: dict[int, int] = {}
        self._input = self._output = self._largest = self._tokens = 0
        self._has_output = self._has_ranking_head = False

    def add(self, name: str, size: int, elements: int) -> None:
        if match := _LAYER.match(name):
            number = int(match[1])
            self._layers[number] = self._layers.get(number, 0) + size
            self._largest = max(self._largest, size)
        elif name.startswith(_INPUTS):
            self._input += size
            if name == "token_embd.weight":
                self._tokens = elements
        else:
            self._output += size
            self._has_output |= name == "output.weight"
            self._has_ranking_head |= name == "cls.output.weight"

    def total(self) -> WeightsByLayer:
        return WeightsByLayer(
            self._layers,
            self._input,
            self._output,
            self._largest,
            self._tokens,
            self._has_output,
            self._has_ranking_head,
        )


def cache_by_layer(architecture: str, values: Values) -> tuple[int, tuple[int, ...]]:
    """Bytes of key/value cache per token: two for each key and value element of each layer with attention.

    In all, and by layer where the layers' number is possible. An encoder has none.
    """
    if is_encoder(architecture):
        return 0, ()

    def of(key: str) -> object:
        return values.get(f"{architecture}.{key}")

    layers = _whole(of("block_count"))
    heads = of("attention.head_count")
    kv_heads = of("attention.head_count_kv")
    kv_heads = heads if kv_heads is None else kv_heads
    query_heads = max((_whole(n) for n in heads), default=0) if isinstance(heads, tuple) else _whole(heads)
    head = _whole(of("embedding_length")) // query_heads if query_heads else 0
    key = _whole(of("attention.key_length")) or head
    value = _whole(of("attention.value_length")) or head
    # Hybrid models have one number per layer; zero for a layer without attention.
    if isinstance(kv_heads, tuple):
        each = tuple(_whole(n) * (key + value) * 2 for n in kv_heads)
        total = sum(each)
    else:
        one = _whole(kv_heads) * (key + value) * 2
        total, each = layers * one, (one,) * min(layers, _MOST_LAYERS)
    # A header may claim anything; more than any machine could hold counts as unknown.
    if not 0 <= total < _MOST_CACHE:
        return 0, ()
    return total, each if len(each) == layers else ()


def layers_of(
    architecture: str, values: Values, weights: WeightsByLayer, cache: tuple[int, ...]
) -> ModelLayers:
    """Without numbers where the header and the tensors do not agree."""
    count = _whole(values.get(f"{architecture}.block_count"))
    if not 0 < count <= _MOST_LAYERS or not weights.layers or max(weights.layers) >= count:
        return ModelLayers()

    def of(key: str) -> int:
        return min(_whole(values.get(f"{architecture}.{key}")), _MOST_ELEMENTS)

    embedding = of("embedding_length")
    inner = max(of("feed_forward_length"), of("expert_used_count") * of("expert_feed_forward_length"))
    vocabulary = min(weights.tokens // embedding, _MOST_ELEMENTS) if embedding else 0
    return ModelLayers(
        weights=tuple(weights.layers.get(number, 0) for number in range(count)),
        cache=cache if len(cache) == count else (0,) * count,
        input=weights.input,
        output=weights.output + (0 if weights.has_output or is_encoder(architecture) else weights.input),
        largest=weights.largest,
        # Two vectors of the feed-forward part exist at once, beside some of the layer itself.
        activations=_FLOAT * (2 * inner + 4 * embedding),
        logits=0 if is_encoder(architecture) else _FLOAT * vocabulary,
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
