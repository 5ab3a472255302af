"""llama.cpp: the default backend, the only one that is not deferred."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.values import EngineSpec, Loaded
from greenroom.runner.backends import llama_cpp_log
from greenroom.runner.backends.base import (
    Backend,
    Cannot,
    CommandLine,
    Dialect,
    Environment,
    Launch,
    Platform,
    Readiness,
)
from greenroom.runner.backends.flags import LLAMA_CPP, only, without, without_sizes
from greenroom.runner.backends.llama_cpp_builds import LLAMA_CPP_BUILDS
from greenroom.runner.backends.schema_width import NEXT, OBJECTS, PROPERTIES, is_too_wide
from greenroom.runner.backends.variants import LLAMA_CPP as VARIANTS

_TOO_WIDE = (
    f"In a JSON schema it accepts at most {NEXT} choices at one point (values of an enum, alternatives of "
    f"anyOf, optional properties of an object, repetitions in a pattern), {PROPERTIES:,} properties in one "
    f"object and {OBJECTS:,} objects in all."
)


def _schema_of(fields: Mapping[str, Any]) -> Any:
    form = fields.get("response_format") or {}
    return (form.get("json_schema") or form).get("schema")


def _has_wide_tool(fields: Mapping[str, Any]) -> bool:
    return any(is_too_wide(tool["function"].get("parameters")) for tool in fields.get("tools") or ())


_CANNOT = (
    Cannot("response_format", lambda fields: is_too_wide(_schema_of(fields)), _TOO_WIDE, "invalid_schema"),
    Cannot("json_schema", lambda fields: is_too_wide(fields.get("json_schema")), _TOO_WIDE, "invalid_schema"),
    Cannot("tools", _has_wide_tool, _TOO_WIDE, "invalid_schema"),
    Cannot("id_slot", lambda fields: "id_slot" in fields, "Leave it out: Greenroom chooses the slot."),
    Cannot("best_of", lambda fields: fields.get("best_of", 1) > 1),
    Cannot("echo", lambda fields: fields.get("echo")),
    Cannot("suffix", lambda fields: fields.get("suffix")),
)
"""What llama.cpp's server ignores, or what would keep it busy for too long."""
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
"""Otherwise a failed assertion prints the stack in a debugger, including clients' text."""
_SHAPING = frozenset(
    name
    for name in LLAMA_CPP
    if name.startswith(("--cache-type", "--rope", "--yarn", "--swa", "--flash-attn", "--spec", "--draft"))
) | {"-ctk", "-ctv", "-ctkd", "-ctvd", "-fa", "--control-vector-layer-range"}
"""Flags that change what a slot's file has in it."""
_KEPT_IN_SLOTS = {"LLAMA_ARG_CACHE_IDLE_SLOTS": "0"}
"""Otherwise an idle slot may be copied to the memory for prompts, and emptied, whenever another one starts.
Older servers do not know the variable, nor do that."""
_BATCH_SECONDS = 2.0
_LEAST_BATCH = 32
_MOST_BATCH = 2048
_UBATCH = 512
"""llama-server's own limit on tokens computed at once."""
_LOGGED = re.compile(
    r"task (\d+) \| (?:(processing task)|(stop processing)"
    r"| *(prompt )?eval time = +[\d.]+ ms / +(\d+) (?:tokens|runs) *\(.*?([\d.]+) tokens per second\))"
)
_TRACE = 4
"""llama-server's level at which its library's lines are printed, and none of clients' text."""
_TELLING_TOKENS = 64
"""Shorter prompts show the overhead rather than the speed."""
_TELLING_ANSWER = 8
"""The same of answers, in tokens."""
_CHECKPOINTS = 4
"""States a slot keeps for models with windowed attention. The default of 32 can take gigabytes outside any
other limit; these few fit into what such layers need less than estimated."""


class LlamaCpp(Backend):
    """GGUF everywhere, through `xllamacpp`, whose server is the complete llama-server API."""

    name = "llama.cpp"
    title = "llama.cpp (GGUF, every platform)"
    deferred = False
    formats = ("gguf",)
    modes = ("completion", "embedding", "reranking")
    preference = 10
    install_preference = 10
    source = Environment(
        distribution="xllamacpp",
        lock="llama.cpp",
        probe=("xllamacpp",),
        requirements=("xllamacpp",),
        computes="llama_cpp",
    )
    variants = VARIANTS
    builds = LLAMA_CPP_BUILDS
    readiness = Readiness(
        path="/health", loading=frozenset({503}), counters=("/slots", "/metrics"), rests=True
    )
    dialect = Dialect(
        cannot=_CANNOT, completion_schema="json_schema", lacks=frozenset({"/score"}), pools_by_header=True
    )
    allowed_flags = LLAMA_CPP
    overhead_bytes = 150 * 2**20
    slots = 4
    divides = True
    device_overhead = 300 * 2**20
    layer_flags = ("-ngl", "--gpu-layers", "--n-gpu-layers")
    keeps_prompts = True
    keeps_prompts_alone = True
    conversations = "slots"
    keeps_prompts_of_no_slot = True
    limits_data = True
    one_batch = True

    def verdict(self, platform: Platform) -> str:
        if platform.system not in ("darwin", "linux"):
            return f"llama.cpp is packaged for Linux and macOS; this machine is {platform.system}."
        return ""

    def prompt_speed(self, log: str) -> float:
        return _median(
            [speed for is_prompt, tokens, speed in _alone(log) if is_prompt and tokens >= _TELLING_TOKENS]
        )

    def answer_speed(self, log: str) -> float:
        return _median(
            [speed for is_prompt, tokens, speed in _alone(log) if not is_prompt and tokens >= _TELLING_ANSWER]
        )

    def loaded(self, log: str) -> Loaded | None:
        return llama_cpp_log.loaded(log, self.device_overhead)

    def slot_layout(self, spec: EngineSpec) -> str:
        """Every slot has a cache of its own, and a file says how many there are: it fits no other number."""
        return " ".join((f"caches={max(1, spec.slots)}", *only(spec.flags, _SHAPING)))

    def command(self, launch: Launch) -> CommandLine:
        """llama-server's own arguments, for its server inside our launcher."""
        spec = launch.spec
        args = ["--model", str(launch.model.path), "--host", str(launch.socket), "--metrics"]
        args += _layers(launch)
        # Without an alias its responses would name the file on this machine.
        args += ["--alias", launch.model.name]
        if spec.mode == "embedding":
            args += ["--embeddings"]
            # Older files of encoders do not say themselves.
            args += ["--pooling", launch.model.pooling] if launch.model.pooling not in ("", "rank") else []
        elif spec.mode == "reranking":
            args += ["--embeddings", "--reranking"]
        elif launch.model.chat_template is not None:
            args += ["--chat-template-file", str(launch.model.chat_template)]
        args += _capacity(launch)
        if spec.batch:
            args += ["--batch-size", str(spec.batch), "--ubatch-size", str(spec.batch)]
        elif batch := _batch(launch):
            args += ["--batch-size", str(batch), "--ubatch-size", str(min(batch, _UBATCH))]
        flags = without_sizes(spec.flags)[0]
        args += without(flags, self.layer_flags) if spec.layers else flags
        if launch.model.mmproj is not None:
            args += ["--mmproj", str(launch.model.mmproj)]
        args += ["--jinja"]
        if launch.slot_files is not None:
            args += ["--slot-save-path", f"{launch.slot_files}/"]
        if launch.binary is None:  # a user's older server may not know this one
            args += ["--ctx-checkpoints", str(_CHECKPOINTS)]
        if launch.program is not None:
            kept = {} if launch.slot_files is None else _KEPT_IN_SLOTS
            return CommandLine(argv=(str(launch.program), *args), env={**_ENVIRONMENT, **kept})
        return CommandLine(argv=launch.launched("llama_cpp", *args), env=_ENVIRONMENT)


def _layers(launch: Launch) -> list[str]:
    """As many layers on devices as were placed there; the engine sees these devices alone, in this order."""
    spec = launch.spec
    placed = spec.placement
    if not spec.layers:
        return ["-ngl", "999"]  # not decided: it uses what there is
    is_all = spec.on_devices == spec.layers
    # Of a model whose layers could not be counted all is all.
    args = ["-ngl", "999" if is_all and launch.model.layers != spec.layers else str(spec.on_devices)]
    if len(placed) > 1:
        args += ["--split-mode", "layer", "--tensor-split", ",".join(str(one.layers) for one in placed)]
    elif placed:
        args += ["--split-mode", "none", "--main-gpu", "0"]
    if placed and launch.built is not None:
        args += ["--verbosity", str(_TRACE)]
    return args


def _batch(launch: Launch) -> int:
    """Tokens of a prompt read at once: as many as take two seconds, since the server notices only in between
    that a client has left. 0 leaves it to the launcher, which measures the machine, or to the server.
    """
    if launch.spec.mode != "completion":
        return 0
    if not launch.prompt_speed:
        return 0 if launch.program is None else _UBATCH
    # All parts of an image may have to fit into one batch.
    least = _LEAST_BATCH if launch.model.mmproj is None else _UBATCH
    fitting = max(least, min(_MOST_BATCH, int(launch.prompt_speed * _BATCH_SECONDS)))
    return 1 << (fitting.bit_length() - 1)


def _capacity(launch: Launch) -> list[str]:
    """Slots, the context of each, and kept prompts: what memory was reserved for.

    By default llama.cpp has four slots over one context, and truncates all answers once they have filled it
    together; it keeps 8 GiB of prompts; and it takes the model's whole context: gigabytes of cache for
    128,000 tokens. Here every slot has its own cache.
    """
    spec = launch.spec
    context = context_reckoned(spec.context_size, launch.model.context_length)
    slots = max(1, spec.slots)
    args = ["--parallel", str(slots), "--ctx-size", str(context * slots)]
    if spec.prompt_cache is not None:
        args += ["--cache-ram", str(spec.prompt_cache // 2**20)]
    return args


def _alone(log: str) -> Iterator[tuple[bool, int, float]]:
    """Of each prompt and answer that was computed alone: which it is, its tokens, and tokens a second."""
    inside: set[str] = set()
    shared: set[str] = set()
    for task, begins, ends, prompt, tokens, speed in _LOGGED.findall(log):
        if begins:
            inside.add(task)
            shared |= inside if len(inside) > 1 else set()
        elif ends:
            inside.discard(task)
        elif task not in shared:
            yield bool(prompt), int(tokens), float(speed)


def _median(speeds: Sequence[float]) -> float:
    """Of the last ones; 0.0 without any."""
    return statistics.median(speeds[-9:]) if speeds else 0.0
