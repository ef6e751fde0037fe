"""A notebook that is run again with the same seed, in a new kernel and without cached profiles, gives the
same numbers."""

import pandas as pd
import pytest

from nbhelpers.collection.results import load_results, load_tables
from nbhelpers.collection.run import run_notebooks

pytestmark = pytest.mark.notebook
NAME = "08_multiresolution"  # models, controls with random weights, shuffled text, nulls and bootstraps
CONSUMES_TIME = ("seconds", "peak_mb")
JUDGED = ["verdict", "why"]


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    out = tmp_path_factory.mktemp("again")
    run = run_notebooks([NAME], size="smoke", out=out, progress=False)[0]
    assert run.status == "passed", run.error
    return out


def test_recorded_numbers_are_equal(smoke_run, again):
    first = smoke_run(NAME)
    assert first.status in ("passed", "kept"), first.error
    frames = [load_results(folder) for folder in (first.output.parents[1], again)]
    before, after = (
        frame[(frame.notebook == NAME) & ~frame.name.isin(CONSUMES_TIME)].reset_index(drop=True)
        for frame in frames
    )
    assert len(before) > 10
    pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_tables_are_equal(smoke_run, again):
    folders = (smoke_run(NAME).output.parents[1], again)
    before, after = (
        {key: table for key, table in load_tables(folder).items() if key[0] == NAME} for folder in folders
    )
    assert before.keys() == after.keys()
    for key in before:
        # What becomes of the numbers depends on notebook 03, which was run into one of the folders only.
        tables = [frame.drop(columns=JUDGED, errors="ignore") for frame in (before[key], after[key])]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
