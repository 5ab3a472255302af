"""Archives that come from elsewhere: what they may not do to memory and disk."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from greenroom.runner.failures import JobFailed
from greenroom.runner.models.archive import load
from greenroom.runner.models.store import Store
from greenroom.runner.models.unpacking import unpack

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
    make: Callable[[str], bytes], store: Store
) -> None:
    with pytest.raises(JobFailed, match="larger than its archive") as caught:
        load(store, io.BytesIO(make(NAME)), threading.Event())
    assert (caught.value.failure.kind, caught.value.failure.code) == ("permanent", "not_a_model")
    assert store.models() == ()
    assert store.usage().other < 2**20


@pytest.mark.parametrize("make", HOSTILE)
def test_an_archive_in_a_model_that_is_larger_than_it_looks_is_not_unpacked(
    make: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(make("config.json"))
    with pytest.raises(JobFailed, match="larger than its archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loading_takes_no_memory_for_what_a_header_claims(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_endless_header(""))
    with (tmp_path / "a.tar").open("ab") as file:
        file.truncate(2**30)
    program = """
import resource, sys, threading
from pathlib import Path
from greenroom.runner.failures import JobFailed
from greenroom.runner.models.archive import load
from greenroom.runner.models.store import Store
resource.setrlimit(resource.RLIMIT_AS, (300 * 2**20,) * 2)
try:
    load(Store(Path(sys.argv[1])), open(sys.argv[2], "rb"), threading.Event())
except JobFailed as error:
    print(error.failure.code)
"""
    argv = [sys.executable, "-c", program, str(tmp_path / "models"), str(tmp_path / "a.tar")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout == "not_a_model\n", done.stderr


def test_any_bytes_are_an_archive_or_refused(store: Store) -> None:
    whole = _new_sparse(NAME) + _old_sparse("manifest.json")
    for cut in range(0, len(whole), 37):
        for flip in (0, 124, 156, 257, 511):
            data = bytearray(whole[: cut + 512])
            data[(cut + flip) % len(data)] ^= 0xFF
            with contextlib.suppress(JobFailed):
                load(store, io.BytesIO(bytes(data)), threading.Event())
    assert store.models() == ()
