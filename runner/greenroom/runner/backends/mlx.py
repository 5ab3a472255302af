"""mlx: Apple's MLX through mlx-lm; on Linux with MLX's CPU build."""

from __future__ import annotations

import re
from statistics import median

from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.runner.backends.base import (
    LLAMA_CPP_SAMPLING,
    Backend,
    Cannot,
    CommandLine,
    Dialect,
    Environment,
    Ignores,
    Launch,
    Platform,
    Readiness,
    has_media,
    ignores,
)
from greenroom.runner.backends.variants import MLX

_TOP = 11

_CANNOT = (
    # A list ends its generation thread, and with it every other request.
    Cannot(
        "prompt", lambda fields: not isinstance(fields.get("prompt", ""), str), "Send one prompt per request."
    ),
    Cannot("prompt", lambda fields: fields.get("prompt") == "", "Send a prompt that is not empty."),
    Cannot(
        "messages",
        has_media,
        "It reads only text. Use a GGUF version of the model with a projector, which llama.cpp serves.",
        code="unsupported_input",
    ),
    Cannot("id_slot", lambda fields: "id_slot" in fields, "Leave it out: Greenroom chooses the slot."),
    Cannot("n", lambda fields: fields.get("n", 1) > 1, "Send the request several times."),
    Cannot("seed", lambda fields: fields.get("seed", 0) < 0, "Use one that is not negative."),
    Cannot("best_of", lambda fields: fields.get("best_of", 1) > 1),
    Cannot("echo", lambda fields: fields.get("echo")),
    Cannot("suffix", lambda fields: fields.get("suffix")),
    Cannot("grammar", lambda fields: fields.get("grammar")),
    Cannot("logprobs", lambda fields: fields.get("stream") and fields.get("logprobs"), "Ask without stream."),
    Cannot("logprobs", lambda fields: "prompt" in fields and type(fields.get("logprobs")) is int),
    Cannot("top_logprobs", lambda fields: fields.get("top_logprobs", 0) > _TOP, f"The limit is {_TOP}."),
)
"""What mlx-lm's server (0.32) ignores, or dies of."""
_IGNORES = (
    *ignores("parallel_tool_calls", "reasoning_format"),
    Ignores(
        "reasoning_effort",
        lambda fields: (
            "reasoning_effort" in fields and "reasoning_effort" not in fields.get("chat_template_kwargs", ())
        ),
    ),
    Ignores(
        "tools[].function.strict",
        lambda fields: any(one["function"].get("strict") for one in fields.get("tools") or ()),
    ),
)
"""What it ignores and a client can do without."""


_READ = re.compile(r"^(\d{1,9}) tokens of a prompt were read in (\d{1,9}\.\d{3}) s$", re.MULTILINE)


class Mlx(Backend):
    """safetensors, including MLX quantised ones."""

    name = "mlx"
    title = "MLX through mlx-lm (Apple silicon; CPU on Linux)"
    formats = ("safetensors-mlx", "safetensors")
    modes = ("completion",)
    preference = 30
    install_preference = 10
    source = Environment(
        distribution="mlx-lm",
        lock="mlx",
        probe=("mlx.core", "mlx_lm.server"),
        # Older releases import code from model folders (CVE-2026-5843).
        requirements=(
            "mlx-lm>=0.32.0",
            "mlx>=0.32",
            "mlx[cpu]>=0.32; sys_platform == 'linux'",
            "llguidance>=1.9",
        ),
        computes="mlx",
    )
    variants = MLX
    # Its server responds 200 while the model loads, 503 once the load has died, and never exits.
    readiness = Readiness(
        rests=True,
        path="/health",
        loading=frozenset(),
        dead=frozenset({503}),
        proof=True,
        counters=("/progress",),
    )
    # `adapters` and `draft_model` would load other weights than the admitted ones.
    dialect = Dialect(
        model_name="default_model",
        dropped=LLAMA_CPP_SAMPLING | {"adapters", "draft_model"},
        cannot=_CANNOT,
        ignores=_IGNORES,
        lacks=frozenset({"/infill"}),
    )

    slots = 4
    keeps_prompts = True
    conversations = "slots"
    slots_in_prompt_cache = True

    def verdict(self, platform: Platform) -> str:
        if platform.system == "darwin" and platform.machine != "arm64":
            return "mlx needs a Mac with Apple silicon; this Mac has an Intel processor."
        if platform.system not in ("darwin", "linux"):
            return f"mlx runs on macOS (Apple silicon) and Linux; this machine is {platform.system}."
        return ""

    def prompt_speed(self, log: str) -> float:
        """What its launcher has written of prompts that were read alone."""
        speeds = [int(tokens) / float(seconds) for tokens, seconds in _READ.findall(log) if float(seconds)]
        return median(speeds) if speeds else 0.0

    def command(self, launch: Launch) -> CommandLine:
        """mlx-lm's server cannot listen on a unix socket; our launcher adds that."""
        args = ("--model", str(launch.model.path), "--socket", str(launch.socket), *_capacity(launch))
        if launch.slot_files is not None:
            args += ("--slots", str(launch.slot_files))
        return CommandLine(
            argv=launch.launched("mlx", *args), env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        )


def _capacity(launch: Launch) -> list[str]:
    """Concurrent requests, the context of each, and kept prompts: what memory was reserved for."""
    slots = str(launch.spec.slots or Mlx.slots)
    context = context_reckoned(launch.spec.context_size, launch.model.context_length)
    return [
        *("--context", str(context), "--kept", str(launch.spec.prompt_cache or 0)),
        *("--decode-concurrency", slots, "--prompt-concurrency", slots),
    ]
