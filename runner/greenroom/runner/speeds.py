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
_CARDS = """
192 x 8     GTX 1060 6GB
256 x 8     GTX 1070
128 x 17    RTX 4060
128 x 18    RTX 4060 Ti, RX 7600
192 x 12.5  L4
256 x 10    GTX 1080, Tesla T4
192 x 14    GTX 1660 SUPER, RTX 2060
192 x 15    RTX 3060
192 x 18    RX 7700 XT
256 x 14    RTX 2070, RTX 2080, RTX 3060 Ti, RTX 3070
192 x 19    Arc B580 Graphics
352 x 11    GTX 1080 Ti
192 x 21    RTX 4070, RTX 4070 SUPER, RTX 4070 Ti
256 x 16    RX 6800, RX 6800 XT, RX 6900 XT, Arc A750 Graphics
256 x 17.5  Arc A770 Graphics
384 x 12.5  A10
256 x 19    RTX 3070 Ti
352 x 14    RTX 2080 Ti
256 x 19.5  RX 7800 XT
256 x 20    RX 9070, RX 9070 XT
256 x 21    RTX 4070 Ti SUPER
192 x 28    RTX 5070
256 x 22.4  RTX 4080
256 x 23    RTX 4080 SUPER
320 x 20    RX 7900 XT
384 x 18    L40S
256 x 28    RTX 5070 Ti
384 x 19.5  RTX 3090
384 x 20    RX 7900 XTX
256 x 30    RTX 5080
384 x 21    RTX 3090 Ti, RTX 4090
512 x 28    RTX 5090
"""
"""The width of the memory bus in bits, and Gb a second on each line, by the maker's specifications of each
card: their product is the bandwidth. (Some RTX 4070 of 2024 have slower memory, of 20 Gb/s.)"""
_STACKED = """
1555 A100-SXM4-40GB
2039 A100-SXM4-80GB
2000 H100 PCIe
3350 H100 80GB HBM3
4800 H200
"""
"""GB a second of devices with stacked memory, by NVIDIA's data sheets of the A100, the H100 and the H200."""


def _read() -> dict[str, float]:
    """Device → GB a second."""
    found: dict[str, float] = {}
    for line in _CARDS.strip().splitlines():
        bits, _, rate, names = line.split(maxsplit=3)
        found |= dict.fromkeys(names.split(", "), int(bits) * float(rate) / 8)
    for line in _STACKED.strip().splitlines():
        speed, name = line.split(maxsplit=1)
        found[name] = float(speed)
    return found


_BANDWIDTHS = _read()
_MAKERS = ("NVIDIA GeForce ", "NVIDIA ", "AMD Radeon ", "AMD ", "Intel(R) ", "Intel ")
_REACHED: Mapping[Maker, float] = {"nvidia": 0.65}
"""How much of that llama.cpp reads in practice: our estimate, from results of llama-bench that its users have
published, such as those in the pull requests 2059 and 5835 of llama.cpp (45 to 71 % on AMD's cards)."""
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
