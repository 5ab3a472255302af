"""How a model is loaded, and what unloads it, against a daemon that is only HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

CONFIGURE = "POST /engines/_configure"
UNLOAD = "POST /engines/unload"


def row(setting: str, value: Any, source: str = "configured", **more: Any) -> dict[str, Any]:
    return {"mode": "completion", "setting": setting, "value": value, "source": source, **more}


@pytest.fixture
def smollm2(our_daemon: Any) -> Any:
    our_daemon.routes[CONFIGURE] = (202, "")
    our_daemon.routes["GET /models/smollm2"] = {
        "id": "sha256:ab",
        "settings": [
            row("context-size", 8192, "trained", trained=8192),
            row("slots", None, "automatic"),
            row("prompt-cache", 377_487_360, "automatic"),
            row("keep_alive", "5m0s", "environment GREENROOM_KEEP_ALIVE"),
        ],
    }
    return our_daemon


def test_values_in_force_are_shown_with_where_they_come_from(greenroom: Any, smollm2: Any) -> None:
    lines = greenroom("configure", "smollm2").out.splitlines()

    assert [re.split("  +", line) for line in lines] == [
        ["SETTING", "VALUE", "FROM"],
        ["context", "8192 tokens", "what the model was trained for"],
        ["slots", "decided when it is loaded", "automatic"],
        ["prompt-cache", "377 MB", "automatic"],
        ["keep-alive", "5m", "environment GREENROOM_KEEP_ALIVE"],
    ]
    assert smollm2.bodies("/engines/_configure") == []


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (["--context", "4096", "--slots", "2"], {"context-size": 4096, "slots": 2}),
        (["--context", "max"], {"context-size": -1}),
        (["--keep-alive", "1h"], {"keep_alive": "3600s"}),
        (["--keep-alive", "forever"], {"keep_alive": "-1"}),
        (["--pin"], {"keep_alive": "-1"}),
        (["--unpin"], {"reset": ["keep_alive"]}),
        (["--flags", "--mlock --threads 2"], {"raw-runtime-flags": "--mlock --threads 2"}),
        (
            ["--prompt-cache", "500MB", "--require-device"],
            {"prompt-cache": 500_000_000, "require-device": True},
        ),
        (["--reset", "context", "--reset", "flags"], {"reset": ["context-size", "runtime-flags"]}),
        (
            ["--context", "512", "--flags", "--mlock", "--reset"],
            {
                "context-size": 512,
                "raw-runtime-flags": "--mlock",
                "reset": ["keep_alive", "prompt-cache", "require-device", "slots"],
            },
        ),
        (["--mode", "embedding", "--slots", "1"], {"mode": "embedding", "slots": 1}),
    ],
)
def test_what_is_given_is_sent_and_nothing_is_loaded(
    greenroom: Any, smollm2: Any, flags: list[str], sent: dict[str, Any]
) -> None:
    assert greenroom("configure", "smollm2", *flags).code == 0

    assert smollm2.bodies("/engines/_configure") == [{"model": "smollm2", "preload": False, **sent}]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--context", "0"], "'0' is not a number of tokens; write 8192, or max"),
        (["--keep-alive", "soon"], "'soon' is not a duration"),
        (["--prompt-cache", "much"], "'much' is not a size"),
        (["--pin", "--keep-alive", "5m"], "--keep-alive, or --pin or --unpin, not both"),
        (["--reset", "colour"], "'colour' is not one of"),
    ],
)
def test_a_mistake_is_a_usage_error_and_nothing_is_sent(
    greenroom: Any, smollm2: Any, flags: list[str], said: str
) -> None:
    outcome = greenroom("configure", "smollm2", *flags)

    assert outcome.code == 2
    assert said in outcome.err
    assert smollm2.seen == []


@pytest.mark.parametrize(
    ("size", "said"),
    [(32768, "smollm2 was trained for 8192 tokens"), (10, "10 tokens is too short"), (4096, "")],
)
def test_a_context_that_will_not_do_is_warned_of(greenroom: Any, smollm2: Any, size: int, said: str) -> None:
    smollm2.routes["GET /models/smollm2"]["settings"][0] = row("context-size", size, trained=8192)

    err = greenroom("configure", "smollm2", "--context", str(size)).err

    assert said in err
    assert bool(said) == bool(err)


def test_json_has_the_rows(greenroom: Any, smollm2: Any) -> None:
    shown = json.loads(greenroom("configure", "smollm2", "--json").out)

    assert shown["settings"] == smollm2.routes["GET /models/smollm2"]["settings"]


def unloaded(count: int = 0, **more: Any) -> dict[str, Any]:
    return {"unloaded_runners": count, "ending": ["e-1"] * count, "in_use": [], "unknown": []} | more


BUSY = "smollm2 is in use on llama.cpp (1 request: r-1)."


@pytest.mark.parametrize("command", ["unload", "stop"])
def test_unloading_says_what_became_of_each_model(greenroom: Any, our_daemon: Any, command: str) -> None:
    answers = {"qwen": unloaded(1), "phi": unloaded(), "smollm2": unloaded(in_use=[BUSY])}
    answers["nope"] = unloaded(unknown=["nope"])
    our_daemon.routes[UNLOAD] = lambda seen: answers[seen.body["models"][0]]

    outcome = greenroom(command, "qwen", "phi", "smollm2", "nope")

    assert (outcome.code, outcome.out) == (1, "Unloaded qwen.\n")
    assert outcome.err.splitlines() == [
        "phi is not loaded.",
        f"Error: {BUSY} Use --wait to wait for that, or --force to unload it after its requests.",
        "Error: There is no model nope in the store. See: greenroom list",
    ]
    assert greenroom(command, "qwen", "phi").code == 0


def test_unloading_may_be_forced_and_waits_until_the_engine_is_gone(greenroom: Any, our_daemon: Any) -> None:
    rows = [[{"engine_id": "e-1"}, {"engine_id": "e-2"}], [{"engine_id": "e-2"}]]
    our_daemon.routes[UNLOAD] = unloaded(1)
    our_daemon.routes["GET /engines/ps"] = lambda seen: rows.pop(0)

    assert greenroom("stop", "smollm2", "--force", "--wait").out == "Unloaded smollm2.\n"

    assert our_daemon.bodies("/engines/unload") == [{"models": ["smollm2"], "force": True}]
    assert rows == []


def test_waiting_for_a_model_in_use_says_so_and_tries_again(greenroom: Any, our_daemon: Any) -> None:
    answers = [unloaded(in_use=[BUSY]), unloaded(1)]
    our_daemon.routes[UNLOAD] = lambda seen: answers.pop(0)
    our_daemon.routes["GET /engines/ps"] = []

    outcome = greenroom("unload", "smollm2", "--wait")

    assert (outcome.code, outcome.out, outcome.err) == (0, "Unloaded smollm2.\n", f"Waiting: {BUSY}\n")


def test_unloading_all_leaves_what_is_in_use(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes[UNLOAD] = unloaded(2, in_use=[BUSY])

    outcome = greenroom("unload", "--all")

    assert (outcome.code, outcome.out) == (0, "Unloaded 2 models.\n")
    assert outcome.err == f"Left alone: {BUSY}\n"
    (fields,) = json.loads(greenroom("unload", "--all", "--json").out)
    assert fields == {"model": None, "unloaded": 2, "in_use": [BUSY], "known": True}
    assert greenroom("unload").code == 2


def test_stopping_the_daemon_takes_no_flags_of_models(greenroom: Any, our_daemon: Any) -> None:
    assert greenroom("stop", "--force").code == 2
    assert greenroom("stop", "smollm2", "--keep-engines=5m").code == 2
    assert our_daemon.seen == []


def test_purging_asks_first_and_says_what_it_freed(greenroom: Any, our_daemon: Any) -> None:
    used = [0, 300_000_000, 300_000_000]
    our_daemon.routes["GET /models"] = [{"id": "sha256:ab"}, {"id": "sha256:cd"}]
    our_daemon.routes["GET /engines/df"] = lambda seen: {"models_disk_usage": used.pop()}
    our_daemon.routes["DELETE /models/purge?force=false"] = ""

    refused = greenroom("purge")
    assert refused.code == 2
    assert "Remove 2 models and all downloads of models (300 MB)? Nothing was removed" in refused.err
    assert all(one.method == "GET" for one in our_daemon.seen)

    assert greenroom("purge", "--yes").out == "Removed 2 models; freed 300 MB.\n"


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ([], "Usage: greenroom [OPTIONS] COMMAND"),
        (["run"], "Usage: greenroom run "),
        (["models", "verify"], "Usage: greenroom models verify "),
        (["show"], "Usage: greenroom show "),
    ],
)
def test_help_explains_a_command(greenroom: Any, words: list[str], usage: str) -> None:
    assert greenroom("help", *words).out.startswith(usage)


def test_help_for_what_is_no_command_says_so(greenroom: Any) -> None:
    assert "There is no command 'rnu'. Did you mean 'run'?" in greenroom("help", "rnu").err
    assert "run has no commands of its own" in greenroom("help", "run", "now").err


def test_the_version_has_a_short_flag(greenroom: Any) -> None:
    assert greenroom("-v").out == greenroom("--version").out != ""
