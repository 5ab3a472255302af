"""What vllm and vllm-metal declare: where they run, what they are started with, which flags are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Image, Launch, ModelFiles, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.backends.flags import refusal
from greenroom.runner.engines.launchers import launcher

METAL = BACKENDS["vllm-metal"]
MAC = Platform(system="darwin", machine="arm64", python=(3, 12), macos=(15, 1))


@pytest.fixture
def launch() -> Launch:
    return Launch(
        spec=EngineSpec(
            engine_id="e1",
            backend="vllm-metal",
            installation_id="0.2.0-00000000.1",
            model_id="sha256:1234",
            model_ref="hf.co/org/model",
        ),
        root=Path("/i"),
        python=Path("/i/env/bin/python3"),
        model=ModelFiles(path=Path("/m"), format="safetensors", name="hf.co/org/model"),
        socket=Path("/s/engine.sock"),
    )


@pytest.mark.parametrize(
    "here",
    [MAC, replace(MAC, macos=(15, 0)), replace(MAC, macos=(26, 0)), replace(MAC, python=(3, 11))],
)
def test_vllm_metal_runs_on_new_macs_whatever_python_we_run_with(here: Platform) -> None:
    assert METAL.verdict(here) == ""


@pytest.mark.parametrize(
    ("here", "named"),
    [
        (replace(MAC, macos=(14, 7)), "this machine is macOS 14.7 on arm64."),
        (
            replace(MAC, machine="x86_64"),
            "this machine is macOS 15.1 on x86_64 (or a Python for Intel on Apple silicon).",
        ),
        (Platform(system="linux", machine="arm64", python=(3, 12)), "this machine is linux on arm64."),
        (Platform(system="windows", machine="x86_64", python=(3, 12)), "this machine is windows on x86_64."),
    ],
)
def test_elsewhere_vllm_metal_says_what_it_needs_and_what_this_is(here: Platform, named: str) -> None:
    assert METAL.verdict(here) == (
        "vllm-metal needs macOS 15 or newer on Apple silicon, and brings its own Python 3.12; " + named
    )


def test_vllm_metal_is_a_plain_vllm_server_on_a_socket(launch: Launch) -> None:
    command = METAL.command(launch)
    assert command.argv == (
        *("/i/env/bin/python3", "-I", str(launcher("vllm")), "vllm.entrypoints.openai.api_server"),
        *("--model", "/m", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--uds", "/s/engine.sock", "--served-model-name", "sha256:1234"),
    )
    assert command.env["VLLM_HOST_IP"] == "127.0.0.1"
    assert command.env["HF_HUB_OFFLINE"] == "1"


def test_mode_context_template_and_flags_are_passed_on(launch: Launch) -> None:
    spec = EngineSpec(
        engine_id="e1",
        backend="vllm-metal",
        installation_id="i",
        model_id="sha256:1234",
        model_ref="m",
        mode="embedding",
        context_size=4096,
        slots=4,
        flags=("--dtype", "half"),
    )
    model = replace(launch.model, chat_template=Path("/m/chat.jinja"))
    argv = METAL.command(replace(launch, spec=spec, model=model)).argv
    assert argv[argv.index("--chat-template") + 1] == "/m/chat.jinja"
    assert argv[argv.index("--runner") + 1] == "pooling"
    assert argv[argv.index("--max-model-len") + 1] == "4096"
    assert argv[argv.index("--max-num-seqs") + 1] == "4"
    assert argv[-2:] == ("--dtype", "half")


def test_the_model_decides_about_its_context_unless_a_size_is_asked_for(launch: Launch) -> None:
    for size in (0, -1):
        spec = EngineSpec(
            engine_id="e1",
            backend="vllm-metal",
            installation_id="i",
            model_id="m",
            model_ref="m",
            context_size=size,
        )
        assert "--max-model-len" not in METAL.command(replace(launch, spec=spec)).argv


WITHOUT_GPU = Platform(system="linux", machine="x86_64", python=(3, 11))


def test_without_a_gpu_vllm_takes_the_cache_that_was_reckoned_with_and_compiles_nothing(
    launch: Launch,
) -> None:
    model = replace(launch.model, context_length=131_072, kv_bytes_per_token=100_000)
    argv = BACKENDS["vllm"].on(WITHOUT_GPU).command(replace(launch, model=model)).argv
    assert argv[:6] == (
        *("/i/env/bin/python3", "-I", str(launcher("vllm")), "vllm.entrypoints.openai.api_server"),
        *("--model", "/m"),
    )
    assert argv[argv.index("--uds") + 1] == "/s/engine.sock"
    assert "--enforce-eager" in argv
    # 8192 tokens and a block of 128 to spare, as the ledger; as much of the context as fits into that.
    assert int(argv[argv.index("--kv-cache-memory-bytes") + 1]) == (8192 + 128) * 100_000
    assert argv[argv.index("--max-model-len") + 1] == "auto"


def test_without_a_gpu_an_asked_for_context_has_the_cache_it_needs(launch: Launch) -> None:
    model = replace(launch.model, context_length=131_072, kv_bytes_per_token=100_000)
    spec = structs.replace(launch.spec, context_size=20_000, flags=("--no-enforce-eager",))
    argv = BACKENDS["vllm"].on(WITHOUT_GPU).command(replace(launch, model=model, spec=spec)).argv
    assert argv.count("--max-model-len") == 1
    assert argv[argv.index("--max-model-len") + 1] == "20000"
    assert int(argv[argv.index("--kv-cache-memory-bytes") + 1]) >= 20_000 * 100_000
    assert argv.index("--no-enforce-eager") > argv.index("--enforce-eager")


def test_without_a_gpu_a_model_that_does_not_say_what_it_needs_gets_a_gigabyte(launch: Launch) -> None:
    argv = BACKENDS["vllm"].on(WITHOUT_GPU).command(launch).argv
    assert int(argv[argv.index("--kv-cache-memory-bytes") + 1]) == 2**30


@pytest.mark.parametrize("name", ["vllm", "vllm-metal"])
@pytest.mark.parametrize(
    "flag", ["--trust-remote-code", "--trust_remote_code", "--hf-overrides={}", "--host"]
)
def test_code_from_a_model_is_never_run(name: str, flag: str, launch: Launch) -> None:
    backend = BACKENDS[name]
    assert "is not allowed" in refusal((flag,), backend.allowed_flags, name)
    argv = backend.command(launch).argv
    assert not [one for one in argv if "trust" in one or "remote-code" in one]


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("docker.io/docker/model-runner:vllm-metal-v0.3.0-1", "0.3.0-1"),
        ("127.0.0.1:5000/metal:dev", "dev"),
        ("127.0.0.1:5000/metal", "latest"),
        ("r.example/metal@sha256:" + "ab" * 32, "sha256-abababababab"),
        ("r.example/metal:vllm-metal-v7@sha256:" + "ab" * 32, "7"),
    ],
)
def test_another_image_has_the_version_that_its_tag_says(reference: str, version: str) -> None:
    declared = METAL.source
    assert isinstance(declared, Image)
    found = declared.out_of(reference)
    assert (found.reference, found.version) == (reference, version)
    assert found.tree == declared.tree
    assert declared.out_of(declared.reference) == declared


def test_vllm_may_keep_more_than_fits_on_its_device_but_load_no_connector_of_a_clients_choice() -> None:
    """The connector's configuration can name modules and folders."""
    allowed = BACKENDS["vllm"].allowed_flags
    size = ("--kv-offloading-size", "4")
    assert refusal(size, allowed, "vllm") == ""
    assert "is not allowed" in refusal(("--kv-transfer-config", "{}"), allowed, "vllm")
    spec = EngineSpec(
        engine_id="e",
        backend="vllm",
        installation_id="i",
        model_id="m",
        model_ref="m",
        flags=size,
        device="GPU-1",
    )
    files = ModelFiles(path=Path("/m"), format="safetensors", name="m")
    launch = Launch(spec=spec, root=Path("/r"), python=Path("/p"), model=files, socket=Path("/s"))
    assert BACKENDS["vllm"].command(launch).argv[-2:] == size


@pytest.mark.parametrize(
    ("flags", "told"),
    [((), ["0.25"]), (("--gpu-memory-utilization", "0.5"), ["0.5"]), (("--gpu-memory-utilization=0.5",), [])],
)
def test_vllm_takes_as_much_of_a_device_as_was_reserved(flags: tuple[str, ...], told: list[str]) -> None:
    spec = EngineSpec(
        engine_id="e",
        backend="vllm",
        installation_id="i",
        model_id="m",
        model_ref="m",
        flags=flags,
        device="GPU-1",
        device_memory=6 * 2**30,
        device_total=24 * 2**30,
    )
    files = ModelFiles(path=Path("/m"), format="safetensors", name="m")
    launch = Launch(spec=spec, root=Path("/r"), python=Path("/p"), model=files, socket=Path("/s"))
    argv = BACKENDS["vllm"].command(launch).argv
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--gpu-memory-utilization"] == told
