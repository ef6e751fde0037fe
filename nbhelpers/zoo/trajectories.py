"""What a metric does over training: peaks between the ends, rises, and what other scores leave of them."""

from typing import NamedTuple

import numpy as np

__all__ = ["Unexplained", "interior_peak", "rise", "unexplained"]


class Unexplained(NamedTuple):
    """What a linear fit leaves of a metric, its mean put back, and the share of variance it explained.

    ``rest`` has the shape (head, step) of the metric; ``curve_left`` is the variance over steps of the mean
    curve that is left, over that before.
    """

    rest: np.ndarray
    explained: float
    curve_left: float


def interior_peak(curves):
    """Return the largest value over training less the larger of its ends (claim C9).

    Parameters
    ----------
    curves : array_like, shape (..., step)
        In the order of the steps, the first untrained, the last the end of training. Not modified.

    Returns
    -------
    numpy.ndarray, shape (...)
        0 where the largest value is at an end.
    """
    curves = _curves(curves)
    return curves.max(-1) - np.maximum(curves[..., 0], curves[..., -1])


def rise(curves):
    """Return the value at the end of training less that before it (claim C10), (...) from (..., step)."""
    curves = _curves(curves)
    return curves[..., -1] - curves[..., 0]


def unexplained(values, given):
    """Return what a linear fit on other scores leaves of a metric, over all heads and steps of a run.

    Parameters
    ----------
    values : array_like, shape (head, step)
        Finite. Not modified.
    given : sequence of array_like, shape (head, step)
        The scores held constant, such as log N_eff. One that is constant changes nothing.

    Returns
    -------
    Unexplained
        One fit for all heads and steps: that heads differ, or that time passes, explains nothing by itself.

    Raises
    ------
    ValueError
        For unequal shapes, or numbers that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    given = [np.asarray(score, dtype=np.float64) for score in given]
    shapes = [score.shape for score in given]
    if values.ndim != 2 or any(shape != values.shape for shape in shapes):
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
    return Unexplained(
        rest + values.mean(),
        float(1 - rest.var() / variance) if variance > 0 else 0.0,
        float(rest.mean(0).var() / curve) if curve > 0 else 0.0,
    )


def _curves(curves):
    curves = np.asarray(curves, dtype=np.float64)
    if curves.ndim == 0 or curves.shape[-1] < 2 or not np.isfinite(curves).all():
        raise ValueError(
            f"a curve needs at least 2 steps and finite numbers; got shape {curves.shape} with "
            f"{(~np.isfinite(curves)).sum()} that are not finite"
        )
    return curves
