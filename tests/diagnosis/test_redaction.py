from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from greenroom.runner import ApiKey, RemoteBackend, Settings
from greenroom.runner.diagnosis.known_secrets import known_secrets, redactor_here
from greenroom.runner.diagnosis.redaction import NO_PROMPT, Redactor, is_secret_name

S = "Pl4nted-s3cret-9f8e"
"""A secret of no known shape."""


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{S}@index.example/simple",
        f"https://{S}@index.example/simple",
        f"https://user:{S}/with@slash@index.example/simple",
        f"https://proxy.example/https://user:{S}@index.example/simple",
        f"fetching https://host.example/blob?X-Amz-Signature={S}&x=1 failed",
        f"Authorization: Bearer {S}",
        f"{{'Authorization': 'Bearer {S}', 'Accept': '*/*'}}",
        f'{{"authorization": "Basic {S}"}}',
        f'"{{\\"Authorization\\": \\"Bearer {S}\\"}}"',
        f"('Authorization', 'Bearer {S}')",
        f"Cookie: session={S}; other={S}",
        f"x-api-key: {S}",
        f"X-Registry-Token: {S}",
        f"HF_TOKEN={S}",
        f"export HUGGING_FACE_HUB_TOKEN='{S}'",
        f"hub_token: {S}",
        f'"apiKey": "{S}"',
        f"api_key={S}&model=x",
        f"--hf-token {S} --ctx-size 512",
        f"--api-key={S}",
        f"password = {S}",
        f"machine host.example login me password {S}",
        f"client_secret: '{S}'",
        f"sent Bearer {S} upstream",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{S}\n{S}\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_what_stands_where_secrets_stand_is_taken_out(text: str) -> None:
    redactor = Redactor()

    assert S not in redactor.text(text)
    assert S not in redactor.value({"data": text})["data"]
    assert redactor.taken.total() > 0


@pytest.mark.parametrize(
    "token",
    [
        "hf_abcdefghijklmnopqrstuvwxyzABCDEF",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11ABCDEFG0abcdefghijkl",
        "glpat-abcdefghijklmnopqrst",
        "sk-proj-abcdefghijklmnop",
        "pypi-AgEIcHlwaS5vcmcCJGFi",
        "dckr_pat_abcdefghijklmnop",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    ],
)
def test_tokens_are_known_by_their_shape(token: str) -> None:
    assert token not in Redactor().text(f"it said {token} and went on")


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "user", "content": "My diary"}]}',
        "request failed: {'prompt': 'My diary', 'max_tokens': 5}",
        "Received request cmpl-1: prompt: 'My diary', params: ...",
        "1 validation error: input_value='My diary', input_type=str",
        '{\\"messages\\": [{\\"content\\": \\"My diary\\"}]}',
        "prompt = ['My diary']",
    ],
)
def test_what_may_be_a_prompt_is_taken_out(text: str) -> None:
    redactor = Redactor()

    assert "diary" not in redactor.text(text)
    assert "diary" not in json.dumps(redactor.value({"fields": text}))
    assert redactor.taken["possible prompts"] > 0


@pytest.mark.parametrize(
    "text",
    [
        "slot release: id 3 | task 0 | stop processing: n_tokens = 123, truncated = 0",
        "prompt eval time = 12.30 ms / 7 tokens (1.76 ms per token)",
        "context of 8192 tokens",
        "POST /v1/chat/completions 200 877.6 ms r-0aa84a85-4",
        "unix:///tmp/home/engines/18bd0f5a2c0-1/engine.sock",
        "pulling docker.io/ai/smollm2@sha256:abcd from http://127.0.0.1:5000/v2/",
        "http://127.0.0.1:5000/org/model@sha256:abcdef",
        "max_tokens=16, eos_token = 2",
        "its password is wrong",
    ],
)
def test_what_is_neither_secret_nor_prompt_is_kept(text: str) -> None:
    redactor = Redactor()

    assert redactor.text(text) == text
    assert redactor.taken.total() == 0


def test_names_say_what_is_a_secret() -> None:
    for name in (
        "HF_TOKEN",
        "UV_INDEX_X_PASSWORD",
        "apiKey",
        "authorization",
        "client_secret",
        "AWS_ACCESS_KEY",
    ):
        assert is_secret_name(name), name
    for name in (
        "max_tokens",
        "n_tokens",
        "kv_bytes_per_token",
        "eos_token",
        "PWD",
        "PATH",
        "tokenizer",
        "key",
    ):
        assert not is_secret_name(name), name


def test_values_under_secret_names_go_and_numbers_stay() -> None:
    redacted = Redactor().value({"token": S, "tokens": 7, "nested": [{"password": S}], "messages": ["hello"]})

    assert redacted == {"token": "***", "tokens": 7, "nested": [{"password": "***"}], "messages": NO_PROMPT}


def test_known_values_are_found_in_any_form() -> None:
    redactor = Redactor({"p@ss/wörd"})

    text = redactor.text('a p@ss/wörd, b p%40ss%2Fw%C3%B6rd, c "p@ss/w\\u00f6rd"')

    assert text == 'a ***, b ***, c "***"'


@pytest.mark.parametrize(
    "unit", ["a_", "a.b-", "a://", "x-", "--a", "token ", "https://a", "'prompt'", "?a=b&"]
)
def test_a_line_of_any_length_takes_no_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    began = time.thread_time()

    Redactor({S}).text(text)

    assert time.thread_time() - began < 5.0


def test_the_home_directory_has_no_name(tmp_path: Path) -> None:
    assert Redactor(home=tmp_path).text(f"{tmp_path}/.cache/x") == "~/.cache/x"


def test_every_place_where_this_machine_keeps_secrets_is_known(tmp_path: Path) -> None:
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/token").write_text("from-the-hub\n")
    (tmp_path / ".cache/huggingface/stored_tokens").write_text("[me]\nhf_token = from-stored\n")
    (tmp_path / ".netrc").write_text("machine a login b password from-netrc\n")
    (tmp_path / ".docker").mkdir()
    auth = base64.b64encode(b"me:from-docker").decode()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": {"r.example": {"auth": auth}}}))
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://u:from%2Dpip@i.example/simple\n"
    )
    environment = {
        "HF_TOKEN": "from-env",
        "HTTPS_PROXY": "http://me:from-proxy@p.example:3128",
        "UV_INDEX_PRIVATE_PASSWORD": "from-uv",
        "MY_URL": "https://only-a-token@x.example",
        "PWD": str(tmp_path),
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / ".netrc"),
        "PATH": "/usr/bin",
    }

    found = known_secrets(environment, tmp_path)

    assert found >= {
        "from-the-hub",
        "from-stored",
        "from-netrc",
        "from-docker",
        auth,
        "from%2Dpip",
        "from-pip",
        "from-env",
        "from-proxy",
        "from-uv",
        "only-a-token",
    }
    assert str(tmp_path) not in found
    assert str(tmp_path / ".netrc") not in found


def test_keys_of_remote_backends_are_known_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("LAB", "from-variable")
    keys: tuple[ApiKey | str, ...] = (
        ApiKey(file=tmp_path / "key"),
        ApiKey(env="LAB"),
        "from-program",
        ApiKey(file=tmp_path / "no"),
    )
    backends = {
        f"lab{n}": RemoteBackend(url="http://127.0.0.1:1/v1", api_key=key) for n, key in enumerate(keys)
    }
    redactor = redactor_here(Settings(home=tmp_path, backends=backends))
    shown = redactor.text("said from-file, from-variable and from-program")
    assert not [word for word in shown.split() if word.startswith("from-")]


def test_files_that_cannot_be_read_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text("[1]")
    (tmp_path / ".netrc").mkdir()

    assert known_secrets({"DOCKER_CONFIG": str(tmp_path / ".docker")}, tmp_path) == set()


@pytest.mark.parametrize(
    "text", ["basic consistency checks passed", "Bearer authentication failed.", "BASIC Integrity tests"]
)
def test_words_after_basic_and_bearer_are_left_alone(text: str) -> None:
    assert Redactor().text(text) == text


def test_a_number_is_no_prompt() -> None:
    redactor = Redactor()

    assert redactor.value({"input": 28_311_552, "prompt": [1, 2]}) == {
        "input": 28_311_552,
        "prompt": NO_PROMPT,
    }
    assert redactor.taken == {"possible prompts": 1}
