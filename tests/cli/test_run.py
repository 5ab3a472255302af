from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.client.http_client import DaemonRequest

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
CHAT = "POST /v1/chat/completions"


def answer(*words: str, **more: Any) -> list[str]:
    """A stream of server-sent events."""
    lines = [": waiting", ""]
    for word in words:
        lines += ["data: " + json.dumps({"choices": [{"delta": {"content": word}}]}), ""]
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(words)}}
    return [*lines, "data: " + json.dumps(usage | more), "", "data: [DONE]", ""]


def refusal(status: int, code: str, message: str, **more: Any) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": code, "type": "x", "param": None} | more}


class Chat:
    """What the fake daemon answers: a preload succeeds once nothing is missing, then words come."""

    def __init__(self, *missing: tuple[int, Any], words: list[str]) -> None:
        self.missing = list(missing)
        self.words = words

    def __call__(self, seen: Any) -> Any:
        if self.missing:
            return self.missing.pop(0)
        if seen.headers.get("X-Preload-Only") == "true":
            return ""
        return self.words


def test_only_the_answer_goes_to_standard_output(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("The ", "sea."))

    outcome = greenroom("run", "smollm2", "Write", "one sentence.")

    assert (outcome.code, outcome.out) == (0, "The sea.\n")
    assert outcome.err == "waiting\n"
    preload, asked = our_daemon.bodies("/v1/chat/completions")
    assert preload == {"model": "smollm2", "messages": [], "stream": False}
    assert asked["messages"] == [{"role": "user", "content": "Write one sentence."}]


@pytest.mark.parametrize(("patience", "told"), [(0.0, "reading the prompt: 32 of 900 tokens\n"), (600.0, "")])
def test_progress_through_a_long_prompt_is_reported(
    greenroom: Any, our_daemon: Any, monkeypatch: pytest.MonkeyPatch, patience: float, told: str
) -> None:
    monkeypatch.setattr("greenroom.runner.cli.chat_session.PATIENCE", patience)
    our_daemon.routes[CHAT] = Chat(
        words=[": keepalive 32/900", "", ": keepalive 900/900", "", *answer("Yes.")]
    )

    outcome = greenroom("run", "smollm2", "Hi")

    assert (outcome.out, outcome.err) == ("Yes.\n", f"{told}waiting\n")


def test_the_prompt_may_come_from_a_pipe(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("Yes."))

    outcome = greenroom("run", "smollm2", "--system", "Be brief.", "--max-tokens", "9", stdin="Really?\n")

    assert outcome.out == "Yes.\n"
    asked = our_daemon.bodies("/v1/chat/completions")[-1]
    assert asked["max_tokens"] == 9
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Really?"},
    ]


def test_an_empty_pipe_is_a_usage_error(greenroom: Any, our_daemon: Any) -> None:
    outcome = greenroom("run", "smollm2", stdin="")

    assert outcome.code == 2
    assert our_daemon.seen == []


def test_a_model_that_is_not_here_is_fetched_first(greenroom: Any, our_daemon: Any) -> None:
    missing = refusal(
        404, "model_not_found", 'model "smollm2" is not in the store; run: greenroom pull smollm2'
    )
    our_daemon.routes[CHAT] = Chat(missing, words=answer("Hi."))
    our_daemon.routes["POST /models/create"] = [
        json.dumps({"type": "success", "message": "Model pulled successfully"})
    ]

    outcome = greenroom("run", "smollm2", "Hi")

    assert outcome.out == "Hi.\n"
    assert outcome.err == "smollm2 is not in the store; pulling it.\nModel pulled successfully\nwaiting\n"


def test_a_model_that_is_not_here_even_after_fetching_is_an_error(greenroom: Any, our_daemon: Any) -> None:
    missing = refusal(404, "model_not_found", 'model "x" is not in the store; run: greenroom pull x')
    our_daemon.routes[CHAT] = Chat(missing, missing, words=[])
    our_daemon.routes["POST /models/create"] = [json.dumps({"type": "success", "message": "ok"})]

    outcome = greenroom("run", "x", "Hi")

    assert outcome.code == 1
    assert outcome.err.endswith('Error: model "x" is not in the store; run: greenroom pull x\n')


MLX_MISSING = refusal(
    412,
    "backend_not_installed",
    'backend "mlx" is not installed; run: greenroom install-runner --backend mlx',
    backend="mlx",
)


def test_a_backend_that_is_not_installed_is_announced_and_installed(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(MLX_MISSING, words=answer("Hi."))
    our_daemon.routes["POST /engines/install-backend"] = [
        json.dumps({"type": "progress", "phase": "downloading"}),
        json.dumps({"type": "success", "message": "mlx backend installed successfully"}),
    ]

    outcome = greenroom("run", "smollm2", "Hi")

    assert outcome.out == "Hi.\n"
    assert outcome.err.splitlines() == [
        "Installing mlx backend...",
        "  mlx: Downloading",
        "mlx backend installed successfully",
        "waiting",
    ]


@pytest.mark.parametrize(
    ("plan", "size"),
    [
        ({"download_bytes": 612_000_000, "total_bytes": 700_000_000}, "612 MB"),
        (refusal(503, "unreachable", "The index does not answer."), "about 650 MB"),
    ],
)
def test_what_is_fetched_in_the_background_is_said_with_its_size(
    greenroom: Any, our_daemon: Any, plan: Any, size: str
) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("Hi."))
    our_daemon.routes["GET /engines/ps?all=true"] = []
    variant = {"name": "cu128", "reason": "It runs on the card.", "download_bytes": 650_000_000}
    offered = {
        "name": "llama.cpp",
        "variant": "cpu",
        "offered": "cu128",
        "deferred": False,
        "variants": [variant],
    }
    our_daemon.routes["GET /engines"] = [offered]
    our_daemon.routes["POST /engines"] = (202, {})
    our_daemon.routes["POST /engines/install-backend"] = plan

    outcome = greenroom("run", "smollm2", "Hi")

    assert outcome.err.startswith(
        f"Downloading llama.cpp cu128 in the background, {size}: It runs on the card. Until then cpu serves"
    )
    assert our_daemon.bodies("/engines") == [None, {"name": "llama.cpp", "variant": "best"}]


def test_under_the_policy_never_nothing_is_installed(
    greenroom: Any, our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    our_daemon.routes[CHAT] = Chat(MLX_MISSING, words=[])
    monkeypatch.setenv("GREENROOM_INSTALL_POLICY", "never")

    outcome = greenroom("run", "smollm2", "Hi")

    assert outcome.code == 7
    assert "greenroom install-runner --backend mlx" in outcome.err
    assert our_daemon.bodies("/engines/install-backend") == []


def test_a_named_backend_is_in_the_path(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/mlx/v1/chat/completions"] = Chat(words=answer("Hi."))

    assert greenroom("run", "--backend", "mlx", "smollm2", "Hi").out == "Hi.\n"


def test_detached_only_loads(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(words=[])

    assert greenroom("run", "-d", "smollm2").code == 0
    assert len(our_daemon.bodies("/v1/chat/completions")) == 1


def test_an_error_in_the_stream_is_printed_after_the_text_so_far(greenroom: Any, our_daemon: Any) -> None:
    words = answer("The ")[:-4]
    words += ["data: " + json.dumps({"error": {"message": "The engine has died."}}), "", "data: [DONE]", ""]
    our_daemon.routes[CHAT] = Chat(words=words)

    outcome = greenroom("run", "smollm2", "Hi")

    assert outcome.code == 1
    assert outcome.out.startswith("The ")
    assert outcome.err.endswith("Error: The engine has died.\n")


def test_a_stream_without_an_end_is_an_error(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("The ")[:-2])

    outcome = greenroom("run", "smollm2", "Hi")

    assert outcome.code == 3
    assert "closed the connection in the middle of its answer" in outcome.err


def test_reasoning_is_set_apart(greenroom: Any, our_daemon: Any) -> None:
    thought = "data: " + json.dumps({"choices": [{"delta": {"reasoning_content": "Hm."}}]})
    our_daemon.routes[CHAT] = Chat(words=[thought, "", *answer("Yes.")])

    out = greenroom("run", "smollm2", "Hi").out

    assert "Thinking:" in out
    assert "Hm." in out
    assert out.endswith("\n\n--\n\nYes.\n")


def test_statistics_are_printed_on_request(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("a", "b"))

    assert "2 tokens in " in greenroom("run", "--stats", "smollm2", "Hi").err


def test_an_answer_that_is_cut_off_is_said_to_be(greenroom: Any, our_daemon: Any) -> None:
    cut = "data: " + json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]})
    our_daemon.routes[CHAT] = Chat(words=[*answer("The ")[:-4], cut, "", "data: [DONE]", ""])

    outcome = greenroom("run", "smollm2", "Hi")

    assert (outcome.code, outcome.out) == (0, "The \n")
    assert "The answer was cut off" in outcome.err


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (["--temperature", "0", "--seed", "7"], {"temperature": 0.0, "seed": 7}),
        (["--keep-alive", "1h"], {"keep_alive": "3600s"}),
        (["--keep-alive", "forever"], {"keep_alive": "-1"}),
        (["--context", "4096"], {"num_ctx": 4096}),
        (["--context", "max"], {"num_ctx": 2**27}),
        (["--format", "json"], {"response_format": {"type": "json_object"}}),
    ],
)
def test_flags_are_sent_with_the_question(
    greenroom: Any, our_daemon: Any, flags: list[str], sent: dict[str, Any]
) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("Yes."))

    assert greenroom("run", "smollm2", *flags, "Really?").out == "Yes.\n"

    preload, asked = our_daemon.bodies("/v1/chat/completions")
    known = ("model", "messages", "stream", "stream_options")
    assert {name: value for name, value in asked.items() if name not in known} == sent
    loading = {name: value for name, value in sent.items() if name in ("keep_alive", "num_ctx")}
    assert preload == {"model": "smollm2", "messages": [], "stream": False, **loading}


def test_a_schema_comes_from_a_file(greenroom: Any, our_daemon: Any, tmp_path: Path) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("{}"))
    (tmp_path / "schema.json").write_text('{"type": "object"}')

    assert greenroom("run", "smollm2", "--format", f"{tmp_path}/schema.json", "Go").code == 0

    wanted = our_daemon.bodies("/v1/chat/completions")[-1]["response_format"]
    assert (wanted["type"], wanted["json_schema"]["schema"]) == ("json_schema", {"type": "object"})
    (tmp_path / "schema.json").write_text("[")
    refused = greenroom("run", "smollm2", "--format", f"{tmp_path}/schema.json", "Go")
    assert (refused.code, "schema.json is not JSON" in refused.err) == (2, True)


def test_files_are_put_where_the_prompt_names_them(
    greenroom: Any, our_daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("Yes."))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a letter.txt").write_text("Dear Ann,\n")
    (tmp_path / "photo.png").write_bytes(PNG)

    prompt = 'Who wrote @"a letter.txt", @bob or x@photo.png?'
    assert greenroom("run", "smollm2", prompt, stdin="@photo.png\n").code == 0
    assert greenroom("run", "smollm2", "--image", "photo.png", "And @photo.png?").code == 0
    assert greenroom("run", "smollm2", stdin="@photo.png\n").code == 0, "a pipe may be from others"

    first, second, third = [
        body["messages"][0]["content"]
        for body in our_daemon.bodies("/v1/chat/completions")
        if body["messages"]
    ]
    letter = "a letter.txt\n\n--- a letter.txt ---\nDear Ann,\n---\n"
    assert first == f"Who wrote {letter}, @bob or x@photo.png?"
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(PNG).decode()}"}}
    assert second == [{"type": "text", "text": "And photo.png?"}, image, image]
    assert third == "@photo.png"


def test_json_has_the_answer_and_what_it_cost(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[CHAT] = Chat(words=answer("The ", "sea."))

    found = json.loads(greenroom("run", "smollm2", "--json", "Hi").out)

    assert found["answer"] == "The sea."
    assert (found["prompt_tokens"], found["answer_tokens"], found["finish_reason"]) == (5, 2, "stop")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-d", "smollm2", "hi"], "--detach only loads the model: leave out the prompt"),
        (["smollm2", "--temperature", "3", "hi"], "3.0 is not in the range"),
        (["smollm2", "--context", "much", "hi"], "'much' is not a number of tokens"),
        (["smollm2", "--image", "/nowhere.png", "hi"], "/nowhere.png cannot be read"),
        (["smollm2", "--image", "/etc/hostname", "hi"], "is not an image: PNG, JPEG,"),
    ],
)
def test_a_mistake_is_a_usage_error_before_anything_is_asked(
    greenroom: Any, our_daemon: Any, arguments: list[str], said: str
) -> None:
    outcome = greenroom("run", *arguments)

    assert (outcome.code, said in outcome.err) == (2, True), outcome.err
    assert our_daemon.seen == []


def test_a_request_that_is_left_closes_its_connection(our_daemon: Any) -> None:
    exchange = DaemonRequest(our_daemon.url, "GET", "/livez", headers={})
    assert exchange.status == 200
    exchange.close()
    exchange.close()
