"""What is kept of requests, how long, and what a damaged or foreign file costs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.row import Row
from greenroom.runner.record.table import FILE, NotUsable, RecordReader, RecordTable, RowFilter

NOW = 1_800_000_000.0


def made(number: int, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "id": f"r-0000000a-{number}",
        "at": NOW + number,
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "whole",
    }
    return Row(**(fields | more))


@pytest.fixture
def table(tmp_path: Path) -> RecordTable:
    return RecordTable(tmp_path / FILE, keep_for=7 * 86_400.0, rows=100)


def ids(home: Path, wanted: RowFilter | None = None, last: int = 1_000) -> list[int]:
    with RecordReader(home) as reader:
        return [int(row.id.rpartition("-")[2]) for row in reader.rows(wanted or RowFilter(), last)]


def test_a_row_comes_back_as_it_was_written(table: RecordTable, tmp_path: Path) -> None:
    whole = made(
        *(1,),
        family="openai",
        address="127.0.0.1",
        caller="curl (process 7)",
        caller_kind="process",
        user_agent="curl/8 ☃",
        asked="tiny",
        model="tiny:latest",
        model_id="sha256:12",
        backend="llama.cpp",
        engine="e-1",
        code="model_not_found",
        sentence="There is none.",
        queued=0.5,
        loading=1.5,
        first_token=2.25,
        seconds=4.0,
        tokens_in=3,
        tokens_out=4,
        estimated=True,
        tokens_per_second=12.5,
        recorded=True,
    )
    table.append([(whole, None), (made(2), None)], NOW)
    with RecordReader(tmp_path) as reader:
        assert reader.row(whole.id) == whole
        assert reader.rows(RowFilter()) == [whole, made(2)]
        assert reader.row("r-0000000a-3") is None
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_the_oldest_rows_go_by_age_and_by_number(table: RecordTable, tmp_path: Path) -> None:
    table.append([(made(number), None) for number in range(1, 151)], NOW)
    assert ids(tmp_path) == list(range(51, 151))
    assert ids(tmp_path, last=3) == [148, 149, 150]
    table.append([(made(200), None)], NOW + 7 * 86_400.0 + 148.5)
    assert ids(tmp_path) == [149, 150, 200]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RowFilter(model="tiny"), [1, 2]),
        (RowFilter(model="other", model_id="sha256:12"), [2]),
        (RowFilter(status="404"), [3]),
        (RowFilter(status="4xx"), [3, 4]),
        (RowFilter(status="left"), [4]),
        (RowFilter(slow=2.0), [2, 4]),
        (RowFilter(since=NOW + 3), [3, 4]),
        (RowFilter(model="tiny", status="2xx", slow=2.0), [2]),
    ],
)
def test_rows_are_found_in_the_table_as_in_what_is_under_way(
    table: RecordTable, tmp_path: Path, wanted: RowFilter, found: list[int]
) -> None:
    rows = [
        made(1, asked="tiny", first_token=0.5, seconds=9.0),
        made(2, model="tiny", model_id="sha256:12", first_token=3.0, seconds=4.0),
        made(3, status=404, outcome="refused"),
        made(4, status=499, outcome="left", seconds=2.0),
    ]
    table.append([(row, None) for row in rows], NOW)
    assert ids(tmp_path, wanted) == found
    assert [int(row.id[-1]) for row in rows if wanted.takes(row)] == found


def test_what_was_said_goes_with_its_row(table: RecordTable, tmp_path: Path) -> None:
    kept = Kept(b'{"messages":"a very secret prompt"}')
    kept.add(b"an answ")
    kept.add(b"er")
    table.append([(made(1, recorded=True), kept)], NOW)
    with RecordReader(tmp_path) as reader:
        bodies = reader.bodies("r-0000000a-1")
        assert bodies is not None
        assert bodies == ('{"messages":"a very secret prompt"}', "an answer", False)
        assert reader.bodies("r-0000000a-2") is None
    table.append([(made(2), None)], NOW + 8 * 86_400.0)
    table.close()
    with RecordReader(tmp_path) as reader:
        assert reader.bodies("r-0000000a-1") is None
    for file in tmp_path.glob(f"{FILE}*"):
        assert b"secret prompt" not in file.read_bytes()


def test_bodies_are_bounded_and_images_shortened() -> None:
    image = "A" * 300
    text = f'{{"image_url":{{"url":"data:image/png;base64,{image}"}},"input_audio":{{"data":"{image}"}}}}'
    kept = Kept(text.encode())
    for _ in range(30):
        kept.add(b"x" * 10_000)
    said, answer = kept.texts()
    assert kept.cut
    assert len(answer) == 256_000
    assert "data:image/png;base64,AAAA" in said
    assert said.count("...[truncated 2") == 2
    assert len(said) < 400


def test_rows_of_an_earlier_version_stay(table: RecordTable, tmp_path: Path) -> None:
    table.append([(made(1, asked="tiny", tokens_in=7), None)], NOW)
    table.close()
    added = ("tokens_cached", "tokens_restored", "seconds_saved", "restored_from", "restored_why")
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as first:
        for name in added:
            first.execute(f"ALTER TABLE requests DROP COLUMN {name}")
        first.execute("PRAGMA user_version = 1")
    with pytest.raises(NotUsable, match="the next request converts it"):
        RecordReader(tmp_path)
    assert table.append([(made(2, tokens_restored=5, restored_why="it was idle"), None)], NOW) == ""
    with RecordReader(tmp_path) as reader:
        old, new = reader.rows(RowFilter())
    assert old == made(1, asked="tiny", tokens_in=7)
    assert new == made(2, tokens_restored=5, restored_why="it was idle")


@pytest.mark.parametrize("damage", ["not a database", "another version", "another table"])
def test_a_file_that_cannot_be_used_is_replaced_with_a_sentence(
    table: RecordTable, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / FILE
    if damage == "not a database":
        path.write_bytes(b"no database at all, and long enough to be read as one " * 100)
    else:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE requests (id TEXT)")
            other.execute(f"PRAGMA user_version = {99 if damage == 'another version' else 1}")
        other.close()
    with pytest.raises(NotUsable), RecordReader(tmp_path) as reader:
        reader.rows(RowFilter())
    said = table.append([(made(1), None)], NOW)
    assert "replaced" in said
    assert ids(tmp_path) == [1]
    assert table.append([(made(2), None)], NOW) == ""


def test_pages_that_are_damaged_while_it_is_open_cost_only_what_was_recorded(
    table: RecordTable, tmp_path: Path
) -> None:
    table.append([(made(number, sentence="x" * 900), None) for number in range(90)], NOW)
    table.close()
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    data[4_096 : 4_096 * 8] = b"\xff" * (4_096 * 7)
    path.write_bytes(data)
    assert "replaced" in table.append([(made(100), None)], NOW)
    assert ids(tmp_path) == [100]


def test_a_file_that_is_removed_under_the_writer_comes_back(table: RecordTable, tmp_path: Path) -> None:
    table.append([(made(1), None)], NOW)
    for file in tmp_path.glob(f"{FILE}*"):
        file.unlink()
    table.append([(made(2), None)], NOW)
    assert ids(tmp_path) == [2]


def test_a_file_that_is_emptied_or_replaced_under_the_writer_is_written_again(
    table: RecordTable, tmp_path: Path
) -> None:
    table.append([(made(1), None)], NOW)
    os.truncate(tmp_path / FILE, 0)
    table.append([(made(2), None)], NOW)
    assert 2 in ids(tmp_path)
    table.append([(made(3), None)], NOW)
    assert 3 in ids(tmp_path)
    other = tmp_path / "other"
    other.write_bytes((tmp_path / FILE).read_bytes())
    other.replace(tmp_path / FILE)
    table.append([(made(4), None)], NOW)
    assert 4 in ids(tmp_path)


def test_what_another_owner_has_put_there_is_left_alone(table: RecordTable, tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(NotUsable):
        table.append([(made(1), None)], NOW)
    assert (tmp_path / FILE).is_dir()
