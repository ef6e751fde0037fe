"""Trends over model size, and how far a size departs from the trend of the others."""

import itertools
from typing import NamedTuple

import numpy as np

from nbhelpers.stats import Interval

from .seeds import seed_interval

__all__ = ["Departure", "Trend", "departures", "largest_departure", "trend_per_decade"]

LEAST_SIZES = 4  # so that the trend over the others is a line through at least three points


class Trend(NamedTuple):
    """Change per decade of parameters, interval over seeds; mean over exchanged sizes, and their p-value."""

    slope: Interval
    null: float
    p_value: float


class Departure(NamedTuple):
    """Largest departure from the trend over the other sizes, in sd over seeds, with its interval.

    ``at`` is the place of that size, ``sd`` one sd over seeds in the unit of the values, ``null`` the mean of
    the same statistic if only seeds vary, ``p_value`` how often they alone depart as far.
    """

    departure: Interval
    at: int
    sd: float
    null: float
    p_value: float


def trend_per_decade(parameters, values, *, confidence=0.95):
    """Return the slope of values over log10 of the number of parameters.

    Parameters
    ----------
    parameters : array_like, shape (size,)
        Positive, all different. Not modified.
    values : array_like, shape (size, seed)
        Finite; at least 4 sizes and 3 seeds. Not modified.
    confidence : float
        Of Student's interval over the slopes of the seeds; it holds for these sizes.

    Returns
    -------
    Trend
        Sizes are exchanged in every possible order (two-sided p-value); the mean slope over all orders is 0
        up to rounding.

    Raises
    ------
    ValueError
        For fewer sizes or seeds, unequal shapes, or numbers that are not finite.
    """
    x, values = _checked(parameters, values)
    slopes = _slopes(x, values)  # (seed,)
    slope = seed_interval(slopes, confidence=confidence)
    orders = [list(order) for order in itertools.permutations(range(len(x)))]
    draws = np.array([_slopes(x, values[order]).mean() for order in orders])
    p_value = float((np.abs(draws) >= abs(slope.value) - 1e-12).mean())
    null = float(draws.mean().round(12)) + 0.0  # 0 but for rounding, and never -0
    return Trend(slope, null, p_value)


def departures(parameters, means):
    """Return how far each size is from the line through the others, in the unit of the means.

    Parameters
    ----------
    parameters : array_like, shape (size,)
    means : array_like, shape (..., size)

    Returns
    -------
    numpy.ndarray, shape (..., size)
        Signed. The line is over log10 of the parameters.
    """
    x, means = np.log10(np.asarray(parameters, float)), np.asarray(means, dtype=np.float64)
    found = np.empty(np.broadcast_shapes(means.shape, x.shape))
    for at in range(len(x)):
        rest = np.arange(len(x)) != at
        centred = x[rest] - x[rest].mean()
        slope = means[..., rest] @ centred / (centred @ centred)  # (...)
        found[..., at] = means[..., at] - means[..., rest].mean(-1) - slope * (x[at] - x[rest].mean())
    return found


def largest_departure(parameters, values, *, n_draws=2000, confidence=0.95, seed=0):
    """Return the largest departure of a size from the trend over the others (claim C7).

    Parameters
    ----------
    parameters : array_like, shape (size,)
    values : array_like, shape (size, seed)
        As in :func:`trend_per_decade`.
    n_draws : int
        For the interval, deviations from the means of the sizes are drawn again around these means; for the
        null, around the line through all sizes. Deviations of all sizes are one pool, widened by
        √(n / (n − 1)) for the mean that was taken off; the pooled sd is the unit throughout.
    confidence, seed
        Of the draws.

    Returns
    -------
    Departure

    Raises
    ------
    ValueError
        As :func:`trend_per_decade`, or if seeds do not differ.
    """
    x, values = _checked(parameters, values)
    n_sizes, n_seeds = values.shape
    means = values.mean(1)  # (size,)
    pool = (values - means[:, None]).ravel() * np.sqrt(n_seeds / (n_seeds - 1))
    sd = float(np.sqrt((pool**2).mean()))
    if not sd > 0:
        raise ValueError("seeds of one size do not differ, so there is no unit to measure departures in")
    generator = np.random.default_rng(seed)
    noise = generator.choice(pool, (n_draws, n_sizes, n_seeds)).mean(-1)  # (draw, size)
    line = np.polyval(np.polyfit(x, means, 1), x)  # (size,)

    def largest(of):
        return np.abs(departures(10**x, of)).max(-1) / sd

    found = np.abs(departures(10**x, means))
    value = float(found.max() / sd)
    low, high = np.quantile(largest(means + noise), [(1 - confidence) / 2, (1 + confidence) / 2])
    null = largest(line + noise)  # (draw,)
    p_value = (1 + int((null >= value - 1e-12).sum())) / (n_draws + 1)
    interval = Interval(value, float(min(low, value)), float(max(high, value)), n_seeds)
    return Departure(interval, int(found.argmax()), sd, float(null.mean()), p_value)


def _slopes(x, values):
    centred = x - x.mean()
    return centred @ values / (centred @ centred)  # (seed,)


def _checked(parameters, values):
    parameters, values = np.asarray(parameters, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or parameters.shape != values.shape[:1] or len(values) < LEAST_SIZES:
        raise ValueError(
            f"parameters {parameters.shape} and values {values.shape}; expected (size,) and (size, seed) of "
            f"at least {LEAST_SIZES} sizes"
        )
    if values.shape[1] < 3 or not np.isfinite(values).all():
        raise ValueError(
            f"at least 3 seeds of finite numbers are needed, got {values.shape[1]} seeds and "
            f"{(~np.isfinite(values)).sum()} numbers that are not finite"
        )
    if len(set(parameters)) < len(parameters) or not (parameters > 0).all():
        raise ValueError(f"sizes must be positive and different, got {parameters.tolist()}")
    return np.log10(parameters), values
