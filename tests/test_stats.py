import itertools

import numpy as np
import pytest
import torch
from refusals import refusals
from scipy import stats as scipy_stats
from tolerances import TOL

from nbhelpers import stats
from nbhelpers.stats import Estimate, permutation_test, position_spectrum_correlation
from nbhelpers.table import HeadTable

CLOSE = TOL[torch.float64]
GROUPS = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def make_table(position, spectrum, *, averaged=False):
    arrays = {"positional_entropy": position, "spectral_entropy": spectrum}
    return HeadTable(arrays, list(range(position.shape[-1])), averaged=averaged)


@pytest.fixture
def entropies():
    generator = np.random.default_rng(1)
    position = generator.normal(size=(7, 3, 4)) + 3
    return position, 2 - 0.5 * position + generator.normal(size=position.shape)


def test_an_estimate_is_written_with_its_interval():
    assert f"{Estimate(0.1234, 0.1, 0.2):.2f}" == "0.12 [0.10, 0.20]"
    assert Estimate(3.0, 1.0, 2.0).widened()[:3] == (3.0, 1.0, 3.0)


# How often intervals of n units hold the truth. With a lognormal of σ = .5 it is 90 to 92 %: the skewness
# of a few units cannot be told from their spread, and no interval of their mean is both honest and short.
@pytest.mark.parametrize("n", [3, 6, 12])
@pytest.mark.parametrize(
    ("draw", "of_mean", "possible", "truth", "least"),
    [
        (lambda g, n: g.normal(size=n), None, stats.ANY, 0.0, 0.93),
        (lambda g, n: g.lognormal(0, 0.25, n), None, stats.NOT_NEGATIVE, np.exp(1 / 32), 0.93),
        (lambda g, n: g.lognormal(0, 0.5, n), None, stats.NOT_NEGATIVE, np.exp(1 / 8), 0.88),
        (lambda g, n: clustered(g, n), np.mean, stats.ANY, 0.0, 0.93),  # a sequence in the place of a layer
        (lambda g, n: g.normal([1, 1], 0.15, (n, 2)), lambda m: m[0] / m[1], stats.ANY, 1.0, 0.93),
        (lambda g, n: np.tanh(g.normal(-0.4, 0.3, n)), None, stats.CORRELATION, -0.3533, 0.93),
        (lambda g, n: g.binomial(270, 0.03, n) / 270, None, stats.SHARE, 0.03, 0.93),
    ],
    ids=["normal", "lognormal", "more skewed", "clustered heads", "ratio", "correlation", "share"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(n, draw, of_mean, possible, truth, least):
    generator = np.random.default_rng([n, 7])
    found = [stats.student_interval(draw(generator, n), of_mean, possible=possible) for _ in range(1200)]
    assert least <= np.mean([i.low <= truth <= i.high for i in found]) <= 0.97


def test_intervals_are_students_of_a_mean_and_the_jackknife_s_of_a_function_of_means():
    values = np.random.default_rng(6).gamma(2.0, size=(9, 4))  # (sequence, layer)
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = stats.student_interval(values, confidence=0.9)
    np.testing.assert_allclose(found[:3], (values.mean(0), *expected), rtol=CLOSE)
    assert found.n == 9
    two = stats.student_interval([1.0, 2.0])
    assert (two.value, two.n) == (1.5, 2)
    assert np.isnan(two[1:3]).all(), "two seeds are no interval"
    values = np.random.default_rng(3).normal(2, 0.1, size=(6, 2))
    ratio = [each[0] / each[1] for each in (np.delete(values, k, 0).mean(0) for k in range(6))]
    value = values[:, 0].mean() / values[:, 1].mean()
    half = scipy_stats.t.ppf(0.975, 5) * np.sqrt(5 * np.var(ratio))
    found = stats.student_interval(values, lambda m: m[0] / m[1])
    assert found[:3] == pytest.approx((value, value - half, value + half), rel=CLOSE)


def test_an_interval_ends_at_what_is_possible():
    assert stats.student_interval([0.0, 0.0, 0.1], possible=stats.SHARE).low == 0
    left_out = np.array([0.98, 0.999, 0.97])
    found = stats.jackknife_interval(0.99, left_out, possible=stats.CORRELATION)
    assert -1 < found.low < 0.9 < found.value < found.high < 1
    assert stats.jackknife_interval(1.0, [1, 1, 0.9], possible=stats.CORRELATION).high == 1
    for rank in np.arange(-34, 35) / 35:  # what passages of few levels agree on
        found = stats.jackknife_interval(rank, [rank] * 4, possible=stats.CORRELATION)
        assert found.low <= rank <= found.high


def test_distance_to_a_null_takes_pairs_or_both_intervals():
    shared, own = np.random.default_rng(0).normal(size=(2, 12))
    values, null = shared + 0.1 * own, shared
    pairs = stats.student_interval(values - null)
    found = stats.student_interval(values).against(stats.student_interval(null), pairs)
    assert found.gap[:3] == pytest.approx(pairs[:3])
    apart = stats.student_interval(values).against(stats.student_interval(null)).gap
    errors = [(i.high - i.value) for i in map(stats.student_interval, (values, null))]
    assert apart.high - apart.value == pytest.approx(np.hypot(*errors))
    known = stats.student_interval(values).against(0.3)
    assert known.gap[1:3] == pytest.approx((known.low - 0.3, known.high - 0.3))
    for bound in (-0.5, 0.1, 2.0):
        assert known.p_at(bound) == pytest.approx(scipy_stats.ttest_1samp(values, bound).pvalue)
    assert np.isnan(Estimate(1.0, n=12).p_at(0.0))


def test_distribution_over_heads_is_that_of_the_heads_means(entropies):
    intervals = stats.distribution_over_heads(make_table(*entropies), "spectral_entropy")
    heads = entropies[1].mean(0).ravel()
    expected = {"mean": heads.mean(), "std": np.std(heads, ddof=1), "iqr": scipy_stats.iqr(heads)}
    found = {name: interval.value for name, interval in intervals.items()}
    assert found == pytest.approx(expected, rel=CLOSE)
    assert all(interval.low < interval.high for interval in intervals.values())


def head_correlations(position, spectrum, over):
    if over == "heads":
        pairs = ((p.ravel(), s.ravel()) for p, s in zip(position, spectrum, strict=True))
    elif over == "heads of a layer":
        pairs = ((position[at], spectrum[at]) for at in np.ndindex(position.shape[:2]))
    else:
        pairs = ((position[:, *at], spectrum[:, *at]) for at in np.ndindex(position.shape[1:]))
    return np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])


@pytest.mark.parametrize("over", ["heads", "heads of a layer", "sequences"])
def test_correlation_is_its_definition_with_its_interval(entropies, over):
    interval = position_spectrum_correlation(make_table(*entropies), over=over)
    own = head_correlations(*entropies, over)
    assert interval.value == pytest.approx(own.mean(), rel=CLOSE)
    assert interval.n == 7
    assert interval.low < interval.value < interval.high
    if over != "sequences":
        expected = stats.student_interval(own.reshape(7, -1).mean(1), possible=stats.CORRELATION)
        assert interval[1:3] == pytest.approx(expected[1:3], rel=CLOSE)


def test_heads_that_are_constant_or_without_power_are_left_out(entropies):
    position, spectrum = (values.copy() for values in entropies)
    position[:, 0, 0] = 2.0  # the same in every sequence
    expected = np.delete(head_correlations(*entropies, "sequences"), 0).mean()
    found = position_spectrum_correlation(make_table(position, spectrum), over="sequences")
    assert found.value == pytest.approx(expected, rel=CLOSE)
    spectrum[:, 1, 2] = np.nan
    kept = [np.delete(values.reshape(7, 12), 6, axis=1) for values in (position, spectrum)]
    found = position_spectrum_correlation(make_table(position, spectrum))
    assert found.value == pytest.approx(stats.pearson(*kept, axis=1).mean(), rel=CLOSE)


@pytest.fixture
def samples():
    generator = np.random.default_rng(4)
    given = generator.normal(size=(2, 3, 30))
    x = given[0] - 2 * given[1] + generator.normal(size=(3, 30))
    return x, 5 + 3 * given[0] + 0.4 * x + generator.normal(size=(3, 30)), given


def test_partial_correlation_is_that_of_the_residuals(samples):
    x, y, given = samples
    found = stats.partial_correlation(x, y, list(given))
    for row in range(3):
        design = np.stack([np.ones(30), *given[:, row]], 1)
        left = [v[row] - design @ np.linalg.lstsq(design, v[row], rcond=None)[0] for v in (x, y)]
        assert found[row] == pytest.approx(np.corrcoef(*left)[0, 1], abs=CLOSE)


def test_agreement_forgives_an_offset_and_no_scale(samples):
    _, x, _ = samples
    r, explained = stats.agreement(np.stack([x + 7, 2 * x, np.ones_like(x)]), np.stack([x, x, x]))
    np.testing.assert_allclose(r, [[1.0] * 3, [1.0] * 3, [np.nan] * 3], atol=CLOSE)
    np.testing.assert_allclose(explained, [[1.0] * 3, [0.0] * 3, [0.0] * 3], atol=CLOSE)
    other = np.where(np.arange(30) < 5, np.nan, x + np.cos(np.arange(30)))
    left = other[:, 5:] - other[:, 5:].mean(1, keepdims=True) - x[:, 5:] + x[:, 5:].mean(1, keepdims=True)
    expected = 1 - left.var(1) / other[:, 5:].var(1)
    np.testing.assert_allclose(stats.agreement(x, other)[1], expected, atol=CLOSE)
    assert np.isnan(stats.agreement(x, np.ones_like(x))).all()


def test_constants_repeats_scale_and_sign_of_the_given_change_nothing(samples):
    x, y, given = samples
    plain = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(stats.partial_correlation(x, y, []), plain, atol=CLOSE)
    np.testing.assert_allclose(stats.partial_correlation(x, y, [np.log(256.0)]), plain, atol=CLOSE)
    np.testing.assert_allclose(stats.pearson(x, y, axis=1), plain, atol=CLOSE)
    expected = stats.partial_correlation(x, y, list(given))
    moved = [1e6 * given[0] + 1e3, -1e-6 * given[1], 3 * given[0]]
    np.testing.assert_allclose(stats.partial_correlation(1e-5 * x, 1e4 * y, moved), expected, atol=1e-9)
    x, _, (z, _) = samples
    assert np.isnan(stats.partial_correlation(x, 2 * z + 1, [z])).all()
    rounding = 1 + 1e-9 * np.random.default_rng(0).normal(size=x.shape)
    assert np.isnan(stats.partial_correlation(rounding, x, [z])).all()
    common = z + 1e-3 * x
    assert (np.abs(stats.partial_correlation(common, -common + 2 * z, [z])) > 0.999).all()
    x, y, given = (v.copy() for v in samples)
    x[0, 3], y[1, 5], given[0, 2, 7] = np.nan, np.inf, np.nan
    found = stats.partial_correlation(x, y, [given[0]])
    for row, hole in enumerate((3, 5, 7)):
        kept = [np.delete(v[row], hole) for v in (x, y, given[0])]
        assert found[row] == pytest.approx(stats.partial_correlation(*kept[:2], [kept[2]]), abs=CLOSE)
    few = x[1, :4], y[0, :4], given[1, 0, :4]
    assert np.isfinite(stats.partial_correlation(*few[:2], [few[2]]))
    assert np.isnan(stats.partial_correlation(*(v[:3] for v in few[:2]), [few[2][:3]])), "too few"


def clustered(generator, n_layers=4):
    """Two properties of heads that are not related but shared within KV groups and layers."""
    layer = 3 * generator.normal(size=(n_layers, 1))
    group = np.repeat(generator.normal(size=(n_layers, 3)), 3, axis=1)
    return layer + group + 0.1 * generator.normal(size=(n_layers, 9))


def within_layers(x, y):
    return float((x * (y - y.mean(1, keepdims=True))).sum())


def test_p_values_of_clustered_heads_are_uniform_without_an_association():
    p_values, naive = [], []
    for experiment in range(400):
        generator = np.random.default_rng([9, experiment])
        values, other = clustered(generator), clustered(generator)
        found = permutation_test(values, other, clusters=GROUPS, n_draws=99, seed=experiment)
        p_values.append(found.estimate.p_value)
        x, y = (v - v.mean(1, keepdims=True) for v in (values, other))
        naive.append(scipy_stats.pearsonr(x.ravel(), y.ravel()).pvalue)
    assert scipy_stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) < 0.09
    assert np.mean(np.array(naive) <= 0.05) > 0.2, "heads taken as independent find what is not there"


def test_p_value_is_the_share_of_all_arrangements():
    generator = np.random.default_rng(2)
    values, other = generator.normal(size=(2, 2, 6))
    orders = list(itertools.permutations([[0, 1], [2, 3], [4, 5]]))
    pairs = itertools.product(orders, repeat=2)
    every = [[v[np.ravel(o)] for v, o in zip(values, pair, strict=True)] for pair in pairs]
    every = [within_layers(np.stack(arranged), other) for arranged in every]  # 36 of them
    observed = within_layers(values, other)
    options = {"statistic": within_layers, "n_draws": 4000}
    found = permutation_test(values, other, clusters=[0, 0, 1, 1, 2, 2], **options)
    expected = np.mean(np.abs(every) >= abs(observed) - 1e-9)
    assert found.estimate.p_value == pytest.approx(expected, abs=0.03)
    assert np.isclose(found.draws[:, None], every).any(1).all(), "a draw is no such arrangement"
    assert found.estimate.value == pytest.approx(observed, rel=CLOSE)


def test_groups_stay_whole_arrangements_as_extreme_count_and_the_seed_decides():
    # Groups hold the heads 0, 2 and 1, 3: an exchange may only swap the pairs, in order.
    values = np.array([[1.0, 2.0, 3.0, 4.0]])
    other = np.array([[1000.0, 100.0, 10.0, 1.0]])
    options = {"statistic": lambda x, y: float((x * y).sum()), "n_draws": 50}
    found = permutation_test(values, other, clusters=[5, 7, 5, 7], **options)
    assert set(found.draws) == {1234.0, 2143.0}
    values, other = np.random.default_rng(1).normal(size=(2, 3, 9))
    kept = values.copy(), other.copy()
    options = {"clusters": GROUPS, "n_draws": 50}
    found = permutation_test(values, other, statistic=lambda *_: 0.0, **options)
    assert found.estimate.p_value == 1, "a statistic that never changes rejects nothing"
    first, again, third = (permutation_test(values, other, seed=s, **options) for s in (1, 1, 2))
    assert np.array_equal(first.draws, again.draws)
    assert not np.array_equal(first.draws, third.draws)
    assert first.estimate.null == pytest.approx(first.draws.mean())
    assert np.array_equal((values, other), kept)


def test_equivalence_is_scipys_two_one_sided_tests():
    values = np.random.default_rng(0).normal(0.1, 0.3, size=12)
    for margin in (0.05, 0.3, 1.0):
        above = scipy_stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(values, margin, alternative="less").pvalue
        found = stats.equivalence_test(values, margin)
        assert found.p_value == pytest.approx(max(above, below), rel=1e-9)
        inside = -margin < found.low and found.high < margin
        assert (found.p_value < 0.05) == inside == (max(above, below) < 0.05)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.90)
    assert found[1:3] == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.n == 12
    against = stats.equivalence_test(values, 0.5, against=values[::-1])
    assert against == stats.equivalence_test(values - values[::-1], 0.5)
    same = stats.equivalence_test([0.2] * 4, 0.1, against=[0.2] * 4)
    assert same == Estimate(0.0, 0.0, 0.0, p_value=0.0, n=4)
    assert stats.equivalence_test([0.25] * 4, 0.25).p_value == 1


RANDOM = np.random.default_rng(0).normal(size=(2, 7, 3, 4))
LAYERS = RANDOM[0, :3].reshape(3, 12)[:, :9]
ROUNDING = 4.4 + 1e-8 * RANDOM[0]
AVERAGED = make_table(*RANDOM, averaged=True)


test_bad_input_is_refused = refusals(
    (lambda: stats.student_interval([1.0, np.nan, np.inf, 2.0]), "2 of 4 are not"),
    (lambda: stats.distribution_over_heads(AVERAGED, "spectral_entropy"), "averaged over sequences"),
    (lambda: position_spectrum_correlation(make_table(ROUNDING, RANDOM[1])), "not defined: .* constant"),
    (lambda: stats.partial_correlation(LAYERS, LAYERS[:, :8], []), "same shape"),
    (lambda: permutation_test(LAYERS, LAYERS, clusters=[0] * 9), "at least 2 of one size"),
    (lambda: permutation_test(LAYERS, LAYERS, clusters=[0, 1]), r"\(2,\)"),
    (lambda: permutation_test(LAYERS, np.ones((3, 9)), clusters=GROUPS), "observed nan"),
    (lambda: stats.equivalence_test([1.0, 2.0, 3.0], 0.0), "margin of .* got 0.0"),
    (lambda: stats.equivalence_test([1.0, 2.0, 3.0], 1.0, against=[1.0, 2.0]), r"\(3,\)"),
)
