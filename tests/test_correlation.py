import numpy as np
import pytest
import torch
from tolerances import TOL

from nbhelpers.stats import partial_correlation, pearson

CLOSE = TOL[torch.float64]


def residual(values, *given):
    """What a least-squares fit on a constant and some variables leaves."""
    design = np.stack([np.ones(len(values)), *given], 1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.fixture
def samples():
    generator = np.random.default_rng(4)
    given = generator.normal(size=(2, 3, 30))
    x = given[0] - 2 * given[1] + generator.normal(size=(3, 30))
    return x, 5 + 3 * given[0] + 0.4 * x + generator.normal(size=(3, 30)), given


def test_partial_correlation_is_that_of_the_residuals(samples):
    x, y, given = samples
    found = partial_correlation(x, y, list(given))
    for row in range(3):
        left = [residual(v[row], *given[:, row]) for v in (x, y)]
        assert found[row] == pytest.approx(np.corrcoef(*left)[0, 1], abs=CLOSE)


def test_partial_correlation_given_one_is_the_closed_form(samples):
    x, y, (z, _) = (v[0] if v.ndim == 2 else v[:, 0] for v in samples)
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_correlation(x, y, [z]) == pytest.approx(expected, abs=CLOSE)


def test_nothing_given_and_constants_given_change_nothing(samples):
    x, y, given = samples
    plain = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(partial_correlation(x, y, []), plain, atol=CLOSE)
    np.testing.assert_allclose(partial_correlation(x, y, [np.log(256.0)]), plain, atol=CLOSE)
    np.testing.assert_allclose(pearson(x, y, axis=1), plain, atol=CLOSE)
    once, twice = partial_correlation(x, y, [given[0]]), partial_correlation(x, y, [given[0], 3 * given[0]])
    np.testing.assert_allclose(once, twice, atol=1e-9)


def test_what_the_given_explains_is_not_a_correlation(samples):
    x, _, (z, _) = samples
    assert np.isnan(partial_correlation(x, 2 * z + 1, [z])).all()
    rounding = 1 + 1e-9 * np.random.default_rng(0).normal(size=x.shape)
    assert np.isnan(partial_correlation(rounding, x, [z])).all()
    common = z + 1e-3 * x
    assert (np.abs(partial_correlation(common, -common + 2 * z, [z])) > 0.999).all()


def test_scale_and_sign_of_the_given_do_not_matter(samples):
    x, y, given = samples
    expected = partial_correlation(x, y, list(given))
    moved = [1e6 * given[0] + 1e3, -1e-6 * given[1]]
    np.testing.assert_allclose(partial_correlation(1e-5 * x, 1e4 * y, moved), expected, atol=1e-9)


def test_observations_that_are_not_known_are_left_out(samples):
    x, y, given = (v.copy() for v in samples)
    x[0, 3], y[1, 5], given[0, 2, 7] = np.nan, np.inf, np.nan
    found = partial_correlation(x, y, [given[0]])
    for row, hole in enumerate((3, 5, 7)):
        kept = [np.delete(v[row], hole) for v in (x, y, given[0])]
        assert found[row] == pytest.approx(partial_correlation(*kept[:2], [kept[2]]), abs=CLOSE)


def test_too_few_observations_and_unequal_shapes():
    x, y, z = np.random.default_rng(1).normal(size=(3, 4))
    assert np.isfinite(partial_correlation(x, y, [z]))
    assert np.isnan(partial_correlation(x[:3], y[:3], [z[:3]]))
    with pytest.raises(ValueError, match=r"one shape, got x \(4,\), y \(3,\)"):
        partial_correlation(x, y[:3], [])


def test_input_is_left_as_it_was(samples):
    before = [v.copy() for v in samples]
    partial_correlation(samples[0], samples[1], list(samples[2]))
    assert all((a == b).all() for a, b in zip(samples, before, strict=True))
