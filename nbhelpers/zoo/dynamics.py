"""Statistics whose unit is a training run: curves and their breakpoints, arms, sizes, shares of variance."""

import itertools
import math
from collections import namedtuple
from typing import NamedTuple

import numpy as np
import scipy

from nbhelpers import stats
from nbhelpers.arguments import array, check_all, checked, mapping
from nbhelpers.stats import LEAST_SEEDS, Estimate, student_interval

MOST_KNOTS = 6
LEAST_POINTS = 3  # between neighbouring knots, and between a knot and an end
LEAST_RISE = 0.1  # of the range of the curve: a rise by less is not counted as a step
ROUNDING = 1e-6  # of the largest value: metrics are kept in float32
SWEEPS = 5  # each moves every knot to its best place once
ONE_EVENT = math.log10(2)  # two knots closer than a factor of two in updates count as one event
LEAST_SIZES = 4  # so that the trend over the others is a line through at least three points

# What a linear fit leaves of a metric: the rest (head, step), its mean put back; the share of the variance it
# explains; the variance over steps of the mean curve that is left, over that before.
Unexplained = namedtuple("Unexplained", ("rest", "explained", "curve_left"))
# A continuous curve of straight pieces: knots (knot,), slopes (knot + 1,), values (point,), its BIC.
PiecewiseLinear = namedtuple("PiecewiseLinear", ("knots", "slopes", "fitted", "bic"))
# The fit of a mean curve, Estimates of the knots (knot,) and the number of rising steps, knots (seed, knot).
Breakpoints = namedtuple("Breakpoints", ("fit", "knots", "n_rising", "by_seed"))
# A departure from a trend, in sd over seeds; the place of its size, and one sd in the values' unit.
Departure = namedtuple("Departure", ("estimate", "at", "sd"))
# How much of the variance a factor makes: its share, in [0, 1], with the p-value of the F test; the variance
# of the means of its levels, each equally often, unbiased and so perhaps below 0; that between seeds of one
# arm, less what a seed does to all arms.
VarianceShare = namedtuple("VarianceShare", ("share", "variance", "residual"))


class Factor(NamedTuple):
    """A question to the means of some arms; see :meth:`levels` and :meth:`difference` for the usual ones."""

    name: str
    arms: tuple
    contrasts: np.ndarray  # (contrast, arm), 0 if the factor does nothing

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


def interior_peak(curves):
    """Return the largest value over training less the larger of its ends (claim C9): (...) of (..., step)."""
    curves = _curves(curves)
    return curves.max(-1) - np.maximum(curves[..., 0], curves[..., -1])


def rise(curves):
    """Return the value at the end of training less that before it (claim C10), (...) from (..., step)."""
    curves = _curves(curves)
    return curves[..., -1] - curves[..., 0]


def unexplained(values, given):
    """Return what one linear fit of a run on other scores leaves of a metric, all of shape (head, step)."""
    values, *given = (np.asarray(each, dtype=np.float64) for each in (values, *given))
    shapes = [score.shape for score in given]
    if values.ndim != 2 or {*shapes} - {values.shape}:
        raise ValueError(f"values have shape {values.shape}, the scores {shapes}; expected one (head, step)")
    columns = np.stack([values, *given]).reshape(1 + len(given), -1).T  # (observation, variable)
    if not np.isfinite(columns).all():
        raise ValueError(f"{(~np.isfinite(columns)).sum()} of {columns.size} numbers are not finite")
    centred = columns - columns.mean(0)
    spread = centred.std(0)
    scores = centred[:, 1:] / np.where(spread[1:] > 0, spread[1:], 1.0)
    weights = np.linalg.lstsq(scores, centred[:, 0], rcond=1e-8)[0]
    rest = (centred[:, 0] - scores @ weights).reshape(values.shape)
    variance, curve = values.var(), values.mean(0).var()
    explained = float(1 - rest.var() / variance) if variance > 0 else 0.0
    curve_left = float(rest.mean(0).var() / curve) if curve > 0 else 0.0
    return Unexplained(rest + values.mean(), explained, curve_left)


def _curves(curves):
    curves = np.asarray(curves, dtype=np.float64)
    if curves.ndim == 0 or curves.shape[-1] < 2 or not np.isfinite(curves).all():
        raise ValueError(f"a curve needs at least 2 steps and finite numbers; got shape {curves.shape}")
    return curves


def piecewise_linear(x, y, *, n_knots=None):
    """Fit a continuous piecewise-linear curve y (point,) by least squares, knots at points of the rising x.

    Knots are added where they help most, then moved to their best places. The number with the least BIC = n
    log(RSS / n) + (2 + 2 · knots) log n is taken, or `n_knots`, as far as there is room. A smooth bend may
    take two knots where one phase changes: count phases with :func:`rising_steps`.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 * LEAST_POINTS:
        raise ValueError(f"x {x.shape} and y {y.shape} must be alike, of at least {2 * LEAST_POINTS} points")
    if not (np.diff(x) > 0).all():
        raise ValueError("x must rise from point to point; sort it and leave out what is there twice")
    if not np.isfinite(y).all():
        raise ValueError(f"{(~np.isfinite(y)).sum()} of {len(y)} values of y are NaN or infinite")
    hinges = np.maximum(x[:, None] - x, 0.0)  # (point, knot place)
    best, chosen = None, []
    floor = len(y) * (ROUNDING * max(np.abs(y).max(), 1e-30)) ** 2
    for count in range((MOST_KNOTS if n_knots is None else n_knots) + 1):
        if count:
            if (place := _best_place(x, y, hinges, chosen)) is None:
                break
            chosen = [*chosen, place]
            for _ in range(SWEEPS):
                before = list(chosen)
                for at in range(count):
                    chosen[at] = _best_place(x, y, hinges, chosen[:at] + chosen[at + 1 :])
                if chosen == before:
                    break
        basis = _basis(x, hinges, chosen)
        weights = np.linalg.lstsq(basis, y, rcond=None)[0]  # (2 + knot,)
        fitted = basis @ weights
        rss = max(float(((y - fitted) ** 2).sum()), floor)
        bic = len(y) * np.log(rss / len(y)) + (2 + 2 * count) * np.log(len(y))
        if best is None or n_knots is not None or bic < best.bic:
            best = PiecewiseLinear(x[sorted(chosen)], np.cumsum(weights[1:]), fitted, float(bic))
    return best


def rising_steps(x, fit):
    """Return where each rise of a curve begins that was fitted over x (point,), (rise,).

    A rise is a run of pieces, each steeper than the line from end to end, that climbs a tenth of the range.
    """
    x = np.asarray(x, dtype=np.float64)
    edges = np.array([x[0], *fit.knots, x[-1]])  # (piece + 1,)
    height = np.ptp(fit.fitted)
    steep = (fit.slopes > height / np.ptp(x)) if len(fit.knots) else np.zeros(1, bool)  # (piece,)
    turns = np.flatnonzero(np.diff(np.concatenate([[0], steep, [0]])))
    climbs = fit.slopes * np.diff(edges)  # (piece,)
    begins = [a for a, b in turns.reshape(-1, 2) if climbs[a:b].sum() >= LEAST_RISE * height]
    return edges[begins]


def breakpoints_with_intervals(x, curves):
    """Fit the mean of curves (seed, sequence, point); intervals for its knots and number of rising steps.

    Each seed's curve is fitted with as many knots as the mean curve has, and knot k is the mean of the seeds'
    k-th; rising steps of a seed are counted with as many knots as BIC takes for it.
    """
    curves = np.asarray(curves, dtype=np.float64)
    if curves.ndim != 3:
        raise ValueError(f"curves have shape {curves.shape}; expected (seed, sequence, point)")
    fit, of_seeds = piecewise_linear(x, curves.mean((0, 1))), curves.mean(1)  # (seed, point)
    none = fit.knots * np.nan  # of a seed that has no room for so many
    by_seed = [piecewise_linear(x, curve, n_knots=len(none)).knots for curve in of_seeds]
    by_seed = np.stack([knots if len(knots) == len(none) else none for knots in by_seed])
    counts = [len(rising_steps(x, piecewise_linear(x, curve))) for curve in of_seeds]
    n_rising = student_interval(counts, possible=stats.NOT_NEGATIVE)
    knots = Estimate(fit.knots, none, none, n=len(curves))
    if np.isfinite(by_seed).all():
        knots = student_interval(by_seed, possible=(x[0], x[-1]))
    return Breakpoints(fit, knots, n_rising._replace(value=len(rising_steps(x, fit))).widened(), by_seed)


def same_event(first, second):
    """Return the difference of a knot (seed,) in two curves, seeds paired, and whether it is one event.

    "one" where an `equivalence_test` rejects, "two" where the difference's interval is off 0, else "open".
    """
    apart = stats.equivalence_test(first, ONE_EVENT, against=second)
    if apart.p_value < 0.05:
        return apart, "one"
    ends = student_interval(np.asarray(first) - np.asarray(second))
    return apart, "two" if ends.low > 0 or ends.high < 0 else "open"


def _basis(x, hinges, chosen):
    return np.column_stack([np.ones_like(x), x, hinges[:, sorted(chosen)]])  # (point, 2 + knot)


def _best_place(x, y, hinges, chosen):
    """Return the place of one more knot that leaves the least squared error, or None without room."""
    places = np.arange(LEAST_POINTS - 1, len(x) - LEAST_POINTS + 1)
    for other in chosen:
        places = places[np.abs(places - other) >= LEAST_POINTS - 1]
    if not len(places):
        return None
    q, _ = np.linalg.qr(_basis(x, hinges, chosen))  # (point, column)
    rest = y - q @ (q.T @ y)  # (point,)
    fresh = hinges[:, places] - q @ (q.T @ hinges[:, places])  # (point, place)
    size = (fresh**2).sum(0)
    gain = np.where(size > 1e-12, (fresh.T @ rest) ** 2 / np.maximum(size, 1e-12), 0.0)
    return int(places[gain.argmax()])


@checked(values=mapping)
def advantage(values, of, *, n_draws=9999, seed=0):
    """Return how far an arm's mean lies below that of the best other arm, the lowest, and which that is.

    `values` is (seed,) by arm, paired. Arms are exchanged within each seed: the null is the mean of that.
    """
    names = [of, *(name for name in values if name != of)]
    if of not in values or len(names) < 2:
        raise ValueError(f"{of!r} and another arm to compare it with are needed; got {', '.join(values)}")
    table = np.stack([np.asarray(values[name], dtype=np.float64) for name in names])  # (arm, seed)
    best = 1 + int(table[1:].mean(1).argmin())
    difference = student_interval(table[0] - table[best])
    generator = np.random.default_rng(seed)
    means = (generator.permuted(table, axis=0).mean(1) for _ in range(n_draws))  # (arm,) each
    draws = np.array([drawn[0] - drawn[1:].min() for drawn in means])
    p_value = (1 + int((draws <= difference.value + 1e-12).sum())) / (n_draws + 1)
    return difference._replace(null=float(draws.mean()), p_value=p_value), names[best]


def clustered_rank_correlation(x, y, clusters):
    """Return the Spearman correlation of two numbers of each run (run,), runs of a cluster standing together.

    Seeds of one arm are no independent evidence, so whole clusters, of one size and in one order of seeds,
    are left out for the interval and exchanged, in every order, for the two-sided p-value. Of 7 clusters the
    interval holds the truth 95 times of 100, of 4 only 88 times.
    """
    x, y, clusters = np.asarray(x, float), np.asarray(y, float), np.asarray(clusters)
    names, sizes = np.unique(clusters, return_counts=True)
    if x.shape != y.shape or x.shape != clusters.shape or len(set(sizes)) != 1 or not 4 <= len(names) <= 7:
        found = f"{dict(zip(names, sizes, strict=True))}, x {x.shape}, y {y.shape}"
        raise ValueError(f"expected runs of 4 to 7 clusters of one size, got {found}")
    if not np.isfinite([x, y]).all():
        raise ValueError("a run has no finite number; leave its cluster out, and say so")
    x, y = (np.stack([values[clusters == name] for name in names]) for values in (x, y))  # (cluster, run)
    value, orders = _spearman(x, y), list(itertools.permutations(range(len(names))))
    as_far = sum(abs(_spearman(x, y[list(order)])) >= abs(value) - 1e-12 for order in orders)
    left_out = [_spearman(np.delete(x, k, 0), np.delete(y, k, 0)) for k in range(len(names))]
    found = stats.jackknife_interval(value, left_out, possible=stats.CORRELATION)
    return found._replace(p_value=as_far / len(orders))


def _spearman(x, y):
    ranks = [scipy.stats.rankdata(values) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1]) if min(map(np.ptp, ranks)) > 0 else np.nan


@checked(parameters=array)
def trend_per_decade(parameters, values):
    """Return the slope of values (size, seed) over log10 parameters (size,), tested by exchanging sizes."""
    x, values = _sizes(parameters, values)
    centred = x - x.mean()
    square = centred @ centred
    slope = student_interval(centred @ values / square)  # of (seed,)
    orders = itertools.permutations(range(len(x)))
    draws = np.array([(centred @ values[list(order)] / square).mean() for order in orders])
    p_value = float((np.abs(draws) >= abs(slope.value) - 1e-12).mean())
    null = float(draws.mean().round(12)) + 0.0  # 0 but for rounding, and never -0
    return slope._replace(null=null, p_value=p_value)


@checked(parameters=array)
def departures(parameters, means):
    """Return how far each size is from the line through the others over log10 parameters, (..., size)."""
    x, means = np.log10(np.asarray(parameters, float)), np.asarray(means, dtype=np.float64)
    found = np.empty(np.broadcast_shapes(means.shape, x.shape))
    for at in range(len(x)):
        rest = np.arange(len(x)) != at
        centred = x[rest] - x[rest].mean()
        slope = means[..., rest] @ centred / (centred @ centred)  # (...)
        found[..., at] = means[..., at] - means[..., rest].mean(-1) - slope * (x[at] - x[rest].mean())
    return found


@checked(parameters=array)
def largest_departure(parameters, values, *, n_draws=2000, seed=0):
    """Return the largest departure of a size from the trend over the others (claim C7), in sd over seeds.

    The interval inverts the noncentral F distribution: exact for normal seeds and a size that was named
    before. The null is the mean of the same statistic of normal seeds around a line.
    """
    x, values = _sizes(parameters, values)

    def departing(of):  # (..., size, seed)
        return np.abs(departures(10**x, of.mean(-1))), np.sqrt(of.var(-1, ddof=1).mean(-1))

    found, sd = departing(values)
    if not sd > 0:
        raise ValueError("seeds of one size do not differ, so there is no unit to measure departures in")
    value, at = float(found.max() / sd), int(found.argmax())
    drawn, unit = departing(np.random.default_rng(seed).normal(size=(n_draws, *values.shape)))
    null = drawn.max(-1) / unit  # (draw,)
    p_value = (1 + int((null >= value - 1e-12).sum())) / (n_draws + 1)
    n_sizes, n_seeds = values.shape
    weight = np.linalg.norm(departures(10**x, np.eye(n_sizes))[:, at]) / np.sqrt(n_seeds)
    ends = _noncentrality((value / weight) ** 2, 1, n_sizes * (n_seeds - 1))
    low, high = (float(weight * np.sqrt(end)) for end in ends)
    estimate = Estimate(value, low, high, float(null.mean()), p_value, n_seeds)
    return Departure(estimate.widened(), at, float(sd))


def _sizes(parameters, values):
    """Return log10 of the parameters, and the values as an array, both checked."""
    parameters, values = np.asarray(parameters, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or parameters.shape != values.shape[:1] or len(values) < LEAST_SIZES:
        shapes = f"parameters {parameters.shape} and values {values.shape}"
        raise ValueError(f"{shapes}; expected (size,) and (size, seed) of at least {LEAST_SIZES} sizes")
    n_seeds, n_bad = values.shape[1], (~np.isfinite(values)).sum()
    if n_seeds < LEAST_SEEDS or n_bad:
        raise ValueError(f"at least {LEAST_SEEDS} seeds are needed; got {n_seeds}, {n_bad} not finite")
    if len(set(parameters)) < len(parameters) or not (parameters > 0).all():
        raise ValueError(f"sizes must be positive and different, got {parameters.tolist()}")
    return np.log10(parameters), values


# Every arm is trained from the same seeds, so arms × seeds is a complete block design: the sums of squares of
# arms, seeds and the rest are orthogonal, and F intervals are exact under normal errors. A mixed model fitted
# by restricted likelihood gives the same estimates on such a table, and needs more to be trusted.
@checked(values=mapping)
def variance_share(values, factor):
    """Return the share of a factor in the variance between runs that differ in it and in their seed.

    `values` is (seed,) by arm, in one order. The error is estimated from all arms, also those that the factor
    does not name. The interval inverts the noncentral F distribution.
    """
    table, error, df_error = _blocks(values)
    if missing := [arm for arm in factor.arms if arm not in values]:
        raise KeyError(f"{factor.name} needs the arms {', '.join(missing)}; given are {', '.join(values)}")
    order = [list(values).index(arm) for arm in factor.arms]
    found = factor.contrasts @ table[order].mean(1)  # (contrast,)
    df, n_seeds = len(found), table.shape[1]
    square = n_seeds * float(found @ np.linalg.solve(factor.contrasts @ factor.contrasts.T, found))
    per_run = n_seeds * len(order)  # noncentrality over this is variance over residual
    variance = (square - df * error) / per_run
    if error > 0:
        ratio = square / df / error
        low, high = (end / (end + per_run) for end in _noncentrality(ratio, df, df_error))
        share = max(variance, 0.0) / (max(variance, 0.0) + error)
        p_value = float(scipy.stats.f.sf(ratio, df, df_error))
    else:  # seeds that do not differ at all
        share = low = high = float(square > 0)
        p_value = float(square == 0)
    return VarianceShare(Estimate(share, low, high, p_value=p_value, n=n_seeds).widened(), variance, error)


def _blocks(values):
    """Return the table (arm, seed), the mean square of what arms and seeds leave, and its freedom."""
    rows = [np.asarray(row, dtype=np.float64) for row in values.values()]
    alike = len({row.shape for row in rows}) == 1 and rows[0].ndim == 1
    if len(rows) < 2 or not alike or len(rows[0]) < LEAST_SEEDS:
        listed = ", ".join(f"{arm} {np.shape(row)}" for arm, row in values.items())
        raise ValueError(f"expected at least 2 arms of the same {LEAST_SEEDS} or more seeds, got {listed}")
    table = np.stack(rows)  # (arm, seed)
    if not np.isfinite(table).all():
        raise ValueError(f"{(~np.isfinite(table)).sum()} of {table.size} runs have no finite number")
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    error = float((rest**2).sum() / freedom)
    return table, error if error > (1e-12 * np.abs(table).max()) ** 2 else 0.0, freedom


def _noncentrality(ratio, df, df_error):
    """Return the noncentralities at which the observed F is at the ends of 95 % of its distribution."""

    def solve(probability):
        def excess(noncentrality):
            return scipy.stats.ncf.cdf(ratio, df, df_error, noncentrality) - probability

        if scipy.stats.f.cdf(ratio, df, df_error) < probability:
            return 0.0  # even without an effect so small an F is rare
        most = 10.0 + 4 * df * ratio
        while excess(most) > 0:
            most *= 2
        return scipy.optimize.brentq(excess, 1e-12, most)

    return solve((1 + 0.95) / 2), solve((1 - 0.95) / 2)


check_all(globals())
