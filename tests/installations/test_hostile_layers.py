"""Layers made to do harm by what their headers say: refused in a sentence, in seconds, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import time
from pathlib import Path
from threading import Event, Timer

import pytest

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.image_layers import Tree

END = bytes(1024)


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, linkname: str = "") -> bytes:
    """One raw header block, with any size."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, linkname
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(kind: bytes, data: bytes) -> bytes:
    return header("./@x", kind, len(data)) + data + bytes(-len(data) % 512)


def pax(**records: str) -> bytes:
    lines = b""
    for key, value in records.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        lines += f"{length}".encode() + rest
    return lines


def whole(name: str, data: bytes = b"x") -> bytes:
    return header(name, size=len(data)) + data + bytes(-len(data) % 512)


def sparse_block(more: bool) -> bytes:
    block = bytearray(512)
    for place in range(0, 504, 24):
        block[place : place + 24] = b"00000000001\0" * 2
    block[504] = more
    return bytes(block)


def old_sparse(name: str, *, more: bool, size: int = 0) -> bytes:
    block = bytearray(header(name, tarfile.GNUTYPE_SPARSE, size))
    block[482] = more
    block[483:495] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HUGE = 2**62
NINES = "9" * 4000

HOSTILE = {
    "a size of 2^62 outside the tree": header("etc/x", size=HUGE),
    "a size of 2^62 in the tree": header("opt/x", size=HUGE),
    "a size of 2^62 of no known type": header("etc/x", b"Q", size=HUGE),
    "a size below nothing": header("etc/x", size=-(2**40)),
    "an extended size of 2^62": extended(b"x", pax(size=str(HUGE))) + whole("etc/x"),
    "an extended size of 4,000 digits": extended(b"x", pax(size=NINES)) + whole("etc/x"),
    "an extended size below nothing": extended(b"x", pax(size="-4096")) + whole("etc/x"),
    "an extended size that is no number": extended(b"x", pax(size="many")) + whole("etc/x"),
    "a size for all that follow": extended(b"g", pax(size=str(HUGE))) + whole("etc/x"),
    "300 long names in a row": extended(b"L", b"opt/long\0") * 300 + whole("opt/x"),
    "300 long links in a row": extended(b"K", b"opt/long\0") * 300 + whole("opt/x"),
    "2,000 extended headers in a row": extended(b"x", pax(comment="c")) * 2000 + whole("opt/x"),
    "2,000 headers for all in a row": extended(b"g", pax(comment="c")) * 2000 + whole("opt/x"),
    "a long name and then nothing": extended(b"L", b"opt/long\0"),
    "a long name without an end": extended(b"L", b"x" * 100_000) + whole("opt/x"),
    "a header that begins and is cut": header("opt/x")[:140],
    "an extended header that is cut": header("./@x", b"x", 5000) + b"30 path=",
    "an extended header of nonsense": extended(b"x", b"\xff" * 600) + whole("opt/x"),
    "a record that ends beyond its header": extended(b"x", b"999999 path=opt/y\n") + whole("opt/x"),
    "a record of no length": extended(b"x", b"0 path=opt/y\n") + whole("opt/x"),
    "a record length of 4,000 digits": extended(b"x", NINES.encode() + b" a=b\n") + whole("opt/x"),
    "a sparse map without an end": extended(b"x", pax(GNU__sparse__major="1", GNU__sparse__minor="0"))
    + header("opt/x", size=512)
    + b"99999999\n".ljust(512, b"1"),
    "a sparse map that is no map": extended(b"x", pax(GNU__sparse__major="1", GNU__sparse__minor="0"))
    + header("opt/x", size=512)
    + b"x" * 512,
    "an old sparse header that goes on at the end": old_sparse("opt/x", more=True),
    "100,000 old sparse headers": old_sparse("etc/x", more=True) + sparse_block(True) * 100_000,
    "a bad checksum in the middle": whole("opt/a") + bytes(b ^ 1 for b in header("opt/b")) + whole("opt/c"),
    "a number that is none": header("opt/x")[:124] + b"\x80" + b"\xff" * 11 + header("opt/x")[136:],
    "a name of 300 characters": extended(b"L", b"opt/" + b"n" * 300 + b"\0") + whole("x"),
    "a name that is 300 bytes but 100 letters": extended(b"L", b"opt/" + "语".encode() * 100 + b"\0")
    + whole("x"),
    "a path of 3,000 characters": extended(b"L", b"opt" + b"/part" * 60 + b"/" + b"y" * 2_700 + b"\0")
    + whole("x"),
    "a link to 3,900 bytes": extended(b"K", "语".encode() * 1_500 + b"\0") + header("opt/l", b"2"),
    "a name with a zero": extended(b"x", pax(path="opt/a\0b")) + whole("x"),
    "a name that is not text": extended(b"L", b"opt/\xff\xfe\0") + whole("x"),
    "a name of nothing but dots": whole("opt/..") + whole("opt/..."),
    "a whiteout that is a link out": header("opt/.wh...", b"2", linkname="/etc"),
    "a hard link to a folder": header("opt/d/", b"5") + header("opt/h", b"1", linkname="opt/d"),
    "a hard link to dots": header("opt/h", b"1", linkname="opt/../../etc/passwd"),
    "a hard link to the tree itself": header("opt/h", b"1", linkname="opt"),
    "a link with a body": header("opt/l", b"2", size=HUGE, linkname="/etc/passwd"),
    "a device with a body": header("opt/d", b"3", size=HUGE),
}


def hostile(data: bytes, tmp_path: Path) -> JobFailed:
    """How the layer is refused."""
    blob = tmp_path / "layer"
    blob.write_bytes(gzip.compress(data, 1))
    with Tree(tmp_path / "tree", "/opt", "r/i:t", Event()) as tree, pytest.raises(JobFailed) as told:
        tree.lay(blob, f"sha256:{hashlib.sha256(data).hexdigest()}")
    return told.value


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.timeout(20)
def test_a_layer_with_a_false_size_is_refused_at_once_with_a_sentence(what: str, tmp_path: Path) -> None:
    began = time.process_time()
    failure = hostile(HOSTILE[what] + END, tmp_path).failure
    assert failure.code in ("damaged_layer", "unsafe_image"), failure
    assert failure.kind == "permanent"
    assert time.process_time() - began < 5
    assert str(tmp_path) not in failure.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer", "tree"]


def layer_of(data: bytes, tmp_path: Path, packed: bytes | None = None) -> tuple[Path, str]:
    blob = tmp_path / f"layer-{len(data)}"
    blob.write_bytes(gzip.compress(data, 1) if packed is None else packed)
    return blob, f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_what_writers_do_write_is_understood(tmp_path: Path) -> None:
    long = "opt/" + "d/" * 20 + "n" * 120
    parts = [
        extended(b"g", pax(comment="from a build")),
        extended(b"L", long.encode() + b"\0")
        + extended(b"K", b"a" * 150 + b"\0")
        + header("opt/short", b"2"),
        extended(b"x", pax(path="opt/语", mtime="1.5", SCHILY__xattr__user__a="b")) + whole("opt/y"),
        extended(b"x", pax(size="3", path="opt/sized")) + header("opt/z", size=0) + b"abc" + bytes(509),
        extended(b"L", b"opt/old-folder/\0") + header("x", tarfile.AREGTYPE),
        old_sparse("etc/sparse", more=True, size=5) + sparse_block(False) + b"12345" + bytes(507),
        header("opt/p", b"7", size=1) + b"p" + bytes(511),
    ]
    blob, digest = layer_of(b"".join(parts), tmp_path)  # without the blocks that mark the end
    with Tree(tmp_path / "tree", "/opt", "r/i:t", Event()) as tree:
        tree.lay(blob, digest)
        assert sorted(tree.sums) == ["p", "sized", "语"]
    assert (tmp_path / "tree" / "sized").read_bytes() == b"abc"
    assert (tmp_path / "tree" / "old-folder").is_dir()
    assert (tmp_path / "tree" / long.removeprefix("opt/")).readlink() == Path("a" * 150)


@pytest.mark.timeout(60)
def test_whiteouts_over_and_over_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.runner.installations.image_layers.LOOKS", 20_000)
    many = b"".join(whole(f"opt/{number}", b"") for number in range(1_000))
    failure = hostile(many + whole("opt/.wh..wh..opq", b"") * 1_000 + END, tmp_path).failure
    assert "unpacks to far more" in failure.message


@pytest.mark.timeout(60)
def test_a_folder_that_turns_into_a_file_again_and_again_costs_what_is_in_it(tmp_path: Path) -> None:
    kept = b"".join(whole(f"opt/kept/{number}", b"") for number in range(2_000))
    turns = (whole("opt/t/x", b"") + whole("opt/t", b"") + header("opt/t/", b"5")) * 300
    blob, digest = layer_of(kept + turns + END, tmp_path)
    began = time.process_time()
    with Tree(tmp_path / "tree", "/opt", "r/i:t", Event()) as tree, pytest.raises(JobFailed):
        # The second turn puts a file below what is a file: refused, as ever.
        tree.lay(*layer_of(whole("opt/t", b"") + whole("opt/t/x", b"") + END, tmp_path))
    with Tree(tmp_path / "again", "/opt", "r/i:t", Event()) as tree:
        tree.lay(blob, digest)
        assert len(tree.sums) == 2_000
    assert time.process_time() - began < 10


@pytest.mark.timeout(30)
def test_a_layer_that_unpacks_to_nothing_without_end_can_be_cancelled(tmp_path: Path) -> None:
    blob, digest = layer_of(b"", tmp_path, gzip.compress(b"", mtime=0) * 3_000_000)
    cancel = Event()
    Timer(0.3, cancel.set).start()
    with Tree(tmp_path / "tree", "/opt", "r/i:t", cancel) as tree, pytest.raises(JobCancelled):
        tree.lay(blob, digest)


def test_a_hard_link_too_many_is_the_layers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", refuse)
    data = whole("opt/a") + header("opt/b", b"1", linkname="opt/a") + END
    assert "this disk cannot hold" in hostile(data, tmp_path).failure.message


def test_a_layer_is_not_unpacked_into_the_room_that_is_kept_free(tmp_path: Path) -> None:
    def full() -> None:
        raise JobFailed.permanent("no_space", "The disk is full.")

    blob, digest = layer_of(whole("opt/a", bytes(40 * 2**20)) + END, tmp_path)
    with Tree(tmp_path / "tree", "/opt", "r/i:t", Event(), full) as tree, pytest.raises(JobFailed) as told:
        tree.lay(blob, digest)
    assert told.value.failure.code == "no_space"
