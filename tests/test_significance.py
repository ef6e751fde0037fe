"""The tests of significance of nbhelpers.stats."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from tolerances import TOL

from nbhelpers.stats import equivalence_test, false_discovery, permutation_test

CLOSE = TOL[torch.float64]
GROUPS = [0, 0, 0, 1, 1, 1, 2, 2, 2]


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
        p_values.append(permutation_test(values, other, clusters=GROUPS, n_draws=99, seed=experiment).p_value)
        x, y = (v - v.mean(1, keepdims=True) for v in (values, other))
        naive.append(scipy_stats.pearsonr(x.ravel(), y.ravel()).pvalue)
    assert scipy_stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) < 0.09
    assert np.mean(np.array(naive) <= 0.05) > 0.2, "heads taken as independent find what is not there"


def test_p_value_is_the_share_of_all_arrangements():
    generator = np.random.default_rng(2)
    values, other = generator.normal(size=(2, 2, 6))
    groups = [0, 0, 1, 1, 2, 2]
    orders = list(itertools.permutations([[0, 1], [2, 3], [4, 5]]))
    every = [
        within_layers(np.stack([v[np.ravel(o)] for v, o in zip(values, pair, strict=True)]), other)
        for pair in itertools.product(orders, repeat=2)
    ]  # 36 arrangements
    observed = within_layers(values, other)
    for alternative, extreme in (("greater", np.array(every) >= observed - 1e-9),
                                 ("less", np.array(every) <= observed + 1e-9),
                                 ("two-sided", np.abs(every) >= abs(observed) - 1e-9)):  # fmt: skip
        found = permutation_test(
            values, other, clusters=groups, statistic=within_layers, alternative=alternative, n_draws=4000
        )
        assert found.p_value == pytest.approx(extreme.mean(), abs=0.03)
        assert np.isclose(found.draws[:, None], every).any(1).all(), "a draw is no such arrangement"
    assert found.value == pytest.approx(observed, rel=CLOSE)


def test_an_association_of_groups_is_found():
    generator = np.random.default_rng(3)
    values = clustered(generator, n_layers=8)
    found = permutation_test(values, values + 0.5 * clustered(generator, 8), clusters=GROUPS, n_draws=199)
    assert found.p_value == pytest.approx(1 / 200)


def test_groups_need_not_be_neighbours_and_stay_whole():
    # Groups hold the heads 0, 2 and 1, 3: an exchange may only swap the pairs, in order.
    values = np.array([[1.0, 2.0, 3.0, 4.0]])
    other = np.array([[1000.0, 100.0, 10.0, 1.0]])
    found = permutation_test(
        values, other, clusters=[5, 7, 5, 7], statistic=lambda x, y: float((x * y).sum()), n_draws=50
    )
    assert set(found.draws) == {1234.0, 2143.0}


def test_the_seed_decides_and_input_is_left_as_it_was():
    values, other = np.random.default_rng(1).normal(size=(2, 3, 9))
    kept = values.copy(), other.copy()
    first, again, third = (
        permutation_test(values, other, clusters=GROUPS, n_draws=50, seed=s) for s in (1, 1, 2)
    )
    assert (first.draws == again.draws).all()
    assert (first.draws != third.draws).any()
    assert (values == kept[0]).all()
    assert (other == kept[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": [0] * 9}, r"at least 2 of one size; got sizes \[9\]"),
        ({"clusters": [0, 0, 0, 0, 1, 1, 1, 1, 1]}, r"of one size; got sizes \[4, 5\]"),
        ({"clusters": [0, 1]}, r"values have shape \(3, 9\) and clusters \(2,\)"),
        ({"other": np.ones((3, 8))}, r"one shape, got values \(3, 9\), other \(3, 8\)"),
        ({"other": np.ones((3, 9))}, "the statistic is not defined: observed nan"),
        ({"other": np.full((3, 9), np.nan)}, "27 of 27 entries of other are NaN"),
        ({"alternative": "bigger"}, "unknown alternative='bigger'; choose one of two-sided"),
    ],
)
def test_permutation_refuses_what_it_cannot_do(change, message):
    values, other = np.random.default_rng(0).normal(size=(2, 3, 9))
    arguments = {"values": values, "other": other, "clusters": GROUPS} | change
    with pytest.raises(ValueError, match=message):
        permutation_test(**arguments)


def test_false_discovery_is_scipys_over_the_whole_family():
    p_values = np.random.default_rng(0).uniform(size=(4, 5)) ** 3
    for method in ("bh", "by"):
        expected = scipy_stats.false_discovery_control(p_values.ravel(), method=method).reshape(4, 5)
        np.testing.assert_allclose(false_discovery(p_values, method=method), expected, rtol=CLOSE)
    np.testing.assert_allclose(false_discovery([0.01, 0.02, 0.03]), [0.03, 0.03, 0.03])
    with pytest.raises(ValueError, match=r"2 of 3 p-values are not in \[0, 1\]"):
        false_discovery([0.1, np.nan, 1.5])


def test_equivalence_is_scipys_two_one_sided_tests():
    values = np.random.default_rng(0).normal(0.1, 0.3, size=12)
    for margin in (0.05, 0.3, 1.0):
        above = scipy_stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(values, margin, alternative="less").pvalue
        found = equivalence_test(values, margin)
        assert found.p_value == pytest.approx(max(above, below), rel=1e-9)
        inside = -margin < found.difference.low and found.difference.high < margin
        assert found.equivalent == inside == (max(above, below) < 0.05)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.90)
    assert found.difference[1:3] == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.difference.n_sequences == 12


def test_equivalence_of_pairs_is_of_their_differences():
    first, second = np.random.default_rng(1).normal(size=(2, 9))
    assert equivalence_test(first, 0.5, against=second) == equivalence_test(first - second, 0.5)
    assert equivalence_test(first, 0.5, against=2.0) == equivalence_test(first - 2, 0.5)


def test_values_without_spread():
    assert equivalence_test([0.2] * 4, 0.1, against=[0.2] * 4) == ((0.0, 0.0, 0.0, 4), 0.0, True)
    assert not equivalence_test([0.25] * 4, 0.25).equivalent


def test_no_difference_is_no_proof_of_equivalence():
    noisy = np.array([-3.0, 3.0, -2.0, 2.0])
    assert scipy_stats.ttest_1samp(noisy, 0).pvalue > 0.9
    assert not equivalence_test(noisy, 0.5).equivalent


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, 2.0, 3.0], {"margin": 0.0}, "the margin must be positive, got 0.0"),
        ([1.0, 2.0, 3.0], {"margin": float("nan")}, "the margin must be positive, got nan"),
        ([1.0, 2.0], {"margin": 1.0}, "at least 3 of them, got 2"),
        ([1.0, 2.0, 3.0], {"margin": 1.0, "against": [1.0, 2.0]}, r"values \(3,\), against \(2,\)"),
        ([1.0, np.nan, 3.0], {"margin": 1.0}, "1 of 3 entries of values are NaN"),
    ],
)
def test_equivalence_refuses_what_it_cannot_do(values, options, message):
    with pytest.raises(ValueError, match=message):
        equivalence_test(values, **options)
