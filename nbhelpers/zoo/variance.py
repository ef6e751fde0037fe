"""Which share of the variance between runs is due to a factor: exact for arms crossed with seeds.

Every arm is trained from the same seeds, so arms × seeds is a complete block design: the sums of squares of
arms, seeds and the rest are orthogonal, and F intervals are exact under normal errors. A mixed model fitted
by restricted likelihood gives the same estimates on such a table, and needs more to be trusted.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

__all__ = ["Factor", "Share", "seed_variance", "variance_share"]

LEAST_SEEDS = 3


class Factor(NamedTuple):
    """A question to the means of some arms: contrasts (contrast, arm) that are 0 if the factor does nothing.

    ``arms`` names the columns. See :meth:`levels` and :meth:`difference` for the usual ones.
    """

    name: str
    arms: tuple
    contrasts: np.ndarray

    @classmethod
    def levels(cls, name, arms):
        """Arms that differ in one factor of several levels: are their means equal?"""
        arms = tuple(arms)
        return cls(name, arms, np.eye(len(arms))[1:] - np.eye(len(arms))[:1])

    @classmethod
    def difference(cls, name, with_it, without):
        """Arms with and without something, pair by pair: is the mean difference 0?"""
        weights = [1 / len(with_it)] * len(with_it) + [-1 / len(without)] * len(without)
        return cls(name, (*with_it, *without), np.array([weights]))


class Share(NamedTuple):
    """How much of the variance a factor makes.

    ``variance`` is that of the means of its levels, each equally often, unbiased and so perhaps below 0;
    ``residual`` that between seeds of one arm, less what a seed does to all arms; ``share`` is the first over
    both, in [0, 1], with its interval; ``p_value`` of the F test.
    """

    factor: str
    variance: float
    residual: float
    share: float
    low: float
    high: float
    p_value: float
    n_arms: int
    n_seeds: int


def variance_share(values, factor, *, confidence=0.95):
    """Return the share of a factor in the variance between runs that differ in it and in their seed.

    Parameters
    ----------
    values : mapping of str to array_like, shape (seed,)
        A number of each run, by arm; all arms from the same seeds, in one order. The error is estimated from
        all arms given, also those that the factor does not name.
    factor : Factor
    confidence : float
        Of the interval, which inverts the noncentral F distribution.

    Returns
    -------
    Share

    Raises
    ------
    KeyError
        If an arm of the factor is not given.
    ValueError
        For fewer than 3 seeds or 2 arms, unequal numbers of seeds, or numbers that are not finite.
    """
    table, error, df_error = _blocks(values)
    missing = [arm for arm in factor.arms if arm not in values]
    if missing:
        raise KeyError(f"{factor.name} needs the arms {', '.join(missing)}; given are {', '.join(values)}")
    order = [list(values).index(arm) for arm in factor.arms]
    n_seeds, n_arms = table.shape[1], len(order)
    found = factor.contrasts @ table[order].mean(1)  # (contrast,)
    gram = factor.contrasts @ factor.contrasts.T
    square = n_seeds * float(found @ np.linalg.solve(gram, found))
    df = len(found)
    per_run = n_seeds * n_arms  # noncentrality over this is variance over residual
    variance = (square - df * error) / per_run
    if error > 0:
        ratio = square / df / error
        ends = _noncentrality(ratio, df, df_error, confidence)
        low, high = (end / (end + per_run) for end in ends)
        share = max(variance, 0.0) / (max(variance, 0.0) + error)
        p_value = float(scipy_stats.f.sf(ratio, df, df_error))
    else:  # seeds that do not differ at all
        share = low = high = float(square > 0)
        p_value = float(square == 0)
    ends = min(low, share), max(high, share)
    return Share(factor.name, variance, error, share, *ends, p_value, n_arms, n_seeds)


def seed_variance(values):
    """Return the variance of what a seed does to all arms alike, and that which is left, both unbiased.

    Parameters
    ----------
    values : mapping of str to array_like, shape (seed,)
        As in :func:`variance_share`.

    Returns
    -------
    tuple of float
        The first is a difference of mean squares and may be below 0.
    """
    table, error, _ = _blocks(values)
    between = table.shape[0] * table.mean(0).var(ddof=1)
    return float((between - error) / table.shape[0]), error


def _blocks(values):
    """Return the table (arm, seed), the mean square of what arms and seeds leave, and its freedom."""
    rows = {arm: np.asarray(row, dtype=np.float64) for arm, row in values.items()}
    shapes = {row.shape for row in rows.values()}
    if len(rows) < 2 or len(shapes) != 1 or len(next(iter(shapes))) != 1 or shapes < {(0,), (1,), (2,)}:
        listed = ", ".join(f"{arm} {row.shape}" for arm, row in rows.items())
        raise ValueError(f"expected at least 2 arms of the same {LEAST_SEEDS} or more seeds, got {listed}")
    table = np.stack(list(rows.values()))  # (arm, seed)
    if not np.isfinite(table).all():
        raise ValueError(f"{(~np.isfinite(table)).sum()} of {table.size} runs have no finite number")
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    error = float((rest**2).sum() / freedom)
    return table, error if error > (1e-12 * np.abs(table).max()) ** 2 else 0.0, freedom


def _noncentrality(ratio, df, df_error, confidence):
    """Return the noncentralities at which the observed F is at the ends of its distribution."""

    def solve(probability):
        def excess(noncentrality):
            return scipy_stats.ncf.cdf(ratio, df, df_error, noncentrality) - probability

        if scipy_stats.f.cdf(ratio, df, df_error) < probability:
            return 0.0  # even without an effect so small an F is rare
        most = 10.0 + 4 * df * ratio
        while excess(most) > 0:
            most *= 2
        return optimize.brentq(excess, 1e-12, most)

    return solve((1 + confidence) / 2), solve((1 - confidence) / 2)
