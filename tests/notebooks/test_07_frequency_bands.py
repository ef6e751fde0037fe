from oracles import assert_near


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
