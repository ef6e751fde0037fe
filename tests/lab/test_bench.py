"""The bench: what is summarised from its rows, and the table written for the README."""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.lab.bench import FLOOR, _with_ratios, markdown, summarise

SECONDS = {(FLOOR, 64): [2.0, 1.0, 4.0], ("other", 64): [3.0, 3.0, 4.0]}
SECONDS |= {(FLOOR, 128): [2.0, 2.0, 2.0], ("other", 128): [None, None, None]}  # out of memory


@pytest.fixture
def table():
    rows = [
        {"variant": variant, "length": length, "round": turn, "seconds": s, "peak_mb": s and 100 * s}
        for (variant, length), seconds in SECONDS.items()
        for turn, s in enumerate([9.0, *seconds])  # turn 0 warms up
    ]
    frame = _with_ratios(rows).assign(machine="one, 2 threads", malloc="stock", dtype="default")
    return summarise(frame)


def test_minima_medians_and_ratios(table):
    by = table.set_index(["variant", "length"])
    assert by.loc[("other", 64), "seconds_min"] == 3.0, "the warm-up does not count"
    assert by.loc[("other", 64), "ratio_of_minima"] == 3.0
    assert by.loc[("other", 64), "ratio_median"] == np.median([3 / 2, 3 / 1, 4 / 4])
    assert by.loc[("other", 64), "peak_mb"] == 400.0
    assert np.isnan(by.loc[("other", 128), "ratio_of_minima"])
    assert (table.rounds == 3).all()


def test_markdown_holds_the_summary(table):
    lines = markdown(table).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["time over a plain forward pass", "64", "128", "peak MB over the model, T = 128"]
    assert cells[1] == ["---"] * 4
    assert cells[2] == [FLOOR, "1.00", "1.00", "200"]
    assert cells[3] == ["other", "3.00", "-", "-"], "a dash where memory ran out"
    assert lines[5] == "one, 2 threads; dtype default, stock malloc, minima of 3 rounds"


def test_markdown_of_a_table_read_from_its_csv(table, tmp_path):
    table.to_csv(tmp_path / "bench.csv", index=False)
    assert markdown(pd.read_csv(tmp_path / "bench.csv")) == markdown(table)
