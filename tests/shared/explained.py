"""What tests read out of an explanation, and the names their scripts use."""

from __future__ import annotations

from greenroom.actors.values import Failure
from greenroom.runner.diagnosis.explanation import Explanation

GB = 10**9
SMOLLM2 = f"sha256:{b'smollm2'.hex():0<64}"


def types(found: Explanation) -> list[str]:
    return [step.type for step in found.steps]


def commands(found: Explanation) -> list[str]:
    return [remedy.command for remedy in found.remedies]


def hash_mismatch() -> Failure:
    return Failure(
        kind="permanent",
        code="hash_mismatch",
        message="mlx_lm-0.32.2-py3-none-any.whl is not the file that this release was tested with.",
        advice="Check the package index, or a proxy that changes files.",
        detail="error: Hash mismatch\n  Expected: sha256:aa\n  Computed: sha256:bb",
    )
