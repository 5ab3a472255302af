"""The variables an engine sees: what a program needs to run here, and nothing that is not its business."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = frozenset(
    """
    HOME LANG LANGUAGE LOGNAME PATH SHELL TMPDIR TZ USER LD_LIBRARY_PATH DYLD_LIBRARY_PATH
    DYLD_FALLBACK_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR __CF_USER_TEXT_ENCODING
    """.split()
)
# Switches of compute libraries. Names that hold credentials (HF_TOKEN, …_API_KEY) begin with none of these.
_PREFIXES = (
    *("CUDA_", "GGML_", "GOMP_", "HIP_", "HSA_", "KMP_", "LC_", "MKL_", "MLX_", "MTL_", "NCCL_", "NVIDIA_"),
    *("OMP_", "OPENBLAS_", "PYTORCH_", "ROCM_", "ROCR_", "TORCH_", "VECLIB_", "VK_", "VLLM_", "XDG_"),
)
_SECRET_ENDINGS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


def cleaned(extra: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of an engine: the allowed part of ours, then what its command adds."""
    source = os.environ if base is None else base
    kept = {
        name: value
        for name, value in source.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not name.endswith(_SECRET_ENDINGS)
    }
    return {**kept, **extra}
