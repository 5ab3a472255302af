"""The engine flags that users may set; all others are refused, since every flag is attack surface.

Flags for files, addresses or keys are left out on purpose, and values with a path are refused too. So are
flags that make an engine log requests and responses (`--verbose`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

LLAMA_CPP = frozenset(
    """
    --backend-sampling --batch-size --cache-prompt --cache-ram --cache-reuse --cache-type-k
    --cache-type-k-draft --cache-type-v --cache-type-v-draft --chat-template --chat-template-kwargs
    --check-tensors --cont-batching --context-shift --control-vector-layer-range --cpu-mask
    --cpu-mask-batch --cpu-mask-batch-draft --cpu-mask-draft --cpu-moe --cpu-moe-draft --cpu-range
    --cpu-range-batch --cpu-range-draft --cpu-strict --cpu-strict-batch --cpu-strict-batch-draft
    --cpu-strict-draft --ctx-size --ctx-size-draft --device --device-draft --direct-io --draft-max
    --draft-min --draft-n-max --draft-n-min --draft-p-min --draft-p-split --dry-allowed-length
    --dry-base --dry-multiplier --dry-penalty-last-n --dynatemp-exp --dynatemp-range --embedding
    --embeddings --fit --fit-ctx --fit-target --flash-attn --frequency-penalty --gpu-layers
    --gpu-layers-draft --grammar --ignore-eos --image-max-tokens --image-min-tokens --jinja
    --json-schema --keep --kv-offload --lora-init-without-apply --main-gpu --metrics
    --min-p --mirostat --mirostat-ent --mirostat-lr --mlock --mmap --mmproj-auto --mmproj-offload
    --n-cpu-moe --n-cpu-moe-draft --n-gpu-layers --n-gpu-layers-draft --n-predict --no-cache-prompt
    --no-cont-batching --no-context-shift --no-direct-io --no-host --no-jinja --no-kv-offload
    --no-metrics --no-mmap --no-mmproj --no-mmproj-auto --no-mmproj-offload --no-op-offload --no-perf
    --no-prefill-assistant --no-repack --no-slots --no-spec-draft-backend-sampling --no-warmup
    --no-webui --op-offload --override-tensor-draft --parallel --perf --poll --poll-batch
    --poll-batch-draft --poll-draft --pooling --predict --prefill-assistant --presence-penalty --prio
    --prio-batch --prio-batch-draft --prio-draft --props --reasoning-budget --reasoning-format --repack
    --repeat-last-n --repeat-penalty --rerank --reranking --rope-freq-base --rope-freq-scale
    --rope-scale --rope-scaling --samplers --seed --sleep-idle-seconds --slot-prompt-similarity --slots
    --spec-draft-backend-sampling --spec-draft-cpu-mask --spec-draft-cpu-mask-batch --spec-draft-cpu-moe
    --spec-draft-cpu-range --spec-draft-cpu-strict --spec-draft-cpu-strict-batch --spec-draft-device
    --spec-draft-n-cpu-moe --spec-draft-n-max --spec-draft-n-min --spec-draft-ncmoe --spec-draft-ngl
    --spec-draft-override-tensor --spec-draft-p-min --spec-draft-p-split --spec-draft-poll
    --spec-draft-poll-batch --spec-draft-prio --spec-draft-prio-batch --spec-draft-threads
    --spec-draft-threads-batch --spec-draft-type-k --spec-draft-type-v --spec-ngram-map-k-min-hits
    --spec-ngram-map-k-size-m --spec-ngram-map-k-size-n --spec-ngram-map-k4v-min-hits
    --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-size-n --spec-ngram-mod-n-match
    --spec-ngram-mod-n-max --spec-ngram-mod-n-min --spec-ngram-simple-min-hits
    --spec-ngram-simple-size-m --spec-ngram-simple-size-n --spec-type --split-mode --spm-infill
    --swa-full --temp --temperature --tensor-split --threads --threads-batch --threads-batch-draft
    --threads-draft --threads-http --timeout --top-k --top-nsigma --top-p --typical --ubatch-size
    --warmup --webui --xtc-probability --xtc-threshold --yarn-attn-factor --yarn-beta-fast
    --yarn-beta-slow --yarn-ext-factor --yarn-orig-ctx -C -Cb -Cbd -Cd -Cr -Crb -Crd -b -bs -c -cb -cd
    -cmoe -cmoed -cram -ctk -ctkd -ctv -ctvd -dev -devd -dio -fa -fit -fitc -fitt -j -kvo -mg -n
    -ncmoe -ncmoed -ndio -ngl -ngld -nkvo -nocb -np -nr -otd -s -sm -sps -t -tb -tbd -td -to -ts -ub
    """.split()
)

VLLM = frozenset(
    """
    --block-size --disable-custom-all-reduce --disable-log-stats --dtype --enable-chunked-prefill
    --enable-prefix-caching --enforce-eager --gpu-memory-utilization --kv-cache-dtype
    --kv-offloading-backend --kv-offloading-size --load-format --max-logprobs --max-model-len
    --max-num-batched-tokens --max-num-seqs --no-enforce-eager --pipeline-parallel-size --quantization
    --revision --seed --swap-space --tensor-parallel-size --tokenizer-mode -pp -q -tp
    """.split()
)


SIZES: Mapping[str, str] = {
    **dict.fromkeys(("--ctx-size", "-c", "--max-model-len"), "context-size"),
    **dict.fromkeys(("--parallel", "-np", "--max-num-seqs"), "slots"),
    **dict.fromkeys(("--cache-ram", "-cram"), "prompt-cache"),
}
"""Flags for sizes that memory is reserved for, and the model setting for each. They are converted to the
setting and never passed on, so that each size has one place."""


def without(flags: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """The flags but those with these names, and their values."""
    kept: list[str] = []
    words = iter(flags)
    for word in words:
        name, sign, _ = word.partition("=")
        if name not in names:
            kept.append(word)
        elif not sign:
            next(words, "")
    return tuple(kept)


def only(flags: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """The flags with these names, and their values."""
    kept: list[str] = []
    is_wanted = False
    for word in flags:
        if word.startswith("-") and not _is_number(word):
            is_wanted = word.partition("=")[0] in names
        if is_wanted:
            kept.append(word)
    return tuple(kept)


def without_sizes(flags: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Split off flags for sizes: the other flags, and (setting, value as typed) of each size."""
    kept: list[str] = []
    said: list[tuple[str, str]] = []
    words = iter(flags)
    for word in words:
        name, sign, value = word.partition("=")
        if name not in SIZES:
            kept.append(word)
        else:
            said.append((SIZES[name], value if sign else next(words, "")))
    return tuple(kept), said


def refusal(flags: tuple[str, ...], allowed: frozenset[str], backend: str) -> str:
    """Why these user flags cannot be passed on, as a sentence; empty if they can."""
    for token in flags:
        if "/" in token or "\\" in token:
            return f"invalid runtime flag {token!r}: paths are not allowed (contains '/' or '\\')"
        if not token.startswith("-") or _is_number(token):
            continue
        key, _, value = token.partition("=")
        if key not in allowed:
            return f'runtime flag "{key}" is not allowed for backend "{backend}"'
        if value.startswith("-") and not _is_number(value):
            return f"invalid flag {token!r}: value cannot start with '-' unless followed by a digit"
    return ""


def _is_number(token: str) -> bool:
    return len(token) > 1 and token[0] == "-" and (token[1].isdigit() or token[1] == ".")
