import numpy as np
import pytest
from scipy import stats as scipy_stats

from nbhelpers.zoo.variance import Factor, seed_variance, variance_share

ARMS = list("abcdefg")


def crossed(effects, *, seed_sd, noise_sd, n_seeds=3, seed=0):
    """Arms × seeds: effect of the arm, of the seed, and noise."""
    generator = np.random.default_rng(seed)
    seeds = generator.normal(0, seed_sd, n_seeds) if seed_sd else np.zeros(n_seeds)
    return {
        arm: effect + seeds + generator.normal(0, noise_sd, n_seeds)
        for arm, effect in zip(ARMS, effects, strict=False)
    }


def test_the_f_test_is_that_of_a_two_way_analysis():
    values = crossed([0, 0.3, 0.1, 0.5], seed_sd=1.0, noise_sd=0.2, n_seeds=4, seed=7)
    table = np.stack(list(values.values()))
    between = 4 * ((table.mean(1) - table.mean()) ** 2).sum() / 3
    rest = sum(
        (table[i, j] - table[i].mean() - table[:, j].mean() + table.mean()) ** 2
        for i in range(4)
        for j in range(4)
    )
    share = variance_share(values, Factor.levels("arm", values))
    assert share.residual == pytest.approx(rest / 9)
    assert share.p_value == pytest.approx(scipy_stats.f.sf(between / (rest / 9), 3, 9))


def test_a_difference_is_the_paired_t_test_where_there_are_two_arms():
    values = crossed([0.0, 0.4], seed_sd=2.0, noise_sd=0.2, n_seeds=6, seed=1)
    share = variance_share(values, Factor.difference("bos", ["b"], ["a"]))
    assert share.p_value == pytest.approx(scipy_stats.ttest_rel(values["b"], values["a"]).pvalue)


def test_the_variance_of_a_factor_is_unbiased():
    effects = np.array([0.0, 0.5, -0.5, 1.0, -1.0])
    found = [
        variance_share(v, Factor.levels("arm", v)).variance
        for v in (crossed(effects, seed_sd=0.7, noise_sd=0.6, seed=k) for k in range(400))
    ]
    assert np.mean(found) == pytest.approx(effects.var(), abs=3 * np.std(found) / 20)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_intervals_cover_the_share(scale):
    effects, noise_sd = scale * np.array([0.0, 0.4, -0.4, 0.8, -0.8, 0.2, -0.2]), 0.5
    true = effects.var() / (effects.var() + noise_sd**2)
    covered = 0
    for k in range(200):
        values = crossed(effects, seed_sd=1.0, noise_sd=noise_sd, seed=k)
        share = variance_share(values, Factor.levels("encoding", values))
        covered += share.low <= true <= share.high
    assert covered >= 181  # of 200 at 95 %: fewer than 181 happens once in 1,000


def test_factors_of_two_levels_have_the_variance_of_their_levels():
    values = {
        "rope": [0.0, 0.0, 0.0],
        "learned": [1.0, 1, 1],
        "rope-bi": [3.0, 3, 3],
        "learned-bi": [4.0, 4, 4],
    }
    factor = Factor.difference("mask", ["rope-bi", "learned-bi"], ["rope", "learned"])
    share = variance_share(values, factor)
    assert share.variance == pytest.approx(np.var([0.0, 3.0]))
    assert (share.share, share.low, share.high, share.p_value) == (1, 1, 1, 0)


def test_no_difference_at_all_has_no_share():
    values = {"a": [1.0, 2, 3], "b": [1.0, 2, 3]}
    share = variance_share(values, Factor.levels("x", ["a", "b"]))
    assert (share.share, share.p_value) == (0, 1)


def test_the_seed_is_a_random_effect():
    found = [
        seed_variance(crossed(np.zeros(6), seed_sd=0.8, noise_sd=0.3, n_seeds=4, seed=k)) for k in range(300)
    ]
    seeds, rest = np.mean(found, 0)
    assert seeds == pytest.approx(0.64, rel=0.15)
    assert rest == pytest.approx(0.09, rel=0.05)


def test_what_a_seed_does_to_all_arms_does_not_move_the_share():
    effects = [0.0, 0.5, 1.0]
    values = crossed(effects, seed_sd=0.0, noise_sd=0.3)
    shifted = {arm: np.asarray(row) + np.array([5.0, -2.0, 9.0]) for arm, row in values.items()}
    one, other = (variance_share(v, Factor.levels("arm", v)) for v in (values, shifted))
    assert one[1:7] == pytest.approx(other[1:7])


@pytest.mark.parametrize(
    "values",
    [{"a": [1.0, 2, 3]}, {"a": [1.0, 2], "b": [1.0, 3]}, {"a": [1.0, 2, 3], "b": [1.0, 2, 3, 4]}],
)
def test_too_few_runs_are_refused(values):
    with pytest.raises(ValueError, match="at least 2 arms of the same 3"):
        variance_share(values, Factor.levels("x", list(values)))


def test_wrong_arms_and_numbers_are_refused():
    values = {"a": [1.0, 2, 3], "b": [1.0, np.nan, 3]}
    with pytest.raises(ValueError, match="1 of 6"):
        variance_share(values, Factor.levels("x", ["a", "b"]))
    with pytest.raises(KeyError, match="needs the arms c"):
        variance_share({"a": [1.0, 2, 3], "b": [2.0, 2, 4]}, Factor.levels("x", ["a", "c"]))
