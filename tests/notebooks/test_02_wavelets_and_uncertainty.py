import pytest
from oracles import assert_near, uniform_row_correlation

LENGTH = 128  # the notebook's default, kept at smoke size


def test_correlations_of_rows_that_learned_nothing(numbers):
    drawn = {"": (-0.91, 0.04), "_wide": (-0.88, 0.05), "_demeaned": (-0.39, 0.25)}  # of 20,000 draws
    assert_near(numbers, {f"rho_dirichlet_hann{which}": near for which, near in drawn.items()})
    near = {"rho_exponential_hann": (-0.98, 0.01), "rho_exponential_boxcar_demeaned": (-0.996, 0.003)}
    assert_near(numbers, near)


@pytest.mark.parametrize("demeaned", [False, True])
@pytest.mark.parametrize("window", ["hann", "boxcar"])
def test_correlation_of_uniform_causal_rows_is_that_of_a_slow_loop(numbers, window, demeaned):
    expected = uniform_row_correlation(LENGTH, window, demeaned=demeaned, least=2)
    name = f"rho_uniform_{window}" + "_demeaned" * demeaned
    assert numbers[name].value == pytest.approx(expected, rel=1e-6)
