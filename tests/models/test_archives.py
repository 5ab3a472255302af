"""Archives that come from elsewhere: what they may not do to memory and disk."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.archive import load
from greenroom.runner.models.manifest import unpack
from greenroom.runner.models.store import ModelStore

NAME = f"blobs/sha256/{'0' * 64}"


def _old_sparse(name: str) -> bytes:
    """A gigabyte in no bytes, as old GNU tars write it: the real size is in the header."""
    member = tarfile.TarInfo(name)
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"10000000000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\0" * 1024


def _new_sparse(name: str) -> bytes:
    """The same in a PAX header."""
    member = tarfile.TarInfo(name)
    member.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": f"0,0,{2**40},0"}
    return member.tobuf(tarfile.PAX_FORMAT) + b"\0" * 1024


def _endless_header(_: str) -> bytes:
    """A header that says it is four gigabytes long, and has the first megabytes of it."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**32
    return member.tobuf(tarfile.GNU_FORMAT) + b"1" * 2**23


HOSTILE = [_old_sparse, _new_sparse, _endless_header]


@pytest.mark.parametrize("make", HOSTILE)
def test_an_archive_that_is_larger_than_it_looks_is_not_loaded(
    make: Callable[[str], bytes], store: ModelStore
) -> None:
    with pytest.raises(JobFailed, match=r"not a file|a header of|not allowed") as caught:
        load(store, io.BytesIO(make(NAME)), threading.Event())
    assert (caught.value.failure.kind, caught.value.failure.code) == ("permanent", "not_a_model")
    assert store.models() == ()
    assert store.usage().other < 2**20


@pytest.mark.parametrize("make", HOSTILE)
def test_an_archive_in_a_model_that_is_larger_than_it_looks_is_not_unpacked(
    make: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(make("config.json"))
    with pytest.raises(JobFailed, match=r"not a file|a header of|not allowed"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _claims(size: int) -> bytes:
    """A header of 512 bytes that claims a size beyond what octal digits hold."""
    member = tarfile.TarInfo("README.md")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _pax_claims(size: int) -> bytes:
    """A header before the member's own says another size."""
    member = tarfile.TarInfo("README.md")
    member.pax_headers = {"size": str(size)}
    return member.tobuf(tarfile.PAX_FORMAT)


def _long_names(count: int) -> bytes:
    """Each header belongs to the next one."""
    one = tarfile.TarInfo("././@LongLink")
    one.type, one.size = tarfile.GNUTYPE_LONGNAME, 5
    return (one.tobuf(tarfile.GNU_FORMAT) + b"abcd\0".ljust(512, b"\0")) * count + _claims(0)


@pytest.mark.parametrize(
    "data",
    [
        _claims(2**62),
        _claims(2**40),
        _claims(100),
        _pax_claims(2**62),
        _pax_claims(2**40),
        _pax_claims(-1024),
        _long_names(300),
        _long_names(100_000),
        _claims(0) * 2,
    ],
    ids=[
        "2^62",
        "2^40",
        "100",
        "pax 2^62",
        "pax 2^40",
        "pax negative",
        "300 names",
        "100000 names",
        "no end",
    ],
)
@pytest.mark.timeout(20)
def test_an_archive_that_ends_before_its_members_do_is_refused_at_once(
    data: bytes, store: ModelStore
) -> None:
    with pytest.raises(JobFailed) as caught:
        load(store, io.BytesIO(data), threading.Event())
    assert (caught.value.failure.kind, caught.value.failure.code) == ("permanent", "not_a_model")
    assert len(caught.value.failure.message) < 300


@pytest.mark.parametrize("data", [_claims(2**62), _pax_claims(-1024), _long_names(300)])
@pytest.mark.timeout(20)
def test_an_archive_in_a_model_whose_headers_lie_is_refused_at_once(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(JobFailed) as caught:
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert caught.value.failure.code == "not_a_model"


def test_a_load_ends_within_a_read_when_it_is_cancelled(store: ModelStore) -> None:
    cancel = threading.Event()

    class Endless(io.RawIOBase):
        reads = 0

        def read(self, size: int = -1) -> bytes:
            Endless.reads += 1
            if Endless.reads == 10:
                cancel.set()
            assert Endless.reads < 100
            return _claims(2**40) if Endless.reads == 1 else b"x" * 10_240

    with pytest.raises(JobCancelled):
        load(store, Endless(), cancel)  # type: ignore[arg-type]


def test_a_load_stops_before_the_disk_is_full(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    member = tarfile.TarInfo(f"blobs/sha256/{'0' * 64}")
    member.size = 2**25
    data = member.tobuf(tarfile.GNU_FORMAT) + b"x" * 2**25
    usage = shutil.disk_usage(store.root)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(JobFailed) as caught:
        load(store, io.BytesIO(data), threading.Event())
    assert caught.value.failure.code == "no_space"
    assert "1.05 MB left" in caught.value.failure.message


def test_only_model_files_are_unpacked_from_an_archive_in_a_model(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in (
            "config.json",
            "tokenizer.model",
            "modeling_evil.py",
            "weights.bin",
            "x.so",
            "dir/vocab.txt",
        ):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
    files = unpack(tmp_path / "a.tar", tmp_path / "out")
    assert {path.name for path in files} == {"config.json", "tokenizer.model", "vocab.txt"}
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {p.name for p in files}


def test_loading_takes_no_memory_for_what_a_header_claims(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_endless_header(""))
    with (tmp_path / "a.tar").open("ab") as file:
        file.truncate(2**30)
    program = """
import resource, sys, threading
from pathlib import Path
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.archive import load
from greenroom.runner.models.store import ModelStore
resource.setrlimit(resource.RLIMIT_AS, (300 * 2**20,) * 2)
try:
    load(ModelStore(Path(sys.argv[1])), open(sys.argv[2], "rb"), threading.Event())
except JobFailed as error:
    print(error.failure.code)
"""
    argv = [sys.executable, "-c", program, str(tmp_path / "models"), str(tmp_path / "a.tar")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout == "not_a_model\n", done.stderr


def test_any_bytes_are_an_archive_or_refused(store: ModelStore) -> None:
    whole = _new_sparse(NAME) + _old_sparse("manifest.json")
    for cut in range(0, len(whole), 37):
        for flip in (0, 124, 156, 257, 511):
            data = bytearray(whole[: cut + 512])
            data[(cut + flip) % len(data)] ^= 0xFF
            with contextlib.suppress(JobFailed):
                load(store, io.BytesIO(bytes(data)), threading.Event())
    assert store.models() == ()
