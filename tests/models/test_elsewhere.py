"""Models that other programs keep: found, verified and shared with the store, and never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from greenroom.runner.errors import JobCancelled
from greenroom.runner.models.elsewhere.places import place_at, places
from greenroom.runner.models.elsewhere.scan import folders
from greenroom.runner.models.store import ModelStore
from other_stores import hub_cache, ollama

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]
Folder = Callable[..., Path]
TAG = "docker.io/ai/mine:latest"


def found(**environment: str) -> dict[str, str]:
    """Name → program of all that is found."""
    models = [one for place in places(environment) for one in place.models(Event())]
    return {one.name: one.place for one in models if Path(environment["HOME"]) in one.path.parents}


def adopt(new_puller: NewPuller, recorder: Any, path: Path, **options: Any) -> tuple[str, Any]:
    job = f"job-{len(recorder.told)}"
    new_puller().start(job, options.pop("name", TAG), origin=str(path), **options)
    outcome: tuple[str, Any] = recorder.outcome(job)
    return outcome


def test_each_program_s_models_are_found_under_the_names_that_pull_takes(
    gguf: Make, model_folder: Folder, tmp_path: Path
) -> None:
    weights = gguf()
    ollama(tmp_path / ".ollama" / "models", "registry.ollama.ai/library/smollm2/135m", weights)
    ollama(tmp_path / ".ollama" / "models", "registry.ollama.ai/someone/poet/latest", weights)
    ollama(tmp_path / ".ollama" / "models", "hf.co/org/Repo-GGUF/Q4_K_M", weights)
    studio = tmp_path / ".lmstudio" / "models" / "publisher" / "Gemma-3-GGUF"
    studio.mkdir(parents=True)
    (studio / "gemma-3-Q4_K_M.gguf").write_bytes(weights)
    (studio / "mmproj-gemma-3-f16.gguf").write_bytes(weights)
    model_folder(tmp_path / ".lmstudio" / "models" / "mlx-community" / "Qwen3-4bit")
    llama = tmp_path / ".cache" / "llama.cpp"
    llama.mkdir(parents=True)
    (llama / "ggml-org_Tiny-GGUF_tiny-q8_0.gguf").write_bytes(weights)
    (llama / "manifest=ggml-org=Tiny-GGUF=latest.json").write_text("{}")
    (llama / "Own_Model-Q5_K_M-00001-of-00002.gguf").write_bytes(weights)
    (llama / "Own_Model-Q5_K_M-00002-of-00002.gguf").write_bytes(weights)
    (llama / "half.gguf.downloadInProgress").write_bytes(weights[:9])
    hub = tmp_path / ".cache" / "huggingface" / "hub"
    hub_cache(hub, "org/Both-GGUF", {"a-Q4_0.gguf": weights, "a-Q8_0.gguf": weights, "README.md": b""})
    safetensors = {one.name: one.read_bytes() for one in sorted(model_folder(tmp_path / "m").iterdir())}
    hub_cache(hub, "org/Plain", safetensors)
    hub_cache(hub, "org/no-model", {"README.md": b"hello"})
    assert found(HOME=str(tmp_path)) == {
        "smollm2:135m": "Ollama",
        "someone/poet": "Ollama",
        "huggingface.co/org/repo-gguf:Q4_K_M": "Ollama",
        "huggingface.co/publisher/gemma-3-gguf:Q4_K_M": "LM Studio",
        "huggingface.co/mlx-community/qwen3-4bit": "LM Studio",
        "huggingface.co/ggml-org/tiny-gguf:Q8_0": "llama.cpp",
        "own-model:q5_k_m": "llama.cpp",
        "huggingface.co/org/both-gguf:Q4_0": "Hugging Face",
        "huggingface.co/org/both-gguf:Q8_0": "Hugging Face",
        "huggingface.co/org/plain": "Hugging Face",
    }


def test_the_programs_own_variables_say_where_they_keep_models(gguf: Make, tmp_path: Path) -> None:
    ollama(tmp_path / "o", "registry.ollama.ai/library/one/latest", gguf())
    hub_cache(tmp_path / "h" / "hub", "org/two", {"two-Q4_0.gguf": gguf()})
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "three.gguf").write_bytes(gguf())
    where = {"OLLAMA_MODELS": "o", "HF_HOME": "h", "LLAMA_CACHE": "l"}
    models = found(HOME=str(tmp_path), **{name: str(tmp_path / one) for name, one in where.items()})
    assert sorted(models) == ["huggingface.co/org/two:Q4_0", "one", "three"]
    assert sorted(one.name for one in place_at(tmp_path / "h").models(Event())) == [
        "huggingface.co/org/two:Q4_0"
    ]


@pytest.mark.parametrize("settings", [".lmstudio", ".config/LM Studio", "moved"])
def test_lm_studio_s_settings_say_where_its_downloads_go(
    settings: str, model_folder: Folder, gguf: Make, tmp_path: Path
) -> None:
    chosen = tmp_path / "big disk" / "org" / "Chosen-GGUF"
    chosen.mkdir(parents=True)
    (chosen / "chosen-Q4_0.gguf").write_bytes(gguf())
    model_folder(tmp_path / ".lmstudio" / "models" / "org" / "Before")
    (tmp_path / settings).mkdir(parents=True, exist_ok=True)
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'moved'}\n")
    file = tmp_path / settings / "settings.json"
    file.write_text(json.dumps({"downloadsFolder": str(chosen.parents[1])}))
    both = {"huggingface.co/org/chosen-gguf:Q4_0": "LM Studio", "huggingface.co/org/before": "LM Studio"}
    assert found(HOME=str(tmp_path)) == both
    for damaged in ('{"downloadsFolder": 7}', "[]", "{", '{"downloadsFolder": "/nowhere"}'):
        file.write_text(damaged)
        assert found(HOME=str(tmp_path)) == {"huggingface.co/org/before": "LM Studio"}


def test_a_model_of_ollama_s_is_shared_with_its_system_prompt_parameters_and_licence(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    root = tmp_path / "ollama"
    parameters = {"stop": ["<end>"], "temperature": 0.2, "num_ctx": 256, "odd": {"x": 1}}
    manifest = ollama(
        root,
        "registry.ollama.ai/library/tiny/1b",
        gguf(),
        template="{{ .Prompt }}",
        system="You are brief.",
        params=parameters,
        messages=[{"role": "user", "content": "Hi"}],
        license="MIT",
    )
    before = {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in root.rglob("*") if one.is_file()}
    what, model = adopt(new_puller, recorder, manifest)
    assert (what, model.tags, model.source) == ("committed", (TAG,), str(manifest))
    defaults = store.defaults(model.id)
    assert (defaults.system, defaults.messages[0].content) == ("You are brief.", "Hi")
    assert defaults.parameters == {"stop": ["<end>"], "temperature": 0.2}
    assert model.context_size == 256
    files = {layer.annotations["org.cncf.model.filepath"] for layer in store.manifest(model.id).layers}
    assert files == {"tiny-1b.gguf", "LICENSE"}
    (weights,) = [one for one in root.glob("blobs/*") if one.read_bytes()[:4] == b"GGUF"]
    assert weights.stat().st_nlink > 1, "its bytes are shared"
    after = {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in root.rglob("*") if one.is_file()}
    assert after == before, "the origin is as it was"
    assert adopt(new_puller, recorder, manifest)[1].id == model.id
    weights.unlink()
    assert store.verify(model.id) == (), "it outlives the origin"


def test_a_file_that_is_not_what_its_name_says_is_refused(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    manifest = ollama(tmp_path / "ollama", "registry.ollama.ai/library/tiny/1b", gguf())
    snapshot = hub_cache(tmp_path / "hub", "org/model", {"a-Q4_0.gguf": gguf()})
    blobs = [*tmp_path.glob("ollama/blobs/*"), *tmp_path.glob("hub/*/blobs/*")]
    for blob in blobs:
        if blob.read_bytes()[:4] == b"GGUF":
            blob.write_bytes(gguf(filler=b"\x07"))
    for path in (manifest, snapshot / "a-Q4_0.gguf"):
        what, failure = adopt(new_puller, recorder, path)
        assert (what, failure.code) == ("failed", "hash_mismatch")
    assert store.models() == ()


def test_the_whole_snapshot_of_a_hub_s_cache_is_one_model(
    model_folder: Folder, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    files = {one.name: one.read_bytes() for one in sorted(model_folder(tmp_path / "m").iterdir())}
    snapshot = hub_cache(tmp_path / "hub", "mlx-community/Tiny", files)
    what, model = adopt(new_puller, recorder, snapshot)
    assert what == "committed", model
    layers = store.manifest(model.id).layers
    assert {layer.annotations["org.cncf.model.filepath"] for layer in layers} == set(files)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"adapter": b"GGUF"}, "Greenroom cannot apply its adapter"),
        ({"params": "[1"}, "cannot be read"),
        ({"messages": [{"role": "robot"}]}, "Its messages in Ollama's store cannot be read"),
    ],
)
def test_what_only_ollama_can_run_is_refused_with_the_reason(
    gguf: Make, new_puller: NewPuller, recorder: Any, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    manifest = ollama(tmp_path / "ollama", "registry.ollama.ai/library/tiny/1b", gguf(), **more)
    what, failure = adopt(new_puller, recorder, manifest)
    assert (what, said in failure.message) == ("failed", True), failure.message


def test_a_model_without_all_its_files_is_refused(
    model_folder: Folder, new_puller: NewPuller, recorder: Any, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    what, failure = adopt(new_puller, recorder, folder)
    assert (what, failure.message) == (
        "failed",
        "It is not complete: model-00002-of-00002.safetensors is missing.",
    )


def test_a_name_that_another_model_has_is_not_taken_from_it(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    for name, filler in (("a.gguf", b"\x01"), ("b.gguf", b"\x02")):
        (tmp_path / name).write_bytes(gguf(filler=filler))
    first = adopt(new_puller, recorder, tmp_path / "a.gguf")[1]
    what, failure = adopt(new_puller, recorder, tmp_path / "b.gguf")
    assert (what, failure.code) == ("failed", "name_taken")
    assert "greenroom rm mine" in failure.advice
    assert [one.id for one in store.models()] == [first.id]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no second file system")
def test_files_on_another_disk_are_copied_only_when_that_is_allowed(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    import tempfile

    if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("it is the same file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder, "tiny.gguf")
        file.write_bytes(gguf())
        what, failure = adopt(new_puller, recorder, file)
        assert (what, failure.code) == ("failed", "needs_copy")
        assert "is on a different file system from the store" in failure.message
        assert "--copy" in failure.advice
        what, model = adopt(new_puller, recorder, file, copy=True)
        assert what == "committed", model
        file.unlink()
        assert store.verify(model.id) == ()


def test_a_walk_follows_no_links_has_an_end_and_can_be_cancelled(tmp_path: Path) -> None:
    inner = tmp_path
    for _ in range(12):
        inner = inner / "x"
        inner.mkdir()
    (inner / "deep.gguf").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "file.gguf").touch()
    walked = list(folders(tmp_path, Event()))
    assert [files for _, files, _ in walked if files] == [["file.gguf"]]
    cancel = Event()
    cancel.set()
    with pytest.raises(JobCancelled):
        next(folders(tmp_path, cancel))
