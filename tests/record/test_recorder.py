"""Notes become rows on a thread of its own, and a file that cannot be written costs nothing but rows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.values import Model
from greenroom.runner.record.recorder import Recorder
from greenroom.runner.record.row import Ending, Note, Row, row_of
from greenroom.runner.record.table import FILE, RecordReader, RowFilter
from mounts import Mounts, NotPermitted


def recorder_in(home: Path, **more: Any) -> Recorder:
    return Recorder(home, **({"keep_for": 86_400.0, "rows": 1_000} | more))


def serve(recorder: Recorder, number: int, method: str = "POST", status: int = 200, **more: Any) -> None:
    note = Note(id=f"r-0000000a-{number}", method=method, path="/x", **more)
    recorder.begin(note)
    note.status = status
    recorder.end(note, time.perf_counter())


def rows(home: Path) -> list[Row]:
    with RecordReader(home) as reader:
        return reader.rows(RowFilter())


async def test_changes_and_refusals_are_recorded_and_reads_are_not(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    assert not (tmp_path / FILE).exists()
    serve(recorder, 1)
    serve(recorder, 2, "GET")
    serve(recorder, 3, "GET", 404)
    serve(recorder, 4, "DELETE")
    await recorder.written()
    assert [row.id[-1] for row in rows(tmp_path)] == ["1", "3", "4"]
    serve(recorder, 5)
    await recorder.close()
    assert len(rows(tmp_path)) == 4
    assert not recorder.inside


@pytest.mark.parametrize("off", [{"keep_for": 0.0}, {"rows": 0}])
async def test_turned_off_it_records_nothing_and_removes_what_there_was(
    tmp_path: Path, off: dict[str, Any]
) -> None:
    recorder = recorder_in(tmp_path)
    serve(recorder, 1)
    await recorder.close()
    assert rows(tmp_path)
    recorder = recorder_in(tmp_path, **off)
    recorder.record_bodies(3)
    serve(recorder, 2)
    await recorder.written()
    await recorder.close()
    assert not await asyncio.to_thread(lambda: [*tmp_path.iterdir()])
    assert recorder.bodies_left == 0


async def test_rows_are_lost_with_one_sentence_while_the_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).mkdir()
    recorder = recorder_in(tmp_path)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            serve(recorder, number)
            await recorder.written()
        assert [one.getMessage() for one in caplog.records] == [
            f"Requests are served but not recorded in {tmp_path / FILE}: unable to open database file."
        ]
        (tmp_path / FILE).rmdir()
        serve(recorder, 9)
        await recorder.written()
    assert caplog.records[-1].getMessage().endswith("again; 3 were not.")
    assert [row.id[-1] for row in rows(tmp_path)] == ["9"]
    await recorder.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of one megabyte."""
    mounts, folder = Mounts(), tmp_path / "disk"
    try:
        mounts.small(folder, 1)
    except NotPermitted:
        pytest.skip("only who may mount file systems can have a small one: run it as root")
    yield folder
    mounts.close()


async def test_a_full_disk_costs_rows_and_nothing_else(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recorder_in(small_disk)
    serve(recorder, 1)
    await recorder.written()
    filler = small_disk / "filler"
    await asyncio.to_thread(fill, filler)
    with caplog.at_level(logging.WARNING):
        for number in range(2, 500):
            serve(recorder, number, refusal=Refusal(code="c", message="x" * 900))
        await recorder.written()
        assert "disk" in caplog.text
        await asyncio.to_thread(filler.unlink)
        serve(recorder, 600)
        await recorder.close()
    assert [row.id.rpartition("-")[2] for row in rows(small_disk)] == ["1", "600"]
    assert caplog.records[-1].getMessage().endswith("again; 498 were not.")


def fill(file: Path) -> None:
    """Write until the disk has no more room."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"x" * 512)


async def test_rows_are_recorded_again_after_one_that_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recorder_in(tmp_path)
    serve(recorder, 1, asked="x", model=Model(id="sha256:\ud800"))
    await recorder.written()
    serve(recorder, 2)
    await recorder.written()
    assert [row.id[-1] for row in rows(tmp_path)] == ["2"]
    assert [one.getMessage().rpartition(FILE)[2][:22] for one in caplog.records] == [
        ": UnicodeEncodeError: ",
        " again; 1 were not.",
    ]
    await recorder.close()


async def test_more_than_can_wait_is_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.record.recorder.MOST", 10)
    recorder = recorder_in(tmp_path)
    writing, go_on = threading.Event(), threading.Event()

    def hold(_: list[Row]) -> None:
        writing.set()
        go_on.wait(30)

    with recorder.listening(hold), caplog.at_level(logging.WARNING):
        serve(recorder, 1)
        await asyncio.to_thread(writing.wait, 30)
        for number in range(2, 30):
            serve(recorder, number)
        go_on.set()
        await recorder.close()
    assert len(rows(tmp_path)) == 11
    assert "18 were not" in caplog.text


def test_bodies_are_taken_from_as_many_requests_as_were_asked_for(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    recorder.record_bodies(1, "sha256:b")
    one, other = Note(model=model("a")), Note(model=model("b"))
    recorder.take_body(one, b"one")
    assert one.kept is None
    assert recorder.bodies_left == 1
    recorder.take_body(other, b"other")
    assert other.kept is not None
    assert recorder.bodies_left == 0


def model(name: str) -> Model:
    return Model(id=f"sha256:{name}", format="gguf", tags=("file:/x.gguf", f"docker.io/ai/{name}:latest"))


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"status": 200}, "whole"),
        ({"status": 404, "refusal": Refusal(code="model_not_found", message="No.")}, "refused"),
        ({"status": 499}, "left"),
        ({"status": 200, "first": 1.0, "refusal": Refusal(code="engine_failed", message="No.")}, "cut"),
        ({"status": 502, "fault": "died", "refusal": Refusal(code="crashed", message="No.")}, "died"),
        ({"status": 499, "fault": "cut"}, "cut"),
        ({"status": 503, "refusal": Refusal(code="stopping", message="No.")}, "cancelled"),
        ({"status": 500, "broken": "cut"}, "cut"),
    ],
)
def test_how_it_ended(fields: dict[str, Any], outcome: Ending) -> None:
    assert row_of(Note(**fields)).outcome == outcome


def test_waits_are_told_apart(tmp_path: Path) -> None:
    phases = [(10.0, "queued"), (11.0, "installing"), (15.0, "loading"), (17.0, ""), (20.0, "queued")]
    row = row_of(Note(began=10.0, ended=26.0, first=21.0, phases=phases, model=model("tiny"), frames=12))
    assert (row.queued, row.installing, row.loading) == (7.0, 4.0, 2.0)
    assert (row.first_token, row.seconds) == (11.0, 16.0)
    assert row.model == "tiny"
    # Twelve pieces: ten tokens, why it ended, and the end.
    assert (row.tokens_out, row.estimated, row.tokens_per_second) == (10, True, 2.0)
