"""llama.cpp: the default backend, the only one that is not deferred."""

from __future__ import annotations

import re
import statistics

from greenroom.actors.scheduler.ledger import context_reckoned
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
from greenroom.runner.backends.flags import LLAMA_CPP, without_sizes
from greenroom.runner.engines.launchers import launcher

_CANNOT = (
    Cannot("id_slot", lambda fields: "id_slot" in fields, "Leave it out: Greenroom chooses the slot."),
    Cannot("best_of", lambda fields: fields.get("best_of", 1) > 1),
    Cannot("echo", lambda fields: fields.get("echo")),
    Cannot("suffix", lambda fields: fields.get("suffix")),
    Cannot(
        "dimensions",
        lambda fields: fields.get("dimensions"),
        "Leave it out: vectors have the length that the model gives them.",
    ),
)
"""What llama.cpp's server takes no notice of."""
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
"""Else a failed assertion has a debugger print the stack, with whatever clients have said."""
_BATCH_SECONDS = 2.0
_LEAST_BATCH = 32
_MOST_BATCH = 2048
_UBATCH = 512
"""Tokens computed at once at most, as llama-server itself has it."""
_LOGGED = re.compile(
    r"task (\d+) \| (?:(processing task)|(stop processing)"
    r"|prompt eval time = +[\d.]+ ms / +(\d+) tokens \(.*?([\d.]+) tokens per second\))"
)
_TELLING_TOKENS = 64
"""Shorter prompts tell more of the overhead than of the speed."""
_CHECKPOINTS = 4
"""States a slot keeps to go back to, of models whose layers look at a window only. 32 by default, which no
other bound counts and which may be gigabytes; these few fit into what such layers need less than reckoned."""


class LlamaCpp(Backend):
    """GGUF everywhere, through `xllamacpp`, whose server is the whole llama-server API."""

    name = "llama.cpp"
    title = "llama.cpp (GGUF, every platform)"
    deferred = False
    formats = ("gguf",)
    modes = ("completion", "embedding", "reranking")
    preference = 10
    install_preference = 10
    source = Environment(
        distribution="xllamacpp", lock="llama.cpp", probe=("xllamacpp",), requirements=("xllamacpp",)
    )
    readiness = Readiness(path="/health", loading=frozenset({503}), counters=("/slots", "/metrics"))
    dialect = Dialect(cannot=_CANNOT, pools_by_header=True)
    allowed_flags = LLAMA_CPP
    overhead_bytes = 150 * 2**20
    slots = 4
    keeps_prompts = True

    def verdict(self, platform: Platform) -> str:
        """Linux and macOS; its wheels cover both."""
        if platform.system not in ("darwin", "linux"):
            return f"llama.cpp is packaged for Linux and macOS; this is {platform.system}."
        return ""

    def prompt_speed(self, log: str) -> float:
        """The median of the last prompts that had the server to themselves, from its own timings."""
        told: list[float] = []
        inside: set[str] = set()
        shared: set[str] = set()
        for task, begins, ends, tokens, speed in _LOGGED.findall(log):
            if begins:
                inside.add(task)
                shared |= inside if len(inside) > 1 else set()
            elif ends:
                inside.discard(task)
            elif task not in shared and int(tokens) >= _TELLING_TOKENS:
                told.append(float(speed))
        return statistics.median(told[-9:]) if told else 0.0

    def command(self, launch: Launch) -> CommandLine:
        """llama-server's own arguments, handed to its server inside our launcher."""
        spec = launch.spec
        args = ["--model", str(launch.model.path), "--host", str(launch.socket), "-ngl", "999", "--metrics"]
        # Without an alias its answers would name the file on this machine.
        args += ["--alias", launch.model.name]
        if spec.mode == "embedding":
            args += ["--embeddings"]
        elif spec.mode == "reranking":
            args += ["--embeddings", "--reranking"]
        elif launch.model.chat_template is not None:
            args += ["--chat-template-file", str(launch.model.chat_template)]
        args += _capacity(launch)
        if batch := _batch(launch):
            args += ["--batch-size", str(batch), "--ubatch-size", str(min(batch, _UBATCH))]
        args += without_sizes(spec.flags)[0]
        if launch.model.mmproj is not None:
            args += ["--mmproj", str(launch.model.mmproj)]
        args += ["--jinja"]
        if launch.binary is not None:
            return CommandLine(argv=(str(launch.binary), *args), env=_ENVIRONMENT)
        # Older servers of the user's own do not know this one.
        args += ["--ctx-checkpoints", str(_CHECKPOINTS)]
        argv = (str(launch.python), "-I", str(launcher("llama_cpp")), *args)
        return CommandLine(argv=argv, env=_ENVIRONMENT)


def _batch(launch: Launch) -> int:
    """Tokens of a prompt read at once, as many as fit into two seconds: only in between does the server
    notice that a client has left. 0 leaves it to the launcher, which looks at the machine, or to the server.
    """
    if launch.spec.mode != "completion":
        return 0  # an input to embed must fit into one batch
    if not launch.prompt_speed:
        return 0 if launch.binary is None else _UBATCH
    # The parts of an image may have to fit into one batch.
    least = _LEAST_BATCH if launch.model.mmproj is None else _UBATCH
    fitting = max(least, min(_MOST_BATCH, int(launch.prompt_speed * _BATCH_SECONDS)))
    return 1 << (fitting.bit_length() - 1)


def _capacity(launch: Launch) -> list[str]:
    """Slots, the context of each, and what is kept of prompts: what memory was promised for.

    Left to itself llama.cpp has four slots over one context, and cuts off all answers once they have filled
    it together. It keeps 8 GiB of prompts, and takes the model's whole context: gigabytes of cache where that
    is 128,000 tokens. Here every slot has a cache of its own, which no other can fill.
    """
    spec = launch.spec
    context = context_reckoned(spec.context_size, launch.model.context_length)
    slots = max(1, spec.slots)
    args = ["--parallel", str(slots), "--ctx-size", str(context * slots)]
    if spec.prompt_cache is not None:
        args += ["--cache-ram", str(spec.prompt_cache // 2**20)]
    return args
