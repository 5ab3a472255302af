from __future__ import annotations

import pytest

from greenroom.runner.cli.output import table

HEADINGS = ("NAME", "BACKEND", "CAUSE", "UNTIL")
ROWS = (("smollm2", "llama.cpp", "scheduler/12", "5m from now"), ("qwen", "mlx", "", "Forever"))


def test_every_column_is_as_wide_as_its_widest_cell() -> None:
    assert table(HEADINGS, ROWS).splitlines() == [
        "NAME     BACKEND    CAUSE         UNTIL",
        "smollm2  llama.cpp  scheduler/12  5m from now",
        "qwen     mlx                      Forever",
    ]


def test_a_line_that_just_fits_keeps_every_column() -> None:
    whole = table(HEADINGS, ROWS)
    widest = max(map(len, whole.splitlines()))
    assert table(HEADINGS, ROWS, spare=("CAUSE",), width=widest) == whole


def test_where_it_does_not_fit_the_spare_columns_go_in_their_order_and_no_more_than_must() -> None:
    assert table(HEADINGS, ROWS, spare=("CAUSE", "BACKEND"), width=44).splitlines() == [
        "NAME     BACKEND    UNTIL",
        "smollm2  llama.cpp  5m from now",
        "qwen     mlx        Forever",
    ]
    assert table(HEADINGS, ROWS, spare=("CAUSE", "BACKEND"), width=20).splitlines() == [
        "NAME     UNTIL",
        "smollm2  5m from now",
        "qwen     Forever",
    ]


def test_columns_that_are_not_spare_stay_however_narrow_it_is() -> None:
    assert table(HEADINGS, ROWS, width=10) == table(HEADINGS, ROWS)


def test_a_sentence_in_the_last_column_goes_on_below_itself() -> None:
    rows = (("vllm-metal", "it needs macOS 15 or newer on Apple silicon"), ("mlx", "absent"))
    assert table(("BACKEND", "STATUS"), rows, width=40).splitlines() == [
        "BACKEND     STATUS",
        "vllm-metal  it needs macOS 15 or newer",
        "            on Apple silicon",
        "mlx         absent",
    ]


@pytest.mark.parametrize("width", [None, 80])
def test_a_table_without_rows_is_its_headings(width: int | None) -> None:
    assert table(("WHAT", "SIZE"), (), width=width) == "WHAT  SIZE"
