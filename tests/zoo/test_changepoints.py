import itertools

import numpy as np
import pytest

from nbhelpers.zoo.changepoints import breakpoints_with_intervals, piecewise_linear, rising_steps

X = np.log10(np.unique(np.round(np.geomspace(1, 3000, 44))))  # checkpoints as the zoo has them


def ramps(x, *edges):
    """1 higher after each (start, end), straight between, flat elsewhere."""
    return sum(np.clip((x - a) / (b - a), 0, 1) for a, b in edges)


def sigmoids(x, *centres, width=0.12):
    return sum(1 / (1 + np.exp(-(x - centre) / width)) for centre in centres)


def noise(scale, seed=0, n=None):
    return np.random.default_rng(seed).normal(0, scale, n or len(X))


def least_squares(x, y, knots):
    """Residual sum of squares of the best continuous curve with these knots, by plain lstsq."""
    basis = np.stack([np.ones_like(x), x, *(np.clip(x - k, 0, None) for k in knots)], 1)
    return np.sum((y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]) ** 2)


@pytest.mark.parametrize("n_knots", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_knots_are_those_of_an_exhaustive_search(n_knots, seed):
    x = np.linspace(0, 3, 20)
    y = ramps(x, (0.8, 1.4)) + noise(0.15, seed, 20)
    places = [
        some for some in itertools.combinations(range(2, 18), n_knots) if min(np.diff(some), default=2) >= 2
    ]
    best = min(least_squares(x, y, x[list(some)]) for some in places)
    fit = piecewise_linear(x, y, n_knots=n_knots)
    assert len(fit.knots) == n_knots
    assert np.sum((y - fit.fitted) ** 2) == pytest.approx(best, rel=1e-9)
    assert least_squares(x, y, fit.knots) == pytest.approx(best, rel=1e-9)


def test_an_exact_ramp_is_found_exactly():
    start, end = X[15], X[30]
    fit = piecewise_linear(X, ramps(X, (start, end)))
    assert fit.knots == pytest.approx([start, end])
    assert fit.slopes == pytest.approx([0, 1 / (end - start), 0], abs=1e-9)


@pytest.mark.parametrize(
    ("curve", "begins"),
    [
        (np.full(len(X), 2.5), []),
        (noise(0.01), []),
        (3 * X, []),  # a straight line has no change
        (1 - ramps(X, (1.0, 2.0)), []),  # a fall
        (ramps(X, (1.5, 2.2)) + noise(0.01), [1.5]),
        (ramps(X, (1.0, 1.5), (2.4, 3.0)) + noise(0.01), [1.0, 2.4]),
        (sigmoids(X, 2.0), [1.75]),  # smooth: more knots than phases
        (sigmoids(X, 1.6, 2.9) + noise(0.005), [1.4, 2.6]),
    ],
)
def test_rising_steps_are_those_planted(curve, begins):
    found = rising_steps(X, piecewise_linear(X, curve))
    assert len(found) == len(begins)
    assert found == pytest.approx(begins, abs=0.2)


def test_intervals_hold_the_planted_knots_and_counts():
    planted = X[[6, 12, 21, 28]]
    curve = ramps(X, planted[:2], planted[2:])
    generator = np.random.default_rng(3)
    curves = curve + generator.normal(0, 0.04, (3, 12, len(X)))
    breakpoints = breakpoints_with_intervals(X, curves, n_boot=60, seed=1)
    assert (breakpoints.n_rising, breakpoints.n_rising_low, breakpoints.n_rising_high) == (2, 2, 2)
    assert len(breakpoints.fit.knots) == 4
    for low, high, true in zip(breakpoints.low, breakpoints.high, planted, strict=True):
        assert low - 1e-9 <= true <= high + 1e-9
        assert high - low < 0.4


def test_the_same_seed_gives_the_same_intervals_and_a_noisier_curve_wider_ones():
    generator = np.random.default_rng(0)
    unit = generator.normal(0, 1, (3, 8, len(X)))
    quiet, loud = (ramps(X, (1.4, 2.4)) + scale * unit for scale in (0.02, 0.3))
    first, again = (breakpoints_with_intervals(X, quiet, n_boot=40, seed=5) for _ in range(2))
    assert np.array_equal(first.low, again.low)
    wider = breakpoints_with_intervals(X, loud, n_boot=40, seed=5)
    assert (first.high - first.low).mean() < (wider.high - wider.low).mean()


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (X[::-1], X, "must rise"),
        (X, np.full(len(X), np.nan), "43 of 43|[0-9]+ of [0-9]+ values"),
        (X[:5], X[:5], "at least 6"),
        (X, X[:-1], "shapes"),
    ],
)
def test_wrong_input_is_refused(x, y, told):
    with pytest.raises(ValueError, match=told):
        piecewise_linear(x, y)


def test_curves_need_seeds_and_sequences():
    with pytest.raises(ValueError, match="seed, sequence, point"):
        breakpoints_with_intervals(X, np.zeros((3, len(X))))
