import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from nbhelpers.zoo.seeds import advantage, clustered_rank_correlation, seed_interval


def test_the_interval_is_students():
    values = np.array([0.31, 0.28, 0.36])
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    interval = seed_interval(values)
    assert interval[:3] == pytest.approx((values.mean(), expected.low, expected.high))
    assert interval.n_sequences == 3


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0, 2.0, 3.0]]])
def test_two_seeds_are_no_interval(values):
    with pytest.raises(ValueError, match="at least 3"):
        seed_interval(values)


def test_a_seed_without_a_number_is_refused():
    with pytest.raises(ValueError, match="1 of 3 seeds"):
        seed_interval([1.0, np.nan, 2.0])


def test_the_advantage_is_over_the_best_other_paired_by_seed():
    shared = np.array([0.0, 0.4, 0.8])  # what a seed does to all arms cancels
    values = {"alibi": shared + 0.30, "rope": shared + np.array([0.10, 0.11, 0.12]), "t5": shared + 0.25}
    found = advantage(values, "rope", n_draws=500)
    assert found.best == "t5"
    assert found.difference.value == pytest.approx(-0.14)
    assert found.difference.high < -0.11
    assert found.p_value < 0.1


def test_the_null_of_the_advantage_is_the_mean_over_all_exchanges():
    values = {"rope": [0.1, 0.5, 0.2], "nope": [0.3, 0.1, 0.9], "t5": [0.7, 0.2, 0.4]}
    table = np.array(list(values.values()))
    exchanged = []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        means = np.mean([table[list(order), seed] for seed, order in enumerate(orders)], 0)
        exchanged.append(means[0] - means[1:].min())
    found = advantage(values, "rope", n_draws=20_000)
    assert found.null == pytest.approx(np.mean(exchanged), abs=0.005)
    observed = table[0].mean() - table[1:].mean(1).min()
    assert found.p_value == pytest.approx(np.mean(np.array(exchanged) <= observed + 1e-12), abs=0.02)


def test_the_advantage_needs_its_arm_and_another():
    with pytest.raises(KeyError, match="no arm 'rope'"):
        advantage({"t5": [1.0, 2, 3]}, "rope")
    with pytest.raises(ValueError, match="no other"):
        advantage({"rope": [1.0, 2, 3]}, "rope")


def clusters_of(values):
    return np.repeat(list("abcdef"), 3)[: values.size]


def test_the_correlation_is_spearmans_and_its_p_value_counts_every_order():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(4, 3))
    y = x + generator.normal(0, 0.8, (4, 3))
    found = clustered_rank_correlation(x.ravel(), y.ravel(), clusters_of(x), n_boot=100)
    assert found.value == pytest.approx(scipy_stats.spearmanr(x.ravel(), y.ravel()).statistic)
    every = [
        scipy_stats.spearmanr(x.ravel(), y[list(order)].ravel()).statistic
        for order in itertools.permutations(range(4))
    ]
    assert found.p_value == pytest.approx(np.mean(np.abs(every) >= abs(found.value) - 1e-9))
    assert (found.n_runs, found.n_clusters) == (12, 4)
    assert found.low <= found.value <= found.high


def test_seeds_of_an_arm_are_not_more_evidence():
    """Six arms, 3 copies of each: the p-value and the interval are those of six runs, not of eighteen."""
    x, y = np.arange(6.0), np.array([0.0, 2, 1, 3, 5, 4])
    once = clustered_rank_correlation(x, y, list("abcdef"), n_boot=400)
    thrice = clustered_rank_correlation(x.repeat(3), y.repeat(3), list("aaabbbcccdddeeefff"), n_boot=400)
    assert thrice.value == pytest.approx(once.value)
    assert thrice.p_value == pytest.approx(once.p_value)
    assert thrice[1:3] == pytest.approx(once[1:3])


def test_unrelated_arms_are_rarely_significant():
    rejected = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        x, y = (
            generator.normal(size=(5, 1)) + 0.05 * generator.normal(size=(5, 3)) for _ in range(2)
        )  # as if 15 runs, but 5 arms
        found = clustered_rank_correlation(x.ravel(), y.ravel(), np.repeat(list("abcde"), 3), n_boot=2)
        rejected += found.p_value < 0.05
    assert rejected <= 9


@pytest.mark.parametrize("clusters", [list("aabbcc"), list("aaabbc")])
def test_few_or_unequal_clusters_are_refused(clusters):
    with pytest.raises(ValueError, match="at least 4 clusters of one size"):
        clustered_rank_correlation(np.arange(6.0), np.arange(6.0), clusters)
