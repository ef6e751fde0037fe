import pytest
from oracles import assert_near, uniform_row_correlation

LENGTH = 128


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
    assert verdict("C6", numbers) == "explained by the null"


def test_nulls_are_negative_too(tables):
    layer = tables["nulls"][tables["nulls"].metric == "over the heads of a layer"].set_index("row")
    numbered = layer[layer.index.str.match(r"N\d")]
    assert len(numbered) == 7
    assert (numbered.value < -0.1).all(), "even what keeps nothing but N_eff has ρ < 0"
    assert layer.value["N4 exponential"] < layer.value["smollm2-135m"] < layer.value["N1 random weights"]


def test_the_sign_over_rows_the_slack_and_what_is_left_given_the_support(numbers):
    assert numbers["rho_rows_hann_mean"].low > 0 > numbers["rho_rows_hann_none"].high
    assert_near(numbers, {"slack_model": (1.05, 0.06), "slack_less_N2": (0, 0.02)})
    assert numbers["slack_N3"].value > numbers["slack_model"].value > numbers["slack_N4"].value
    name = "partial_rho_{}_one_length_given_support"
    assert abs(numbers[name.format("N3")].value) < 0.15
    assert numbers[name.format("model")].high < numbers[name.format("N3")].low
    assert numbers[name.format("N1")].value < numbers[name.format("model")].value, "controls are beyond it"
