"""Run by a Python that has xllamacpp: which of the flags on standard input does our launcher refuse?

Reads a JSON list of flags, prints a JSON object from each refused one to the reason.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import xllamacpp  # pyright: ignore[reportMissingImports] - of the engine's own environment

SAMPLES = {
    "str": "chatml",
    "kwargs": '{"enable_thinking": false}',
    "schema": '{"type": "integer"}',
    "grammar": 'root ::= "a"',
    "file": __file__,
    "layers": "all",
    "shares": "3,1",
    "names": "a,b",
    "enums:common_speculative_type:COMMON_SPECULATIVE_TYPE_": "ngram-simple,ngram-mod",
    "enum:ggml_type:GGML_TYPE_": "q8_0",
    "enum:common_reasoning_format:COMMON_REASONING_FORMAT_": "deepseek-legacy",
}

spec = importlib.util.spec_from_file_location("launch_llama_cpp", sys.argv[1])
assert spec is not None and spec.loader is not None  # noqa: PT018
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)

refused = {}
for flag in json.load(sys.stdin):
    arguments = launcher.Arguments(xllamacpp)
    kind = arguments.values.get(flag, ("", "", ""))[0]
    words = [flag]
    if kind:
        words.append(SAMPLES.get(kind, "none" if kind.startswith("enum") else "1"))
    elif flag in ("--timeout", "-to"):
        words.append("60")
    elif flag == "--control-vector-layer-range":
        words += ["1", "2"]
    try:
        arguments.take(words)
    except launcher.Unusable as problem:
        refused[flag] = str(problem)
print(json.dumps(refused))
