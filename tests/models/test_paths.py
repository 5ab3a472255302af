"""Models from the local disk: what is looked at is what is taken, and nothing outside of what was named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.models.store import ModelStore
from tiny_vision import projector

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]
Folder = Callable[..., Path]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "private" / "secret"
    path.parent.mkdir()
    path.write_text("root:secret")
    path.chmod(0o600)
    return path


def pull(new_puller: NewPuller, recorder: Any, path: Path | str) -> tuple[str, Any]:
    job = f"job-{len(recorder.told)}"
    new_puller().start(job, str(path))
    outcome: tuple[str, Any] = recorder.outcome(job)
    return outcome


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize("way", ["absolute", "up", "over a folder", "over a link inside"])
def test_no_link_leaves_the_folder(
    name: str,
    way: str,
    secret: Path,
    model_folder: Folder,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
) -> None:
    folder = model_folder(tmp_path / "model")
    file = folder / name
    if file.exists():
        file.replace(secret)
    if way == "absolute":
        file.symlink_to(secret)
    elif way == "up":
        file.symlink_to(Path("..", "private", "secret"))
    elif way == "over a folder":
        (folder / "inner").symlink_to(secret.parent)
        file.symlink_to(Path("inner", "secret"))
    else:
        (folder / "first").symlink_to(secret)
        file.symlink_to("first")
    what, failure = pull(new_puller, recorder, folder)
    assert (what, failure.code) == ("failed", "not_a_model")
    assert failure.message.startswith(f"{name} is a link that leads out of its folder.")
    assert store.models() == ()


def test_links_within_the_folder_are_followed(
    model_folder: Folder, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "data").mkdir()
    (folder / "model.safetensors").rename(folder / "data" / "weights")
    (folder / "model.safetensors").symlink_to(Path("data", "..", "data", "weights"))
    (folder / "tokenizer.json").rename(folder / "data" / "t")
    (folder / "tokenizer.json").symlink_to(folder / "data" / "t")
    what, model = pull(new_puller, recorder, folder)
    assert what == "committed", model
    assert store.verify(model.id) == ()


def test_a_projector_comes_with_the_folder_and_with_the_file_that_it_lies_beside(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    file = tmp_path / "model" / "seeing-Q4_0.gguf"
    file.parent.mkdir()
    file.write_bytes(gguf())
    (file.parent / "mmproj-F16.gguf").write_bytes(projector())
    for path in (file, file.parent):
        what, model = pull(new_puller, recorder, path)
        assert what == "committed", model
        assert (model.reads, model.projector_size) == (("image",), len(projector()))
        mmproj = store.open_model(model.id).mmproj
        assert mmproj is not None
        assert mmproj.read_bytes() == projector()
    (file.parent / "another.gguf").write_bytes(gguf(filler=b"\x02"))
    assert pull(new_puller, recorder, file)[1].reads == ()


def test_a_link_that_a_user_names_is_followed_and_must_be_a_model(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path, secret: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "blob").write_bytes(gguf())
    link = tmp_path / "mine.gguf"
    link.symlink_to(Path("elsewhere", "blob"))
    what, model = pull(new_puller, recorder, link)
    assert what == "committed", model
    assert store.open_model(model.id).path.name == "mine.gguf"
    (tmp_path / "other.gguf").symlink_to(secret)
    assert pull(new_puller, recorder, tmp_path / "other.gguf")[1].code == "not_a_model"
    (tmp_path / "dangling.gguf").symlink_to("nowhere")
    assert pull(new_puller, recorder, tmp_path / "dangling.gguf")[1].code == "not_found"


def test_a_file_that_is_swapped_while_it_is_taken_is_neither_linked_nor_given_another_mode(
    model_folder: Folder,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    secret: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = model_folder(tmp_path / "model")
    link = os.link
    swapped: list[Path] = []

    def swapping(source: Any, target: Any, **options: Any) -> None:
        if Path(source).parent == folder and not swapped:
            swapped.append(Path(source))
            Path(source).rename(tmp_path / "held")
            link(secret, source)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", swapping)
    what, model = pull(new_puller, recorder, folder)
    assert swapped
    assert what == "committed", model
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.stat().st_nlink == 2, "it has its own name, and the one it was swapped in with"
    taken = store.open_model(model.id).path / swapped[0].name
    assert taken.read_bytes() == (tmp_path / "held").read_bytes() != secret.read_bytes()


def test_an_original_keeps_its_mode(
    gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf())
    path.chmod(0o600)
    what, model = pull(new_puller, recorder, path)
    assert what == "committed", model
    assert path.stat().st_nlink == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pipe_among_the_files_is_left_alone(
    model_folder: Folder, new_puller: NewPuller, recorder: Any, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "model")
    os.mkfifo(folder / "pipe")
    (folder / "vocab.txt").symlink_to("pipe")
    os.mkfifo(tmp_path / "pipe.gguf")
    assert pull(new_puller, recorder, folder)[0] == "committed"
    assert pull(new_puller, recorder, tmp_path / "pipe.gguf")[1].code == "not_a_model"


NOT_UTF8 = b"caf\xe9"


def test_a_file_name_that_is_not_utf8_beside_a_model_is_passed_over(
    model_folder: Folder, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "model")
    for name in (NOT_UTF8 + b".txt", NOT_UTF8, b"two\nlines.txt", "\u202etxt.json".encode()):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"x")
    what, model = pull(new_puller, recorder, folder)
    assert what == "committed", model
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "m.gguf").write_bytes(gguf())
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/ggufs/" + NOT_UTF8)).write_bytes(b"x")
    assert pull(new_puller, recorder, tmp_path / "ggufs" / "m.gguf")[0] == "committed"


@pytest.mark.parametrize("inside", [True, False])
def test_weights_or_a_folder_whose_name_is_not_utf8_are_refused_with_a_sentence_that_can_be_stored(
    inside: bool, gguf: Make, new_puller: NewPuller, recorder: Any, tmp_path: Path
) -> None:
    name = os.fsdecode(NOT_UTF8)
    if inside:
        (tmp_path / f"{name}.gguf").write_bytes(gguf())
        failure = pull(new_puller, recorder, tmp_path)[1]
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").write_bytes(gguf())
        failure = pull(new_puller, recorder, tmp_path / name / "m.gguf")[1]
    assert failure.code == ("not_a_model" if inside else "bad_reference")
    assert "is not UTF-8. Rename" in failure.message
    failure.message.encode()


def test_a_copy_stops_before_the_disk_is_full(
    gguf: Make,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "mine.gguf").write_bytes(gguf())
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(os, "link", refuses)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    what, failure = pull(new_puller, recorder, tmp_path / "mine.gguf")
    assert (what, failure.code, failure.blame) == ("failed", "no_space", "machine")
    assert store.models() == ()
