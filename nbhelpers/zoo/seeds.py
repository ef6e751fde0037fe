"""Statistics whose unit is a training run: intervals over seeds, exchanged labels, clustered ranks."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from nbhelpers.stats import Interval

__all__ = ["Advantage", "RankCorrelation", "advantage", "clustered_rank_correlation", "seed_interval"]

LEAST_SEEDS = 3
MOST_ORDERS = 5040  # of clusters, all of which are tried: 7!


class Advantage(NamedTuple):
    """How far one arm is below the best other: interval over seeds, which that is, what chance gives."""

    difference: Interval
    best: str
    null: float
    p_value: float


class RankCorrelation(NamedTuple):
    """A Spearman correlation over runs, its interval over clusters, and an exact p-value."""

    value: float
    low: float
    high: float
    p_value: float
    n_runs: int
    n_clusters: int


def seed_interval(values, *, confidence=0.95):
    """Return the mean over seeds with Student's interval.

    A bootstrap of three seeds has ten different draws and is far too narrow; Student's interval has the right
    width if runs of different seeds scatter normally.

    Parameters
    ----------
    values : array_like, shape (seed,)
        Finite numbers of at least 3 seeds. Not modified.
    confidence : float

    Returns
    -------
    nbhelpers.stats.Interval
        `n_sequences` is the number of seeds.

    Raises
    ------
    ValueError
        For fewer than 3 seeds or numbers that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < LEAST_SEEDS:
        raise ValueError(
            f"an interval over seeds needs at least {LEAST_SEEDS} of them, got an array of shape "
            f"{values.shape}; train more with python -m nbhelpers.zoo.training train-all"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} seeds have no finite number")
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = error * scipy_stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    mean = values.mean()
    return Interval(float(mean), float(mean - half), float(mean + half), len(values))


def advantage(values, of, *, confidence=0.95, n_draws=9999, seed=0):
    """Return by how much an arm's mean lies below that of the best other arm, the lowest of them.

    Parameters
    ----------
    values : mapping of str to array_like, shape (seed,)
        By arm; the same seeds in the same order, so that differences are paired.
    of : str
        The arm in question.
    confidence : float
        Of the interval over seeds of the difference to the arm that is best on average.
    n_draws : int
        Exchanges of the arms, for each seed on its own.
    seed : int

    Returns
    -------
    Advantage
        Below 0 where the arm is the best. ``null`` is the mean over the exchanges, ``p_value`` the share of
        them that are as far below.

    Raises
    ------
    KeyError
        If there is no arm `of`.
    ValueError
        As :func:`seed_interval`, or without another arm.
    """
    if of not in values:
        raise KeyError(f"there is no arm {of!r} among {', '.join(values)}")
    names = [of, *(name for name in values if name != of)]
    if len(names) < 2:
        raise ValueError(f"{of} has no other arm to be compared with")
    table = np.stack([np.asarray(values[name], dtype=np.float64) for name in names])  # (arm, seed)
    best = 1 + int(table[1:].mean(1).argmin())
    difference = seed_interval(table[0] - table[best], confidence=confidence)
    generator = np.random.default_rng(seed)
    draws = np.empty(n_draws)
    for draw in range(n_draws):
        means = generator.permuted(table, axis=0).mean(1)  # (arm,)
        draws[draw] = means[0] - means[1:].min()
    p_value = (1 + int((draws <= difference.value + 1e-12).sum())) / (n_draws + 1)
    return Advantage(difference, names[best], float(draws.mean()), p_value)


def clustered_rank_correlation(x, y, clusters, *, n_boot=1000, confidence=0.95, seed=0):
    """Return the Spearman correlation of two numbers of each run, runs of a cluster standing together.

    Seeds of one arm are not independent evidence about a relation between arms. So whole clusters are drawn
    for the interval, and exchanged for the p-value.

    Parameters
    ----------
    x, y : array_like, shape (run,)
        Finite. Not modified.
    clusters : array_like, shape (run,)
        The arm of each run. Clusters of one size, runs in the same order of seeds.
    n_boot, confidence, seed
        Of the bootstrap over clusters. Draws of a single cluster, whose ranks say nothing about arms, are
        left out.

    Returns
    -------
    RankCorrelation
        The p-value is two-sided and counts every order of the clusters of y, up to 7; beyond that, 5,039
        random ones and the observed.

    Raises
    ------
    ValueError
        For fewer than 4 clusters, clusters of unequal size, unequal shapes or numbers that are not finite.
    """
    x, y, clusters = np.asarray(x, float), np.asarray(y, float), np.asarray(clusters)
    names, sizes = np.unique(clusters, return_counts=True)
    if x.shape != y.shape or x.shape != clusters.shape or len(set(sizes)) != 1 or len(names) < 4:
        raise ValueError(
            f"expected runs of at least 4 clusters of one size, got {dict(zip(names, sizes, strict=True))}, "
            f"x {x.shape}, y {y.shape}"
        )
    if not np.isfinite([x, y]).all():
        raise ValueError("a run has no finite number; leave its cluster out, and say so")
    x, y = (np.stack([values[clusters == name] for name in names]) for values in (x, y))  # (cluster, run)
    generator = np.random.default_rng(seed)
    value = _spearman(x, y)
    draws = []
    while len(draws) < n_boot:
        index = generator.integers(len(names), size=len(names))
        if len(set(index)) > 1:
            draws.append(_spearman(x[index], y[index]))
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    orders = _orders(len(names), generator)
    as_far = sum(abs(_spearman(x, y[list(order)])) >= abs(value) - 1e-12 for order in orders)
    ends = float(min(low, value)), float(max(high, value))
    return RankCorrelation(value, *ends, as_far / len(orders), x.size, len(names))


def _spearman(x, y):
    ranks = [scipy_stats.rankdata(values) for values in (x, y)]
    if min(map(np.ptp, ranks)) == 0:
        return np.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _orders(n, generator):
    if n <= 7:
        return list(itertools.permutations(range(n)))
    return [range(n), *(generator.permutation(n) for _ in range(MOST_ORDERS - 1))]
