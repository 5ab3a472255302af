"""What a model may be made of, and by which names its files go."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from greenroom.runner.cli import transfers
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.packing import Ingredients, pack


@pytest.mark.parametrize("part", ["weights", "license"])
def test_a_pipe_is_refused_instead_of_waiting_for_its_writer(
    part: str, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    whole, pipe = tmp_path / "whole.gguf", tmp_path / "pipe.gguf"
    whole.write_bytes(gguf())
    os.mkfifo(pipe)
    ingredients = Ingredients(pipe) if part == "weights" else Ingredients(whole, licenses=(pipe,))
    with pytest.raises(JobFailed, match="is not a regular file") as refused:
        pack(ingredients)
    assert refused.value.failure.code == "not_a_model"


def test_a_link_into_a_cache_of_hashes_is_packaged_by_the_name_of_the_link(
    tmp_path: Path, gguf: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Hugging Face's cache lies on disk: only the link says that it is a GGUF.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b2c").write_bytes(gguf())
    link = tmp_path / "tiny.gguf"
    link.symlink_to(Path("blobs", "0a1b2c"))
    sent: list[str] = []

    def send(client: object, size: int, pieces: Iterable[bytes]) -> str:
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            manifest = archive.extractfile("manifest.json")
            assert manifest is not None
            layers = json.load(manifest)["layers"]
            sent.extend(layer["annotations"]["org.cncf.model.filepath"] for layer in layers)
        return "sha256:0"

    monkeypatch.setattr(transfers, "settings_of", lambda ctx: None)
    monkeypatch.setattr(transfers, "ensure_daemon", lambda settings, say: None)
    monkeypatch.setattr(transfers, "send", send)
    monkeypatch.setattr(transfers, "give_tag", lambda client, source, target: None)
    done = CliRunner().invoke(transfers.package_command, ["--gguf", str(link), "mine"])
    assert done.exit_code == 0, done.output
    assert sent == ["tiny.gguf"]
