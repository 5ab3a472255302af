"""llama.cpp and mlx themselves save what a slot has read, and a new process of theirs goes on with it.

An answer after a restore must equal that of the slot which was never saved: the prompt is split alike.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from msgspec.structs import replace

import tiny_recurrent
from engine_stage import Stage
from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.engines.launchers import launcher
from greenroom.runner.engines.slots import Restored, Saved, SlotFailure, SlotFiles, slot_files
from greenroom.runner.installations.compute_check import restores
from tiny_vision import png, projector

pytestmark = pytest.mark.real

BOUND = 100.0
RULES = {"role": "system", "content": " ".join(f"Rule {i}: be kind to whale {i}." for i in range(5))}
TOOL = {
    "type": "function",
    "function": {
        "name": "count_whales",
        "parameters": {"type": "object", "properties": {"sea": {"type": "string"}}, "required": ["sea"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "whale",
        "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}


class Running:
    """One engine, ready, and its slots."""

    def __init__(self, stage: Stage, spec: EngineSpec, prepare: Callable[..., PreparedEngine]) -> None:
        self.stage, self.spec = stage, spec
        self.heard = stage.forget()
        self.host = stage.host(prepare=prepare, heard=self.heard)
        self.host.start(spec)
        self.pid, _, self.endpoint = self.heard.wait("spawned", bound=BOUND)
        self.heard.wait("ready", bound=BOUND)
        found = slot_files(EngineFolder.of(stage.folder, spec.engine_id), Path(self.endpoint), self.pid)
        assert found is not None
        self.slots: SlotFiles = found

    def say(self, slot: int, messages: list[Any], **fields: Any) -> tuple[Any, int]:
        """The answer's message, and how many tokens of the prompt were not read again."""
        body = {"model": "default_model", "messages": messages, "max_tokens": 12, "temperature": 0, **fields}
        status, reply = self.stage.request(self.endpoint, "/v1/chat/completions", {**body, "id_slot": slot})
        assert status == 200, reply
        message = {key: value for key, value in reply["choices"][0]["message"].items() if value}
        for call in message.get("tool_calls", ()):
            call.pop("id", None)
        return message, reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    def keep(self, slot: int, place: Path) -> int:
        """Save a slot to a file elsewhere; returns its tokens."""
        found = self.slots.save(slot, "saved", BOUND)
        assert isinstance(found, Saved), found
        assert found.path.stat().st_mode & 0o777 == 0o600
        os.replace(found.path, place)
        return found.tokens

    def bring(self, slot: int, place: Path) -> Restored | SlotFailure:
        """Restore a slot from such a file, which stays."""
        os.link(place, self.slots.path("lent"))
        return self.slots.restore(slot, "lent", BOUND)

    def end(self) -> None:
        self.host.stop(self.spec.engine_id)
        self.heard.wait("exited", bound=BOUND)
        assert not EngineFolder.of(self.stage.folder, self.spec.engine_id).slots.exists()


Starts = Callable[..., Running]


@pytest.fixture
def llama(stage: Stage, llama_cpp_python: Path, smollm2_gguf: Path) -> Starts:
    return llama_with(stage, llama_cpp_python, smollm2_gguf)


def llama_with(stage: Stage, llama_cpp_python: Path, path: Path) -> Starts:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        launch = Launch(
            spec=replace(spec, flags=("--threads", "1", *spec.flags)),
            root=Path("/"),
            python=llama_cpp_python,
            model=ModelFiles(path=path, format="gguf", name="ai/smollm2"),
            socket=socket,
            slot_files=EngineFolder.of(stage.folder, spec.engine_id).make_slots(),
        )
        return PreparedEngine(LlamaCpp().command(launch), LlamaCpp.readiness)

    return lambda **fields: Running(stage, stage.spec(backend="llama.cpp", **fields), prepare)


@pytest.fixture
def mlx(stage: Stage, mlx_python: Path, smollm2_mlx: Path) -> Starts:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        launch = Launch(
            spec=spec,
            root=Path("/"),
            python=mlx_python,
            model=ModelFiles(path=smollm2_mlx, format="safetensors-mlx", name="smollm2"),
            socket=socket,
            slot_files=EngineFolder.of(stage.folder, spec.engine_id).make_slots(),
        )
        return PreparedEngine(Mlx().command(launch), Mlx.readiness, model_name="default_model")

    return lambda **fields: Running(
        stage, stage.spec(backend="mlx", prompt_cache=10**9, context_size=2048, **fields), prepare
    )


def talk(engine: Running, slot: int, fields: dict[str, Any]) -> list[Any]:
    """A first turn, and the messages of the next."""
    first = [RULES, {"role": "user", "content": "Tell me of the first rule."}]
    message, _ = engine.say(slot, first, **fields)
    if calls := message.get("tool_calls"):
        called = {"role": "tool", "tool_call_id": "c", "content": "3"}
        return [*first, {"role": "assistant", "tool_calls": [{**calls[0], "id": "c"}]}, called]
    return [*first, {"role": "assistant", **message}, {"role": "user", "content": "And the second?"}]


def goes_on_alike(starts: Starts, place: Path, cases: dict[str, dict[str, Any]], **spec: Any) -> None:
    """Each conversation goes on in a new process as it does in the slot that was never saved."""
    engine = starts(**spec)
    told = {}
    for name, fields in cases.items():
        engine.slots.erase(0, BOUND)
        following = talk(engine, 0, fields)
        tokens = engine.keep(0, place / name)
        told[name] = (following, tokens, engine.say(0, following, **fields))
    engine.end()
    engine = starts(**spec)
    for name, (following, tokens, live) in told.items():
        assert engine.bring(1, place / name) == Restored(tokens)
        assert engine.say(1, following, **cases[name]) == live, name
    engine.end()


def test_llama_cpp_goes_on_in_a_new_process_where_its_slot_was(llama: Starts, tmp_path: Path) -> None:
    engine = llama(slots=2, context_size=512)
    following = talk(engine, 0, {})
    tokens = engine.keep(0, tmp_path / "one")
    live = engine.say(0, following)
    assert live[1] == tokens, "the live slot itself read it again"
    empty = engine.slots.save(1, "nothing", BOUND)
    assert isinstance(empty, SlotFailure)
    assert empty.kind == "empty"
    engine.end()
    engine = llama(slots=2, context_size=256)
    assert engine.bring(1, tmp_path / "one") == Restored(tokens)
    assert engine.say(1, following) == live
    engine.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_llama_cpps_answers_after_a_restore_are_those_of_the_live_slot(llama: Starts, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "seed": {"temperature": 0.9, "seed": 7},
        "tools": {"tools": [TOOL]},
        "a call": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40},
        "schema": {"response_format": SCHEMA, "max_tokens": 40},
    }
    goes_on_alike(llama, tmp_path, cases, slots=2, context_size=1024)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_context_that_was_shifted_is_restored_as_it_was(llama: Starts, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"slots": 2, "context_size": 256, "flags": ("--context-shift",)}
    first = [RULES, {"role": "user", "content": "Tell me of the first rule."}]
    following = [RULES, {"role": "user", "content": "Tell me of the second rule."}]
    engine = llama(**shape)
    engine.say(0, first, max_tokens=300, ignore_eos=True)
    tokens = engine.keep(0, tmp_path / "shifted")
    assert tokens <= 256, "its context was never full"
    live = engine.say(0, following)
    engine.end()
    engine = llama(**shape)
    assert engine.bring(1, tmp_path / "shifted") == Restored(tokens)
    assert engine.say(1, following) == live
    engine.end()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sliding_window_goes_on_alike_even_where_a_template_leaves_out_what_was_thought(
    stage: Stage, llama_cpp_python: Path, gemma3_gguf: Path, tmp_path: Path
) -> None:
    """The window of Gemma 3 is 512 tokens: what lies before it cannot be read again from the cache."""
    starts = llama_with(stage, llama_cpp_python, gemma3_gguf)
    rules = " ".join(f"Rule {i}: be kind to whale {i}." for i in range(60))
    asked = {"role": "user", "content": f"{rules} Tell me of the first rule."}
    engine = starts(slots=2, context_size=2048)
    message, _ = engine.say(0, [asked], max_tokens=40)
    tokens = engine.keep(0, tmp_path / "saved")
    assert tokens > 600
    more = {"role": "user", "content": "And the second?"}
    shortened = {**message, "content": " ".join(message["content"].split()[8:])}
    turns = {"whole": [asked, {"role": "assistant", **message}, more]}
    turns["left out"] = [asked, {"role": "assistant", **shortened}, more]
    live = {}
    for name, turn in turns.items():
        engine.slots.erase(0, BOUND)
        engine.say(0, [asked], max_tokens=40)
        live[name] = engine.say(0, turn)
    engine.end()
    assert live["whole"][1] >= tokens - 1
    engine = starts(slots=2, context_size=2048)
    for name, turn in turns.items():
        assert engine.bring(1, tmp_path / "saved") == Restored(tokens)
        answer, cached = engine.say(1, turn)
        assert answer == live[name][0], name
        assert cached > tokens // 2, f"{name}: it read all again"
    engine.end()


def test_a_recurrent_model_goes_on_from_its_answer_and_from_its_prompt(
    stage: Stage, llama_cpp_python: Path, tmp_path: Path
) -> None:
    """Its state cannot go back to an earlier token: llama.cpp saves one of the prompt's end as well."""
    path = tmp_path / "recurrent.gguf"
    path.write_bytes(tiny_recurrent.gguf())
    starts = llama_with(stage, llama_cpp_python, path)

    def complete(engine: Running, slot: int, prompt: Any) -> tuple[list[int], int]:
        fields = {"n_predict": 8, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        body = {"prompt": prompt, **fields, "id_slot": slot}
        status, reply = engine.stage.request(engine.endpoint, "/completion", body)
        assert status == 200, reply
        return reply["tokens"], reply["timings"]["cache_n"]

    shape = {"slots": 2, "context_size": tiny_recurrent.CONTEXT}
    engine = starts(**shape)
    said = {"content": "a quiet whale " * 10, "add_special": True}
    prompt = engine.stage.request(engine.endpoint, "/tokenize", said)[1]["tokens"]
    answer, _ = complete(engine, 0, prompt)
    tokens = engine.keep(0, tmp_path / "saved")
    turns = {"extended": [*prompt, *answer, 100, 101], "left out": [*prompt, 100, 101]}
    live = {}
    for name, turn in turns.items():
        engine.slots.erase(0, BOUND)
        complete(engine, 0, prompt)
        live[name] = complete(engine, 0, turn)
    engine.end()
    assert live["extended"][1] == tokens
    engine = starts(**shape)
    for name, turn in turns.items():
        assert engine.bring(1, tmp_path / "saved") == Restored(tokens)
        assert complete(engine, 1, turn) == live[name], name
    assert live["left out"][1] > len(prompt) // 2
    engine.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_file_fits_engines_with_as_many_caches_and_no_others(llama: Starts, tmp_path: Path) -> None:
    """`LlamaCpp.slot_layout` says so."""
    shapes = {1: {"slots": 1}, 2: {"slots": 2}, 3: {"slots": 3}}
    for number, spec in shapes.items():
        engine = llama(context_size=256, **spec)
        talk(engine, 0, {})
        engine.keep(0, tmp_path / str(number))
        engine.end()
    for number, spec in shapes.items():
        engine = llama(context_size=300, **spec)
        fits = [isinstance(engine.bring(0, tmp_path / str(other)), Restored) for other in shapes]
        assert fits == [other == number for other in shapes]
        assert engine.say(0, [RULES, {"role": "user", "content": "Hello."}])[0]["content"]
        engine.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_image_is_restored_and_no_other_is_taken_for_it(
    stage: Stage, llama_cpp_python: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    eyes = tmp_path / "eyes.gguf"
    eyes.write_bytes(projector())

    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        model = ModelFiles(path=smollm2_gguf, format="gguf", name="ai/smollm2", mmproj=eyes)
        folder = EngineFolder.of(stage.folder, spec.engine_id).make_slots()
        launch = Launch(
            spec=spec, root=Path("/"), python=llama_cpp_python, model=model, socket=socket, slot_files=folder
        )
        return PreparedEngine(LlamaCpp().command(launch), LlamaCpp.readiness)

    def asked(colour: tuple[int, int, int]) -> list[Any]:
        url = f"data:image/png;base64,{base64.b64encode(png(16, 16, colour)).decode()}"
        image = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]

    shape: dict[str, Any] = {"backend": "llama.cpp", "slots": 2, "context_size": 512}
    red, green = asked((200, 30, 30)), asked((30, 200, 30))
    engine = Running(stage, stage.spec(**shape), prepare)
    message, _ = engine.say(0, red)
    tokens = engine.keep(0, tmp_path / "red")
    more = [{"role": "assistant", **message}, {"role": "user", "content": "And now?"}]
    live, cached = engine.say(0, [*red, *more])
    assert cached == tokens
    other, _ = engine.say(1, [*green, *more])
    engine.end()
    engine = Running(stage, stage.spec(**shape), prepare)
    for messages, expected in ((red, (live, True)), (green, (other, False))):
        assert engine.bring(0, tmp_path / "red") == Restored(tokens)
        answer, cached = engine.say(0, [*messages, *more])
        assert (answer, cached == tokens) == expected
    engine.end()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_mlxs_answers_after_a_restore_are_those_of_the_live_slot(mlx: Starts, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "seed": {"temperature": 0.9, "seed": 7},
        "tools": {"tools": [TOOL]},
        "schema": {"response_format": SCHEMA, "max_tokens": 40},
    }
    goes_on_alike(mlx, tmp_path, cases)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlx_finds_what_another_slot_has_read_of_a_prompt_and_llama_cpp_does_not(
    mlx: Starts, llama: Starts, tmp_path: Path
) -> None:
    """`ConversationRestorer` copies slots for llama.cpp, and not for mlx."""
    asked = [[RULES, {"role": "user", "content": said}] for said in ("Tell me of rule 1.", "Is water wet?")]
    cached = {}
    for name, engine in (("mlx", mlx(slots=2)), ("llama.cpp", llama(slots=2, context_size=512))):
        cached[name] = [engine.say(slot, messages)[1] for slot, messages in enumerate(asked)]
        if name == "llama.cpp":
            tokens = engine.keep(0, tmp_path / "one")
            assert engine.bring(1, tmp_path / "one") == Restored(tokens)
            cached["copied"] = [engine.say(1, asked[1])[1]]
        engine.end()
    assert cached["mlx"][0] == 0
    assert cached["mlx"][1] > 40
    assert cached["llama.cpp"] == [0, 0]
    assert cached["copied"][0] > 40


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlx_refuses_what_is_no_file_of_a_slot_and_serves_on(mlx: Starts, tmp_path: Path) -> None:
    engine = mlx()
    following = talk(engine, 0, {})
    tokens = engine.keep(0, tmp_path / "good")
    whole = (tmp_path / "good").read_bytes()
    for name, data in {"nonsense": b"nonsense", "cut": whole[: len(whole) // 2], "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        found = engine.bring(1, tmp_path / name)
        assert isinstance(found, SlotFailure)
        assert found.kind == "refused"
    missing = engine.slots.restore(1, "missing", BOUND)
    assert isinstance(missing, SlotFailure)
    assert engine.bring(1, tmp_path / "good") == Restored(tokens)
    assert engine.say(1, following)[1] >= tokens - 1
    assert json.dumps(sorted(path.name for path in engine.slots.path("x").parent.iterdir())) == "[]"


def test_an_installation_of_llama_cpp_is_tried_with_two_servers(llama_cpp_python: Path) -> None:
    argv = (str(llama_cpp_python), "-I", str(launcher("llama_cpp", "compute")))
    assert restores(argv, cancel=Event()) == ""
