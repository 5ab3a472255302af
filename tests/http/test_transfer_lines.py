"""The contract's progress lines: a layer's bytes, side by side, as Docker's own client reads them."""

from __future__ import annotations

import html
import json
from typing import Any

from greenroom.actors.characters import NAME
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.values import Part, Progress
from greenroom.runner.http.transfers import TransferLines

A, B = (f"sha256:{letter * 64}" for letter in "ab")
MIB = 2**20


def step(a: int, b: int, **more: Any) -> Progress:
    parts = (
        Part(id=A, name="a.safetensors", size=2 * MIB, done=a),
        Part(id=B, name="b.json", size=MIB, done=b),
    )
    return Progress(job="j", phase="downloading", done=a + b + MIB, total=4 * MIB, parts=parts, **more)


def lines_of(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def test_each_file_that_moves_has_lines_of_its_own_and_the_total_is_that_of_all() -> None:
    lines = TransferLines("j", "pull", raw=True)
    both = lines_of(lines.progress(step(MIB + MIB // 2, 0, rate=7.0)))
    assert both == [
        {
            "type": "progress",
            "message": "Downloaded: 1.50 MB",
            "total": 4 * MIB,
            "layer": {"id": A, "size": 2 * MIB, "current": MIB + MIB // 2, "name": "a.safetensors"},
            "mode": "pull",
            "phase": "downloading",
            "rate": 7.0,
            "done": 2 * MIB + MIB // 2,
            "of": 4 * MIB,
        },
        {
            "type": "progress",
            "message": "Downloaded: 0.00 MB",
            "total": 4 * MIB,
            "layer": {"id": B, "size": MIB, "current": 0, "name": "b.json"},
            "mode": "pull",
            "phase": "downloading",
            "rate": 7.0,
            "done": 2 * MIB + MIB // 2,
            "of": 4 * MIB,
        },
    ]
    (only,) = lines_of(lines.progress(step(MIB + MIB // 2, 5)))
    assert only["layer"]["id"] == B, "what has not moved is not told again"


def test_a_layer_never_goes_back_and_is_whole_before_success() -> None:
    lines = TransferLines("j", "pull", raw=True)
    lines.progress(step(MIB, 0))
    assert lines.progress(step(0, 0)) == b"", "a server that cannot resume starts again; the bar waits for it"
    *rest, last = lines_of(lines.success("done"))
    assert {line["layer"]["id"]: line["layer"]["current"] for line in rest} == {A: 2 * MIB, B: MIB}
    assert (last["type"], last["message"], last["layer"]) == ("success", "done", {"size": 0, "current": 0})


def test_what_has_no_files_of_its_own_is_one_layer() -> None:
    lines = TransferLines("verify/x", "verify", raw=True)
    (line,) = lines_of(lines.progress(Progress(job="verify/x", phase="verifying", done=3, total=9)))
    assert (line["message"], line["total"]) == ("Verified: 0.00 MB", 9)
    assert (line["layer"]["size"], line["layer"]["current"]) == (9, 3)
    assert line["layer"]["id"].startswith("sha256:")


def test_a_failed_transfer_does_not_claim_that_its_layers_are_whole() -> None:
    lines = TransferLines("j", "pull", raw=True)
    lines.progress(step(1, 1))
    (line,) = lines_of(
        lines.error(Refusal(kind="unavailable", code="unreachable", message="The network broke."))
    )
    assert (line["type"], line["message"]) == ("error", "Error: The network broke.")


def test_clients_that_do_not_ask_for_json_get_it_escaped_as_dockers_own_expects() -> None:
    raw, escaped = (TransferLines("j", "push", raw=raw) for raw in (True, False))
    progress = Progress(job="j", phase="resolving", message="a <b> & 'c' \"d\"")
    data = escaped.progress(progress)
    assert b"<" not in data
    assert b'"' not in data
    assert html.unescape(data.decode()).encode() == raw.progress(progress)


def test_another_client_of_the_same_transfer_gets_all_of_its_progress() -> None:
    lines = TransferLines("j", "pull", raw=True)
    told = lines.progress(step(MIB, MIB))
    assert lines.progress(step(MIB, MIB)) == b""
    other = lines.again()
    assert other.content_type == lines.content_type
    assert other.progress(step(MIB, MIB)) == told


def test_a_stall_has_a_line_of_its_own_without_a_rate() -> None:
    lines = TransferLines("j", "pull", raw=True)
    lines.progress(step(MIB, 0, rate=5.0))
    (line,) = lines_of(lines.progress(step(MIB, 0, message="nothing received for 6s")))
    assert (line["message"], line["done"], line["of"]) == ("nothing received for 6s", 2 * MIB, 4 * MIB)
    assert (line["total"], line["layer"]["current"], "rate" in line) == (0, 0, False)


def test_no_line_is_too_long_for_dockers_own_client() -> None:
    """Its scanner ends silently at a line of 64 KiB."""
    longest = "<&é" * (NAME // 3)
    part = Part(id=A, name=longest, size=2, done=1)
    named = Progress(job="j", phase="downloading", done=1, total=2, message=longest, parts=(part,))
    refusal = Refusal(kind="unavailable", code="x", message=longest, advice=longest)
    for raw in (True, False):
        lines = TransferLines("j", "pull", raw=raw)
        told = lines.progress(named) + lines.success(longest) + lines.error(refusal)
        assert max(map(len, told.splitlines())) < 64 * 1024
