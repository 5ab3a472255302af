"""llama.cpp and mlx themselves, through our launchers, with the real model."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from engine_stage import Stage
from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.flags import LLAMA_CPP
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.engines.launchers import launcher
from short_prompt import SHORT_PROMPT
from waiting import until

pytestmark = pytest.mark.real

CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}
# What xllamacpp has no parameter for: places that only llama-server's own parser can set.
NOT_OFFERED = {
    *("--cpu-mask", "--cpu-mask-batch", "--cpu-range", "--cpu-range-batch", "-C", "-Cb", "-Cr", "-Crb"),
    *("--cpu-mask-draft", "--cpu-mask-batch-draft", "--cpu-range-draft", "-Cd", "-Cbd", "-Crd"),
    *("--cpu-strict-draft", "--cpu-strict-batch-draft", "--poll-draft", "--poll-batch-draft"),
    *("--prio-draft", "--prio-batch-draft", "--spec-draft-cpu-mask", "--spec-draft-cpu-mask-batch"),
    *("--spec-draft-cpu-range", "--spec-draft-cpu-strict", "--spec-draft-cpu-strict-batch"),
    *("--spec-draft-poll", "--spec-draft-poll-batch", "--spec-draft-prio", "--spec-draft-prio-batch"),
    *("--device", "-dev", "--device-draft", "-devd", "--spec-draft-device", "--spm-infill", "--top-nsigma"),
    *("--cpu-moe-draft", "-cmoed", "--n-cpu-moe-draft", "-ncmoed", "--spec-draft-cpu-moe"),
    *("--spec-draft-n-cpu-moe", "--spec-draft-ncmoe", "--ctx-size-draft", "-cd"),
    *("--override-tensor-draft", "-otd", "--spec-draft-override-tensor"),
}


@pytest.fixture
def llama(stage: Stage, llama_cpp_python: Path, smollm2_gguf: Path) -> Stage:
    """A stage on which llama.cpp plays."""

    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        model = ModelFiles(path=smollm2_gguf, format="gguf", name="ai/smollm2")
        # Threads that wait for each other take up processors that other tests need.
        spec = replace(spec, flags=("--threads", "1", *spec.flags))
        launch = Launch(spec=spec, root=Path("/"), python=llama_cpp_python, model=model, socket=socket)
        return PreparedEngine(LlamaCpp().command(launch), LlamaCpp.readiness)

    stage.options = {"prepare": prepare}
    return stage


def test_llama_cpp_loads_answers_streams_and_stops(llama: Stage) -> None:
    host, spec = llama.host(**llama.options), llama.spec(backend="llama.cpp", context_size=2048)
    host.start(spec)
    pid, _, endpoint = llama.heard.wait("spawned")
    llama.heard.wait("ready", bound=60)
    status, reply = llama.request(endpoint, "/v1/chat/completions", CHAT)
    assert status == 200
    assert reply["model"] == "ai/smollm2"
    assert reply["usage"]["completion_tokens"] == 5
    assert llama.request(endpoint, "/props")[1]["default_generation_settings"]["n_ctx"] == 2048
    host.stop(spec.engine_id)
    (end,) = llama.heard.wait("exited")
    assert (end.code, end.expected) == (0, True)
    assert not llama.alive(pid)


def test_llama_cpp_serves_embeddings(llama: Stage) -> None:
    host, spec = (
        llama.host(**llama.options),
        llama.spec(backend="llama.cpp", mode="embedding", flags=("--pooling", "mean")),
    )
    host.start(spec)
    _, _, endpoint = llama.heard.wait("spawned")
    llama.heard.wait("ready", bound=60)
    status, reply = llama.request(endpoint, "/v1/embeddings", {"input": "the sea"})
    assert status == 200
    assert len(reply["data"][0]["embedding"]) == 576


def test_llama_cpp_that_is_killed_says_so_and_one_stopped_while_loading_ends_at_once(llama: Stage) -> None:
    host, spec = llama.host(**llama.options), llama.spec(backend="llama.cpp")
    host.start(spec)
    pid, *_ = llama.heard.wait("spawned")
    llama.heard.wait("ready", bound=60)
    os.kill(pid, signal.SIGKILL)
    (end,) = llama.heard.wait("exited")
    assert end.summary == "The llama.cpp engine for m was killed by SIGKILL."
    heard = llama.forget()
    host = llama.host(heard=heard, **llama.options)
    host.start(other := llama.spec(backend="llama.cpp"))
    heard.wait("spawned")
    host.stop(other.engine_id)
    heard.wait("exited")
    assert heard.moment("exited") - heard.moment("spawned") < 5.0, "it waited for the second signal"


@pytest.mark.slow
def test_a_llama_cpp_adopted_by_the_next_host_has_not_loaded_again(llama: Stage) -> None:
    host, spec = llama.host(**llama.options), llama.spec(backend="llama.cpp")
    host.start(spec)
    pid, started, endpoint = llama.heard.wait("spawned")
    llama.heard.wait("ready", bound=60)
    host.shutdown(keep=60)
    heard = llama.forget()
    expected = Engine(spec=spec, state="ready", since=0.0, pid=pid, started=started)
    llama.host(heard=heard, **llama.options).recover([expected]).result(10)
    assert heard.wait("adopted") == (pid, started, endpoint, True)
    assert llama.request(endpoint, "/v1/chat/completions", CHAT)[0] == 200


def test_a_file_that_is_not_a_model_ends_with_a_sentence(
    llama: Stage, tmp_path: Path, llama_cpp_python: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is not a model" * 100)

    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        model = ModelFiles(path=broken, format="gguf", name="broken")
        launch = Launch(spec=spec, root=Path("/"), python=llama_cpp_python, model=model, socket=socket)
        return PreparedEngine(LlamaCpp().command(launch), LlamaCpp.readiness)

    llama.host(prepare=prepare).start(llama.spec(backend="llama.cpp", model_ref="broken"))
    (end,) = llama.heard.wait("exited", bound=60)
    assert end.code == 1
    assert end.summary == (
        "The llama.cpp engine for broken exited with code 1 while it loaded: "
        "the file is not a model it can read."
    )


def test_a_flag_xllamacpp_cannot_follow_is_refused_not_ignored(llama: Stage) -> None:
    llama.host(**llama.options).start(llama.spec(backend="llama.cpp", flags=("--device", "none")))
    (end,) = llama.heard.wait("exited", bound=60)
    assert end.code == 2
    assert "--device is not supported by xllamacpp" in end.summary


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--cache-type-k", "q99"), "--cache-type-k cannot be 'q99'; it takes f32, f16, bf16"),
        (("--flash-attn", "maybe"), "--flash-attn cannot be 'maybe'; it takes on, off or auto"),
        (("--batch-size", "0"), "--batch-size cannot be '0'; it takes a whole number of at least 1"),
        (("--rope-freq-base", "nan"), "--rope-freq-base cannot be 'nan'; it takes a number"),
        (("--keep", "9" * 30), "it is out of range"),
        (("--chat-template", "{{ nope("), "its chat template cannot be read (Parser Error: Unexpected EOF)"),
    ],
)
def test_a_flag_that_cannot_be_is_named_with_what_it_takes(llama: Stage, flags: Any, said: str) -> None:
    llama.host(**llama.options).start(llama.spec(backend="llama.cpp", flags=flags))
    (end,) = llama.heard.wait("exited", bound=60)
    assert said in end.summary


def test_every_allowed_flag_is_followed_or_known_to_be_out_of_reach(
    llama_cpp_python: Path, programs: Path
) -> None:
    done = subprocess.run(
        [str(llama_cpp_python), str(programs / "llama_flags.py"), str(launcher("llama_cpp"))],
        input=json.dumps(sorted(LLAMA_CPP)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    refused = json.loads(done.stdout)
    assert set(refused) == NOT_OFFERED & LLAMA_CPP, refused


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_mlx_loads_answers_and_stops_on_a_unix_socket(
    stage: Stage, mlx_python: Path, smollm2_mlx: Path
) -> None:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        model = ModelFiles(path=smollm2_mlx, format="safetensors-mlx", name="smollm2")
        launch = Launch(spec=spec, root=Path("/"), python=mlx_python, model=model, socket=socket)
        return PreparedEngine(Mlx().command(launch), Mlx.readiness, model_name="default_model")

    host, spec = stage.host(prepare=prepare), stage.spec(backend="mlx")
    host.start(spec)
    pid, _, endpoint = stage.heard.wait("spawned")
    stage.heard.wait("ready", bound=100)
    status, reply = stage.request(endpoint, "/v1/chat/completions", {**CHAT, "model": "default_model"})
    assert status == 200
    assert reply["choices"][0]["message"]["content"]
    host.stop(spec.engine_id)
    (end,) = stage.heard.wait("exited")
    assert end.expected
    assert not stage.alive(pid)


@pytest.fixture
def mlx(stage: Stage, mlx_python: Path, smollm2_mlx: Path) -> Stage:
    """mlx with the real model, ready."""

    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        model = ModelFiles(path=smollm2_mlx, format="safetensors-mlx", name="smollm2")
        launch = Launch(spec=spec, root=Path("/"), python=mlx_python, model=model, socket=socket)
        return PreparedEngine(Mlx().command(launch), Mlx.readiness, model_name="default_model")

    host, stage.started = stage.host(prepare=prepare), stage.spec(backend="mlx")
    host.start(stage.started)
    _, _, stage.endpoint = stage.heard.wait("spawned")
    stage.heard.wait("ready", bound=100)
    stage.log = EngineFolder.of(stage.folder, stage.started.engine_id).read_log
    return stage


def test_mlx_whose_load_dies_ends_with_the_reason(stage: Stage, mlx_python: Path, tmp_path: Path) -> None:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        (tmp_path / "empty").mkdir()
        model = ModelFiles(path=tmp_path / "empty", format="safetensors-mlx", name="empty")
        launch = Launch(spec=spec, root=Path("/"), python=mlx_python, model=model, socket=socket)
        return PreparedEngine(Mlx().command(launch), Mlx.readiness, model_name="default_model")

    stage.host(prepare=prepare).start(stage.spec(backend="mlx"))
    (end,) = stage.heard.wait("exited", bound=100)
    assert not end.expected
    assert "config.json" in end.summary


def leaving(endpoint: str, body: Any) -> Any:
    """A client that sends a request and is ready to leave."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(endpoint)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.sock


def asking(words: str, **fields: Any) -> Any:
    return {
        "messages": [SHORT_PROMPT, {"role": "user", "content": words}],
        "model": "default_model",
        **fields,
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [None, 7], ids=["in a batch", "alone"])
def test_mlx_ends_a_generation_whose_client_has_left_even_if_it_is_not_streamed(
    mlx: Stage, seed: int | None
) -> None:
    never_ending = asking(
        "Count to a million.", max_tokens=20000, logit_bias={"2": -100, "0": -100}, seed=seed
    )
    client = leaving(mlx.endpoint, never_ending)
    until(lambda: "Prompt processing progress: 1/1" in mlx.log().rpartition("Prompt Cache")[2], bound=100)
    client.close()
    # Another seed is served alone, after all that runs: so a generation without a reader is over by then.
    assert mlx.request(mlx.endpoint, "/v1/chat/completions", asking("Hello", max_tokens=1, seed=1))[0] == 200


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlx_drops_a_prompt_whose_client_has_left(mlx: Stage) -> None:
    client = leaving(mlx.endpoint, asking("word and again " * 1500, max_tokens=5))
    until(lambda: re.search(r"Prompt processing progress: [1-9]\d*/4\d\d\d", mlx.log()), bound=100)
    client.close()
    assert mlx.request(mlx.endpoint, "/v1/chat/completions", asking("Hello", max_tokens=1, seed=1))[0] == 200


def test_llama_cpp_drops_a_prompt_whose_client_has_left(llama: Stage) -> None:
    host = llama.host(**llama.options)
    host.start(spec := llama.spec(backend="llama.cpp", context_size=8192, flags=("--batch-size", "64")))
    _, _, endpoint = llama.heard.wait("spawned")
    llama.heard.wait("ready", bound=60)

    def log() -> Any:
        return EngineFolder.of(llama.folder, spec.engine_id).read_log()

    client = leaving(endpoint, asking("word and again " * 2500, max_tokens=5))
    until(lambda: "launch_slot_" in log())
    client.close()
    until(lambda: "cancel task" in log())
    (read,) = until(lambda: re.findall(r"stop processing: n_tokens = (\d+)", log()), bound=60)
    assert int(read) < 2500, "of 7,500"


def test_the_vllm_launcher_becomes_the_module_it_is_given(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(launcher("vllm")), "json.tool", "--compact"],
        input='{"a": 1}',
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.returncode) == ('{"a":1}\n', 0)


def test_where_the_kernel_does_not_a_child_ends_an_engine_that_holds_pythons_lock() -> None:
    """The way of macOS, tried here: the main thread never gives up the interpreter lock."""
    code = (
        "import sys, re; sys.path.insert(0, sys.argv[1]); from end_with_keeper import end_with_keeper;"
        "end_with_keeper(by_child=True); print('on', flush=True); re.match('(a+)+b', 'a' * 60)"
    )
    watch, keeper = os.pipe()
    os.set_inheritable(watch, True)
    engine = subprocess.Popen(
        [sys.executable, "-I", "-c", code, str(launcher("mlx").parent)],
        env={**os.environ, "GREENROOM_KEEPER_FD": str(watch)},
        pass_fds=[watch],
        stdout=subprocess.PIPE,
    )
    os.close(watch)
    assert engine.stdout is not None
    assert engine.stdout.readline() == b"on\n"
    assert engine.poll() is None
    os.close(keeper)
    assert engine.wait(10) == -signal.SIGKILL
    engine.stdout.close()
