import pandas as pd
import pytest
from oracles import assert_near, uniform_row_correlation

from nbhelpers.collection.results import load_results
from nbhelpers.collection.run import run_notebooks

LENGTH = 128
JUDGED = ["verdict", "why", "C6"]  # hang on notebook 04, which one of the folders alone holds


@pytest.mark.parametrize("detrend", ["none", "mean"])
@pytest.mark.parametrize("window", ["hann", "boxcar"])
def test_rows_of_the_uniform_matrix_are_the_closed_form(numbers, window, detrend):
    found = numbers[f"rho_rows_{window}_{detrend}_N0"].value
    expected = uniform_row_correlation(LENGTH, window, demeaned=detrend == "mean")
    assert found == pytest.approx(expected, abs=1e-6)
    if detrend == "none":
        assert numbers[f"rho_rows_{window}_none"].null == pytest.approx(found, abs=0.02), "untrained rows"


def test_each_criterion_is_held_against_the_most_conservative_null(numbers, verdict):
    names = ("rho_of_N1_random_weights", "rho_of_N3_iid_softmax", "rho_of_N4_exponential")
    assert numbers["C6_rho"].null == pytest.approx(min(numbers[name].value for name in names), abs=1e-9)
    slacks = [numbers[f"slack_{name}"].value for name in ("N1", "N2", "N4")]
    assert numbers["C6_slack"].null == pytest.approx(min(slacks), abs=1e-6)
    assert numbers["C6_rho"].low > numbers["C6_rho"].null, "attention that only decays is correlated more"
    assert numbers["C6_slack"].low > numbers["C6_slack"].null
    assert verdict("C6", numbers) == "undecided", "its distance from the null may be the margin"


def test_nulls_are_negative_too(tables):
    layer = tables["nulls"][tables["nulls"].metric == "over the heads of a layer"].set_index("row")
    numbered = layer[layer.index.str.match(r"N\d")].drop("N1 random weights")
    assert len(numbered) == 6
    assert (numbered.high < -0.5).all(), "even what keeps nothing but N_eff has ρ < 0"
    assert layer.value["N4 exponential"] < layer.value["zoo:rope"] < layer.value["N1 random weights"]


def test_the_sign_over_rows_the_slack_and_what_is_left_given_the_support(numbers):
    assert numbers["rho_rows_hann_mean"].low > 0 > numbers["rho_rows_hann_none"].high
    # Means of twice 18 other passages of 128 tokens, and three standard errors of 18 or, over rows, 3.
    near = {"rho_rows_hann_mean": (0.223, 0.045), "rho_rows_hann_none": (-0.819, 0.015)}
    near |= {"rho_heads_of_a_layer": (-0.89, 0.041), "slack_model": (0.742, 0.014)}
    assert_near(numbers, near | {"slack_N3": (0.683, 0.022), "slack_less_N2": (-0.023, 0.0025)})
    assert numbers["slack_model"].low > numbers["slack_N3"].high > numbers["slack_N4"].high
    name = "partial_rho_{}_one_length_given_support"
    assert abs(numbers[name.format("N3")].value) < 0.15
    assert numbers[name.format("model")].high < numbers[name.format("N3")].low


def test_a_second_run_records_the_same_to_the_last_digit(smoke_run, tmp_path):
    """In another kernel, without cached profiles: a model, random weights, permuted profiles."""
    runs = [smoke_run("09"), *run_notebooks(["09"], size="smoke", out=tmp_path, progress=False)]
    folders = [run.output.parents[1] / "results" for run in runs]
    before, after = (frame[frame.notebook == runs[0].name] for frame in map(load_results, folders))
    assert len(before) > 10
    pd.testing.assert_frame_equal(before.reset_index(drop=True), after, check_exact=True)
    before, after = (sorted((folder / runs[0].name).glob("*.parquet")) for folder in folders)
    assert [path.name for path in before] == [path.name for path in after]
    for pair in zip(before, after, strict=True):
        tables = [pd.read_parquet(path).drop(columns=JUDGED, errors="ignore") for path in pair]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
