"""Runs llama.cpp's server from `xllamacpp`, with llama-server's own arguments.

`launch_llama_cpp.py --model FILE --host PATH.sock [llama-server's options]`. xllamacpp offers the server and
its parameters, but not llama-server's argument parser; the tables below replace it for the options supported
here. An option that xllamacpp cannot set is refused with a sentence, never ignored.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from end_with_keeper import die_at_once_when_told, end_with_keeper  # type: ignore[import-not-found]

sys.path.pop(0)

# One option per line: its names, `:`, the kind of its value, its field in CommonParams.
_OPTIONS = """
--ctx-size -c : int n_ctx
--batch-size -b : int n_batch
--ubatch-size -ub : int n_ubatch
--n-predict --predict -n : int n_predict
--keep : int n_keep
--parallel -np : int n_parallel
--threads -t : int cpuparams.n_threads
--threads-batch -tb : int cpuparams_batch.n_threads
--threads-http : int n_threads_http
--poll : int cpuparams.poll
--poll-batch : int cpuparams_batch.poll
--cpu-strict : bit cpuparams.strict_cpu
--cpu-strict-batch : bit cpuparams_batch.strict_cpu
--prio : ggml_sched_priority cpuparams.priority
--prio-batch : ggml_sched_priority cpuparams_batch.priority
--n-gpu-layers --gpu-layers -ngl : layers n_gpu_layers
--main-gpu -mg : int main_gpu
--split-mode -sm : enum:llama_split_mode:LLAMA_SPLIT_MODE_ split_mode
--tensor-split -ts : shares tensor_split
--cache-type-k -ctk : enum:ggml_type:GGML_TYPE_ cache_type_k
--cache-type-v -ctv : enum:ggml_type:GGML_TYPE_ cache_type_v
--cache-ram -cram : int cache_ram_mib
--cache-reuse : int n_cache_reuse
--ctx-checkpoints -ctxcp : int n_ctx_checkpoints
--slot-prompt-similarity -sps : float slot_prompt_similarity
--sleep-idle-seconds : int sleep_idle_seconds
--rope-scaling : enum:llama_rope_scaling_type:LLAMA_ROPE_SCALING_TYPE_ rope_scaling_type
--rope-freq-base : float rope_freq_base
--rope-freq-scale : float rope_freq_scale
--rope-scale : inverse rope_freq_scale
--yarn-orig-ctx : int yarn_orig_ctx
--yarn-ext-factor : float yarn_ext_factor
--yarn-attn-factor : float yarn_attn_factor
--yarn-beta-fast : float yarn_beta_fast
--yarn-beta-slow : float yarn_beta_slow
--pooling : enum:llama_pooling_type:LLAMA_POOLING_TYPE_ pooling_type
--chat-template : str chat_template
--chat-template-file : file chat_template
--chat-template-kwargs : kwargs default_template_kwargs
--reasoning-format : enum:common_reasoning_format:COMMON_REASONING_FORMAT_ reasoning_format
--reasoning-budget : int sampling.reasoning_budget_tokens
--image-min-tokens : int image_min_tokens
--image-max-tokens : int image_max_tokens
--mmproj : str mmproj.path
--model -m : str model.path
--alias -a : names model_alias
--seed -s : int sampling.seed
--temp --temperature : float sampling.temp TEMP
--top-k : int sampling.top_k TOP_K
--top-p : float sampling.top_p TOP_P
--min-p : float sampling.min_p MIN_P
--typical : float sampling.typ_p
--xtc-probability : float sampling.xtc_probability XTC_PROBABILITY
--xtc-threshold : float sampling.xtc_threshold XTC_THRESHOLD
--repeat-last-n : int sampling.penalty_last_n PENALTY_LAST_N
--repeat-penalty : float sampling.penalty_repeat PENALTY_REPEAT
--presence-penalty : float sampling.penalty_present
--frequency-penalty : float sampling.penalty_freq
--dry-multiplier : float sampling.dry_multiplier
--dry-base : float sampling.dry_base
--dry-allowed-length : int sampling.dry_allowed_length
--dry-penalty-last-n : int sampling.dry_penalty_last_n
--dynatemp-range : float sampling.dynatemp_range
--dynatemp-exp : float sampling.dynatemp_exponent
--mirostat : int sampling.mirostat MIROSTAT
--mirostat-lr : float sampling.mirostat_eta MIROSTAT_ETA
--mirostat-ent : float sampling.mirostat_tau MIROSTAT_TAU
--samplers : str sampling.samplers SAMPLERS
--grammar : grammar sampling.grammar
--json-schema -j : schema sampling.grammar
--fit-ctx -fitc : int fit_params_min_ctx
--fit-target -fitt : mebibytes fit_params_target
--n-cpu-moe -ncmoe : experts tensor_buft_overrides
--spec-type : enums:common_speculative_type:COMMON_SPECULATIVE_TYPE_ speculative.types
--spec-draft-n-max --draft-n-max --draft-max : int speculative.draft.n_max
--spec-draft-n-min --draft-n-min --draft-min : int speculative.draft.n_min
--spec-draft-p-min --draft-p-min : float speculative.draft.p_min
--spec-draft-p-split --draft-p-split : float speculative.draft.p_split
--spec-draft-ngl --n-gpu-layers-draft --gpu-layers-draft -ngld : layers speculative.draft.n_gpu_layers
--spec-draft-threads --threads-draft -td : int speculative.draft.cpuparams.n_threads
--spec-draft-threads-batch --threads-batch-draft -tbd : int speculative.draft.cpuparams_batch.n_threads
--spec-draft-type-k --cache-type-k-draft -ctkd : enum:ggml_type:GGML_TYPE_ speculative.draft.cache_type_k
--spec-draft-type-v --cache-type-v-draft -ctvd : enum:ggml_type:GGML_TYPE_ speculative.draft.cache_type_v
--spec-ngram-map-k-min-hits : int speculative.ngram_map_k.min_hits
--spec-ngram-map-k-size-m : int speculative.ngram_map_k.size_m
--spec-ngram-map-k-size-n : int speculative.ngram_map_k.size_n
--spec-ngram-map-k4v-min-hits : int speculative.ngram_map_k4v.min_hits
--spec-ngram-map-k4v-size-m : int speculative.ngram_map_k4v.size_m
--spec-ngram-map-k4v-size-n : int speculative.ngram_map_k4v.size_n
--spec-ngram-mod-n-match : int speculative.ngram_mod.n_match
--spec-ngram-mod-n-max : int speculative.ngram_mod.n_max
--spec-ngram-mod-n-min : int speculative.ngram_mod.n_min
--spec-ngram-simple-min-hits : int speculative.ngram_simple.min_hits
--spec-ngram-simple-size-m : int speculative.ngram_simple.size_m
--spec-ngram-simple-size-n : int speculative.ngram_simple.size_n
"""

# Switches: names, `:`, field, the value they set.
_SWITCHES = """
--embedding --embeddings : embedding true
--metrics : endpoint_metrics true
--no-metrics : endpoint_metrics false
--slots : endpoint_slots true
--no-slots : endpoint_slots false
--props : endpoint_props true
--jinja : use_jinja true
--no-jinja : use_jinja false
--webui : ui true
--no-webui : ui false
--cont-batching -cb : cont_batching true
--no-cont-batching -nocb : cont_batching false
--context-shift : ctx_shift true
--no-context-shift : ctx_shift false
--cache-prompt : cache_prompt true
--no-cache-prompt : cache_prompt false
--warmup : warmup true
--no-warmup : warmup false
--swa-full : swa_full true
--kv-unified -kvu : kv_unified true
--kv-offload -kvo : no_kv_offload false
--no-kv-offload -nkvo : no_kv_offload true
--op-offload : no_op_offload false
--no-op-offload : no_op_offload true
--repack : no_extra_bufts false
--no-repack -nr : no_extra_bufts true
--no-host : no_host true
--perf : no_perf false
--no-perf : no_perf true
--check-tensors : check_tensors true
--prefill-assistant : prefill_assistant true
--no-prefill-assistant : prefill_assistant false
--mmproj-offload : mmproj_use_gpu true
--no-mmproj-offload : mmproj_use_gpu false
--no-mmproj --no-mmproj-auto : no_mmproj true
--mmproj-auto : no_mmproj false
--lora-init-without-apply : lora_init_without_apply true
--backend-sampling -bs : sampling.backend_sampling true
--ignore-eos : sampling.ignore_eos true
--spec-draft-backend-sampling : speculative.draft.backend_sampling true
--no-spec-draft-backend-sampling : speculative.draft.backend_sampling false
"""

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "inverse": "a number other than 0",
    "bit": "0 or 1",
    "layers": "a number of layers, auto or all",
    "kwargs": "an object of JSON",
    "schema": "a JSON schema",
    "shares": "numbers with commas between them",
    "mebibytes": "whole numbers of MiB with commas between them",
    "experts": "a number of layers",
    "enum:ggml_type:GGML_TYPE_": "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl",
    "ggml_sched_priority": "a priority from -1 to 3",
}
"""Valid values by kind."""
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Names of the tensors that hold the experts of mixture-of-experts models."""
_ON = {"on": True, "off": False, "1": True, "0": False, "true": True, "false": False}


_SET_LEVEL = "_Z30common_log_set_verbosity_tholdi"
"""`common_log_set_verbosity_thold(int)` of llama.cpp."""
_LOG = "_Z15common_log_mainv"
"""`common_log_main()`."""
_FLUSH = "_Z16common_log_flushP10common_log"
"""`common_log_flush(common_log *)`."""
_TRACE = 4
"""Its level for what its library says."""
_AUTO_LAYERS = -1
_BATCH_SECONDS = 2.0
_CORE_FLOPS = 25e9
"""Quantised operations per core and second: a modest guess, until an engine has measured."""
_BYTES_PER_WEIGHT = 0.6


class Unusable(Exception):
    """A flag that cannot be used; the text says why and what to do, without a full stop."""


class Arguments:
    """Sets xllamacpp's parameters from llama-server's arguments."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.params = library.CommonParams()
        # llama-server's own defaults: automatic slots over one cache, and no web page.
        self.params.n_parallel = -1
        self.params.port = 0
        self._optional("ui", False)
        self._optional("cors_origins", "")
        self.values: dict[str, tuple[str, str, str]] = {}
        for line in _OPTIONS.strip().splitlines():
            names, _, rest = line.partition(" : ")
            kind, place, *configures = rest.split()
            for name in names.split():
                self.values[name] = (kind, place, configures[0] if configures else "")
        self._switches: dict[str, tuple[str, bool]] = {}
        for line in _SWITCHES.strip().splitlines():
            names, _, rest = line.partition(" : ")
            place, value = rest.split()
            for name in names.split():
                self._switches[name] = (place, value == "true")

    def take(self, words: list[str]) -> Any:
        """Parse all arguments in order; returns the parameters."""
        rest = [part for word in words for part in _split(word)][::-1]
        while rest:
            name = rest.pop()
            if name in self._switches:
                self._set(name, *self._switches[name])
            elif name in self.values:
                if not rest:
                    raise Unusable(f"{name} needs a value; it takes {self._wanted(self.values[name][0])}")
                self._take_value(name, rest.pop())
            else:
                self._take_special(name, rest)
        for name, value in (
            ("--batch-size", self.params.n_batch),
            ("--ubatch-size", self.params.n_ubatch),
            ("--threads", self.params.cpuparams.n_threads or 0),
            ("--threads-batch", self.params.cpuparams_batch.n_threads or 0),
        ):
            if value == 0 or value < -1:
                raise Unusable(f"{name} cannot be '{value}'; it takes a whole number of at least 1")
        return self.params

    def _take_value(self, name: str, text: str) -> None:
        kind, place, configures = self.values[name]
        try:
            value = self._convert(kind, text)
        except (KeyError, ValueError, OSError, OverflowError, ZeroDivisionError) as problem:
            raise Unusable(f"{name} cannot be {text!r}; it takes {self._wanted(kind)}") from problem
        self._set(name, place, value)
        if configures:
            # Otherwise the model file's defaults would override the user's value.
            flag = self._library.common_params_sampling_config[f"COMMON_PARAMS_SAMPLING_CONFIG_{configures}"]
            self.params.sampling.user_sampling_config |= int(flag)

    def _wanted(self, kind: str) -> str:
        """Valid values of a kind, in words."""
        if kind in _WANTED or ":" not in kind:
            return _WANTED.get(kind, "another value")
        _, enum, prefix = kind.split(":")
        members = [str(name) for name in getattr(self._library, enum).__members__]
        known = sorted(
            name.removeprefix(prefix).lower().replace("_", "-") for name in members if prefix in name
        )
        return ", ".join(name for name in known if name != "count")

    def _convert(self, kind: str, text: str) -> Any:
        simple: dict[str, Callable[[str], Any]] = {
            "int": int,
            "float": _finite,
            "str": str,
            "names": lambda word: set(word.split(",")),
            "bit": lambda word: bool(int(word)),
            "file": lambda word: Path(word).read_text("utf-8"),
            "inverse": lambda word: 1.0 / _finite(word),
            "layers": lambda word: {"auto": _AUTO_LAYERS, "all": -2}.get(word) or int(word),
            "kwargs": lambda word: {key: json.dumps(value) for key, value in json.loads(word).items()},
            "ggml_sched_priority": lambda word: self._library.ggml_sched_priority(int(word)),
            "mebibytes": self._mebibytes,
            "shares": self._shares,
            "experts": lambda word: ",".join(rf"blk\.{index}{_EXPERTS}=CPU" for index in range(int(word))),
            "grammar": self._grammar,
            "schema": lambda word: self._grammar(self._library.json_schema_to_grammar(word)),
        }
        if kind in simple:
            return simple[kind](text)
        many, enum, prefix = kind.split(":")
        members = getattr(self._library, enum)
        found = [members[prefix + word.upper().replace("-", "_")] for word in text.split(",")]
        return found if many == "enums" else found[0]

    def _mebibytes(self, text: str) -> list[int]:
        given = [int(word) * 2**20 for word in text.split(",")]
        return given + [given[-1]] * (len(self.params.fit_params_target) - len(given))

    def _shares(self, text: str) -> list[float]:
        given = [float(word) for word in text.replace("/", ",").split(",")]
        return given + [0.0] * (len(self.params.tensor_split) - len(given))

    def _grammar(self, text: str) -> Any:
        return self._library.CommonGrammar(self._library.common_grammar_type(1), text)

    def _take_special(self, name: str, rest: list[str]) -> None:
        """Options with an optional value, or which set several fields."""
        library, params = self._library, self.params
        if name == "--host" and rest:
            params.hostnames = [rest.pop()]
        elif name == "--slot-save-path" and rest:
            self._set(name, "slot_save_path", rest.pop())
            # Otherwise an idle slot may be copied to the memory for prompts, and emptied.
            self._optional("cache_idle_slots", False)
        elif name in ("--rerank", "--reranking"):
            params.embedding = True
            params.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
        elif name in ("--flash-attn", "-fa"):
            on = rest.pop() if rest and not rest[-1].startswith("-") else "on"
            if on not in (*_ON, "auto"):
                raise Unusable(f"{name} cannot be {on!r}; it takes on, off or auto")
            state = "AUTO" if on == "auto" else "ENABLED" if _ON[on] else "DISABLED"
            self._set(
                name, "flash_attn_type", library.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{state}"]
            )
        elif name in ("--fit", "-fit"):
            self._set(name, "fit_params", _ON[rest.pop()] if rest and rest[-1] in _ON else True)
        elif name in ("--cpu-moe", "-cmoe"):
            self._set(name, "tensor_buft_overrides", f"{_EXPERTS}=CPU")
        elif name in ("--timeout", "-to") and rest:
            params.timeout_read = params.timeout_write = int(rest.pop())
        elif name in ("--mmap", "--no-mmap", "--mlock", "--direct-io", "-dio", "--no-direct-io", "-ndio"):
            modes = {"--mmap": "MMAP", "--no-mmap": "NONE", "--mlock": "MMAP_MLOCK"}
            mode = modes.get(name, "DIRECT_IO" if name in ("--direct-io", "-dio") else "AUTO")
            self._set(name, "load_mode", library.llama_load_mode[f"LLAMA_LOAD_MODE_{mode}"])
        elif name == "--control-vector-layer-range" and len(rest) >= 2:
            params.control_vector_layer_start, params.control_vector_layer_end = (
                int(rest.pop()),
                int(rest.pop()),
            )
        elif not name.startswith("-"):
            raise Unusable(
                f"{name!r} is not a flag, and the flag before it does not take it as a value; leave it out"
            )
        else:
            raise Unusable(
                f"{name} is not supported by xllamacpp {library.__version__}; "
                "leave it out, or set your own llama-server in the configuration"
            )

    def _set(self, name: str, place: str, value: Any) -> None:
        *path, last = place.split(".")
        target = self.params
        try:
            for part in path:
                target = getattr(target, part)
            setattr(target, last, value)
        except AttributeError as problem:
            raise Unusable(
                f"{name} is not known to xllamacpp {self._library.__version__}; leave it out"
            ) from problem
        except (OverflowError, TypeError) as problem:
            raise Unusable(f"{name} cannot be {value!r}; it is out of range") from problem

    def _optional(self, place: str, value: Any) -> None:
        if hasattr(self.params, place):
            setattr(self.params, place, value)


def guess_batch(size: int, cores: int) -> int:
    """Tokens of a prompt that a processor reads in two seconds, estimated from the size of the model's file.

    The server only notices between batches that a client has left.
    """
    speed = cores * _CORE_FLOPS / max(1.0, 2 * size / _BYTES_PER_WEIGHT)
    fitting = max(32, min(512, int(speed * _BATCH_SECONDS)))
    return 1 << (fitting.bit_length() - 1)


def _pace(library: Any, params: Any, words: list[str]) -> None:
    """Shorten batches unless the user set their length."""
    if _said(words, "--batch-size", "-b", "--ubatch-size", "-ub") or params.embedding:
        return
    kinds = {str(device["type"]) for device in library.get_device_info()}
    if params.mmproj.path or any("CPU" not in kind for kind in kinds):
        params.n_batch = 512  # all parts of an image may have to fit into one
        return
    shards = sorted(Path(params.model.path).parent.glob(_shards_of(Path(params.model.path).name)))
    size = sum(shard.stat().st_size for shard in shards)
    params.n_batch = guess_batch(
        size, params.cpuparams.n_threads if params.cpuparams.n_threads > 0 else _cores()
    )
    params.n_ubatch = min(params.n_ubatch, params.n_batch)


def leave_out_fit(params: Any, words: list[str]) -> None:
    """Have llama.cpp not read the model's file twice, to choose layers and context where both are given."""
    fit = ("--fit", "-fit", "--fit-ctx", "-fitc", "--fit-target", "-fitt")
    if params.n_gpu_layers != _AUTO_LAYERS and params.n_ctx and not _said(words, *fit):
        params.fit_params = False


def _said(words: list[str], *flags: str) -> bool:
    return any(word.partition("=")[0] in flags for word in words)


def _speak_up(library: Any, params: Any) -> Callable[[], None] | None:
    """Let llama.cpp say while it loads what it puts on devices; returns what makes it quiet again.

    None if it could not be quietened: then it stays quiet.
    """
    usual: int = params.verbosity
    for file in Path(library.__file__).parent.glob("*.so"):
        with contextlib.suppress(OSError, AttributeError):
            set_level = ctypes.CDLL(str(file))[_SET_LEVEL]
            params.verbosity = _TRACE
            return lambda: set_level(usual)
    return None


def _print_what_is_logged(library: Any) -> None:
    """Wait for llama.cpp's thread that prints: a process that ends before it loses the reason."""
    for file in Path(library.__file__).parent.glob("*.so"):
        with contextlib.suppress(OSError, AttributeError):
            native = ctypes.CDLL(str(file))
            log, flush = native[_LOG], native[_FLUSH]
            log.restype, flush.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            flush(log())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shards_of(name: str) -> str:
    """A pattern for all files of a model: `x-00001-of-00003.gguf` has two more."""
    return (
        glob.escape(name) if "-00001-of-" not in name else glob.escape(name).replace("-00001-of-", "-*-of-")
    )


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(word)
    return value


def _split(word: str) -> list[str]:
    """`--name=value` becomes two words; a value that contains `=` stays whole."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name.startswith("--") else [word]


def main() -> int:
    end_with_keeper()
    die_at_once_when_told()
    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    try:
        params = Arguments(xllamacpp).take(sys.argv[1:])
        _pace(xllamacpp, params, sys.argv[1:])
        leave_out_fit(params, sys.argv[1:])
    except Unusable as problem:
        sys.stderr.write(f"error: unusable flag: {problem}\n")
        return 2
    quieten = _speak_up(xllamacpp, params) if params.n_gpu_layers else None
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as problem:
        # llama.cpp itself prints why.
        _print_what_is_logged(xllamacpp)
        sys.stderr.write(f"error loading model {Path(params.model.path).name}: {problem}\n")
        return 1
    if quieten is not None:
        quieten()
    # The server replaced these handlers by its own, which end its loop but not this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    threading.Event().wait()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
