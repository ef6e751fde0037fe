"""Numbers recorded by 02_wavelets_and_uncertainty against a slow loop and stated expectations."""

import math

import numpy as np
import pytest
from oracles import entropy, power

pytestmark = pytest.mark.notebook

LENGTH = 128  # the notebook's default, kept at smoke size


@pytest.mark.parametrize(
    ("name", "expected", "margin"),
    [
        ("rho_dirichlet_hann", -0.91, 0.04),  # 20 000 draws: -0.913
        ("rho_dirichlet_hann_wide", -0.88, 0.05),  # 20 000 draws: -0.883
        ("rho_dirichlet_hann_demeaned", -0.39, 0.25),  # 20 000 draws: -0.391
        ("rho_exponential_hann", -0.98, 0.01),
        ("rho_exponential_boxcar_demeaned", -0.996, 0.003),
    ],
)
def test_correlations_of_rows_that_learned_nothing(numbers, name, expected, margin):
    assert numbers[name].value == pytest.approx(expected, abs=margin)


@pytest.mark.parametrize(
    ("window", "demeaned"), [("hann", False), ("boxcar", False), ("hann", True), ("boxcar", True)]
)
def test_correlation_of_uniform_causal_rows_is_that_of_a_slow_loop(numbers, window, demeaned):
    pairs = [_entropies(n_seen, window, demeaned) for n_seen in range(2, LENGTH + (not demeaned))]
    expected = np.corrcoef(np.transpose(pairs))[0, 1]
    name = f"rho_uniform_{window}" + "_demeaned" * demeaned
    assert numbers[name].value == pytest.approx(expected, rel=1e-6)


def _entropies(n_seen, window, demeaned):
    """Return H_p and H_s of a row that is uniform over its first `n_seen` keys, by numpy."""
    row = np.where(np.arange(LENGTH) < n_seen, 1 / n_seen, 0.0)
    signal = row - row.mean() if demeaned else row
    return math.log(n_seen), entropy(power(signal, window))
