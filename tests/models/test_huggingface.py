"""Pulls from a hub on this machine that speaks what `huggingface_hub` asks, and misbehaves on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors import progress
from greenroom.runner.models.sources import transfer
from greenroom.runner.models.store import ModelStore
from hub import COMMIT, LocalHub, sha256_of
from tiny_vision import projector

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    hub = LocalHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()


@pytest.fixture
def quants(hub: LocalHub, gguf: Make) -> dict[str, bytes]:
    """A repository with one model in several quantisations; each weighs a little more than a MiB."""

    def model(filler: bytes) -> bytes:
        shape = (1024, 512)
        return gguf(tensors=[("t", shape, 1, 0)], data=(filler + os.urandom(1023)) * 1024)

    names = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "m-bf16.gguf", "m-f16.gguf"]
    files = {name: model(str(n).encode()) for n, name in enumerate(names)}
    files |= {
        f"UD/m-UD-Q2_K_XL-0000{n}-of-00002.gguf": gguf({"split.count": 2}, filler=b"s%d" % n)[:-2048]
        for n in (1, 2)
    }
    hub.repositories["Org/Model-GGUF"] = {**files, "README.md": b"# Model", "config.json": b"{}"}
    return files


def put_safetensors(hub: LocalHub, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"modeling_evil.py": b"boo", "consolidated.safetensors": b"twin", "onnx/model.onnx": b"x"}
    hub.repositories["org/plain"] = files


def pull(new_puller: NewPuller, recorder: Any, reference: str, **options: Any) -> tuple[str, Any]:
    job = f"job-{len(recorder.told)}"
    new_puller().start(job, reference, **options)
    outcome: tuple[str, Any] = recorder.outcome(job)
    return outcome


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("", "m-Q4_K_M.gguf"),
        (":q4_k_s", "m-Q4_K_S.gguf"),
        (":F16", "m-f16.gguf"),
    ],
)
def test_a_quantisation_is_pulled_by_its_whole_name(
    tag: str,
    file: str,
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
) -> None:
    what, model = pull(new_puller, recorder, f"hf.co/Org/Model-GGUF{tag}")
    assert what == "committed", model
    path = store.open_model(model.id).path
    assert (path.name, path.read_bytes()) == (file, quants[file])
    assert model.tags == (f"huggingface.co/org/model-gguf{tag or ':latest'}",)
    assert model.source == f"{hub.url}/Org/Model-GGUF@{COMMIT[:12]}"
    assert store.verify(model.id) == ()
    assert not list((store.root / "partial").iterdir())


def test_a_repositorys_projector_comes_with_every_quantisation(
    hub: LocalHub, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    files = {f"m-{name}.gguf": gguf(filler=name[:1].encode()) for name in ("Q4_K_M", "Q8_0")}
    eyes = {"mmproj-m-f16.gguf": projector(), "mmproj-m-Q8_0.gguf": b"not fetched"}
    hub.repositories["Org/Seeing"] = files | eyes
    for tag in ("", ":Q8_0"):
        what, model = pull(new_puller, recorder, f"hf.co/Org/Seeing{tag}")
        assert what == "committed", model
        assert (model.reads, model.projector_size) == (("image",), len(projector()))
        mmproj = store.open_model(model.id).mmproj
        assert mmproj is not None
        assert (mmproj.name, mmproj.read_bytes()) == ("mmproj-m-f16.gguf", projector())


@pytest.mark.parametrize("tag", ["Q4_K", "instruct"])
def test_a_quantisation_that_is_not_there_is_an_error_that_lists_what_is(
    tag: str, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any
) -> None:
    what, failure = pull(new_puller, recorder, f"hf.co/Org/Model-GGUF:{tag}")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "no_such_quantisation")
    assert failure.advice == "It has: BF16, F16, Q4_K_M, Q4_K_S, Q8_0, UD-Q2_K_XL."


def test_safetensors_come_with_tokenizer_and_config_and_without_code(
    hub: LocalHub,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    put_safetensors(hub, model_folder(tmp_path / "m"))
    what, model = pull(new_puller, recorder, "hf.co/org/plain")
    assert what == "committed", model
    assert model.format == "safetensors"
    names = {path.name for path in store.open_model(model.id).path.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    what, failure = pull(new_puller, recorder, "hf.co/org/plain:Q4_K_M")
    assert (what, failure.code) == ("failed", "no_such_quantisation")


def test_a_digest_pins_the_model_and_one_that_is_here_needs_no_hub(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    name = "hf.co/Org/Model-GGUF:Q8_0"
    what, failure = pull(new_puller, recorder, f"{name}@sha256:{'0' * 64}")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "hash_mismatch")
    assert store.models() == ()
    old = pull(new_puller, recorder, name)[1]
    what, failure = pull(new_puller, recorder, f"{name}@sha256:{'0' * 64}")
    assert (what, failure.code) == ("failed", "hash_mismatch"), "also when its files are present"
    hub.commit = COMMIT[::-1]
    hub.repositories["Org/Model-GGUF"]["m-Q8_0.gguf"] = quants["m-f16.gguf"]
    new = pull(new_puller, recorder, name)[1]
    assert (new.id != old.id, new.tags) == (True, ("huggingface.co/org/model-gguf:Q8_0",))
    hub.status = 500
    what, model = pull(new_puller, recorder, f"hf.co/Org/Model-GGUF@{old.id}")
    assert (what, model.id, model.tags) == ("committed", old.id, ())
    what, model = pull(new_puller, recorder, f"{name}@{old.id}")
    assert (what, model.id, model.tags) == ("committed", old.id, new.tags), "its tag comes back to it"


def test_several_files_come_side_by_side_and_each_tells_how_far_it_is(
    hub: LocalHub,
    new_puller: NewPuller,
    recorder: Any,
    tmp_path: Path,
    model_folder: Callable[..., Path],
    safetensors: Make,
) -> None:
    put_safetensors(hub, model_folder(tmp_path / "m"))
    files = hub.repositories["org/plain"]
    weights = [safetensors({name: ("F16", [1024, 256], 2**19)}) for name in ("one", "other")]
    del files["model.safetensors"]
    for number, data in enumerate(weights, 1):
        files[f"model-{number:05d}-of-00002.safetensors"] = data
    hub.hold_after = 1000
    new_puller().start("job", "hf.co/org/plain")
    assert hub.wait_for(lambda: len(hub.ranges()) == 2), "the second does not wait for the first"
    hub.release.set()
    what, model = recorder.outcome("job")
    assert what == "committed", model
    told = [one for one in recorder.progress_of("job") if one.phase == "downloading"]
    sizes = {f"sha256:{sha256_of(data)}": len(data) for data in weights}
    for each in told:
        assert {part.id for part in each.parts} >= sizes.keys()
        assert sum(part.done for part in each.parts) <= each.done <= each.total
    ends = {part.id: part.done for part in told[-1].parts}
    assert ends.items() >= sizes.items()
    assert sum(ends.values()) == told[-1].total


def test_a_file_that_broke_off_is_resumed_by_the_next_attempt(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    hub.cut_after = 700_000
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "unreachable")
    assert store.models() == ()
    (partial,) = (store.root / "partial").iterdir()
    assert partial.stat().st_size == 700_000
    store.prepare()  # as after a restart: a week is not over
    hub.cut_after = None
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert what == "committed", model
    assert hub.ranges() == ["", "bytes=700000-"]
    assert store.verify(model.id) == ()


def test_a_file_that_changes_after_it_broke_off_is_fetched_whole_and_never_mixed(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    hub.cut_after = 700_000
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[0] == "failed"
    hub.cut_after = None
    hub.commit = COMMIT[::-1]
    hub.repositories["Org/Model-GGUF"]["m-Q8_0.gguf"] = quants["m-f16.gguf"]
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert what == "committed", model
    assert hub.ranges() == ["", ""]
    assert store.open_model(model.id).path.read_bytes() == quants["m-f16.gguf"]
    assert store.sweep(kept=0.0) >= 700_000, "what was left of the old one goes with the next prune"


def test_a_damaged_rest_is_thrown_away_and_fetched_whole(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    partial = store.root / "partial" / sha256_of(quants["m-Q8_0.gguf"])
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(b"\0" * 1000)
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind) == ("failed", "transient")
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[0] == "committed"
    assert hub.ranges() == ["bytes=1000-", ""]


def test_a_pull_is_cancelled_in_mid_file_at_once_and_keeps_what_has_come(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    hub.hold_after = 500_000
    puller = new_puller()
    puller.start("job", "hf.co/Org/Model-GGUF:Q8_0")
    assert hub.holding.wait(30)
    puller.cancel("job")
    assert recorder.outcome("job")[0] == "cancelled"
    assert not hub.release.is_set()
    assert not list((store.root / "incoming").iterdir())


def test_a_server_that_stops_sending_is_reported_and_ends_the_attempt_and_what_came_is_kept(
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "STALL", 0.5)
    monkeypatch.setattr(transfer, "SILENCE", 2.5)
    hub.hold_after = 500_000
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "too_slow")
    assert "bytes of the model arrived within" in failure.message
    (job,) = recorder.moved
    assert not recorder.moved[job], "a server that trickles is not asked forever"
    last = recorder.progress_of(job)[-1]
    assert (last.rate, last.phase) == (0.0, "downloading")
    assert last.message.startswith("nothing received for ")
    hub.hold_after = None
    hub.release.set()
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[0] == "committed"
    assert hub.ranges()[-1].startswith("bytes=")


@pytest.mark.parametrize("what", ["commit", "name", "size", "hash"])
def test_an_invalid_answer_of_a_hub_is_not_believed(
    what: str,
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = hub.listing

    def lies(name: str) -> dict[str, Any]:
        answer = honest(name)
        first = next(one for one in answer["siblings"] if one["rfilename"] == "m-Q8_0.gguf")
        if what == "commit":
            answer["sha"] = "../../../etc?x="
        elif what == "name":
            names = ("\udce9.gguf", "x" * 300 + ".gguf")
            answer["siblings"] += [{**first, "rfilename": name} for name in names]
        elif what == "size":
            first["size"] = first["lfs"]["size"] = 2**60
        else:
            first["lfs"]["sha256"] = "../../" + "0" * 58
        return answer

    monkeypatch.setattr(hub, "listing", lies)
    outcome, found = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    if what == "name":
        assert outcome == "committed", found
    else:
        assert (outcome, found.code) == ("failed", "bad_answer")
        assert store.models() == ()


def test_two_pulls_of_one_file_do_not_write_to_one_file(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    hub.repositories["org/twin"] = {"m-Q8_0.gguf": quants["m-Q8_0.gguf"]}
    hub.hold_after = 500_000
    puller = new_puller()
    puller.start("one", "hf.co/Org/Model-GGUF:Q8_0")
    assert hub.holding.wait(30)
    hub.holding.clear()
    puller.start("two", "hf.co/org/twin")
    assert hub.holding.wait(30)
    hub.release.set()
    one, two = recorder.outcome("one"), recorder.outcome("two")
    assert (one[0], two[0]) == ("committed", "committed")
    (model,) = store.look()
    assert set(model.tags) == {"huggingface.co/org/model-gguf:Q8_0", "huggingface.co/org/twin:latest"}
    assert store.verify(model.id) == ()


def test_a_token_opens_a_private_repository_and_does_not_go_to_another_host(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any
) -> None:
    hub.token = "hf_secret"
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "not_found")
    assert "HF_TOKEN" in failure.advice
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0", token="hf_secret")
    assert what == "committed", model
    assert [authorization for path, _, authorization in hub.log if path.startswith("/cdn/")] == [""]


@pytest.mark.parametrize(
    ("trouble", "kind", "code"),
    [
        ({"gated": True}, "permanent", "unauthorized"),
        ({"status": 429}, "transient", "rate_limited"),
        ({"status": 503}, "transient", "server_error"),
        ({"status": 403}, "permanent", "unauthorized"),
        ({"repositories": {}}, "permanent", "not_found"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(
    trouble: dict[str, Any],
    kind: str,
    code: str,
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
) -> None:
    for name, value in trouble.items():
        setattr(hub, name, value)
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF")
    assert (what, failure.kind, failure.code) == ("failed", kind, code)
    assert failure.message
    assert "Traceback" not in failure.sentence()


def test_what_is_here_serves_while_the_hub_is_away_and_a_new_commit_is_fetched_when_it_is_back(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    first = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[1]
    hub.status = 503
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0") == ("committed", first)
    hub.status = 0
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0") == ("committed", first)
    assert len(hub.ranges()) == 1
    hub.commit = "d" * 40
    hub.repositories["Org/Model-GGUF"]["m-Q8_0.gguf"] = quants["m-Q4_K_S.gguf"]
    second = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[1]
    assert second.id != first.id
    assert [m.tags for m in store.look()] == [(), ("huggingface.co/org/model-gguf:Q8_0",)]


def test_a_file_that_changes_between_listing_and_fetching_is_not_believed(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    honest = hub.listing

    def listing(name: str) -> dict[str, Any]:
        answer = honest(name)
        hub.repositories[name]["config.json"] = b"[]"
        hub.repositories[name]["m-Q8_0.gguf"] = quants["m-f16.gguf"]
        return answer

    hub.listing = listing  # type: ignore[method-assign]
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "hash_mismatch")
    assert store.models() == ()


def test_a_small_file_is_checked_against_what_git_knows(
    hub: LocalHub,
    new_puller: NewPuller,
    recorder: Any,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    put_safetensors(hub, model_folder(tmp_path / "m"))
    honest = hub.listing

    def listing(name: str) -> dict[str, Any]:
        answer = honest(name)
        files = hub.repositories[name]
        files["config.json"] = files["config.json"].replace(b"llama", b"lhama")
        return answer

    hub.listing = listing  # type: ignore[method-assign]
    what, failure = pull(new_puller, recorder, "hf.co/org/plain")
    assert (what, failure.code) == ("failed", "hash_mismatch")


def test_what_the_users_cache_has_is_linked_and_not_fetched(
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
) -> None:
    cache = tmp_path / "hf" / "hub" / "models--Org--Model-GGUF"
    data = quants["m-Q8_0.gguf"]
    blob, link = cache / "blobs" / sha256_of(data), cache / "snapshots" / COMMIT / "m-Q8_0.gguf"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(data)
    link.symlink_to(blob)
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert what == "committed", model
    assert hub.ranges() == []
    assert store.open_model(model.id).path.samefile(blob)


def test_nothing_is_asked_where_the_user_said_offline(
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "offline")
