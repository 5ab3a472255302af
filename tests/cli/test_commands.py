from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner import exit_codes

STATUS = {
    "mlx": "Not Installed",
    "llama.cpp": "Running: llama.cpp 1.0",
    "vllm": "Error: it broke",
    "vllm-metal": "Not Installed: needs a Mac",
}


def progress(phase: str, done: int = 0, total: int = 0) -> str:
    return json.dumps({"type": "progress", "phase": phase, "done": done, "total": total})


def test_the_help_lists_every_command_and_each_has_help(greenroom: Any) -> None:
    from greenroom.runner.cli.main import COMMANDS

    listed = greenroom("--help").out
    for name in COMMANDS:
        assert re.search(rf"^  {name}[ ,]", listed, re.MULTILINE), name
        assert greenroom(name, "--help").code == 0


def test_a_group_without_a_command_shows_its_help(greenroom: Any) -> None:
    done = greenroom("journal")
    assert (done.code, done.out) == (exit_codes.USAGE, "")
    assert done.err.startswith("Usage: ")
    assert "Error:" not in done.err
    assert "Copy the journal to FILE." in done.err
    assert re.search(r"Write the journal as lines of JSON to FILE \(default: standard\s+output\)", done.err)


def test_version_as_an_option_is_one_line_for_scripts(greenroom: Any) -> None:
    from greenroom import __version__

    assert greenroom("--version").out == f"greenroom {__version__}\n"


def test_an_unknown_command_is_a_usage_error_with_a_suggestion(greenroom: Any) -> None:
    outcome = greenroom("instal-runner")

    assert outcome.code == 2
    assert "There is no command 'instal-runner'. Did you mean 'install-runner'?" in outcome.err


def test_a_bad_setting_is_a_usage_error_that_names_it(greenroom: Any, home: Path) -> None:
    (home / "config.toml").write_text("prot = 1")

    outcome = greenroom("serve")

    assert outcome.code == 2
    assert f"{home}/config.toml: there is no setting 'prot'" in outcome.err


def test_an_unexpected_error_is_one_line_and_a_file(
    greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import greenroom.runner.cli.engines as ps

    monkeypatch.setattr(ps, "client_for", lambda settings: 1 / 0)

    outcome = greenroom("ps")

    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert f"ZeroDivisionError: division by zero. Details are in {home}/cli-errors.log." in outcome.err
    assert "Traceback" in (home / "cli-errors.log").read_text()


@pytest.mark.parametrize("command", [["ps"], ["status"], ["list"], ["unload", "--all"]])
def test_without_a_daemon_a_command_says_how_to_start_it(
    greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int, command: list[str]
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))

    outcome = greenroom(*command)

    assert outcome.code == 3
    assert outcome.out == ""
    assert "Greenroom is not running" in outcome.err
    assert "greenroom serve" in outcome.err


def test_stopping_what_does_not_run_is_no_error(
    greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))

    outcome = greenroom("stop")

    assert (outcome.code, outcome.err) == (0, "")
    assert "Greenroom is not running" in outcome.out


def test_ps_shows_what_runs_and_for_how_long(greenroom: Any, our_daemon: Any) -> None:
    row = {"backend_name": "llama.cpp", "mode": "completion", "last_used": "0001-01-01T00:00:00Z"}
    our_daemon.routes["GET /engines/ps"] = [
        row
        | {"model_name": "docker.io/ai/smollm2:latest", "in_use": True, "pid": 7, "state": "ready"}
        | {"memory": 444_000_000, "measured": 322_000_000, "inside": 2, "queue": 1}
        | {"engine_id": "e1", "cause": "scheduler/4"},
        row | {"model_name": "ai/big", "loading": True, "state": "starting"},
        row | {"model_name": "ai/kept", "keep_alive": "-1", "state": "ready"},
        row
        | {"model_name": "ai/old", "last_used": "2020-01-01T00:00:00.123456789Z", "state": "ready"}
        | {"idle_seconds": 99.2, "stays": "5m0s"},
    ]

    lines = greenroom("ps").out.splitlines()

    assert lines[0].split("  ")[0] == "MODEL NAME"
    cells = {line.split()[0]: line for line in lines[1:]}
    assert cells["smollm2"].split() == [
        *("smollm2", "llama.cpp", "completion", "ready", "7", "444", "MB", "322", "MB", "2", "1"),
        *("5m", "from", "now", "e1", "scheduler/4"),
    ]
    assert cells["big"].split()[-3:] == ["not", "measured", "Loading..."]
    assert cells["kept"].endswith("Forever")
    assert cells["old"].split()[-2:] == ["1m39s", "Expiring"]


def test_ps_shows_how_many_conversations_slots_hold_and_what_was_restored(
    greenroom: Any, our_daemon: Any
) -> None:
    row = {"backend_name": "llama.cpp", "mode": "completion", "state": "ready", "stays": "-1"}
    our_daemon.routes["GET /engines/ps"] = [
        row | {"model_name": "ai/read", "conversations": 2, "restored_tokens": 0},
        row | {"model_name": "ai/restored", "conversations": 1, "restored_tokens": 4_279},
        row | {"model_name": "ai/vllm", "conversations": None, "restored_tokens": 0},
    ]

    heading, *lines = greenroom("ps").out.splitlines()[:4]

    cells = [line[heading.index("CONVERSATIONS") : heading.index("ENGINE")].strip() for line in lines]
    assert cells == ["2", "1, 4,279 tokens restored", ""]


def test_ps_shows_how_engines_ended_when_it_is_asked_to(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /engines/ps?all=true"] = [
        {"model_name": "ai/gone", "state": "gone", "engine_id": "e9", "exit": {"summary": "It was killed."}}
    ]

    lines = greenroom("ps", "--all").out.splitlines()

    assert lines[1].split() == ["gone", "gone", "e9"]
    assert lines[2] == "e9: It was killed."


def test_ps_shows_who_waits_at_which_place_for_how_long_and_for_what(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /engines/ps"] = lambda seen: []
    entry = {"model_ref": "docker.io/ai/m:latest", "place": 1, "waited": 12.3, "message": "loading m on mlx"}
    our_daemon.routes["GET /engines/queue"] = lambda seen: [
        {**entry, "progress": "reading weights"},
        {**entry, "place": 2, "model_ref": "n", "message": "waiting for memory", "progress": ""},
    ]

    lines = greenroom("ps").out.splitlines()

    assert lines[1:] == [
        "in the queue: 1. m for 12s, loading m on mlx: reading weights",
        "in the queue: 2. n for 12s, waiting for memory",
    ]


def test_ps_watches_until_ctrl_c(greenroom: Any, our_daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import greenroom.runner.cli.engines as ps

    states = iter(["starting", "ready"])
    our_daemon.routes["GET /engines/ps"] = lambda seen: [{"model_name": "m", "state": next(states)}]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ps.time, "sleep", sleep)  # type: ignore[attr-defined]

    outcome = greenroom("ps", "--watch", "0.5")

    assert outcome.code == 130
    assert [line.split()[1] for line in outcome.out.splitlines() if line.startswith("m ")] == [
        "starting",
        "ready",
    ]
    assert slept == [0.5, 0.5]


def test_status_shows_usable_backends_first(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /engines/status"] = STATUS

    lines = greenroom("status").out.splitlines()

    assert lines[0].startswith(f"Greenroom is running at {our_daemon.url} (process ")
    assert [line.split()[0] for line in lines[-4:]] == ["llama.cpp", "vllm", "mlx", "vllm-metal"]
    assert lines[-1].split(maxsplit=3) == ["vllm-metal", "Not", "Installed", "needs a Mac"]


def test_status_names_models_of_which_less_lies_on_devices_than_planned(
    greenroom: Any, our_daemon: Any
) -> None:
    our_daemon.routes["GET /engines/status"] = STATUS
    told = "a has 0 of 17 layers on devices, and 17 were planned."
    our_daemon.routes["GET /engines/ps"] = [
        {"model_name": "a", "shortfall": told},
        {"model_name": "b", "shortfall": ""},
    ]

    assert f"{told} See: greenroom why a" in greenroom("status").out
    assert len(json.loads(greenroom("status", "--json").out)["shortfalls"]) == 1


def test_status_says_why_the_daemon_is_not_ready_and_what_it_does(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /engines/status"] = STATUS
    our_daemon.routes["GET /readyz"] = (503, {"error": {"message": "It looks around.", "code": "starting"}})
    our_daemon.routes["GET /jobs"] = [
        {"job": "install/mlx", "phase": "downloading", "done": 5_000_000, "total": 10_000_000}
    ]

    out = greenroom("status").out

    assert "It is not ready: It looks around." in out
    assert "mlx: Downloading 5.00 MB of 10.0 MB (50%)" in out


def test_status_as_json_says_that_nothing_runs_without_failing(
    greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))

    outcome = greenroom("status", "--json")

    assert outcome.code == 0
    assert json.loads(outcome.out)["running"] is False


def test_list_has_a_row_for_each_tag(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /models"] = [
        {
            "id": "sha256:" + "ab" * 32,
            "tags": ["docker.io/ai/smollm2:latest", "docker.io/ai/small:1"],
            "created": 0,
            "config": {"parameters": "134.52M", "quantization": "Q4_1", "context_size": 2048},
        },
        {"id": "sha256:" + "cd" * 32, "created": 1, "config": {}},
    ]
    configured = {"id": "docker.io/ai/smollm2:latest", "dmr": {"context_window": 512}}
    our_daemon.routes["GET /v1/models"] = {"object": "list", "data": [configured]}

    lines = greenroom("list").out.splitlines()

    assert [line.split()[0] for line in lines[1:]] == ["<none>", "small:1", "smollm2"]
    assert "512" in lines[3].split(), "as it is configured"
    assert greenroom("list", "-q").out.split() == ["abababababab", "cdcdcdcdcdcd"]
    assert len(greenroom("list", "smollm2").out.splitlines()) == 3


def test_an_empty_list_says_how_to_fill_it(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /models"] = []

    assert "greenroom pull smollm2" in greenroom("list").err


def test_installing_announces_shows_progress_and_says_that_it_is_done(
    greenroom: Any, our_daemon: Any
) -> None:
    our_daemon.routes["POST /engines/install-backend"] = [
        progress("resolving"),
        "",
        progress("downloading", 5, 10),
        json.dumps({"type": "success", "message": "mlx backend installed successfully", "already": False}),
    ]
    failure = {"message": "It has no kernel for this device."}
    our_daemon.routes["GET /engines/mlx"] = {
        "variants": [{"name": "cuda", "failure": failure}, {"name": "cpu"}]
    }

    outcome = greenroom("install-runner", "--backend", "mlx")

    assert outcome.code == 0
    assert outcome.out == "Installing mlx backend...\nmlx backend installed successfully\n"
    assert "  mlx: Looking up\n  mlx: Downloading 5 B of 10 B (50%)\n" in outcome.err
    assert outcome.err.endswith("cuda was not installed: It has no kernel for this device.\n")
    (sent,) = (one for one in our_daemon.seen if one.path == "/engines/install-backend")
    assert sent.headers["Accept"] == "application/x-ndjson"


def test_installing_what_is_installed_says_so(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = [
        json.dumps(
            {"type": "success", "message": "m", "already": True, "installation": {"version": "0.32.2"}}
        )
    ]
    our_daemon.routes["GET /engines/mlx"] = {"variants": []}

    outcome = greenroom("install-runner", "--backend", "mlx")

    assert (outcome.code, outcome.out) == (0, "mlx backend is already installed (version 0.32.2)\n")


@pytest.mark.parametrize("named", [("mlx",), ("--backend", "mlx"), ("mlx", "--backend", "mlx")])
def test_a_backend_is_named_by_an_argument_or_an_option(
    greenroom: Any, our_daemon: Any, named: tuple[str, ...]
) -> None:
    done = {"type": "success", "message": "m", "already": True, "installation": {"version": "1"}}
    our_daemon.routes["POST /engines/install-backend"] = [json.dumps(done)]
    our_daemon.routes["POST /engines/uninstall-backend"] = {"freed": 0, "was_installed": True}
    our_daemon.routes["POST /engines/activate-backend"] = {"installation": {"version": "1"}}
    for command, *more in (
        ("install-runner", "--variant", "cuda"),
        ("start-runner",),
        ("reinstall-runner",),
        ("upgrade-runner",),
        ("rollback-runner",),
        ("uninstall-runner",),
    ):
        assert greenroom(command, *named, *more).code == 0
    sent = [one.body["backend"] for one in our_daemon.seen if one.path.endswith("-backend")]
    assert sent == ["mlx"] * 6


def test_two_backends_or_an_empty_name_are_refused(greenroom: Any, our_daemon: Any) -> None:
    for command in ("install-runner", "uninstall-runner"):
        assert greenroom(command, "mlx", "--backend", "vllm").code == 2
        assert greenroom(command, "").code == greenroom(command, "--backend", "").code == 2
    assert not our_daemon.bodies("/engines/install-backend")


def test_an_installation_that_fails_says_why_and_what_to_do(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = [
        progress("downloading"),
        json.dumps({"type": "error", "message": "The disk is full.", "advice": "Free 1 GB.", "code": "x"}),
    ]

    outcome = greenroom("install-runner", "--backend", "mlx")

    assert outcome.code == 1
    assert outcome.err.endswith("Error: The disk is full. Free 1 GB.\n")


def test_an_unknown_backend_is_reported_in_the_daemons_words(greenroom: Any, our_daemon: Any) -> None:
    sentence = "backend not found: there are llama.cpp, mlx"
    our_daemon.routes["POST /engines/install-backend"] = (404, sentence)

    outcome = greenroom("install-runner", "--backend", "mxl")

    assert (outcome.code, outcome.out, outcome.err) == (1, "", f"Error: {sentence}\n")


def test_a_daemon_that_dies_while_installing_is_noticed(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = [progress("downloading")]

    outcome = greenroom("install-runner", "--backend", "mlx")

    assert outcome.code == 3
    assert "closed the connection while installing mlx" in outcome.err


def test_a_dry_run_says_what_would_be_fetched(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = {
        "backend": "mlx",
        "version": "0.32.2",
        "packages": ["mlx==0.32.0", "mlx-lm==0.32.2"],
        "download_bytes": 1_000_000,
        "total_bytes": 50_000_000,
    }

    outcome = greenroom("install-runner", "--backend", "mlx", "--dry-run")

    assert outcome.out.splitlines() == [
        "mlx 0.32.2: 2 packages, 50.0 MB",
        "  mlx==0.32.0",
        "  mlx-lm==0.32.2",
        "To download: 1.00 MB; the rest is in the cache.",
    ]
    asked = {"backend": "mlx", "dry_run": True, "variant": "best"}
    assert our_daemon.bodies("/engines/install-backend") == [asked]


def test_a_dry_run_of_what_is_all_here_says_so(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = {
        "backend": "toy",
        "version": "1.0",
        "packages": ["toy==1.0"],
        "download_bytes": 0,
        "total_bytes": 1_000_000,
    }

    outcome = greenroom("install-runner", "--backend", "toy", "--dry-run")

    assert outcome.out.splitlines() == [
        "toy 1.0: 1 package, 1.00 MB",
        "  toy==1.0",
        "Nothing to download: everything is in the cache.",
    ]


def test_reinstalling_asks_for_a_new_build(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/install-backend"] = [
        json.dumps({"type": "success", "message": "mlx backend installed successfully", "already": False})
    ]

    greenroom("reinstall-runner", "--backend", "mlx")

    assert our_daemon.bodies("/engines/install-backend") == [{"backend": "mlx", "reinstall": True}]


def test_uninstalling_says_what_it_freed(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/uninstall-backend"] = {"freed": 93_200_000, "was_installed": True}
    assert greenroom("uninstall-runner", "--backend", "mlx").out == (
        "Uninstalled mlx backend, 93.2 MB freed\n"
    )

    our_daemon.routes["POST /engines/uninstall-backend"] = {"freed": 0, "was_installed": False}
    assert greenroom("uninstall-runner", "--backend", "mlx").out == "mlx backend is not installed\n"
    assert greenroom("uninstall-runner").code == 2


def test_pulling_shows_progress_and_the_daemons_last_word(greenroom: Any, our_daemon: Any) -> None:
    layer = {"id": "sha256:1", "size": 10, "current": 4}
    our_daemon.routes["POST /models/create"] = [
        json.dumps({"type": "progress", "message": "Downloaded", "total": 10, "layer": layer}),
        json.dumps({"type": "warning", "message": "slow"}),
        json.dumps({"type": "success", "message": "Model pulled successfully"}),
    ]

    outcome = greenroom("pull", "smollm2")

    assert outcome.out == "Model pulled successfully\n"
    assert "smollm2: Downloading 4 B of 10 B (40%)" in outcome.err
    assert "Warning: slow" in outcome.err
    assert our_daemon.bodies("/models/create") == [{"from": "smollm2"}]


def test_a_path_is_made_absolute_before_it_is_sent(
    greenroom: Any, our_daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    our_daemon.routes["POST /models/create"] = [json.dumps({"type": "success", "message": "ok"})]
    monkeypatch.chdir(tmp_path)

    greenroom("pull", "./x.gguf")

    assert our_daemon.bodies("/models/create") == [{"from": f"file:{tmp_path}/x.gguf"}]
    # Every other command takes it by the same name.
    our_daemon.routes[f"GET /models/file:{tmp_path}/x.gguf"] = {"id": f"sha256:{'0' * 64}"}
    assert "0" * 64 in greenroom("inspect", "./x.gguf").out
    assert greenroom("rm", "a b").code == 2


def test_a_pull_that_fails_says_why(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /models/create"] = [json.dumps({"type": "error", "message": "Error: No room."})]

    outcome = greenroom("pull", "smollm2")

    assert (outcome.code, outcome.err) == (1, "Error: No room.\n")


def test_what_cannot_name_a_model_is_not_even_sent(greenroom: Any, our_daemon: Any) -> None:
    outcome = greenroom("pull", "https://example.org/x")

    assert outcome.code == 2
    assert "is a URL, not a model name" in outcome.err
    assert our_daemon.seen == []


def test_config_shows_values_and_origins(greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").write_text(
        'keep_alive = "90s"\n[models]\nmine = "file:/x.gguf"\n[backends.mlx]\npython = "/p"\ngpu = true\n'
        '[registries."docker.io"]\nmirrors = ["https://m"]\n'
    )
    monkeypatch.setenv("GREENROOM_BIND", "127.0.0.2")

    lines = [line.split(maxsplit=1) for line in greenroom("--port", "1234", "config").out.splitlines()]
    shown = dict(lines)

    assert shown["port"].split() == ["1234", "flag", "--port"]
    assert shown["bind"].split() == ["127.0.0.2", "environment", "GREENROOM_BIND"]
    assert shown["keep_alive"].split() == ["1m30s", f"{home}/config.toml"]
    assert shown["max_body"].split() == ["10", "MB", "default"]
    assert shown["max_queued"].split() == ["1h", "default"]
    assert shown["slots"].startswith("auto ")
    assert shown["prompt_cache"].startswith("auto ")
    assert shown["models.mine"].split() == ["file:/x.gguf", f"{home}/config.toml"]
    assert shown["backends.mlx.python"].split()[0] == "/p"
    assert shown["backends.mlx.gpu"].split()[0] == "true"
    assert shown["gpu_headroom"].split()[:2] == ["500", "MB"]
    assert shown["registries.docker.io.mirrors"].split()[0] == "https://m"
    as_json = json.loads(greenroom("config", "--json").out)
    assert as_json["keep_alive"] == {"value": 90.0, "origin": f"{home}/config.toml"}
    assert as_json["backends"]["value"] == {"mlx": {"python": "/p", "gpu": True}}


def test_version_never_fails(greenroom: Any, our_daemon: Any) -> None:
    assert " Version:  9.9\n" in greenroom("version").out

    del our_daemon.routes["GET /livez"]
    outcome = greenroom("version")
    assert outcome.code == 0
    assert "Port in use: a web server" in outcome.out


def test_backends_are_listed_without_a_daemon(
    greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))

    lines = greenroom("backends").out.splitlines()

    assert [line.split()[0] for line in lines[1:]] == ["llama.cpp", "mlx", "vllm", "vllm-metal"]


def test_what_lies_on_the_disk_is_listed_without_a_daemon(
    greenroom: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    from greenroom.runner.installations.verification import InstallationRecord, Interpreter, write_record

    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))
    for built_at, version in enumerate(("0.31.0", "0.32.0")):
        folder = home / "backends" / "mlx" / f"{version}-00000000.1"
        folder.mkdir(parents=True)
        record = InstallationRecord(
            id=folder.name,
            backend="mlx",
            version=version,
            digest="0" * 64,
            built_at=float(built_at),
            size=1,
            python=Interpreter.here(),
            wheels=(),
            probed=(),
            files={},
            links={},
            sums={},
        )
        write_record(folder, record)

    listed = {line.split()[0]: line for line in greenroom("backends").out.splitlines()}

    assert "0.31.0, 0.32.0" in listed["mlx"]
    assert "(daemon not running)" in listed["mlx"]
    assert "0.3" not in listed["vllm"]


def test_logs_without_a_log_say_so(greenroom: Any, home: Path) -> None:
    outcome = greenroom("logs")

    assert outcome.code == 1
    assert "no daemon has used this data directory yet" in outcome.err


def test_logs_show_the_daemons_last_lines_and_an_engines(greenroom: Any, home: Path) -> None:
    (home / "daemon.log.1").write_text("one\n")
    (home / "daemon.log").write_text("two\nthree\n")
    engine = home / "engines" / "e1"
    engine.mkdir(parents=True)
    (engine / "log").write_text("loading\n")
    spec = {"backend": "llama.cpp", "model_ref": "docker.io/ai/smollm2:latest"}

    assert greenroom("logs").out == "one\ntwo\nthree\n"
    assert greenroom("logs", "-n", "1").out == "three\n"
    for file, content in (("claim", {"about": {"spec": spec}}), ("capsule.json", {"spec": spec})):
        (engine / file).write_text(json.dumps(content))
        for name in ("e1", "llama.cpp", "smollm2"):
            assert greenroom("logs", name).out == "loading\n"
    assert "The latest with a log: e1" in greenroom("logs", "gemma3").err


def test_a_log_of_nothing_says_how_to_begin(greenroom: Any, home: Path) -> None:
    outcome = greenroom("log")

    assert outcome.code == 1
    assert "no daemon has used this data directory yet" in outcome.err
