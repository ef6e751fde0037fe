import pandas as pd
import pytest

from nbhelpers.collection.results import Results
from nbhelpers.collection.run import run_notebooks
from nbhelpers.stats import Estimate

NAME = "20_scorecard"


def test_what_was_recorded_is_judged(tmp_path):
    store = Results("10_scale_invariance", tmp_path / "results")
    store.record("C5_half", Estimate(0.2, 0.18, 0.22), null=0.03)
    store.record("C5_ratio", Estimate(2.0, 1.9, 2.1), null=2.8)
    store = Results("14_specification_curve", tmp_path / "results")
    for name in ("one_pipeline", "one_pipeline_share", "literal_misses", "rows_of_table_1"):
        store.record(name, 0, null=0.5, note="of 360 readings span them")
    (run,) = run_notebooks([NAME], size="smoke", out=tmp_path, progress=False)
    assert run.status == "passed", run.error
    card = pd.read_parquet(tmp_path / "results" / NAME / "scorecard.parquet").set_index("claim")
    assert card.verdict["C5"] == "the quantity cannot tell"
    criteria = pd.read_parquet(tmp_path / "results" / NAME / "criteria.parquet")
    assert criteria.value.tolist() == [0.2, 2.0]
    assert (card.verdict == "not measured").sum() > 10
    shown = run.output.read_text()
    assert "python -m nbhelpers run" in shown, "what is missing, and how to get it"
    assert "image/png" in shown, "the summary figure"
    assert "Of the paper's 19 claims none holds here" in shown
    assert "None that was tried here could**: 0 of 360 readings span them (0.0%)" in shown


def test_the_contradictions_of_the_paper(numbers):
    for name, value in {  # by hand from the printed tables
        "table_5_over_6_scale_sensitivity": 0.740 / 0.062,
        "table_6_over_1_reconstruction_error": 9e-5 / 1.26e-7,
        "rope_sizes_no_better_than_gpt2": 3,
        "training_adds_to_scale_sensitivity": 0.740 - 0.523,
        "sizes_where_quarter_is_below_half": 3,
        "bos_gap_in_table_1": 0.058 - 0.038,
    }.items():
        assert numbers[name].value == pytest.approx(value, rel=1e-9), name
