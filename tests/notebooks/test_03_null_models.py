import pytest
from oracles import scale_sensitivities, uniform_profile

KNOWN = {32: (0.035, 0.087), 64: (0.031, 0.082), 128: (0.026, 0.073), 256: (0.023, 0.065)}


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "zero"])
@pytest.mark.parametrize("n", KNOWN)
def test_uniform_attention_is_the_closed_form(numbers, n, mode):
    expected = scale_sensitivities([uniform_profile(n // k) for k in (1, 2, 4)], mode)
    names = [f"uniform_S({alpha})_{n}_{mode}_concatenate-truncate" for alpha in (0.5, 0.25)]
    found = [numbers[name].value for name in names]
    assert found == pytest.approx(expected, abs=1e-9)
    if mode == "symmetric":
        assert found == pytest.approx(KNOWN[n], abs=6e-4)


def test_nulls_destroy_what_they_say(tables):
    metrics = tables["metrics_and_nulls"].set_index("metric")
    assert abs(metrics.loc["low_band", "N2 permuted"] - metrics.loc["low_band", "model"]) > 0.05
    assert metrics.loc["low_band", "N1 random weights"] > 0.98 > metrics.loc["low_band", "model"]
    assert metrics.loc["sink_mass", "N2 permuted"] < 0.1 < metrics.loc["sink_mass", "model"]
