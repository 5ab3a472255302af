"""Diagnosis reads fields of events; only `old_journals` parses sentences, those of old journals."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import greenroom.runner.diagnosis as diagnosis
from explained import GB, SMOLLM2, commands
from greenroom.actors.scheduler.events import BackendChosen, BreakerOpened, LoadRefused
from greenroom.actors.values import EngineExit, Failure
from greenroom.runner.diagnosis.explain import explain
from greenroom.runner.diagnosis.explanation import Explanation
from greenroom.runner.diagnosis.old_journals import missing_backends, preferred_backend, ran_out_of_memory

PROSE = frozenset({"message", "advice", "reason", "reasons", "summary"})
"""Fields of events that hold sentences."""
CODES = frozenset({"eviction_decided"})
"""Events whose reason is a word for programs."""


def scrambled(value: Any, *, inside: bool = False) -> Any:
    """The same event with every sentence replaced."""
    if isinstance(value, dict):
        return {key: scrambled(one, inside=inside or key in PROSE) for key, one in value.items()}
    if isinstance(value, list):
        return [scrambled(one, inside=inside) for one in value]
    return "Lorem ipsum" if inside and isinstance(value, str) and value else value


def died_for_lack_of_memory(script: Any) -> str:
    engine = script.admit(memory=6 * GB)
    script.spawn(engine)
    script.die(engine, "The system ran out of memory.", was_ready=False, signal="SIGKILL", out_of_memory=True)
    return "smollm2"


def crashed(script: Any) -> str:
    script.die(script.load(), "It exited with code 134: GGML_ASSERT failed.", was_ready=True, code=134)
    return "smollm2"


def suspended(script: Any) -> str:
    for code in (1, 1, 2):
        script.die(script.admit(), f"It exited with code {code}.", was_ready=False, code=code)
    script.add(
        BreakerOpened(
            model_id=SMOLLM2,
            model_ref="docker.io/ai/smollm2:latest",
            backend="llama.cpp",
            installation_id="1.0-ab12cd34.1",
            failures=3,
            until=script.now + 40.0,
            reason="It exited with code 2.",
        )
    )
    return "smollm2"


def refused_for_want_of_a_backend(script: Any) -> str:
    script.model("qwen3", kind="safetensors")
    script.refuse(
        "qwen3", "backend_not_installed", "mlx is missing.", advice="Install it.", backends=("mlx", "vllm")
    )
    return "qwen3"


def wanted_backend(script: Any) -> str:
    refused_for_want_of_a_backend(script)
    return "mlx"


def preferred_elsewhere(script: Any) -> str:
    script.model("qwen3", kind="safetensors")
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    script.load("qwen3", backend="mlx", installation=mlx, reasons=("vllm is better",), preferred="vllm")
    return "qwen3"


def evicted(script: Any) -> str:
    script.evict(script.load(), "idle", idle_seconds=300.0)
    return "smollm2"


@pytest.mark.parametrize(
    "history",
    [
        died_for_lack_of_memory,
        crashed,
        suspended,
        refused_for_want_of_a_backend,
        wanted_backend,
        preferred_elsewhere,
        evicted,
    ],
)
def test_an_answer_does_not_depend_on_the_words_of_sentences(script: Any, history: Any) -> None:
    name = history(script)
    script.wait(3.0)
    records = [
        one
        if one.type in CODES
        else msgspec.structs.replace(one, data=json.dumps(scrambled(json.loads(one.data))))
        for one in script.records
    ]

    known = {"mlx": "", "vllm": ""}
    told = script.why(name, backends=known)
    blind = explain(records, name, script.now, backends=known)

    def facts(found: Explanation) -> tuple[Any, ...]:
        steps = [(step.seq, step.type) for step in found.steps]
        return found.state, found.cause, found.numbers, steps, commands(found), len(found.also)

    assert facts(told) == facts(blind)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in Path(diagnosis.__path__[0]).glob("*.py"):
        if path.name not in ("old_journals.py", "redaction.py", "known_secrets.py"):
            yield path.name, ast.parse(path.read_text())


def test_no_module_searches_in_a_sentence() -> None:
    def is_prose(node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) and node.attr in {*PROSE, "answer", "text"} - {"reason"}

    found = []
    for name, tree in modules():
        for node in ast.walk(tree):
            searched: list[ast.expr] = []
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
                searched = [node.comparators[0]]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                methods = "find index partition replace split startswith removeprefix search match findall"
                if node.func.attr in methods.split():
                    searched = [node.func.value, *node.args]
            found += [f"{name}:{one.lineno}" for one in searched if is_prose(one)]
    assert not found


def test_journals_without_the_fields_are_read_from_their_sentences() -> None:
    command = "run: greenroom install-runner --backend mlx"
    refused = LoadRefused(
        model_id="m",
        model_ref="m",
        mode="completion",
        code="backend_not_installed",
        message=f'backend "mlx" is not installed; {command}',
        advice="(or, with vllm: greenroom install-runner --backend vllm)",
    )
    assert missing_backends(refused) == ("mlx", "vllm")
    failed = msgspec.structs.replace(refused, message="mlx could not be installed: no network.", advice="")
    assert missing_backends(failed) == ("mlx",)
    assert missing_backends(msgspec.structs.replace(refused, message="Another one.")) == ()
    chosen = BackendChosen(
        model_id="m",
        model_ref="m",
        mode="completion",
        backend="mlx",
        installation_id="1",
        reasons=("mlx reads it", "vllm would be preferred but is not installed; run: …"),
    )
    assert preferred_backend(chosen) == "vllm"
    failure = Failure(kind="permanent", code="engine_failed", message="It ran out of memory.")
    assert ran_out_of_memory(EngineExit(at=0.0), failure)
    assert not ran_out_of_memory(EngineExit(at=0.0, summary="It crashed."), failure)
