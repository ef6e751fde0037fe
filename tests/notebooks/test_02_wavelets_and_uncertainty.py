"""Numbers recorded by 02_wavelets_and_uncertainty against closed forms, bounds and stated expectations."""

import math

import numpy as np
import pytest
from oracles import entropy, power

pytestmark = pytest.mark.notebook

LENGTH = 128  # the notebook's default, kept at smoke size


@pytest.fixture(scope="module")
def numbers(recorded):
    return recorded("02_wavelets_and_uncertainty")


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("selectivity_identity_error", 1e-9),
        ("hann_entropy_change_by_sink", 1e-12),
        ("entropic_slack_comb", 1e-11),
        ("difference_zero_frequency_share", 1e-24),
        ("gabor_impulse_product", 1e-12),
        ("gabor_gaussian_gap", 1e-4),
    ],
)
def test_identities_hold_to_rounding(numbers, name, largest):
    assert 0 <= numbers[name].value < largest


def test_impulse_has_the_entropy_of_a_flat_spectrum(numbers):
    assert numbers["impulse_spectral_entropy"].value == pytest.approx(math.log(LENGTH // 2 + 1), rel=1e-12)


def test_sink_is_seen_without_a_window(numbers):
    assert numbers["hann_entropy_change_by_sink"].null > 1


def test_entropic_bound_is_kept_and_reached(numbers):
    """The combs reach the bound, so the smallest slack is rounding: neither below it nor far above."""
    assert abs(numbers["entropic_slack_min"].value) < 1e-11


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reconstruction_error_is_the_rounding_of_the_dtype(numbers, dtype):
    found = numbers[f"reconstruction_error_{np.dtype(dtype).name}"]
    eps = np.finfo(dtype).eps
    assert 0.1 * eps < found.value < 10 * eps
    assert found.high < 20 * eps
    assert found.null == pytest.approx(found.value, rel=0.7), (
        "white noise is reconstructed as well as attention"
    )


def test_every_row_is_a_low_pass_and_a_difference_is_not(numbers):
    assert numbers["row_zero_frequency_share"].value == pytest.approx(1, rel=1e-9)
    assert numbers["difference_peak"].value == pytest.approx(1 / (2 * math.pi * math.sqrt(2 * 12)), rel=0.05)


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


def test_preprocessing_sets_the_sign(numbers):
    assert numbers["rho_exponential_hann"].high < -0.9
    assert numbers["rho_exponential_hann_demeaned"].low > 0.1
    assert numbers["rho_uniform_hann_demeaned"].value > 0 > numbers["rho_uniform_boxcar_demeaned"].value


def _entropies(n_seen, window, demeaned):
    """Return H_p and H_s of a row that is uniform over its first `n_seen` keys, by numpy."""
    row = np.where(np.arange(LENGTH) < n_seen, 1 / n_seen, 0.0)
    signal = row - row.mean() if demeaned else row
    return math.log(n_seen), entropy(power(signal, window))
