"""Correlations along an axis, plain and partial, that know what is rounding and what is missing."""

import numpy as np

__all__ = ["partial_correlation", "pearson", "same_shape"]

SPREAD_FLOOR = 1e-6  # relative; attention is captured in float32, so a smaller spread is rounding


def pearson(x, y, *, axis):
    """Return the Pearson correlation along an axis over the finite pairs; NaN where x or y is constant.

    A spread of less than one part in a million of the mean is rounding of float32 and counts as constant.
    """
    known = np.isfinite(x) & np.isfinite(y)
    count = np.maximum(known.sum(axis, keepdims=True), 1)

    def centre(values):
        values = np.where(known, values, 0.0)
        mean = values.sum(axis, keepdims=True) / count
        centred = np.where(known, values - mean, 0.0)
        spread = np.sqrt((centred**2).sum(axis, keepdims=True) / count)
        return centred, np.where(spread > SPREAD_FLOOR * np.abs(mean), spread, np.nan)

    (x, x_spread), (y, y_spread) = centre(x), centre(y)
    return ((x * y).sum(axis, keepdims=True) / (count * x_spread * y_spread)).squeeze(axis)


def partial_correlation(x, y, given):
    """Return the Pearson correlation of what a linear fit on other variables leaves of x and y.

    Parameters
    ----------
    x, y : array_like, shape (..., observation)
        Not modified.
    given : sequence of array_like
        The variables held constant, such as log N_eff and log n; each broadcasts to the shape of x. One that
        is constant changes nothing; without any this is the Pearson correlation.

    Returns
    -------
    numpy.ndarray, shape (...)
        In [−1, 1], over the observations that are finite throughout. NaN where the fit leaves no more than
        rounding of x or of y, or where there are fewer than 3 observations more than variables.

    Raises
    ------
    ValueError
        For unequal shapes.
    """
    x, y = same_shape(finite=False, x=x, y=y)
    data = np.stack([x, y, *(np.broadcast_to(g, x.shape) for g in given)], -1)  # (..., observation, variable)
    known = np.isfinite(data).all(-1, keepdims=True)
    count = np.maximum(known.sum(-2, keepdims=True), 1)
    mean = np.where(known, data, 0.0).sum(-2, keepdims=True) / count
    data = np.where(known, data - mean, 0.0)
    spread = np.sqrt((data**2).sum(-2, keepdims=True) / count)
    varies = spread > SPREAD_FLOOR * np.abs(mean)
    data = np.where(varies, data / np.where(varies, spread, 1.0), 0.0)
    rest = data[..., :2]
    if len(given):
        basis, size, _ = np.linalg.svd(data[..., 2:], full_matrices=False)
        basis = basis * (size > SPREAD_FLOOR * np.sqrt(count[..., 0]))[..., None, :]
        rest = rest - basis @ (basis.swapaxes(-1, -2) @ rest)
    left = np.sqrt((rest**2).sum(-2) / count[..., 0, :])  # (..., 2), of spread 1 before the fit
    defined = (left > SPREAD_FLOOR).all(-1) & (count[..., 0, 0] >= len(given) + 3)
    product = (rest[..., 0] * rest[..., 1]).sum(-1) / count[..., 0, 0]
    return np.where(defined, product / np.where(defined, left.prod(-1), 1.0), np.nan).clip(-1, 1)


def same_shape(*, finite=True, **arrays):
    """Return named arrays as a list of float64; a ValueError unless they have one shape, and are finite."""
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the arrays must have one shape, got {listed}")
    for name, array in arrays.items():
        if finite and not np.isfinite(array).all():
            raise ValueError(
                f"{(~np.isfinite(array)).sum()} of {array.size} entries of {name} are NaN or infinite"
            )
    return list(arrays.values())
