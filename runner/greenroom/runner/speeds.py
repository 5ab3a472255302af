"""How fast a model would answer, estimated. Bytes a second and tokens a second.

A token of an answer takes as long as reading every weight once, wherever each lies: bandwidth decides.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence

from greenroom.actors.graphics import GraphicsDevice, Maker
from greenroom.actors.values import LayersOn, ModelLayers

_GB = 10**9
_TABLE = """
192 GTX 1060 6GB
256 GTX 1070
272 RTX 4060
288 RTX 4060 Ti, RX 7600
300 L4
320 GTX 1080, Tesla T4
336 GTX 1660 SUPER, RTX 2060
360 RTX 3060
432 RX 7700 XT
448 RTX 2070, RTX 2080, RTX 3060 Ti, RTX 3070
456 Arc B580 Graphics
484 GTX 1080 Ti
504 RTX 4070, RTX 4070 SUPER, RTX 4070 Ti
512 RX 6800, RX 6800 XT, RX 6900 XT, Arc A750 Graphics
560 Arc A770 Graphics
600 A10
608 RTX 3070 Ti
616 RTX 2080 Ti
624 RX 7800 XT
645 RX 9070, RX 9070 XT
672 RTX 4070 Ti SUPER, RTX 5070
717 RTX 4080
736 RTX 4080 SUPER
800 RX 7900 XT
864 L40S
896 RTX 5070 Ti
936 RTX 3090
960 RX 7900 XTX, RTX 5080
1008 RTX 3090 Ti, RTX 4090
1555 A100-SXM4-40GB
1792 RTX 5090
2039 A100-SXM4-80GB, H100 PCIe
3352 H100 80GB HBM3
"""
"""GB a second that the memory of these devices is made for, by their makers' data sheets."""
_BANDWIDTHS = {
    name.strip(): int(speed)
    for speed, _, names in (line.partition(" ") for line in _TABLE.strip().splitlines())
    for name in names.split(",")
}
_MAKERS = ("NVIDIA GeForce ", "NVIDIA ", "AMD Radeon ", "AMD ", "Intel(R) ", "Intel ")
_REACHED: Mapping[Maker, float] = {"nvidia": 0.65}
"""How much of that llama.cpp reads in practice, by reports of its users."""
_REACHED_BY_OTHERS = 0.45
_LAYER_SECONDS = 2e-5
"""What computing a layer costs besides, however small it is."""
_COPIED = 2**26


def of_device(device: GraphicsDevice) -> float:
    """Bytes a second that an engine reads of its memory; 0.0 if that is not known."""
    name = device.name
    for prefix in _MAKERS:
        name = name.removeprefix(prefix)
    return _BANDWIDTHS.get(name, 0) * _GB * _REACHED.get(device.maker, _REACHED_BY_OTHERS)


@functools.cache
def of_memory() -> float:
    """Bytes a second that this machine's memory gives one processor, measured once in about 0.1 s."""
    source, target = bytes(_COPIED), bytearray(_COPIED)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        target[:] = source
        best = min(best, time.perf_counter() - began)
    return 2 * _COPIED / best  # it reads and writes


def estimated(layers: ModelLayers, placement: Sequence[LayersOn], bandwidths: Mapping[str, float]) -> float:
    """Tokens a second; 0.0 if that cannot be told.

    `bandwidths`: device → bytes a second, under "" that of the machine's memory.
    """
    weights = [*layers.weights, layers.output]
    first = len(weights) - sum(one.layers for one in placement)
    if not layers.weights or first < 0:
        return 0.0
    seconds, begin = 0.0, 0
    for name, count in (("", first), *((one.device, one.layers) for one in placement)):
        size = sum(weights[begin : begin + count])
        begin += count
        if size and not bandwidths.get(name):
            return 0.0
        seconds += count * _LAYER_SECONDS + (size / bandwidths[name] if size else 0.0)
    return 1 / seconds if seconds else 0.0
