"""llama.cpp: the default backend, the only one that is not deferred."""

from __future__ import annotations

from greenroom.actors.ledger import DEFAULT_CONTEXT
from greenroom.runner.backends.declaration import (
    Backend,
    Cannot,
    Command,
    Dialect,
    Environment,
    Launch,
    Platform,
    Readiness,
)
from greenroom.runner.backends.flags import LLAMA_CPP
from greenroom.runner.engines.launchers import launcher

_CANNOT = (
    Cannot("best_of", lambda fields: fields.get("best_of", 1) > 1),
    Cannot("echo", lambda fields: fields.get("echo")),
    Cannot("suffix", lambda fields: fields.get("suffix")),
    Cannot("dimensions", lambda fields: fields.get("dimensions"), "Its vectors have the model's own length."),
)
"""What llama.cpp's server takes no notice of."""


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
    readiness = Readiness(path="/health", loading=frozenset({503}))
    dialect = Dialect(cannot=_CANNOT, pools_by_header=True)
    allowed_flags = LLAMA_CPP
    overhead_bytes = 150 * 2**20

    def verdict(self, platform: Platform) -> str:
        """Linux and macOS; its wheels cover both."""
        if platform.system not in ("darwin", "linux"):
            return f"llama.cpp is packaged for Linux and macOS; this is {platform.system}."
        return ""

    def command(self, launch: Launch) -> Command:
        """llama-server's own arguments, handed to its server inside our launcher."""
        spec = launch.spec
        args = ["--model", str(launch.model.path), "--host", str(launch.socket), "-ngl", "999", "--metrics"]
        # Without an alias its answers would name the file on this machine.
        args += ["--alias", launch.model.name]
        args += ["--alias", launch.model.name]
        if spec.mode == "embedding":
            args += ["--embeddings"]
        elif spec.mode == "reranking":
            args += ["--embeddings", "--reranking"]
        elif launch.model.chat_template is not None:
            args += ["--chat-template-file", str(launch.model.chat_template)]
        args += ["--ctx-size", str(_context(launch))]
        args += spec.flags
        if launch.model.mmproj is not None:
            args += ["--mmproj", str(launch.model.mmproj)]
        args += ["--jinja"]
        if launch.binary is not None:
            return Command(argv=(str(launch.binary), *args))
        return Command(argv=(str(launch.python), "-I", str(launcher("llama_cpp")), *args))


def _context(launch: Launch) -> int:
    """Tokens of context, the very number that memory was promised for; 0 is all that the model can take.

    Left to itself llama.cpp would take all, which of a model for 128,000 tokens is gigabytes of cache.
    """
    asked = launch.spec.context_size
    if asked:
        return max(0, asked)
    return min(launch.model.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
