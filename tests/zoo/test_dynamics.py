import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from nbhelpers.claims.paper import paper_table
from nbhelpers.stats import partial_correlation
from nbhelpers.zoo.dynamics import (
    Factor,
    advantage,
    breakpoints_with_intervals,
    clustered_rank_correlation,
    departures,
    interior_peak,
    largest_departure,
    piecewise_linear,
    rise,
    rising_steps,
    same_event,
    trend_per_decade,
    unexplained,
    variance_share,
)

SCORES = np.random.default_rng(1).normal(size=(3, 8, 20))  # three scores of 8 heads at 20 steps


def test_peaks_and_rises():
    curves = [[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]
    assert interior_peak(curves) == pytest.approx([1, 0, 0])
    assert rise(curves) == pytest.approx([1, 2, -1])


def test_what_is_linear_in_the_scores_is_explained_whole():
    values = 2 + 3 * SCORES[0] - SCORES[1]
    left = unexplained(values, [*SCORES, np.ones_like(values)])  # a constant score changes nothing
    assert left.explained == pytest.approx(1)
    assert left.rest == pytest.approx(np.full_like(values, values.mean()))
    assert left.curve_left == pytest.approx(0, abs=1e-12)


def test_the_rest_is_that_of_partial_correlation():
    generator = np.random.default_rng(4)
    values, other = (SCORES.sum(0) + generator.normal(size=(8, 20)) for _ in range(2))
    rests = [unexplained(v, SCORES).rest.ravel() for v in (values, other)]
    expected = partial_correlation(values.ravel(), other.ravel(), [score.ravel() for score in SCORES])
    assert np.corrcoef(*rests)[0, 1] == pytest.approx(expected)


def test_a_phase_that_no_score_has_is_left():
    bump = np.exp(-((np.arange(20) - 10.0) ** 2) / 8)
    scores = SCORES - SCORES.mean(1, keepdims=True)  # their mean curves are flat
    left = unexplained(scores[0] + 2 * bump, scores)
    assert interior_peak(left.rest.mean(0)) > 1.5
    assert left.curve_left > 0.95


X = np.log10(np.unique(np.round(np.geomspace(1, 3000, 44))))  # checkpoints as the zoo has them


def ramps(x, *edges):
    """1 higher after each (start, end), straight between."""
    return sum(np.clip((x - a) / (b - a), 0, 1) for a, b in edges)


def noise(scale, seed=0, shape=X.shape):
    return np.random.default_rng(seed).normal(0, scale, shape)


def least_squares(x, y, knots):
    """Residual sum of squares of the best continuous curve with these knots, by plain lstsq."""
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
    fit = piecewise_linear(x, y, n_knots=n_knots)
    assert len(fit.knots) == n_knots
    assert np.sum((y - fit.fitted) ** 2) == pytest.approx(best, rel=1e-9)
    assert least_squares(x, y, fit.knots) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("curve", "begins"),
    [
        (noise(0.01), []),
        (3 * X, []),  # a straight line has no change
        (1 - ramps(X, (1.0, 2.0)), []),  # a fall
        (ramps(X, (1.5, 2.2)) + noise(0.01), [1.5]),
        (ramps(X, (1.0, 1.5), (2.4, 3.0)) + noise(0.01), [1.0, 2.4]),
        (1 / (1 + np.exp(-(X - 2.0) / 0.12)), [1.75]),  # smooth: more knots than phases
    ],
)
def test_rising_steps_are_those_planted(curve, begins):
    assert rising_steps(X, piecewise_linear(X, curve)) == pytest.approx(np.array(begins), abs=0.2)


def test_an_exact_ramp_is_found_exactly():
    start, end = X[15], X[30]
    fit = piecewise_linear(X, ramps(X, (start, end)))
    assert fit.knots == pytest.approx([start, end])
    assert fit.slopes == pytest.approx([0, 1 / (end - start), 0], abs=1e-9)


def test_intervals_hold_the_planted_knots_and_counts():
    planted = X[[6, 12, 21, 28]]
    curves = ramps(X, planted[:2], planted[2:]) + noise(0.04, 3, (3, 12, len(X)))
    breakpoints = breakpoints_with_intervals(X, curves)
    assert breakpoints.n_rising[:3] == (2, 2, 2)
    assert len(breakpoints.fit.knots) == 4
    for low, high, true in zip(*breakpoints.knots[1:3], planted, strict=True):
        assert low - 1e-9 <= true <= high + 1e-9
        assert high - low < 0.4


def test_the_advantage_is_over_the_best_other_paired_by_seed():
    shared = np.array([0.0, 0.4, 0.8])  # what a seed does to all arms cancels
    values = {"alibi": shared + 0.30, "rope": shared + np.array([0.10, 0.11, 0.12]), "t5": shared + 0.25}
    found, best = advantage(values, "rope", n_draws=500)
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
    found, _ = advantage(values, "rope", n_draws=20_000)
    assert found.null == pytest.approx(np.mean(exchanged), abs=0.005)
    observed = table[0].mean() - table[1:].mean(1).min()
    assert found.p_value == pytest.approx(np.mean(np.array(exchanged) <= observed + 1e-12), abs=0.02)


def test_the_correlation_is_spearmans_and_its_p_value_counts_every_order():
    x = noise(1, 2, (4, 3))
    y = x + noise(0.8, 3, (4, 3))
    found = clustered_rank_correlation(x.ravel(), y.ravel(), np.repeat(list("abcd"), 3))
    assert found.value == pytest.approx(scipy_stats.spearmanr(x.ravel(), y.ravel()).statistic)
    orders = itertools.permutations(range(4))
    every = [scipy_stats.spearmanr(x.ravel(), y[list(order)].ravel()).statistic for order in orders]
    assert found.p_value == pytest.approx(np.mean(np.abs(every) >= abs(found.value) - 1e-9))
    assert found.n == 4
    assert found.low <= found.value <= found.high


def test_seeds_of_an_arm_are_not_more_evidence():
    x, y = np.arange(6.0), np.array([0.0, 2, 1, 3, 5, 4])
    once = clustered_rank_correlation(x, y, list("abcdef"))
    thrice = clustered_rank_correlation(x.repeat(3), y.repeat(3), list("aaabbbcccdddeeefff"))
    assert thrice[:3] == pytest.approx(once[:3])
    assert thrice.p_value == pytest.approx(once.p_value)


SIZES = np.array([2e5, 5e5, 1.05e6, 2.2e6, 5e6])


def sized(departure=0.0, *, slope=0.3, at=2, sd=0.05, n_seeds=3, seed=0):
    """Values (size, seed) on a line over log10 size; one size is off it."""
    values = slope * np.log10(SIZES)[:, None] + noise(sd, seed, (len(SIZES), n_seeds))
    values[at] += departure
    return values


def test_the_slope_is_that_of_linregress():
    values = sized()
    found = trend_per_decade(SIZES, values)
    every = [scipy_stats.linregress(np.log10(SIZES), column).slope for column in values.T]
    assert found.value == pytest.approx(np.mean(every))
    assert found[1:3] == pytest.approx(scipy_stats.ttest_1samp(every, 0).confidence_interval(0.95)[:])
    assert found.null == pytest.approx(0, abs=1e-12)
    assert found.p_value == pytest.approx(1 / 120, abs=0.01)


def test_departures_are_from_a_line_through_the_others():
    means = np.random.default_rng(3).normal(size=len(SIZES))
    for at, found in enumerate(departures(SIZES, means)):
        rest = np.delete(np.arange(len(SIZES)), at)
        line = np.polyfit(np.log10(SIZES[rest]), means[rest], 1)
        assert found == pytest.approx(means[at] - np.polyval(line, np.log10(SIZES[at])))


def test_the_paper_departs_most_at_2_8b():
    table = paper_table(6)
    sizes = table.params.map(lambda p: float(p[:-1]) * {"M": 1e6, "B": 1e9}[p[-1]])
    found = departures(sizes, table.spectral_entropy)
    assert table.params[int(np.abs(found).argmax())] == "2.8B"
    assert found.max() > 0.9


def test_a_planted_outlier_is_found_in_its_own_unit():
    found = largest_departure(SIZES, sized(0.6, sd=0.03), n_draws=500)
    assert found.at == 2
    assert found.sd == pytest.approx(np.sqrt(sized(sd=0.03).var(1, ddof=1).mean())), "pooled over sizes"
    assert found.estimate.value * found.sd == pytest.approx(0.6, abs=0.12)
    assert found.estimate.low > 3 > found.estimate.null
    assert found.estimate.p_value < 0.01


def test_seeds_alone_depart_as_the_null_says():
    found = [largest_departure(SIZES, sized(seed=k), n_draws=199, seed=k).estimate for k in range(400)]
    assert np.mean([f.value for f in found]) == pytest.approx(found[0].null, rel=0.1)
    assert 0.03 < np.mean([f.p_value <= 0.05 for f in found]) < 0.075


@pytest.mark.parametrize("departure", [0.15, 0.4])
def test_intervals_hold_the_departure_of_a_size(departure):
    found = [largest_departure(SIZES, sized(departure, seed=k), n_draws=1).estimate for k in range(400)]
    assert 0.93 <= np.mean([f.low <= departure / 0.05 <= f.high for f in found]) <= 0.98


def test_two_knots_are_one_event_only_by_a_test():
    near, far = np.array([1.00, 1.05, 0.98]), np.array([2.00, 2.06, 1.97])
    assert same_event(near, np.add(near, [0.02, 0.01, 0.03]))[1] == "one"
    apart, events = same_event(near, far)
    assert (apart.value, events) == (pytest.approx(-1.0), "two")
    assert same_event(near, np.add(near, [0.3, -0.2, 0.5]))[1] == "open", "though intervals overlap"


def crossed(effects, *, seed_sd, noise_sd, n_seeds=3, seed=0):
    """Arms × seeds: effect of the arm, of the seed, and noise."""
    generator = np.random.default_rng(seed)
    seeds = generator.normal(0, seed_sd, n_seeds)
    arms = zip("abcdefg", effects, strict=False)
    return {arm: effect + seeds + generator.normal(0, noise_sd, n_seeds) for arm, effect in arms}


def test_the_f_test_is_that_of_a_two_way_analysis():
    values = crossed([0, 0.3, 0.1, 0.5], seed_sd=1.0, noise_sd=0.2, n_seeds=4, seed=7)
    table = np.stack(list(values.values()))
    between = 4 * ((table.mean(1) - table.mean()) ** 2).sum() / 3
    rest = ((table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()) ** 2).sum()
    found = variance_share(values, Factor.levels("arm", values))
    assert found.residual == pytest.approx(rest / 9)
    assert found.share.p_value == pytest.approx(scipy_stats.f.sf(between / (rest / 9), 3, 9))


def test_a_difference_is_the_paired_t_test_where_there_are_two_arms():
    values = crossed([0.0, 0.4], seed_sd=2.0, noise_sd=0.2, n_seeds=6, seed=1)
    share = variance_share(values, Factor.difference("bos", ["b"], ["a"])).share
    assert share.p_value == pytest.approx(scipy_stats.ttest_rel(values["b"], values["a"]).pvalue)


def test_the_variance_of_a_factor_is_unbiased():
    effects = np.array([0.0, 0.5, -0.5, 1.0, -1.0])
    tables = (crossed(effects, seed_sd=0.7, noise_sd=0.6, seed=k) for k in range(400))
    found = [variance_share(values, Factor.levels("arm", values)).variance for values in tables]
    assert np.mean(found) == pytest.approx(effects.var(), abs=3 * np.std(found) / 20)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_intervals_cover_the_share(scale):
    effects, noise_sd = scale * np.array([0.0, 0.4, -0.4, 0.8, -0.8, 0.2, -0.2]), 0.5
    true = effects.var() / (effects.var() + noise_sd**2)
    tables = (crossed(effects, seed_sd=1.0, noise_sd=noise_sd, seed=k) for k in range(200))
    shares = [variance_share(values, Factor.levels("encoding", values)).share for values in tables]
    # Of 200 at 95 %, fewer than 181 happens once in 1,000.
    assert sum(share.low <= true <= share.high for share in shares) >= 181


def test_factors_of_two_levels_have_the_variance_of_their_levels():
    values = {"a": np.zeros(3), "b": np.ones(3), "c": np.full(3, 3.0), "d": np.full(3, 4.0)}
    found = variance_share(values, Factor.difference("mask", ["c", "d"], ["a", "b"]))
    assert found.variance == pytest.approx(np.var([0.0, 3.0]))
    assert (*found.share[:3], found.share.p_value) == (1, 1, 1, 0)
    none = variance_share({"a": X[:3], "b": X[:3]}, Factor.levels("x", ["a", "b"])).share
    assert (none.value, none.p_value) == (0, 1)


FACTOR = Factor.levels("x", ["a", "b"])


def test_what_cannot_be_measured_is_refused():
    for call, kind, told in (
        (lambda: interior_peak([1.0]), ValueError, "at least 2 steps"),
        (lambda: unexplained(np.ones((8, 20)), [np.ones((8, 5))]), ValueError, r"one \(head, step\)"),
        (lambda: piecewise_linear(X[::-1], X), ValueError, "must rise"),
        (lambda: piecewise_linear(X, np.full(len(X), np.nan)), ValueError, "NaN or infinite"),
        (lambda: piecewise_linear(X[:5], X[:5]), ValueError, "at least 6"),
        (lambda: breakpoints_with_intervals(X, np.zeros((3, len(X)))), ValueError, "seed, sequence, point"),
        (lambda: advantage({"t5": [1.0, 2, 3]}, "rope"), ValueError, "'rope' and another arm .* got t5"),
        (lambda: clustered_rank_correlation(X[:6], X[:6], list("aaabbc")), ValueError, "4 clusters"),
        (lambda: trend_per_decade(SIZES[:3], sized()[:3]), ValueError, "at least 4 sizes"),
        (lambda: trend_per_decade(SIZES, sized()[:, :2]), ValueError, "at least 3 seeds"),
        (lambda: largest_departure(np.full(5, 1e6), sized()), ValueError, "different"),
        (lambda: largest_departure(SIZES, np.full((5, 3), np.nan)), ValueError, "not finite"),
        (lambda: largest_departure(SIZES, np.ones((5, 3))), ValueError, "do not differ"),
        (lambda: variance_share({"a": [1.0, 2], "b": [1, 3]}, FACTOR), ValueError, "at least 2 arms"),
        (lambda: variance_share({"a": [1.0, 2, 3], "b": [1, np.nan, 3]}, FACTOR), ValueError, "1 of 6"),
        (lambda: variance_share({"a": X[:3], "b": X[1:4]}, Factor.levels("x", "bc")), KeyError, "arms c"),
    ):
        with pytest.raises(kind, match=told):
            call()
