"""A backend from another distribution: a parrot, which repeats what it is sent."""

from __future__ import annotations

from pathlib import Path

from greenroom.runner.backends.base import Backend, CommandLine, Environment, Launch, Platform
from greenroom.runner.engines.launchers import END_WITH_KEEPER

HERE = Path(__file__).parent


class Parrot(Backend):
    """GGUF models, of which it needs nothing but the name."""

    name = "parrot"
    title = "a parrot (for learning how backends are made)"
    formats = ("gguf",)
    modes = ("completion",)
    preference = 90  # of what is installed and can serve a model, the lowest number serves
    install_preference = 90  # of what could be installed for it, the lowest number is offered
    source = Environment(
        distribution="bottle",  # its version is the installation's
        lock=str(HERE / "parrot"),  # parrot.txt: python -m greenroom.runner.installations.lock_file parrot
        probe=("bottle",),  # must import before the installation counts
        requirements=("bottle>=0.13",),  # what the lock was made from, and `--version latest` is
    )
    allowed_flags = frozenset({"--shout"})
    overhead_bytes = 20 * 2**20

    def verdict(self, platform: Platform) -> str:
        """Empty, or a sentence that says what it would need."""
        if platform.system == "windows":
            return "parrot needs unix sockets; this is Windows."
        return ""

    def command(self, launch: Launch) -> CommandLine:
        """The installation's own Python, isolated, runs our launcher; it must listen on `launch.socket`."""
        return CommandLine(
            argv=(
                *(str(launch.python), "-I", str(HERE / "launch_parrot.py")),
                *("--socket", str(launch.socket), "--name", launch.model.name, *launch.spec.flags),
            ),
            env={"PARROT_KEEPER_WATCH": str(END_WITH_KEEPER)},
        )
