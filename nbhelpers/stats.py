"""Intervals over sequences, the position-spectrum correlation (eqs. 8 and 9), and the tests that go with
them."""

from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

LEAST_SEQUENCES = 3
SPREAD_FLOOR = 1e-6  # relative; attention is captured in float32, so a smaller spread is rounding
OVER = ("heads", "heads of a layer", "sequences")
EXTREME = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}


class Estimate(NamedTuple):
    """A number with its interval and what it is held against: from a statistic to a record to a verdict.

    Attributes
    ----------
    value, low, high : float or numpy.ndarray
        The estimate and the ends of its interval; NaN where there is none.
    null : float, optional
        What attention that learned nothing gives.
    p_value : float, optional
        Of the test that goes with it.
    n : int, optional
        How many independent units (sequences, seeds, clusters) the interval is over.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    null: float | None = None
    p_value: float | None = None
    n: int | None = None


class Interval(NamedTuple):
    """A value, the ends of its bootstrap interval, and the number of sequences behind it."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    n_sequences: int


class Permutation(NamedTuple):
    """An observed statistic, its p-value, and the statistic of each permutation, shape (draw,)."""

    value: float
    p_value: float
    draws: np.ndarray


class Equivalence(NamedTuple):
    """A mean difference with its interval, the p-value of two one-sided tests, and whether it is
    equivalent."""

    difference: Interval
    p_value: float
    equivalent: bool


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


def permutation_test(
    values, other, *, clusters, statistic=None, alternative="two-sided", n_draws=999, seed=0
):
    """Test whether two properties of heads go together, exchanging whole KV groups within their layer.

    Heads that share keys are not independent draws, and layers differ for reasons of their own. So a draw
    only exchanges the groups of a layer: what is tested is that it does not matter within a layer which group
    has which `other`. Heads keep their order in a group.

    Parameters
    ----------
    values, other : array_like, shape (layer, head)
        Finite numbers, or labels as numbers. Not modified.
    clusters : sequence of int, length head
        The KV group of each head, as `Profiles.kv_groups`; groups of one size.
    statistic : callable, optional
        Takes two arrays (layer, head) and returns a number; the Pearson correlation over all heads if None.
    alternative : {"two-sided", "greater", "less"}
        "two-sided" compares absolute values, so the statistic should be centred at 0 without an association.
    n_draws : int
        The smallest p-value that can be had is 1 / (n_draws + 1).
    seed : int

    Returns
    -------
    Permutation
        The observed arrangement counts among the draws, so the p-value is never 0 and the test is exact.

    Raises
    ------
    ValueError
        For unequal shapes, numbers that are not finite, groups of unequal size or a single one, an unknown
        alternative, or a statistic that is not defined.
    """
    values, other = same_shape(values=values, other=other)
    if alternative not in EXTREME:
        raise ValueError(f"unknown alternative={alternative!r}; choose one of {', '.join(EXTREME)}")
    members = _members(clusters, values)  # (group, member)
    if statistic is None:
        statistic = _correlation_over_all
    generator = np.random.default_rng(seed)
    group = np.tile(np.arange(len(members)), (len(values), 1))  # (layer, group)
    draws = np.empty(n_draws)
    for draw in range(n_draws):
        order = members[generator.permuted(group, axis=1)]  # (layer, group, member)
        exchanged = np.empty_like(values)
        exchanged[:, members.ravel()] = np.take_along_axis(values, order.reshape(len(values), -1), 1)
        draws[draw] = statistic(exchanged, other)
    value = float(statistic(values, other))
    if not (np.isfinite(value) and np.isfinite(draws).all()):
        raise ValueError(
            f"the statistic is not defined: observed {value}, {(~np.isfinite(draws)).sum()} of {n_draws} "
            "draws are NaN or infinite; an array that is constant has no association to test"
        )
    extreme = EXTREME[alternative]
    # Equal arrangements may differ in the last digit, for their sums run in another order.
    at_least = extreme(draws) >= extreme(value) - SPREAD_FLOOR * abs(value)
    return Permutation(value, (1 + int(at_least.sum())) / (n_draws + 1), draws)


def false_discovery(p_values, *, method="bh"):
    """Return p-values adjusted for the number of tests; those below q hold a share of at most q false ones.

    Parameters
    ----------
    p_values : array_like
        Of any shape: all of them are one family. Not modified.
    method : {"bh", "by"}
        Benjamini and Hochberg (independent or positively dependent tests), or Benjamini and Yekutieli (any
        dependence).

    Returns
    -------
    numpy.ndarray
        Of the shape of `p_values`.

    Raises
    ------
    ValueError
        If a p-value is not in [0, 1].
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    wrong = ~((p_values >= 0) & (p_values <= 1))
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} of {p_values.size} p-values are not in [0, 1], the first {p_values[wrong][0]}; "
            "leave out tests that are not defined, and say so"
        )
    adjusted = scipy_stats.false_discovery_control(p_values, axis=None, method=method)
    return adjusted.reshape(p_values.shape)


def equivalence_test(values, margin, *, against=0.0, alpha=0.05):
    """Test whether a mean over sequences is within a margin of another, by two one-sided t-tests.

    Parameters
    ----------
    values : array_like, shape (sequence,)
        Finite numbers of at least 3 sequences. Not modified.
    margin : float
        Largest difference that counts as none, in the unit of the values; fixed before looking.
    against : float or array_like, shape (sequence,)
        What the mean is compared with: a number, or the values of the same sequences (paired).
    alpha : float
        Of each of the two tests.

    Returns
    -------
    Equivalence
        The larger p-value of the two; `equivalent` where it is below `alpha`, which is where the t-interval
        of confidence 1 − 2·alpha (90 %) in `difference` lies inside ±margin.

    Raises
    ------
    ValueError
        For a margin that is not positive, fewer than 3 sequences, unequal lengths, or numbers that are not
        finite.
    """
    if not margin > 0:
        raise ValueError(
            f"the margin must be positive, got {margin}; it is the largest difference that counts as none"
        )
    against = np.asarray(against, dtype=np.float64)
    values, against = same_shape(
        values=values, against=against if against.ndim else np.full(np.shape(values), against)
    )
    n = _require_sequences(len(values) if values.ndim == 1 else 0)
    difference = values - against
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(n)
    half = error * scipy_stats.t.ppf(1 - alpha, n - 1)
    if error > 0:
        p_value = float(scipy_stats.t.sf((margin - abs(mean)) / error, n - 1))
    else:
        p_value = 0.0 if abs(mean) < margin else 1.0
    interval = Interval(float(mean), float(mean - half), float(mean + half), n)
    return Equivalence(interval, p_value, p_value < alpha)


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
        r = pearson(x, y, axis=0)  # (layer, head)
    elif over == "heads":
        r = pearson(x.reshape(len(x), -1), y.reshape(len(y), -1), axis=1)  # (sequence,)
    else:
        r = pearson(x, y, axis=2)  # (sequence, layer)
    defined = r[np.isfinite(r)]
    return float(defined.mean()) if defined.size else np.nan


def _members(clusters, values):
    """Return the heads of each KV group, (group, member)."""
    clusters = np.asarray(clusters)
    if values.ndim != 2 or clusters.shape != values.shape[1:]:
        raise ValueError(
            f"values have shape {values.shape} and clusters {clusters.shape}; expected (layer, head) and "
            "(head,)"
        )
    groups, sizes = np.unique(clusters, return_counts=True)
    if len(groups) < 2 or len(set(sizes)) > 1:
        raise ValueError(
            f"whole groups are exchanged, so there must be at least 2 of one size; got sizes {sizes.tolist()}"
        )
    return np.stack([np.flatnonzero(clusters == group) for group in groups])


def _correlation_over_all(x, y):
    return float(pearson(x.ravel(), y.ravel(), axis=0))
