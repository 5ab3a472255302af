"""A real model that Ollama keeps, adopted by the command line and served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from other_stores import ollama


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_of_ollama_s_is_adopted_and_answers(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path, tmp_path: Path
) -> None:
    daemon = make_daemon(furnished).start()
    root = tmp_path / "ollama"
    parameters = {"temperature": 0, "stop": ["<|im_end|>"]}
    name = "registry.ollama.ai/library/borrowed/135m"
    ollama(root, name, smollm2_gguf, system="You are brief.", params=parameters)
    adopted = daemon.run("adopt", "--from", str(root))
    assert adopted.returncode == 0, adopted.stderr
    assert adopted.stdout == "Adopted borrowed:135m: its files (98.4 MB) are shared with Ollama.\n"
    daemon.configure("borrowed:135m")
    answer = daemon.chat("borrowed:135m")
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"].strip()
    told = daemon.run("log", "--model", "borrowed:135m").stdout
    assert f"Adopting borrowed:135m from {root}/manifests/{name}" in told
    again = daemon.run("adopt", "--from", str(root)).stdout.split()
    assert again[-2:] == ["Ollama", "adopted"]
