import itertools

import numpy as np
import pytest
from refusals import refusals
from scipy import stats as scipy_stats

from nbhelpers.stats import partial_correlation
from nbhelpers.zoo import dynamics as dy

SCORES = np.random.default_rng(1).normal(size=(3, 8, 20))  # three scores of 8 heads at 20 steps


def test_peaks_and_rises():
    curves = [[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]
    assert dy.interior_peak(curves) == pytest.approx([1, 0, 0])
    assert dy.rise(curves) == pytest.approx([1, 2, -1])


def test_what_is_linear_in_the_scores_is_explained_and_the_rest_is_that_of_partial_correlation():
    values = 2 + 3 * SCORES[0] - SCORES[1]
    left = dy.unexplained(values, [*SCORES, np.ones_like(values)])  # a constant score changes nothing
    assert left.explained == pytest.approx(1)
    assert left.rest == pytest.approx(np.full_like(values, values.mean()))
    assert left.curve_left == pytest.approx(0, abs=1e-12)
    generator = np.random.default_rng(4)
    values, other = (SCORES.sum(0) + generator.normal(size=(8, 20)) for _ in range(2))
    rests = [dy.unexplained(v, SCORES).rest.ravel() for v in (values, other)]
    expected = partial_correlation(values.ravel(), other.ravel(), [score.ravel() for score in SCORES])
    assert np.corrcoef(*rests)[0, 1] == pytest.approx(expected)


def test_a_phase_that_no_score_has_is_left():
    bump = np.exp(-((np.arange(20) - 10.0) ** 2) / 8)
    scores = SCORES - SCORES.mean(1, keepdims=True)  # their mean curves are flat
    left = dy.unexplained(scores[0] + 2 * bump, scores)
    assert dy.interior_peak(left.rest.mean(0)) > 1.5
    assert left.curve_left > 0.95


X = np.log10(np.unique(np.round(np.geomspace(1, 3000, 44))))  # checkpoints as the zoo has them


def ramps(x, *edges):
    """1 higher after each (start, end), straight between."""
    return sum(np.clip((x - a) / (b - a), 0, 1) for a, b in edges)


def noise(scale, seed=0, shape=X.shape):
    return np.random.default_rng(seed).normal(0, scale, shape)


def least_squares(x, y, knots):
    basis = np.stack([np.ones_like(x), x, *(np.clip(x - k, 0, None) for k in knots)], 1)
    return np.sum((y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]) ** 2)


@pytest.mark.parametrize("n_knots", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_knots_are_those_of_an_exhaustive_search(n_knots, seed):
    x = np.linspace(0, 3, 20)
    y = ramps(x, (0.8, 1.4)) + noise(0.15, seed, 20)
    places = itertools.combinations(range(2, 18), n_knots)
    places = [list(some) for some in places if min(np.diff(some), default=2) >= 2]
    best = min(least_squares(x, y, x[some]) for some in places)
    fit = dy.piecewise_linear(x, y, n_knots=n_knots)
    assert len(fit.knots) == n_knots
    assert np.sum((y - fit.fitted) ** 2) == pytest.approx(best, rel=1e-9)
    assert least_squares(x, y, fit.knots) == pytest.approx(best, rel=1e-9)


def test_rising_steps_are_those_planted():
    for curve, begins in (
        (noise(0.01), []),
        (3 * X, []),  # a straight line has no change
        (1 - ramps(X, (1.0, 2.0)), []),  # a fall
        (ramps(X, (1.5, 2.2)) + noise(0.01), [1.5]),
        (ramps(X, (1.0, 1.5), (2.4, 3.0)) + noise(0.01), [1.0, 2.4]),
        (1 / (1 + np.exp(-(X - 2.0) / 0.12)), [1.75]),  # smooth: more knots than phases
    ):
        assert dy.rising_steps(X, dy.piecewise_linear(X, curve)) == pytest.approx(np.array(begins), abs=0.2)


def test_intervals_hold_the_planted_knots_and_counts():
    planted = X[[6, 12, 21, 28]]
    curves = ramps(X, planted[:2], planted[2:]) + noise(0.04, 3, (3, 12, len(X)))
    breakpoints = dy.breakpoints_with_intervals(X, curves)
    assert breakpoints.n_rising[:3] == (2, 2, 2)
    assert len(breakpoints.fit.knots) == 4
    for low, high, true in zip(*breakpoints.knots[1:3], planted, strict=True):
        assert low - 1e-9 <= true <= high + 1e-9
        assert high - low < 0.4


def test_the_advantage_is_over_the_best_other_paired_by_seed():
    shared = np.array([0.0, 0.4, 0.8])  # what a seed does to all arms cancels
    values = {"alibi": shared + 0.30, "rope": shared + np.array([0.10, 0.11, 0.12]), "t5": shared + 0.25}
    found, best = dy.advantage(values, "rope", n_draws=500)
    assert best == "t5"
    assert found.value == pytest.approx(-0.14)
    assert found.high < -0.11
    assert found.p_value < 0.1


def test_the_null_of_the_advantage_is_the_mean_over_all_exchanges():
    values = {"rope": [0.1, 0.5, 0.2], "nope": [0.3, 0.1, 0.9], "t5": [0.7, 0.2, 0.4]}
    table = np.array(list(values.values()))
    exchanged = []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        means = np.mean([table[list(order), seed] for seed, order in enumerate(orders)], 0)
        exchanged.append(means[0] - means[1:].min())
    found, _ = dy.advantage(values, "rope", n_draws=20_000)
    assert found.null == pytest.approx(np.mean(exchanged), abs=0.005)
    observed = table[0].mean() - table[1:].mean(1).min()
    assert found.p_value == pytest.approx(np.mean(np.array(exchanged) <= observed + 1e-12), abs=0.02)


def test_the_correlation_is_spearmans_its_p_value_counts_every_order_and_seeds_are_no_more_evidence():
    x = noise(1, 2, (4, 3))
    y = x + noise(0.8, 3, (4, 3))
    found = dy.clustered_rank_correlation(x.ravel(), y.ravel(), np.repeat(list("abcd"), 3))
    assert found.value == pytest.approx(scipy_stats.spearmanr(x.ravel(), y.ravel()).statistic)
    orders = itertools.permutations(range(4))
    every = [scipy_stats.spearmanr(x.ravel(), y[list(order)].ravel()).statistic for order in orders]
    assert found.p_value == pytest.approx(np.mean(np.abs(every) >= abs(found.value) - 1e-9))
    assert found.n == 4
    assert found.low <= found.value <= found.high
    x, y = np.arange(6.0), np.array([0.0, 2, 1, 3, 5, 4])
    once = dy.clustered_rank_correlation(x, y, list("abcdef"))
    thrice = dy.clustered_rank_correlation(x.repeat(3), y.repeat(3), list("aaabbbcccdddeeefff"))
    assert thrice[:3] == pytest.approx(once[:3])
    assert thrice.p_value == pytest.approx(once.p_value)


SIZES = np.array([2e5, 5e5, 1.05e6, 2.2e6, 5e6])


def sized(departure=0.0, *, slope=0.3, at=2, sd=0.05, n_seeds=3, seed=0):
    values = slope * np.log10(SIZES)[:, None] + noise(sd, seed, (len(SIZES), n_seeds))
    values[at] += departure
    return values


def test_the_slope_is_that_of_linregress_and_departures_are_from_a_line_through_the_others():
    values = sized()
    found = dy.trend_per_decade(SIZES, values)
    every = [scipy_stats.linregress(np.log10(SIZES), column).slope for column in values.T]
    assert found.value == pytest.approx(np.mean(every))
    assert found[1:3] == pytest.approx(scipy_stats.ttest_1samp(every, 0).confidence_interval(0.95)[:])
    assert found.null == pytest.approx(0, abs=1e-12)
    assert found.p_value == pytest.approx(1 / 120, abs=0.01)
    means = np.random.default_rng(3).normal(size=len(SIZES))
    for at, found in enumerate(dy.departures(SIZES, means)):
        rest = np.delete(np.arange(len(SIZES)), at)
        line = np.polyfit(np.log10(SIZES[rest]), means[rest], 1)
        assert found == pytest.approx(means[at] - np.polyval(line, np.log10(SIZES[at])))


def test_a_planted_outlier_is_found_in_its_own_unit_and_seeds_alone_depart_as_the_null_says():
    found = dy.largest_departure(SIZES, sized(0.6, sd=0.03), n_draws=500)
    assert found.at == 2
    assert found.sd == pytest.approx(np.sqrt(sized(sd=0.03).var(1, ddof=1).mean())), "pooled over sizes"
    assert found.estimate.value * found.sd == pytest.approx(0.6, abs=0.12)
    assert found.estimate.low > 3 > found.estimate.null
    assert found.estimate.p_value < 0.01
    found = [dy.largest_departure(SIZES, sized(seed=k), n_draws=199, seed=k).estimate for k in range(400)]
    assert np.mean([f.value for f in found]) == pytest.approx(found[0].null, rel=0.1)
    assert 0.03 < np.mean([f.p_value <= 0.05 for f in found]) < 0.075


@pytest.mark.parametrize("departure", [0.15, 0.4])
def test_intervals_hold_the_departure_of_a_size(departure):
    found = [dy.largest_departure(SIZES, sized(departure, seed=k), n_draws=1).estimate for k in range(400)]
    assert 0.93 <= np.mean([f.low <= departure / 0.05 <= f.high for f in found]) <= 0.98


def test_two_knots_are_one_event_only_by_a_test():
    near, far = np.array([1.00, 1.05, 0.98]), np.array([2.00, 2.06, 1.97])
    assert dy.same_event(near, np.add(near, [0.02, 0.01, 0.03]))[1] == "one"
    apart, events = dy.same_event(near, far)
    assert (apart.value, events) == (pytest.approx(-1.0), "two")
    assert dy.same_event(near, np.add(near, [0.3, -0.2, 0.5]))[1] == "open", "though intervals overlap"


def crossed(effects, *, seed_sd, noise_sd, n_seeds=3, seed=0):
    generator = np.random.default_rng(seed)
    seeds = generator.normal(0, seed_sd, n_seeds)
    arms = zip("abcdefg", effects, strict=False)
    return {arm: effect + seeds + generator.normal(0, noise_sd, n_seeds) for arm, effect in arms}


def test_tests_and_variance_of_a_factor_are_those_of_a_two_way_analysis():
    values = crossed([0, 0.3, 0.1, 0.5], seed_sd=1.0, noise_sd=0.2, n_seeds=4, seed=7)
    table = np.stack(list(values.values()))
    between = 4 * ((table.mean(1) - table.mean()) ** 2).sum() / 3
    rest = ((table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()) ** 2).sum()
    found = dy.variance_share(values, dy.Factor.levels("arm", values))
    assert found.residual == pytest.approx(rest / 9)
    assert found.share.p_value == pytest.approx(scipy_stats.f.sf(between / (rest / 9), 3, 9))
    values = crossed([0.0, 0.4], seed_sd=2.0, noise_sd=0.2, n_seeds=6, seed=1)
    share = dy.variance_share(values, dy.Factor.difference("bos", ["b"], ["a"])).share
    assert share.p_value == pytest.approx(scipy_stats.ttest_rel(values["b"], values["a"]).pvalue)
    effects = np.array([0.0, 0.5, -0.5, 1.0, -1.0])
    tables = (crossed(effects, seed_sd=0.7, noise_sd=0.6, seed=k) for k in range(400))
    found = [dy.variance_share(values, dy.Factor.levels("arm", values)).variance for values in tables]
    assert np.mean(found) == pytest.approx(effects.var(), abs=3 * np.std(found) / 20)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_intervals_cover_the_share(scale):
    effects, noise_sd = scale * np.array([0.0, 0.4, -0.4, 0.8, -0.8, 0.2, -0.2]), 0.5
    true = effects.var() / (effects.var() + noise_sd**2)
    tables = (crossed(effects, seed_sd=1.0, noise_sd=noise_sd, seed=k) for k in range(200))
    shares = [dy.variance_share(values, dy.Factor.levels("encoding", values)).share for values in tables]
    # Of 200 at 95 %, fewer than 181 happens once in 1,000.
    assert sum(share.low <= true <= share.high for share in shares) >= 181


def test_factors_of_two_levels_have_the_variance_of_their_levels():
    values = {"a": np.zeros(3), "b": np.ones(3), "c": np.full(3, 3.0), "d": np.full(3, 4.0)}
    found = dy.variance_share(values, dy.Factor.difference("mask", ["c", "d"], ["a", "b"]))
    assert found.variance == pytest.approx(np.var([0.0, 3.0]))
    assert (*found.share[:3], found.share.p_value) == (1, 1, 1, 0)
    none = dy.variance_share({"a": X[:3], "b": X[:3]}, dy.Factor.levels("x", ["a", "b"])).share
    assert (none.value, none.p_value) == (0, 1)


FACTOR = dy.Factor.levels("x", ["a", "b"])


test_what_cannot_be_measured_is_refused = refusals(
    (lambda: dy.interior_peak([1.0]), "at least 2 steps"),
    (lambda: dy.unexplained(np.ones((8, 20)), [np.ones((8, 5))]), r"one \(head, step\)"),
    (lambda: dy.piecewise_linear(X[::-1], X), "must rise"),
    (lambda: dy.piecewise_linear(X, np.full(len(X), np.nan)), "NaN or infinite"),
    (lambda: dy.piecewise_linear(X[:5], X[:5]), "at least 6"),
    (lambda: dy.breakpoints_with_intervals(X, np.zeros((3, len(X)))), "seed, sequence, point"),
    (lambda: dy.advantage({"t5": [1.0, 2, 3]}, "rope"), "'rope' and another arm .* got t5"),
    (lambda: dy.clustered_rank_correlation(X[:6], X[:6], list("aaabbc")), "4 to 7 clusters"),
    (lambda: dy.trend_per_decade(SIZES[:3], sized()[:3]), "at least 4 sizes"),
    (lambda: dy.trend_per_decade(SIZES, sized()[:, :2]), "at least 3 seeds"),
    (lambda: dy.largest_departure(np.full(5, 1e6), sized()), "different"),
    (lambda: dy.largest_departure(SIZES, np.full((5, 3), np.nan)), "not finite"),
    (lambda: dy.largest_departure(SIZES, np.ones((5, 3))), "do not differ"),
    (lambda: dy.variance_share({"a": [1.0, 2], "b": [1, 3]}, FACTOR), "at least 2 arms"),
    (lambda: dy.variance_share({"a": [1.0, 2, 3], "b": [1, np.nan, 3]}, FACTOR), "1 of 6"),
    (lambda: dy.variance_share({"a": X[:3], "b": X[1:4]}, dy.Factor.levels("x", "bc")), "arms c"),
    error=(ValueError, KeyError),
)
