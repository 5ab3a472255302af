"""Remote backends, as the configuration and programs declare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.config import BadSetting, Settings, load
from greenroom.runner.plain_settings import values_of
from greenroom.runner.remote_settings import ApiKey, NoKey, RemoteBackend
from greenroom.runner.setting_values import READERS
from greenroom.runner.settings_text import in_force, rows

KEY = "sk-planted-77aQ"


def declared(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "config.toml").write_text(text)
    return load(environment={"GREENROOM_HOME": str(tmp_path)})


def test_they_are_read_from_the_file_beside_the_users_own_installations(tmp_path: Path) -> None:
    settings = declared(
        tmp_path,
        """
        [backends.lab]
        url = "https://lab.example"
        api_key = { env = "LAB_KEY" }
        models = ["llama*", "qwen3"]
        slots = 3
        timeout = "90s"
        [backends.near]
        url = "unix:/run/engine.sock"
        api_key = { file = "/run/secrets/near" }
        [backends.mlx]
        python = "/opt/mlx/bin/python"
        """,
    )
    lab, near = settings.remote_backends["lab"], settings.remote_backends["near"]
    assert (lab.url, lab.path, lab.slots, lab.timeout) == ("https://lab.example/v1", "/v1", 3, 90.0)
    assert (lab.key, near.key) == (ApiKey(env="LAB_KEY"), ApiKey(file=Path("/run/secrets/near")))
    assert (near.url, near.path, near.models) == ("unix:/run/engine.sock", "/v1", ("*",))
    assert list(settings.own_backends) == ["mlx"]
    told = {name: value for name, value, _ in rows(settings, "backends")}
    assert told["backends.lab.api_key"] == "env LAB_KEY"
    assert told["backends.lab.models"] == "llama*, qwen3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('url = "lab.example"', "write http://HOST:PORT/v1"),
        ('url = "ftp://lab.example"', "write http://HOST:PORT/v1"),
        (f'url = "http://me:{KEY}@lab.example"', "must not contain a password"),
        (f'url = "http://lab.example/v1?key={KEY}"', "only a scheme, a host"),
        ('url = "http://lab.example:99999"', "no valid port"),
        ('url = "unix:engine.sock"', "absolute path"),
        (f'url = "http://lab"\napi_key = "{KEY}"', "must not be the key itself"),
        (f'url = "http://lab"\napi_key = {{ value = "{KEY}" }}', "api_key must be { env"),
        (f'url = "http://lab"\napi_key = {{ env = "{KEY}" }}', "name of an environment variable"),
        ('url = "http://lab"\nslots = 0', "slots must be from 1 to 256"),
        ('url = "http://lab"\ntimeout = "2h"', "from 1s to 1h"),
        ('url = "http://lab"\nmodels = "x"', "must be a list"),
        ('url = "http://lab"\npython = "/x"', "has no key 'python', only api_key"),
        ("slots = 2", "has slots, but no url"),
    ],
)
def test_a_mistake_is_named_and_a_key_is_never_repeated(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadSetting) as raised:
        declared(tmp_path, f"[backends.lab]\n{text}\n")
    assert said in str(raised.value)
    assert "lab" in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("name", ["hf.co", "ai", "Lab", "a/b", ""])
def test_a_name_that_models_could_not_begin_with_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot have this name"):
        Settings(home=tmp_path, backends={name: RemoteBackend(url="http://lab")})


def test_a_key_that_a_program_gives_is_shown_nowhere(tmp_path: Path) -> None:
    lab = RemoteBackend(url="http://lab", api_key=KEY)
    settings = Settings(home=tmp_path, backends={"lab": lab}, origins={"backends": "code"})
    assert lab.key is not None
    assert lab.key.read() == KEY
    told = [repr(settings), str(rows(settings, "backends")), str(in_force(settings))]
    assert KEY not in json.dumps([*told, values_of(settings)])
    assert ("backends.lab.api_key", "given by the program", "code") in rows(settings, "backends")


def test_programs_may_give_tables_or_objects() -> None:
    given: dict[str, Any] = {"lab": {"url": "http://lab"}, "other": RemoteBackend(url="http://other/api/v2")}
    found = READERS["backends"](given)
    assert [one.url for one in found.values() if isinstance(one, RemoteBackend)] == [
        "http://lab/v1",
        "http://other/api/v2",
    ]
    with pytest.raises(TypeError):
        RemoteBackend(url="http://lab", api_key=3)  # type: ignore[arg-type]


def test_a_key_is_read_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    with pytest.raises(NoKey, match="cannot be read"):
        ApiKey(file=file).read()
    file.write_text(f"{KEY}\n")
    assert ApiKey(file=file).read() == KEY
    file.write_text("two words\n")
    with pytest.raises(NoKey, match="without spaces") as raised:
        ApiKey(file=file).read()
    assert "two words" not in str(raised.value)
    monkeypatch.delenv("LAB_KEY", raising=False)
    with pytest.raises(NoKey, match="the variable LAB_KEY is not set"):
        ApiKey(env="LAB_KEY").read()
    monkeypatch.setenv("LAB_KEY", KEY)
    assert ApiKey(env="LAB_KEY").read() == KEY
