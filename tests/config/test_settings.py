from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.runner.config import NAMES, BadSetting, Settings, load


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"GREENROOM_HOME": str(tmp_path)}


def written(environment: dict[str, str], text: str) -> Path:
    file = Path(environment["GREENROOM_HOME"]) / "config.toml"
    file.write_text(text)
    return file


def test_every_setting_has_a_default_and_says_so(environment: dict[str, str]) -> None:
    settings = load(environment=environment)

    assert settings.url == "http://127.0.0.1:12400"
    assert settings.install_policy == "ask"
    assert settings.keep_alive == 300
    assert {settings.origin(name) for name in NAMES if name != "home"} == {"default"}
    assert settings.origin("home") == "environment GREENROOM_HOME"


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    environment: dict[str, str],
) -> None:
    file = written(environment, 'port = 1111\nbind = "127.0.0.2"\nkeep_alive = "1m"\n')
    environment |= {"GREENROOM_PORT": "2222", "GREENROOM_BIND": "127.0.0.3"}

    settings = load({"port": "3333"}, environment=environment)

    assert (settings.port, settings.origin("port")) == (3333, "flag --port")
    assert (settings.bind, settings.origin("bind")) == ("127.0.0.3", "environment GREENROOM_BIND")
    assert (settings.keep_alive, settings.origin("keep_alive")) == (60, str(file))
    assert (settings.max_wait, settings.origin("max_wait")) == (300, "default")


def test_a_flag_that_was_not_given_beats_nothing(environment: dict[str, str]) -> None:
    assert load({"port": None, "home": None}, environment=environment).port == 12400


def test_docker_model_runners_variables_are_understood_and_ours_win(environment: dict[str, str]) -> None:
    environment |= {"MODEL_RUNNER_HOST": "http://elsewhere:12434", "MODEL_RUNNER_PORT": "5555"}

    settings = load(environment=environment)

    assert settings.host == "http://elsewhere:12434"
    assert settings.origin("host") == "environment MODEL_RUNNER_HOST"
    assert load(environment=environment | {"GREENROOM_PORT": "6666"}).port == 6666
    assert load(environment=environment | {"MODEL_RUNNER_BIND": "0.0.0.0"}).bind == "127.0.0.1"


def test_an_empty_variable_is_no_setting(environment: dict[str, str]) -> None:
    assert load(environment=environment | {"GREENROOM_PORT": "", "GREENROOM_HOST": "  "}).port == 12400


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost", "http://localhost:12400"),
        ("localhost:99", "http://localhost:99"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org/models/", "https://example.org:443/models"),
        ("[::1]:7", "http://[::1]:7"),
    ],
)
def test_a_host_is_read_as_an_address(environment: dict[str, str], text: str, url: str) -> None:
    assert load({"host": text}, environment=environment).url == url


@pytest.mark.parametrize("text", ["ftp://x", "http://", "http://x:notaport", "http://user@x", "http://x?y"])
def test_what_is_not_an_address_is_refused(environment: dict[str, str], text: str) -> None:
    with pytest.raises(BadSetting, match="flag --host: host cannot be used"):
        load({"host": text}, environment=environment)


def test_clients_of_a_daemon_that_listens_everywhere_talk_to_loopback(environment: dict[str, str]) -> None:
    assert load({"bind": "0.0.0.0"}, environment=environment).url == "http://127.0.0.1:12400"
    assert load({"bind": "::"}, environment=environment).url == "http://[::1]:12400"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "there is no setting 'prot'. Did you mean 'port'?"),
        ("port = 'many'", "port cannot be used: 'many' is not a whole number."),
        ("port = 70000", "70000 is not a port"),
        ("port = true", "True is not a whole number"),
        ("keep_alive = '5 minutes'", "keep_alive cannot be used: '5 minutes' is not a duration"),
        ("install_policy = 'maybe'", "'maybe' is not one of ask, auto, never"),
        ("max_body = 'big'", "max_body cannot be used: 'big' is not a size"),
        ("home = '/x'", "home cannot be set in the data directory itself"),
        ("models = 3", "[models] must be a table"),
        ("[backends.mlx]\npyhton = '/x'", "has no key 'pyhton', only binary, gpu, image, indexes, python"),
        ("[backends.mlx]\npython = 'bin/python'", "'bin/python' is not an absolute path"),
        ("[backends.vllm]\nindexes = 'https://x'", "indexes must be a list of package index URLs"),
        ("[backends.vllm]\nindexes = ['/x']", "'/x' is not a package index URL"),
        ("port = ", "is not valid TOML"),
        ("[registries.'r']\nmirror = ['x']", "has no key 'mirror', only mirrors and insecure"),
        ("[registries.'r']\nmirrors = ['ftp://x']", "'ftp://x' is not a mirror"),
        ("[registries.'r']\ninsecure = 'yes'", "insecure true or false"),
    ],
)
def test_a_wrong_file_is_a_sentence_that_names_the_file_and_the_key(
    environment: dict[str, str], text: str, told: str
) -> None:
    file = written(environment, text)

    with pytest.raises(BadSetting) as caught:
        load(environment=environment)

    assert str(file) in str(caught.value)
    assert told in str(caught.value)


def test_a_wrong_variable_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="environment GREENROOM_PORT: port cannot be used"):
        load(environment=environment | {"GREENROOM_PORT": "x"})


def test_a_device_is_required_by_the_file_or_by_a_variable(environment: dict[str, str]) -> None:
    written(environment, "require_device = true\n")
    assert load(environment=environment).require_device
    assert not load(environment=environment | {"GREENROOM_REQUIRE_DEVICE": "false"}).require_device
    with pytest.raises(BadSetting, match="must be true or false"):
        load(environment=environment | {"GREENROOM_REQUIRE_DEVICE": "maybe"})


def test_the_config_file_can_be_elsewhere_but_not_nowhere(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("port = 4")

    settings = load(environment=environment | {"GREENROOM_CONFIG": str(file)})

    assert (settings.port, settings.config_file) == (4, file)
    with pytest.raises(BadSetting, match="GREENROOM_CONFIG: there is no file"):
        load(environment=environment | {"GREENROOM_CONFIG": str(tmp_path / "none")})


def test_installations_and_models_of_the_users_own_are_kept(environment: dict[str, str]) -> None:
    written(
        environment,
        """
        [models]
        mine = "file:/models/x.gguf"
        [backends."llama.cpp"]
        binary = "/opt/llama-server"
        [backends.mlx]
        python = "~/mlx/bin/python"
        """,
    )

    settings = load(environment=environment)

    assert settings.models == {"mine": "file:/models/x.gguf"}
    assert settings.own_backends["llama.cpp"].binary == Path("/opt/llama-server")
    assert settings.own_backends["mlx"].python == Path.home() / "mlx/bin/python"


def test_a_changed_copy_knows_its_origin(environment: dict[str, str]) -> None:
    settings = load(environment=environment).changed("test", port=9)

    assert (settings.port, settings.origin("port"), settings.origin("bind")) == (9, "test", "default")


def test_settings_can_be_made_with_a_home_alone(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).url == "http://127.0.0.1:12400"


def test_registries_have_mirrors_and_backends_may_come_from_another_image(
    environment: dict[str, str],
) -> None:
    written(
        environment,
        """
        [backends."vllm-metal"]
        image = "mirror.example:5000/vllm-metal:v1"
        [backends.vllm]
        indexes = ["https://mirror.example/pytorch/whl/cpu"]
        [backends.mlx]
        indexes = []
        [registries."docker.io"]
        mirrors = ["https://mirror.example/hub", "127.0.0.1:5000"]
        [registries."mirror.example:5000"]
        insecure = true
        """,
    )
    settings = load(environment=environment)
    assert settings.own_backends["vllm-metal"].image == "mirror.example:5000/vllm-metal:v1"
    assert settings.own_backends["vllm"].indexes == ("https://mirror.example/pytorch/whl/cpu",)
    assert settings.own_backends["mlx"].indexes == ()
    assert settings.own_backends["vllm-metal"].indexes is None
    assert settings.registries["docker.io"].mirrors == ("https://mirror.example/hub", "127.0.0.1:5000")
    assert settings.registries["mirror.example:5000"].insecure


UNPRINTABLE = ["\x1b[2J", "a\nb", "\udc80", "9" * 5000, "x" * 10_000]
NO_NUMBERS = [*UNPRINTABLE, "9" * 400 + "GB", "1e400", "-" * 4000]
TEXTS = ("host", "instance", "bind", "warm", "allowed_hosts")
OTHERS = [name for name in NAMES if name not in (*TEXTS, "home", "models", "backends", "registries")]


@pytest.mark.parametrize(
    ("name", "values"),
    [*((name, UNPRINTABLE) for name in TEXTS), *((name, NO_NUMBERS) for name in OTHERS)],
    ids=[*TEXTS, *OTHERS],
)
def test_a_hostile_value_of_any_setting_is_refused_with_a_short_sentence(
    environment: dict[str, str], name: str, values: list[str]
) -> None:
    for value in values:
        with pytest.raises(BadSetting) as caught:
            load({name: value}, environment=environment)
        assert len(str(caught.value)) < 700
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "max_wait = inf",
        "keep_alive = nan",
        "headroom = " + "9" * 400,
        "queue_limit = " + "9" * 5000,
        'warm = ["a\\u0000b"]',
        'warm = ["\\u001b[2J"]',
        '[backends.mlx]\npython = "/x\\u0000"',
        "x = " + "[" * 5000,
        'bind = "' + "x" * 10_000 + '"',
        '[registries."docker.io"]\nmirrors = ["http://[::1"]',
    ],
)
def test_a_hostile_file_is_refused_with_a_short_sentence(environment: dict[str, str], text: str) -> None:
    written(environment, text)
    with pytest.raises(BadSetting) as caught:
        load(environment=environment)
    assert len(str(caught.value)) < 900
    assert str(caught.value).isprintable()
