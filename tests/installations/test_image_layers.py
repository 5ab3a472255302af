"""Layers laid over one another, and layers made to do harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.image_layers import Tree, unpacked_size
from real_registry import Entry, Layer, file, layer, link, special

Lay = Callable[..., dict[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "inside" / "tree"


@pytest.fixture
def lay(folder: Path) -> Lay:
    """Lays layers over one another; returns what is there, links as `-> target`."""

    def run(
        *layers: Layer | list[Entry], inside: str = "/opt", executables: tuple[str, ...] = ()
    ) -> dict[str, str]:
        folder.parent.mkdir(exist_ok=True)
        with Tree(folder, inside, "r/i:t", Event()) as tree:
            for number, one in enumerate(layers):
                made = one if isinstance(one, Layer) else layer(one)
                blob = folder.parent.parent / f"layer-{number}"
                blob.write_bytes(made.data)
                tree.lay(blob, made.diff_id)
            tree.finish(executables)
            found = contents(folder)
            sums = {
                path: hashlib.sha256((folder / path).read_bytes()).hexdigest()
                for path, text in found.items()
                if not text.startswith("->") and text != "/"
            }
            assert tree.sums == sums
        return found

    return run


def contents(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[name] = "/"
    return found


def refused(lay: Lay, *layers: Layer | list[Entry]) -> str:
    with pytest.raises(JobFailed) as caught:
        lay(*layers)
    failure = caught.value.failure
    assert failure.kind == "permanent"
    assert "r/i:t" in failure.message
    return f"{failure.code}: {failure.message}"


def folder_of(name: str) -> Entry:
    return special(name, tarfile.DIRTYPE)


def test_only_the_tree_is_unpacked_and_what_it_needs_to_run_is_restored(lay: Lay, folder: Path) -> None:
    found = lay(
        [
            file("etc/passwd", b"root"),
            file("opt/bin/python3", b"#!", 0o644),
            file("opt/lib/a.py", b"a"),
            file("opt/lib/tool", b"t", 0o755),
            link("opt/bin/python", "python3"),
            link("opt/lib/up", "../lib/a.py"),
            link("opt/lib/whole", "/opt/lib"),
            file("optional/b", b"b"),
        ],
        executables=("bin/*",),
    )
    assert found == {
        "bin/python": "-> python3",
        "bin/python3": "#!",
        "lib/a.py": "a",
        "lib/tool": "t",
        "lib/up": "-> ../lib/a.py",
        "lib/whole": "-> .",
    }
    modes = {
        name: (folder / name).stat().st_mode & 0o7777 for name in ("bin/python3", "lib/a.py", "lib/tool")
    }
    assert modes == {"bin/python3": 0o755, "lib/a.py": 0o644, "lib/tool": 0o755}


def test_special_bits_and_foreign_write_permissions_are_left_behind(lay: Lay, folder: Path) -> None:
    lay([file("opt/a", b"", 0o6777), file("opt/b", b"", 0o666)])
    assert [(folder / name).stat().st_mode & 0o7777 for name in "ab"] == [0o755, 0o644]


def test_a_later_layer_replaces_hides_and_adds(lay: Lay) -> None:
    found = lay(
        [
            file("opt/kept", b"1"),
            file("opt/replaced", b"1"),
            file("opt/hidden", b"1"),
            file("opt/was-folder/x", b"1"),
            file("opt/was-file", b"1"),
            file("opt/opaque/old", b"1"),
            file("opt/opaque/deep/old", b"1"),
            link("opt/was-link", "kept"),
        ],
        [
            file("opt/replaced", b"2"),
            file("opt/.wh.hidden"),
            file("opt/was-folder", b"2"),
            folder_of("opt/was-file"),
            # Whiteouts hide what lower layers hold, wherever they stand in their own.
            file("opt/opaque/new", b"2"),
            file("opt/opaque/.wh..wh..opq"),
            file("opt/was-link", b"2"),
        ],
    )
    assert found == {
        "kept": "1",
        "replaced": "2",
        "was-folder": "2",
        "was-file": "/",
        "opaque/new": "2",
        "was-link": "2",
    }


def test_a_whiteout_above_the_tree_hides_all_of_it(lay: Lay) -> None:
    assert lay([file("opt/a")], [file(".wh.opt"), file("opt/b")]) == {"b": ""}


def test_a_whiteout_of_the_root_hides_all_of_it(lay: Lay) -> None:
    assert lay([file("opt/a")], [file("opt/b"), file(".wh..wh..opq")]) == {"b": ""}


def test_whiteouts_of_what_is_not_there_and_behind_links_do_nothing(lay: Lay, folder: Path) -> None:
    outside = folder.parent.parent / "kept"
    outside.write_text("mine")
    found = lay(
        [file("opt/real/a", b"1"), link("opt/alias", "real")],
        [file("opt/alias/.wh.a"), file("opt/.wh.nothing"), file("opt/none/.wh..wh..opq"), file(".wh.etc")],
    )
    assert found == {"real/a": "1", "alias": "-> real"}


def test_hard_links_share_their_bytes_and_part_when_one_is_replaced(lay: Lay, folder: Path) -> None:
    found = lay(
        [
            file("opt/a", b"1"),
            link("opt/b", "opt/a", tarfile.LNKTYPE),
            link("opt/c", "/opt/b", tarfile.LNKTYPE),
        ],
        [file("opt/a", b"2")],
    )
    assert found == {"a": "2", "b": "1", "c": "1"}
    assert (folder / "b").samefile(folder / "c")


def test_names_with_dots_and_slashes_in_front_mean_the_same(lay: Lay) -> None:
    assert lay([file("./opt/a", b"1"), file("/opt//b", b"2"), folder_of("./"), folder_of("opt/./c/")]) == {
        "a": "1",
        "b": "2",
        "c": "/",
    }


def test_a_tree_at_the_root_is_the_whole_image(lay: Lay) -> None:
    assert lay([file("a", b"1"), folder_of("./")], inside="/") == {"a": "1"}


@pytest.mark.parametrize("tool", ["none", "gzip", "two members", "zstd"])
def test_layers_are_packed_in_any_way_the_specification_has(lay: Lay, tool: str) -> None:
    def packed(plain: bytes) -> bytes:
        if tool == "zstd":
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
            return zstd.compress(plain)
        if tool == "two members":
            return gzip.compress(plain[:700]) + gzip.compress(plain[700:])
        return gzip.compress(plain) if tool == "gzip" else plain

    assert lay(layer([file("opt/a", b"x" * 5_000)], packed)) == {"a": "x" * 5_000}


def outside(tmp_path: Path) -> list[str]:
    return sorted(str(p) for p in tmp_path.rglob("*") if "layer-" not in p.name and "/tree/" not in str(p))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        pytest.param([file("opt/../../../outside", b"x")], "an entry with an invalid name", id="dots"),
        pytest.param([file("../outside", b"x")], "an entry with an invalid name", id="dots outside the tree"),
        pytest.param([link("opt/l", "/etc/passwd")], "leads out of the tree", id="absolute link"),
        pytest.param([link("opt/l", "/opt/../etc")], "leads out of the tree", id="absolute link with dots"),
        pytest.param([link("opt/l", "../../etc")], "leads out of the tree", id="relative link"),
        pytest.param([link("opt/d/l", "x/../../../y")], "leads out of the tree", id="winding link"),
        pytest.param(
            [link("opt/d", "."), link("opt/e", "d/.."), folder_of("opt/f")],
            "leads out of the tree",
            id="link by a link",
        ),
        pytest.param(
            [folder_of("opt/p/q"), link("opt/p/q/up", "../.."), link("opt/l", "p/q/up/..")],
            "leads out of the tree",
            id="link that is innocent by its letters",
        ),
        pytest.param(
            [link("opt/d", "x"), file("opt/d/y", b"x")], "below a file or a link", id="file below a link"
        ),
        pytest.param(
            [file("opt/d", b"x"), file("opt/d/y", b"x")], "below a file or a link", id="file below a file"
        ),
        pytest.param([link("opt/h", "etc/passwd", tarfile.LNKTYPE)], "outside the tree", id="hard link out"),
        pytest.param(
            [link("opt/h", "opt/none", tarfile.LNKTYPE)], "is not a file in it", id="hard link to nothing"
        ),
        pytest.param([link("opt/h", "opt/h", tarfile.LNKTYPE)], "itself", id="hard link to itself"),
        pytest.param(
            [link("opt/s", "x"), link("opt/h", "opt/s", tarfile.LNKTYPE)],
            "is not a file in it",
            id="hard link to a link",
        ),
        pytest.param([special("opt/null", tarfile.CHRTYPE)], "not a file, folder or link", id="device"),
        pytest.param([special("opt/disk", tarfile.BLKTYPE)], "not a file, folder or link", id="disk"),
        pytest.param([special("opt/pipe", tarfile.FIFOTYPE)], "not a file, folder or link", id="pipe"),
        pytest.param([file("opt", b"x")], "is not a folder", id="the tree is a file"),
        pytest.param([link("opt", "/etc")], "is not a folder", id="the tree is a link"),
        pytest.param([file("opt/a\nb", b"x")], "an entry with an invalid name", id="control characters"),
        pytest.param([file("opt/" + "d/" * 100 + "x")], "an entry with an invalid name", id="deep"),
        pytest.param([file("opt/d/.wh...")], "an invalid whiteout", id="whiteout of the parent"),
        pytest.param([file("opt/d/.wh.")], "an invalid whiteout", id="whiteout of nothing"),
        pytest.param([link("opt/l", "x" * 5_000)], "leads out of the tree", id="endless link"),
    ],
)
def test_no_file_is_written_outside_the_tree(
    lay: Lay, tmp_path: Path, folder: Path, entries: list[Entry], told: str
) -> None:
    folder.parent.mkdir()
    before = outside(tmp_path)
    said = refused(lay, entries)
    assert said.startswith("unsafe_image"), said
    assert told in said
    assert [path for path in outside(tmp_path) if not path.endswith("/tree")] == before


def test_what_lies_outside_the_tree_is_read_past_whatever_it_is(lay: Lay) -> None:
    entries = [special("dev/null", tarfile.CHRTYPE), link("etc/l", "/etc/passwd"), file("opt/a", b"1")]
    assert lay(entries) == {"a": "1"}


def test_a_link_that_turns_dangerous_when_a_later_layer_comes_is_found_at_the_end(lay: Lay) -> None:
    first = [folder_of("opt/p/q"), link("opt/l", "p/q/..")]
    assert "leads out" in refused(lay, first, [link("opt/p", "."), link("opt/q", ".")])


def test_an_unrecorded_link_is_found_on_the_disk(folder: Path) -> None:
    """As one that came about since the file system takes `A` and `a` for the same name."""
    folder.parent.mkdir()
    with Tree(folder, "/opt", "r/i:t", Event()) as tree:
        (folder / "bin").mkdir()
        (folder / "bin" / "x").symlink_to("../../elsewhere")
        with pytest.raises(JobFailed, match=r"its link bin/x leads out of the tree, to \.\./\.\./elsewhere"):
            tree.finish(())


def test_dangling_and_circular_links_are_left_as_they_are(lay: Lay) -> None:
    found = lay([link("opt/nowhere", "nothing"), link("opt/a", "b"), link("opt/b", "a")])
    assert found == {"nowhere": "-> nothing", "a": "-> b", "b": "-> a"}


def test_a_layer_that_is_not_the_one_its_configuration_names_is_refused(lay: Lay) -> None:
    one = layer([file("opt/a", b"1")])
    said = refused(lay, Layer(one.data, "sha256:" + "0" * 64))
    assert said.startswith("hash_mismatch")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"no archive" * 200, id="nonsense"),
        pytest.param(gzip.compress(b"no archive" * 200), id="nonsense in gzip"),
        pytest.param(layer([file("opt/a", b"x" * 50_000)], lambda plain: plain).data[:20_000], id="cut"),
        pytest.param(layer([file("opt/a", os.urandom(50_000))]).data[:20_000], id="cut gzip"),
        pytest.param(b"\x28\xb5\x2f\xfd" + b"\0" * 100, id="nonsense in zstd"),
        pytest.param(b"\x1f\x8b" + b"\xff" * 100, id="no gzip after all"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_damaged_layer_is_reported_in_a_sentence(lay: Lay, data: bytes) -> None:
    said = refused(lay, Layer(data, f"sha256:{hashlib.sha256(data).hexdigest()}"))
    assert said.startswith("damaged_layer"), said


def test_a_layer_that_unpacks_to_far_too_much_is_stopped(lay: Lay, folder: Path) -> None:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as packed:
        member = tarfile.TarInfo("opt/bomb")
        member.size = 3 * 2**30
        packed.write(member.tobuf())
        for _ in range(160):
            packed.write(bytes(2**20))
    said = refused(lay, Layer(out.getvalue(), "sha256:" + "0" * 64))
    assert "an entry claims 3221225472 bytes" in said
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 200 * 2**20


def test_a_header_that_would_fill_the_memory_is_refused_before_it_is_read(lay: Lay) -> None:
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 60 * 2**20
    plain = member.tobuf() + bytes(60 * 2**20 + 1024)
    data = gzip.compress(plain, 1)
    said = refused(lay, Layer(data, f"sha256:{hashlib.sha256(plain).hexdigest()}"))
    assert said.startswith("damaged_layer")
    assert "a header of" in said


def test_a_sparse_file_is_refused(lay: Lay) -> None:
    member = tarfile.TarInfo("opt/sparse")
    member.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": "0,512",
    }
    member.size = 512
    assert refused(lay, [(member, b"x" * 512)]).startswith("unsafe_image")


def test_cancelling_is_noticed_between_and_within_entries(tmp_path: Path) -> None:
    made = layer([file("opt/a", bytes(5_000_000))])
    (tmp_path / "layer").write_bytes(made.data)
    cancel = Event()
    cancel.set()
    with Tree(tmp_path / "tree", "opt", "r/i:t", cancel) as tree, pytest.raises(JobCancelled):
        tree.lay(tmp_path / "layer", made.diff_id)


def test_the_size_a_layer_unpacks_to_is_known_beforehand(tmp_path: Path) -> None:
    made = layer([file("opt/a", bytes(5_000_000))])
    (tmp_path / "layer").write_bytes(made.data)
    assert 5_000_000 < unpacked_size(tmp_path / "layer") < 5_020_000
    (tmp_path / "tiny").write_bytes(b"\x1f\x8b")
    assert unpacked_size(tmp_path / "tiny") == 2
