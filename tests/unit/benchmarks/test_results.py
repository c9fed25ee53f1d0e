import dataclasses

import pytest
import torch
from benchmarks.results import (
    FIELDS,
    append_rows,
    compared,
    matching,
    newest,
    origin_here,
    read_rows,
    row,
)

from invented_rows import ORIGIN, invented_rows

COMMON = {"benchmark": "step", "measure": "forward", "shape": "tiny", "unit": "s"}


def test_rows_come_back_from_the_file_as_they_went(tmp_path):
    rows = [
        row(ORIGIN, [0.5, 0.25, 1.0], variant="lorakit", dtype=torch.bfloat16, r=16, **COMMON),
        row(ORIGIN, [2.0], variant="peft", ratio_to="limit", ratios=[1.5], dropout=0.05, **COMMON),
    ]
    append_rows(rows[:1], tmp_path)
    append_rows(rows[1:], tmp_path)
    assert read_rows(["step", "growth"], tmp_path) == rows
    assert (tmp_path / "step.csv").read_text().splitlines()[0] == ",".join(FIELDS)


def test_all_rows_of_a_run_have_keys_of_their_own(tmp_path):
    rows = invented_rows()
    append_rows(rows, tmp_path)
    names = sorted({one.benchmark for one in rows})
    assert len(read_rows(names, tmp_path)) == len(rows)


def test_a_newer_row_takes_the_place_of_an_older_one(tmp_path):
    old = row(ORIGIN, [1.0], variant="lorakit", **COMMON)
    new = row(dataclasses.replace(ORIGIN, commit="new"), [2.0], variant="lorakit", **COMMON)
    append_rows([old, new], tmp_path)
    assert read_rows(["step"], tmp_path) == [new]
    elsewhere = dataclasses.replace(old, origin=dataclasses.replace(ORIGIN, device="other"))
    append_rows([elsewhere], tmp_path)
    assert read_rows(["step"], tmp_path) == [new, elsewhere]


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "step.csv"
    path.write_text("benchmark,colour\nstep,red\n")
    one = row(ORIGIN, [1.0], variant="lorakit", **COMMON)
    for action in (lambda: append_rows([one], tmp_path), lambda: read_rows(["step"], tmp_path)):
        with pytest.raises(ValueError, match=r"step\.csv has other columns.*'colour'"):
            action()
    assert path.read_text() == "benchmark,colour\nstep,red\n"


def test_a_ratio_is_taken_inside_a_round():
    values = {"a": [2.0, 4.0, 12.0], "b": [1.0, 2.0, 4.0]}
    first, second = compared(ORIGIN, values, ("b", "not measured"), **COMMON)
    assert (first.variant, first.ratio_to, first.ratio, first.p50) == ("a", "b", 2.0, 4.0)
    assert first.ratio_p20 == 2.0
    assert first.ratio_p80 == pytest.approx(2.6)
    assert (second.variant, second.ratio_to, second.ratio) == ("b", "", None)


def test_newest_goes_by_the_day_and_then_by_the_order():
    days = ("2026-01-02", "2026-01-03", "2026-01-03", "2026-01-01")
    rows = [
        row(dataclasses.replace(ORIGIN, date=day), [float(k)], variant="a", **COMMON)
        for k, day in enumerate(days)
    ]
    assert newest(rows, variant="a").p50 == 2.0
    assert newest(rows, variant="b") is None
    assert matching(rows, p50=3.0) == rows[3:]


def test_an_origin_names_no_path_and_no_host():
    import socket

    origin = origin_here(commit="abc")
    text = " ".join(dataclasses.astuple(origin))
    assert origin.commit == "abc"
    assert "/" not in text
    assert socket.gethostname() not in text
