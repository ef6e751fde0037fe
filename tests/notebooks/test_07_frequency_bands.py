"""The numbers that 07_frequency_bands records at smoke size: SmolLM2-135M, 4 passages of 128 tokens."""

import numpy as np
import pytest
from oracles import entropy, power, uniform_profile

pytestmark = pytest.mark.notebook

LENGTH = 128
BANDS = ("low_band", "mid_band", "high_band")


def test_the_null_is_the_closed_form(numbers):
    share = power(uniform_profile(LENGTH)) / power(uniform_profile(LENGTH)).sum()
    selectivity = share.max() / (1 - share.max())
    assert numbers["uniform_spectral_entropy"].value == pytest.approx(entropy(share), rel=1e-9)
    assert numbers["uniform_frequency_selectivity"].value == pytest.approx(selectivity, rel=1e-9)
    assert numbers["spectral_entropy"].null == numbers["uniform_spectral_entropy"].value


def test_local_mass_of_the_null_is_the_closed_form(numbers):
    expected = np.mean([min(i + 1, 17) / (i + 1) for i in range(LENGTH)])  # the query itself and 16 before it
    assert numbers["local_mass"].null == pytest.approx(expected, rel=1e-9)


def test_untrained_attention_is_near_uniform(numbers):
    assert numbers["control_spectral_entropy"].value == pytest.approx(0.571, abs=0.03)
    assert numbers["control_frequency_selectivity"].value == pytest.approx(3.205, abs=0.1)
    assert numbers["control_low_band"].value > 0.99


@pytest.mark.parametrize(
    ("name", "expected", "room"),
    [
        # Means of 18 passages at n = 128, and three standard errors of four passages with room for rounding.
        ("low_band", 0.648, 0.040),
        ("mid_band", 0.237, 0.030),
        ("high_band", 0.115, 0.020),
        ("spectral_entropy", 2.633, 0.180),
        ("frequency_selectivity", 0.942, 0.160),
    ],
)
def test_trained_heads_are_where_a_larger_run_found_them(numbers, name, expected, room):
    row = numbers[name]
    assert row.value == pytest.approx(expected, abs=room)
    assert row.low < row.value < row.high
    assert not row.low <= row.null <= row.high, "the model is not uniform attention"


def test_shares_sum_to_one(numbers):
    assert numbers["share_sum_error"].value < 1e-9
    assert sum(numbers[band].value for band in BANDS) == pytest.approx(1, abs=1e-9)
    assert sum(numbers[f"slope_{band}"].value for band in BANDS) == pytest.approx(0, abs=1e-9)
    kinds = [numbers[f"share_{kind}_heads"].value for kind in ("local", "mixed", "global")]
    assert sum(kinds) == pytest.approx(1, abs=1e-9)


def test_the_reading_of_the_signal_decides(numbers):
    low = {name: numbers[name] for name in ("low_band", "low_band_last_query", "low_band_lag_profile")}
    assert low["low_band_last_query"].high < low["low_band"].low
    assert low["low_band"].high < low["low_band_lag_profile"].low
    assert all(row.low < row.high for row in low.values())


# What an independent script, written without this package, found on six other passages of 128 tokens.
EARLIER = {"spectral_entropy": 2.59, "frequency_selectivity": 0.99, "low_band": 0.65, "mid_band": 0.24}


@pytest.mark.parametrize("metric", EARLIER)
def test_an_independent_script_found_the_same_on_other_passages(numbers, metric):
    assert numbers[metric].value == pytest.approx(EARLIER[metric], rel=0.1)


def test_selectivity_orders_heads_as_spectral_entropy_does(numbers):
    assert -1 <= numbers["rank_correlation_S_H_s"].value < -0.95
