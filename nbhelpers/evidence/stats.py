"""Intervals over sequences, and the position-spectrum correlation (eqs. 8 and 9)."""

from typing import NamedTuple

import numpy as np

LEAST_SEQUENCES = 3
SPREAD_FLOOR = 1e-6  # relative; attention is captured in float32, so a smaller spread is rounding
OVER = ("heads", "heads of a layer", "sequences")


class Interval(NamedTuple):
    """A value, the ends of its bootstrap interval, and the number of sequences behind it."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    n_sequences: int


def bootstrap_interval(values, *, n_boot=1000, confidence=0.95, seed=0, statistic=np.mean):
    """Return a statistic over sequences with its percentile bootstrap interval.

    Whole sequences are drawn again. Heads and layers of a sequence stay together, so that they need not be
    independent of each other; only the sequences must be.

    Parameters
    ----------
    values : array_like, shape (sequence, ...)
        Finite numbers. Not modified.
    n_boot : int
        Bootstrap draws.
    confidence : float
        In (0, 1).
    seed : int
        Of the draws; the same seed gives the same interval.
    statistic : callable
        Takes an array (sequence, ...) and ``axis=0``, as `numpy.mean` does. It is given whole draws, so it
        may go on to take a spread over the other axes.

    Returns
    -------
    Interval
        ``value``, ``low`` and ``high`` of the shape that `statistic` returns.

    Raises
    ------
    ValueError
        For fewer than 3 sequences, or values that are NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    n_sequences = _require_sequences(values.shape[0] if values.ndim else 0)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{(~np.isfinite(values)).sum()} of {values.size} values are NaN or infinite; leave these heads "
            "or sequences out, and say so, before an interval is taken"
        )
    draws = [statistic(values[index], axis=0) for index in _draws(n_sequences, n_boot, seed)]
    low, high = np.quantile(draws, _ends(confidence), axis=0)
    return Interval(statistic(values, axis=0), low, high, n_sequences)


def distribution_over_heads(table, metric, **options):
    """Return mean, sd and interquartile range over heads of a metric, each with an interval (Table 3).

    Heads take part with their mean over sequences. They are not independent draws, so the intervals are over
    sequences only.

    Parameters
    ----------
    table : HeadTable
    metric : str
    **options
        `n_boot`, `confidence` and `seed` of `bootstrap_interval`.

    Returns
    -------
    dict of str to Interval
        Keys ``mean``, ``std`` (n − 1 in the denominator) and ``iqr``, as Table 3 names them.

    Raises
    ------
    ValueError
        As `bootstrap_interval` and, for a table of averaged signals, `position_spectrum_correlation`.
    """
    _require_sequences_kept(table)
    values = table.values(metric)
    values = values.reshape(len(values), -1)  # (sequence, head)

    def iqr(draw, axis):
        return np.subtract(*np.quantile(draw.mean(axis), [0.75, 0.25]))

    statistics = {
        "mean": lambda draw, axis: draw.mean(axis).mean(),
        "std": lambda draw, axis: draw.mean(axis).std(ddof=1),
        "iqr": iqr,
    }
    return {name: bootstrap_interval(values, statistic=f, **options) for name, f in statistics.items()}


def position_spectrum_correlation(table, *, over="heads", n_boot=1000, confidence=0.95, seed=0):
    """Return the Pearson correlation of positional and spectral entropy (eqs. 8 and 9).

    The paper prints one number per model and does not say what it is taken over.

    Parameters
    ----------
    table : HeadTable
        With the metrics ``positional_entropy`` and ``spectral_entropy`` of at least 3 sequences.
    over : {"heads", "heads of a layer", "sequences"}
        "heads": over all heads of the model, a correlation for each sequence; "heads of a layer": over the
        heads of one layer, for each layer and sequence; "sequences": over the sequences, for each head. The
        mean of these correlations is returned.
    n_boot, confidence, seed
        As in `bootstrap_interval`. Sequences are drawn again and everything is computed anew.

    Returns
    -------
    Interval
        Correlations that are not defined, because one of the entropies does not vary there by more than
        one part in a million, are left out of the mean.

    Raises
    ------
    ValueError
        For an unknown `over`, fewer than 3 sequences, a table of averaged signals, or if no correlation at
        all is defined (attention that is the same everywhere).

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eqs. 8 and 9.
    """
    if over not in OVER:
        raise ValueError(f"unknown over={over!r}; choose one of {', '.join(map(repr, OVER))}")
    _require_sequences_kept(table)
    position, spectrum = table.values("positional_entropy"), table.values("spectral_entropy")
    n_sequences = _require_sequences(len(position))
    value = _mean_correlation(position, spectrum, over)
    if np.isnan(value):
        raise ValueError(
            f"the correlation over {over} is not defined: positional or spectral entropy is constant there "
            f"(spread over the whole table {np.ptp(position):.2g} and {np.ptp(spectrum):.2g} nats)"
        )
    indices = _draws(n_sequences, n_boot, seed)
    draws = [_mean_correlation(position[index], spectrum[index], over) for index in indices]
    # A draw that repeats a single sequence has no correlation over sequences: NaN, left out.
    low, high = np.nanquantile(draws, _ends(confidence))
    return Interval(value, float(low), float(high), n_sequences)


def _draws(n_sequences, n_boot, seed):
    """Return `n_boot` draws of sequence indices with replacement, (draw, sequence)."""
    return np.random.default_rng(seed).integers(n_sequences, size=(n_boot, n_sequences))


def _ends(confidence):
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _require_sequences_kept(table):
    if table.averaged:
        raise ValueError(
            "this table holds metrics of signals averaged over sequences, so it has no sequences to draw "
            "again; measure with order='metric then mean'"
        )


def _require_sequences(n_sequences):
    if n_sequences < LEAST_SEQUENCES:
        raise ValueError(
            f"a bootstrap over sequences needs at least {LEAST_SEQUENCES} of them, got {n_sequences}; "
            "draw more with load_text(..., n_sequences=...)"
        )
    return n_sequences


def _mean_correlation(x, y, over):
    """Mean over the defined correlations of (sequence, layer, head) arrays; NaN if there is none."""
    if over == "sequences":
        r = _pearson(x, y, axis=0)  # (layer, head)
    elif over == "heads":
        r = _pearson(x.reshape(len(x), -1), y.reshape(len(y), -1), axis=1)  # (sequence,)
    else:
        r = _pearson(x, y, axis=2)  # (sequence, layer)
    defined = r[np.isfinite(r)]
    return float(defined.mean()) if defined.size else np.nan


def _pearson(x, y, *, axis):
    """Pearson correlation along an axis over the finite pairs; NaN where x or y is constant."""
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
