"""Where a curve bends: continuous piecewise-linear least squares, knots by BIC, intervals by bootstrap."""

from typing import NamedTuple

import numpy as np

__all__ = ["Breakpoints", "PiecewiseLinear", "breakpoints_with_intervals", "piecewise_linear", "rising_steps"]

MOST_KNOTS = 6
LEAST_POINTS = 3  # between neighbouring knots, and between a knot and an end
LEAST_RISE = 0.1  # of the range of the curve: a rise by less is not counted as a step
ROUNDING = 1e-6  # of the largest value: metrics are kept in float32
SWEEPS = 5  # each moves every knot to its best place once


class PiecewiseLinear(NamedTuple):
    """A continuous curve of straight pieces: knots (knot,), slopes (knot + 1,), values (point,), its BIC."""

    knots: np.ndarray
    slopes: np.ndarray
    fitted: np.ndarray
    bic: float


class Breakpoints(NamedTuple):
    """The fit of a mean curve, the ends of each knot's interval (knot,), and its rising steps with theirs."""

    fit: PiecewiseLinear
    low: np.ndarray
    high: np.ndarray
    n_rising: int
    n_rising_low: float
    n_rising_high: float


def piecewise_linear(x, y, *, n_knots=None, most_knots=MOST_KNOTS):
    """Fit a continuous piecewise-linear curve by least squares, knots at points of x.

    Knots are added one at a time where they help most, then each is moved to its best place, given the
    others, until none moves. The number with the least BIC = n log(RSS / n) + (2 + 2 · knots) log n is taken:
    a knot costs its place and a slope.

    Parameters
    ----------
    x : array_like, shape (point,)
        Rising, such as log10(step + 1). Not modified.
    y : array_like, shape (point,)
        Finite. Not modified.
    n_knots : int, optional
        Exactly so many knots, or as many as there is room for; chosen by BIC if None.
    most_knots : int
        Largest number tried.

    Returns
    -------
    PiecewiseLinear

    Raises
    ------
    ValueError
        If x does not rise, the shapes differ, values are not finite, or there are fewer than 6 points.

    Notes
    -----
    BIC supposes independent errors. What straight pieces miss of a smooth curve is not independent, so a
    smooth bend may take two knots where one phase changes: count phases with :func:`rising_steps`.
    """
    x, y = _checked(x, y)
    hinges = np.maximum(x[:, None] - x, 0.0)  # (point, knot place)
    best, chosen = None, []
    floor = len(y) * (ROUNDING * max(np.abs(y).max(), 1e-30)) ** 2
    for count in range((most_knots if n_knots is None else n_knots) + 1):
        if count:
            place = _best_place(x, y, hinges, chosen)
            if place is None:
                break
            chosen = _settled(x, y, hinges, [*chosen, place])
        fitted, slopes = _solve(x, y, hinges, chosen)
        rss = max(float(((y - fitted) ** 2).sum()), floor)
        bic = len(y) * np.log(rss / len(y)) + (2 + 2 * count) * np.log(len(y))
        if best is None or n_knots is not None or bic < best.bic:
            best = PiecewiseLinear(x[sorted(chosen)], slopes, fitted, float(bic))
    return best


def rising_steps(x, fit):
    """Return where each rise of a fitted curve begins.

    A rise is a run of neighbouring pieces that are steeper than the range of the curve over the range of x,
    and that together climb at least a tenth of the range. Pieces of one smooth rise are so counted once.

    Parameters
    ----------
    x : array_like, shape (point,)
    fit : PiecewiseLinear

    Returns
    -------
    numpy.ndarray, shape (rise,)
        A straight line and a constant have none.
    """
    x = np.asarray(x, dtype=np.float64)
    edges = np.array([x[0], *fit.knots, x[-1]])  # (piece + 1,)
    height = np.ptp(fit.fitted)
    steep = (fit.slopes > height / np.ptp(x)) if len(fit.knots) else np.zeros(1, bool)  # (piece,)
    turns = np.flatnonzero(np.diff(np.concatenate([[0], steep, [0]])))
    climbs = fit.slopes * np.diff(edges)  # (piece,)
    begins = [a for a, b in turns.reshape(-1, 2) if climbs[a:b].sum() >= LEAST_RISE * height]
    return edges[begins]


def breakpoints_with_intervals(x, curves, *, n_boot=200, confidence=0.95, seed=0, most_knots=MOST_KNOTS):
    """Fit the mean of several curves and say how sure its knots and its number of rising steps are.

    Seeds and sequences are drawn again, each with replacement: a draw is the mean over the drawn seeds and
    the drawn sequences. With one seed the intervals are over sequences alone.

    Parameters
    ----------
    x : array_like, shape (point,)
    curves : array_like, shape (seed, sequence, point)
        Not modified.
    n_boot, confidence, seed
        Of the bootstrap.
    most_knots : int
        As in :func:`piecewise_linear`.

    Returns
    -------
    Breakpoints
        Knot k of a draw is fitted with as many knots as the mean curve has; the number of rising steps with
        as many as BIC takes for the draw. Intervals are widened to hold the value where they do not.

    Raises
    ------
    ValueError
        As :func:`piecewise_linear`, or for curves of another shape.
    """
    curves = np.asarray(curves, dtype=np.float64)
    if curves.ndim != 3:
        raise ValueError(f"curves have shape {curves.shape}; expected (seed, sequence, point)")
    fit = piecewise_linear(x, curves.mean((0, 1)), most_knots=most_knots)
    generator = np.random.default_rng(seed)
    knots, counts = [], []
    for _ in range(n_boot):
        seeds, sequences = (generator.integers(n, size=n) for n in curves.shape[:2])
        mean = curves[seeds][:, sequences].mean((0, 1))  # (point,)
        same = piecewise_linear(x, mean, n_knots=len(fit.knots))
        if len(same.knots) == len(fit.knots):
            knots.append(same.knots)
        counts.append(len(rising_steps(x, piecewise_linear(x, mean, most_knots=most_knots))))
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(knots, ends, axis=0) if len(fit.knots) else (fit.knots, fit.knots)
    n_rising = len(rising_steps(x, fit))
    least, most = np.quantile(counts, ends)
    return Breakpoints(
        fit,
        np.minimum(low, fit.knots),
        np.maximum(high, fit.knots),
        n_rising,
        float(min(least, n_rising)),
        float(max(most, n_rising)),
    )


def _checked(x, y):
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 * LEAST_POINTS:
        raise ValueError(
            f"x and y have shapes {x.shape} and {y.shape}; expected one shape (point,) of at least "
            f"{2 * LEAST_POINTS} points"
        )
    if not (np.diff(x) > 0).all():
        raise ValueError("x must rise from point to point; sort it and leave out what is there twice")
    if not np.isfinite(y).all():
        raise ValueError(f"{(~np.isfinite(y)).sum()} of {len(y)} values of y are NaN or infinite")
    return x, y


def _basis(x, hinges, chosen):
    return np.column_stack([np.ones_like(x), x, hinges[:, sorted(chosen)]])  # (point, 2 + knot)


def _allowed(n, chosen):
    """Return the places that leave room to the ends and to the knots there are."""
    places = np.arange(LEAST_POINTS - 1, n - LEAST_POINTS + 1)
    for other in chosen:
        places = places[np.abs(places - other) >= LEAST_POINTS - 1]
    return places


def _best_place(x, y, hinges, chosen):
    """Return the place of one more knot that leaves the least squared error, or None without room."""
    places = _allowed(len(x), chosen)
    if not len(places):
        return None
    q, _ = np.linalg.qr(_basis(x, hinges, chosen))  # (point, column)
    rest = y - q @ (q.T @ y)  # (point,)
    fresh = hinges[:, places] - q @ (q.T @ hinges[:, places])  # (point, place)
    size = (fresh**2).sum(0)
    gain = np.where(size > 1e-12, (fresh.T @ rest) ** 2 / np.maximum(size, 1e-12), 0.0)
    return int(places[gain.argmax()])


def _settled(x, y, hinges, chosen):
    """Return the knots after each was moved to its best place, given the others, until none moves."""
    for _ in range(SWEEPS):
        before = list(chosen)
        for at in range(len(chosen)):
            others = chosen[:at] + chosen[at + 1 :]
            chosen = [*chosen[:at], _best_place(x, y, hinges, others), *chosen[at + 1 :]]
        if chosen == before:
            break
    return chosen


def _solve(x, y, hinges, chosen):
    """Return the fitted values and the slope of each piece."""
    basis = _basis(x, hinges, chosen)
    weights = np.linalg.lstsq(basis, y, rcond=None)[0]  # (2 + knot,)
    return basis @ weights, np.cumsum(weights[1:])
