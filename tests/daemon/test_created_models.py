"""A model that was created with defaults, on a real engine, through the APIs that people use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.testing import tiny_gguf

pytestmark = pytest.mark.timeout(300)

QUESTION = "Name a colour of the sea, in one sentence."
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.mark.slow
@pytest.mark.real
def test_a_created_model_answers_otherwise_than_its_base_and_outlives_it(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    import anthropic
    import ollama
    import openai

    daemon = make_daemon(furnished).start()
    client = ollama.Client(host=daemon.url)
    base = str(smollm2_gguf)
    greedy = {"temperature": 0, "num_predict": 8, "seed": 1}
    hello = [{"role": "user", "content": QUESTION}]
    plain = client.chat(base, hello, options=greedy)
    text = plain.message.content or ""
    assert len(text.split()) > 3, text

    client.create("pirate", from_=base, system="You are a pirate. Answer as a pirate.", parameters=greedy)
    # As for the base: threads that wait for each other beside other tests take long.
    one_thread = {"runtime-flags": ["--threads", "1"]}
    assert daemon.post("/engines/_configure", {"model": "pirate", **one_thread}).status == 202
    pirate = client.chat("pirate", hello)
    assert pirate.message.content != text
    assert (pirate.prompt_eval_count or 0) > 0
    # The defaults are what a request could have said, in every API.
    said = [{"role": "system", "content": "You are a pirate. Answer as a pirate."}, *hello]
    assert client.chat(base, said, options=greedy).message.content == pirate.message.content
    assert client.generate("pirate", QUESTION).response == pirate.message.content
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as by_openai:
        told = by_openai.chat.completions.create(model="pirate", messages=hello)  # type: ignore[arg-type]
        assert told.choices[0].message.content == pirate.message.content
        answered = by_openai.responses.create(model="pirate", input=QUESTION)
        assert answered.output_text == pirate.message.content
    with anthropic.Anthropic(base_url=daemon.url, api_key="none", max_retries=0) as by_anthropic:
        counted = [
            by_anthropic.messages.count_tokens(model=name, messages=hello).input_tokens  # type: ignore[arg-type]
            for name in (base, "pirate")
        ]
    assert counted[0] != counted[1] == pirate.prompt_eval_count

    # The word that it ends at is one that the base has said.
    word = text.split()[2]
    client.create("short", from_=base, parameters={**greedy, "stop": [word]}, template=TEMPLATE)
    assert daemon.post("/engines/_configure", {"model": "short", **one_thread}).status == 202
    short = client.chat("short", hello)
    assert word not in (short.message.content or "")
    longer = client.chat("short", hello, options={"stop": ["\0"]})
    assert (longer.message.content or "").startswith(short.message.content or "")
    shown = daemon.post("/apply-template", {"model": "short", "messages": hello}).json
    assert shown["prompt"].startswith(f"user: {QUESTION}\nassistant:")

    client.delete(base)
    client.generate("pirate", keep_alive=0)
    daemon.stop()
    daemon.start()
    again = ollama.Client(host=daemon.url).chat("pirate", hello)
    assert again.message.content == pirate.message.content


def test_a_modelfile_makes_a_model_of_a_file(make_daemon: Callable[..., Any], tmp_path: Path) -> None:
    daemon = make_daemon().start()
    tiny_gguf(tmp_path / "own.gguf", "own")
    file = tmp_path / "Modelfile"
    file.write_text("FROM ./own.gguf\nSYSTEM You are a pirate.\nPARAMETER temperature 0\n")
    done = daemon.run("create", "pirate", "-f", str(file))
    assert (done.returncode, done.stdout) == (0, "Created pirate.\n"), done.stderr
    assert "Sending own.gguf" in done.stderr
    shown = daemon.post("/api/show", {"model": "pirate"}).json
    assert (shown["system"], shown["parameters"].split()) == ("You are a pirate.", ["temperature", "0"])
    again = daemon.run("create", "again", "--from", str(tmp_path / "own.gguf"))
    assert again.returncode == 0, again.stderr
    assert "Sending" not in again.stderr, "the store has the file"
    file.write_text(shown["modelfile"])
    assert daemon.run("create", "third", "-f", str(file)).returncode == 0
    assert daemon.post("/api/show", {"model": "third"}).json["system"] == "You are a pirate."
    refused = daemon.run("create", "x", "--from", "pirate", "--parameter", "num_gpu=1")
    assert (refused.returncode, "num_gpu cannot be stored" in refused.stderr) == (1, True), refused.stderr
