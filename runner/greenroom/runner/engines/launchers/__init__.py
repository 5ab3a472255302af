"""Programs run by an installation's own Python (`-I`): standard library and the engine only.

- `launch_llama_cpp`, `launch_mlx`, `launch_vllm`: the engines
- `end_with_keeper`: an engine ends when its keeper does
- `compute_llama_cpp`, `compute_llama_server`, `compute_mlx`, `compute_vllm`: whether a build computes here
- `tiny_model`: the model that they compute with, made on the spot
- `slot_continuity`: whether a new llama-server goes on with what another one's slot has read
- `check_grammar`: whether llguidance can use a grammar
- `answer_plan`, `answer_schema`, `grammars`, `held_answer`: what mlx-lm's answers are held to
- `kept_slots`: what the slots of mlx-lm have read, as files
- `prompt_pace`, `replies`, `token_routes`: the server of mlx-lm: prompts, replies, tokens
"""

from __future__ import annotations

from pathlib import Path


def launcher(name: str, does: str = "launch") -> Path:
    """The file of a program. None is named like a library, which it would shadow."""
    return Path(__file__).with_name(f"{does}_{name}.py")


END_WITH_KEEPER = Path(__file__).with_name("end_with_keeper.py")
"""For others' launchers, whose first statement is `runpy.run_path(END_WITH_KEEPER)["end_with_keeper"]()`."""
