import pandas as pd
from oracles import assert_near

from nbhelpers.collection.results import load_results
from nbhelpers.collection.run import run_notebooks

JUDGED = ["verdict", "why", "C2", "C3"]  # hang on notebook 04, which one of the folders alone holds


def test_untrained_attention_is_near_uniform_and_trained_heads_where_a_larger_run_found_them(numbers):
    assert numbers["control_low_band"].value > 0.99
    near = {"control_spectral_entropy": (0.571, 0.03), "control_frequency_selectivity": (3.205, 0.1)}
    assert_near(numbers, near)
    # Means of 18 passages at n = 128, and three standard errors of four passages with room for rounding.
    near = {"low_band": (0.648, 0.040), "mid_band": (0.237, 0.030), "high_band": (0.115, 0.020)}
    near |= {"spectral_entropy": (2.633, 0.180), "frequency_selectivity": (0.942, 0.160)}
    assert_near(numbers, near)
    for name in near:
        row = numbers[name]
        assert not row.low <= row.null <= row.high, "the model is not uniform attention"
    # What an independent script, written without this package, found on six other passages of 128 tokens.
    other = {"spectral_entropy": 2.59, "frequency_selectivity": 0.99, "low_band": 0.65, "mid_band": 0.24}
    assert_near(numbers, {name: (value, 0.1 * value) for name, value in other.items()})


def test_the_reading_of_the_signal_decides(numbers):
    low = {name: numbers[name] for name in ("low_band", "low_band_last_query", "low_band_lag_profile")}
    assert low["low_band_last_query"].high < low["low_band"].low
    assert low["low_band"].high < low["low_band_lag_profile"].low
    assert all(row.low < row.high for row in low.values())
    assert numbers["rank_correlation_S_H_s"].value < -0.95, "selectivity orders heads as the entropy does"


def test_a_second_run_records_the_same_to_the_last_digit(smoke_run, tmp_path):
    """In another kernel, without cached profiles: a model, random weights, permuted profiles."""
    runs = [smoke_run("07"), *run_notebooks(["07"], size="smoke", out=tmp_path, progress=False)]
    folders = [run.output.parents[1] / "results" for run in runs]
    before, after = (frame[frame.notebook == runs[0].name] for frame in map(load_results, folders))
    assert len(before) > 10
    pd.testing.assert_frame_equal(before.reset_index(drop=True), after, check_exact=True)
    before, after = (sorted((folder / runs[0].name).glob("*.parquet")) for folder in folders)
    assert [path.name for path in before] == [path.name for path in after]
    for pair in zip(before, after, strict=True):
        tables = [pd.read_parquet(path).drop(columns=JUDGED, errors="ignore") for path in pair]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
