"""The environment variables of an engine: what a program needs here, and no secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = frozenset(
    """
    HOME LANG LANGUAGE LOGNAME PATH SHELL TMPDIR TZ USER LD_LIBRARY_PATH DYLD_LIBRARY_PATH
    DYLD_FALLBACK_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR __CF_USER_TEXT_ENCODING
    XDG_CACHE_HOME XDG_CONFIG_DIRS XDG_CONFIG_HOME XDG_DATA_DIRS XDG_DATA_HOME XDG_RUNTIME_DIR XDG_STATE_HOME
    MLX_BFS_MAX_WIDTH MLX_ENABLE_TF32 MLX_MAX_ACTIVE_TASKS MLX_MAX_MB_PER_BUFFER MLX_MAX_OPS_PER_BUFFER
    MLX_METAL_FAST_SYNCH
    VLLM_ALLOW_LONG_MAX_MODEL_LEN VLLM_ATTENTION_BACKEND VLLM_CACHE_ROOT VLLM_CONFIG_ROOT
    VLLM_CPU_KVCACHE_SPACE VLLM_CPU_MOE_PREPACK VLLM_CPU_NUM_OF_RESERVED_CPU VLLM_CPU_OMP_THREADS_BIND
    VLLM_CPU_SGL_KERNEL VLLM_ENABLE_V1_MULTIPROCESSING VLLM_ENGINE_ITERATION_TIMEOUT_S
    VLLM_FLASH_ATTN_VERSION VLLM_FUSED_MOE_CHUNK_SIZE VLLM_HOST_IP VLLM_KV_CACHE_LAYOUT
    VLLM_TARGET_DEVICE VLLM_USE_DEEP_GEMM VLLM_USE_FLASHINFER_SAMPLER VLLM_USE_TRITON_FLASH_ATTN VLLM_USE_V1
    VLLM_WORKER_MULTIPROC_METHOD
    """.split()
)
"""For mlx and vllm one by one: others of theirs are credentials, or log requests."""
_PREFIXES = (
    *("CUDA_", "GGML_", "GOMP_", "HIP_", "HSA_", "KMP_", "LC_", "MKL_", "MTL_", "NCCL_", "NVIDIA_"),
    *("OMP_", "OPENBLAS_", "PYTORCH_", "ROCM_", "ROCR_", "TORCH_", "VECLIB_", "VK_"),
)
"""Switches of compute libraries."""
_SECRET_WORDS = frozenset(
    """
    ACCESS AUTH AUTHORIZATION COOKIE CRED CREDENTIAL CREDENTIALS CREDS DSN KEY KEYS LOGIN PASS PASSPHRASE
    PASSWD PASSWORD PRIVATE PWD SECRET SECRETS SESSION SIGNATURE TOKEN TOKENS
    """.split()
)
"""A name with one of these between its underscores is never passed on, whatever its prefix."""


def cleaned(extra: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allowed part of our environment, then what the engine's command adds."""
    source = os.environ if base is None else base
    return {**{name: value for name, value in source.items() if _is_allowed(name, value)}, **extra}


def _is_allowed(name: str, value: str) -> bool:
    if name in _NAMES:
        return True
    if not name.startswith(_PREFIXES) or not _SECRET_WORDS.isdisjoint(name.upper().split("_")):
        return False
    return "://" not in value  # a URL may contain a password, and no switch is one
