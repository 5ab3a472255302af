"""Remote backends, with real engines: llama.cpp's server with a key, and another Greenroom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from short_prompt import SHORT_PROMPT
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(400)]

KEY = "sk-planted-8qW2vX1"
HELLO: list[Any] = [SHORT_PROMPT, {"role": "user", "content": "Name a colour."}]


def declare(daemon: Any, **keys: str) -> None:
    lines = [f"{name} = {value}" for name, value in keys.items()]
    (daemon.home / "config.toml").write_text("\n".join(["[backends.lab]", *lines, ""]))


def lab(daemon: Any) -> dict[str, Any]:
    (found,) = daemon.get("/engines/remotes").json
    return dict(found)


@pytest.fixture
def llama_server(furnished: Path, smollm2_gguf: Path, programs: Path) -> Iterator[tuple[str, Any]]:
    """Its URL and its process."""
    (python,) = furnished.glob("backends/llama.cpp/*/env/bin/python")
    argv = [str(python), "-I", str(programs / "llama_on_tcp.py"), str(smollm2_gguf), KEY]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.communicate()


def test_llama_cpps_own_server_is_used_with_a_key_that_is_found_nowhere(
    llama_server: tuple[str, Any], make_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    url, process = llama_server
    daemon = make_daemon(GREENROOM_INSTALL_POLICY="never", LAB_SECRET=KEY, GREENROOM_LOG_LEVEL="debug")
    declare(daemon, url=f'"{url}"', api_key='{ env = "LAB_SECRET" }', timeout='"5s"')
    daemon.start()
    until(lambda: lab(daemon)["state"] == "answers")
    assert lab(daemon)["models"] == ["smol-135m"]
    model = "lab/smol-135m"

    done = daemon.run("run", model, "Name a colour.", "--max-tokens", "8")
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
    answer = daemon.chat(model, stream=True)
    assert answer.body.strip().endswith(b"data: [DONE]")
    row = daemon.get(f"/requests/{answer.headers['X-Request-ID']}").json
    assert (row["backend"], row["outcome"], row["tokens_out"] > 0, row["first_token"] > 0) == (
        "lab", "whole", True, True,
    )  # fmt: skip
    refused = daemon.post("/v1/embeddings", {"model": model, "input": "hi"})
    assert (refused.status, refused.json["error"]["code"]) == (422, "not_an_embedding_model")

    # It hangs, goes on, and is killed.
    os.kill(process.pid, signal.SIGSTOP)
    hung = daemon.chat(model)
    assert (hung.status, hung.json["error"]["code"]) == (504, "backend_timeout")
    os.kill(process.pid, signal.SIGCONT)
    until(lambda: daemon.chat(model).status == 200)
    process.kill()
    process.wait()
    gone = daemon.chat(model)
    assert gone.status in (502, 503), gone.body
    until(lambda: lab(daemon)["state"] == "silent")
    told = [hung.body, gone.body, refused.body]
    why = daemon.run("why", "lab")
    assert "lab has not answered at" in why.stdout
    assert "connection refused" in why.stdout
    assert [record.type for record, _ in daemon.events("remote_answered", "remote_failed")][
        -1
    ] == "remote_failed"

    # The key.
    bundle = tmp_path / "bundle.zip"
    for words in (
        ["config"], ["ps"], ["ps", "--json"], ["backends"], ["backends", "--json"], ["status", "--json"],
        ["why"], ["log", "--json"], ["requests", "--json"], ["logs"], ["bundle", "--output", str(bundle)],
    ):  # fmt: skip
        done = daemon.run(*words)
        told.append((done.stdout + done.stderr).encode())
    assert all(KEY.encode() not in one for one in told)
    daemon.stop()
    made = [one for one in tmp_path.rglob("*bundle*") if one.is_file()]
    assert made
    for file in [one for one in tmp_path.rglob("*") if one.is_file() and not one.is_symlink()]:
        assert KEY.encode() not in file.read_bytes(), file
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                assert all(KEY.encode() not in archive.read(name) for name in archive.namelist())


def test_official_clients_work_through_two_greenrooms(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    import anthropic
    import ollama
    import openai

    far = make_daemon(furnished).start()
    ollama.Client(far.url).copy(str(smollm2_gguf), "mine")
    near = make_daemon(GREENROOM_INSTALL_POLICY="never")
    declare(near, url=f'"{far.url}"', models='["mine*"]')
    near.start()
    until(lambda: lab(near)["state"] == "answers")
    assert lab(near)["models"] == ["mine"]
    model = "lab/mine"

    client = openai.OpenAI(base_url=f"{near.url}/v1", api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == [model]
    told = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, temperature=0)
    assert (told.model, bool(told.choices[0].message.content)) == (model, True)
    stream = client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert said == told.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    response = client.responses.create(model=model, input="Name a colour.", max_output_tokens=16)
    assert response.output_text
    with pytest.raises(openai.NotFoundError, match="lists no model"):
        client.chat.completions.create(model="lab/none", messages=HELLO)

    claude = anthropic.Anthropic(base_url=near.url, api_key="none", max_retries=0)
    with claude.messages.stream(model=model, messages=HELLO[1:], max_tokens=8) as messages:
        assert "".join(messages.text_stream)
    assert messages.get_final_message().usage.output_tokens == 8

    llama = ollama.Client(near.url)
    assert [one.model for one in llama.list().models] == [model]
    assert llama.show(model).capabilities == ["completion"]
    pieces = list(llama.chat(model, HELLO, stream=True, options={"num_predict": 8}))
    assert "".join(one.message.content or "" for one in pieces)
    assert (pieces[-1].done, pieces[-1].eval_count) == (True, 8)
    assert near.engines() == []
    (engine,) = far.engines()
    assert engine["model_name"]

    # The far one stops and comes back; the near one only tells so.
    port = far.url.rpartition(":")[2]
    far.stop()
    until(lambda: near.chat(model).status == 503)
    near.restart()
    until(lambda: len(near.events("remote_failed")) == 2)
    assert near.chat(model).status == 503
    far.fork(far.program, "--port", port, env=far.env)
    until(lambda: near.chat(model).status == 200)
    answers = near.events("remote_answered", "remote_failed")
    kinds = [record.type for record, _ in answers]
    assert kinds == ["remote_answered", "remote_failed", "remote_failed", "remote_answered"]
    assert json.loads(answers[0][0].data)["models"] == ["mine"]
