"""All backends this Greenroom knows, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from greenroom.runner.backends.declaration import Backend
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.backends.vllm import Vllm, VllmMetal

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {backend.name: backend for backend in (LlamaCpp(), Mlx(), Vllm(), VllmMetal())}
)
"""In the order in which they are listed."""
