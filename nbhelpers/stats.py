"""Numbers with intervals and tests: over sequences, heads and seeds; the correlations of eqs. 8 and 9."""

from collections import namedtuple
from typing import NamedTuple

import numpy as np
import scipy  # which imports scipy.stats when it is used: that takes a second
from scipy.special import stdtrit

from nbhelpers.arguments import any_array, array, check_all, checked, head_table, one_of, refuse, several

LEAST_SEQUENCES = LEAST_SEEDS = 3  # for an interval
ANY, CORRELATION = (-np.inf, np.inf), (-1.0, 1.0)  # what a statistic may possibly be
SHARE, NOT_NEGATIVE = (0.0, 1.0), (0.0, np.inf)
SPREAD_FLOOR = 1e-6  # relative; attention is captured in float32, so a smaller spread is rounding
# An observed statistic without an interval, its null the mean of the draws, and these, (draw,).
Permutation = namedtuple("Permutation", ("estimate", "draws"))


class Estimate(NamedTuple):
    """A number with its interval and what it is held against; ``format(estimate, ".3f")`` writes both."""

    value: float  # or an array, as the ends of its interval then are
    low: float = np.nan  # NaN where there is no interval
    high: float = np.nan
    null: float | None = None  # what attention that learned nothing gives
    p_value: float | None = None  # of the test that goes with it
    n: int | None = None  # independent units (sequences, seeds, clusters) that the interval is over
    null_low: float = np.nan  # the null's own interval; NaN for a null that is known exactly
    null_high: float = np.nan
    gap_low: float = np.nan  # of value less null, where both are of the same units (paired)
    gap_high: float = np.nan

    def against(self, null, gap=None):
        """Return the estimate held against a null, a number or an Estimate; `gap` is of their pairs."""
        null = null if isinstance(null, Estimate) else Estimate(null)
        ends = (np.nan, np.nan) if gap is None else gap[1:3]
        own = {"null": null.value, "null_low": null.low, "null_high": null.high}
        return self._replace(**own, gap_low=ends[0], gap_high=ends[1])

    @property
    def gap(self):
        """Value less null, with the interval of the pairs, else of both (Zou and Donner, Stat. Med. 2008)."""
        value = self.value - self.null
        if not np.isnan(self.gap_low):
            return Estimate(value, self.gap_low, self.gap_high, n=self.n).widened()
        below, above = (0.0 if np.isnan(end) else end - self.null for end in (self.null_low, self.null_high))
        low, high = np.hypot(self.value - self.low, above), np.hypot(self.high - self.value, below)
        return Estimate(value, value - low, value + high, n=self.n)

    def p_at(self, bound):
        """Return the two-sided p-value of a true value at `bound`, from a 95 % interval; NaN without one."""
        half = (self.high if bound > self.value else self.low) - self.value
        if np.isnan(half) or not self.n or self.n < LEAST_SEQUENCES:
            return np.nan
        apart = bound - self.value
        if not half or not apart:
            return float(not apart)
        return float(2 * scipy.stats.t.sf(apart / half * scipy.stats.t.ppf(0.975, self.n - 1), self.n - 1))

    def widened(self):
        """Return the estimate with an interval that holds its value, as one over seeds may not."""
        return self._replace(low=np.minimum(self.low, self.value), high=np.maximum(self.high, self.value))

    def __format__(self, spec):
        if not spec:
            return repr(self)
        if np.isnan(self.low):
            return f"{self.value:{spec}} ({'' if self.n is None else f'n = {self.n}, '}no interval)"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def student_interval(values, of_mean=None, *, possible=ANY, confidence=0.95):
    """Return the mean over units of `values` (unit, ...), or a function of it, with its jackknife interval.

    Units are independent, such as sequences or seeds; the other axes need not be. Of a mean it is Student's.
    """
    values = np.asarray(values, dtype=np.float64)
    lost = (~np.isfinite(values)).sum()
    if values.ndim == 0 or not len(values) or lost:
        refuse("values", values, f"finite, of shape (sequence or seed, ...); {lost} of {values.size} are not")
    mean, n = values.mean(0), len(values)
    value = np.asarray(mean if of_mean is None else of_mean(mean))[()]
    if n < LEAST_SEQUENCES:
        return Estimate(value, *np.full((2, *np.shape(value)), np.nan), n=n)
    left_out = mean + (mean - values) / (n - 1)  # (unit, ...), the means without each
    left_out = left_out if of_mean is None else np.stack([of_mean(each) for each in left_out])
    return jackknife_interval(value, left_out, possible=possible, confidence=confidence)


@checked(left_out=any_array, possible=None)
def jackknife_interval(value, left_out, *, possible=ANY, confidence=0.95):
    """Return a value with its jackknife interval, from the values with each unit left out, (unit, ...).

    The quantile is Student's of units less one. The interval is cut to what is `possible`; of correlations,
    (-1, 1), it is made on Fisher's z where that is finite. Fewer than 3 units have no interval.
    """
    left_out = np.atleast_1d(np.asarray(left_out, dtype=np.float64))
    n = len(left_out)
    if n < LEAST_SEQUENCES:
        return Estimate(value, n=n)
    transform, back = np.asarray, np.asarray
    if tuple(possible) == CORRELATION and max(np.abs(left_out).max(), np.abs(value).max()) < 1 - 1e-9:
        transform, back = np.arctanh, np.tanh
    centre, others = transform(value), transform(left_out)
    error = np.sqrt((n - 1) / n * ((others - others.mean(0)) ** 2).sum(0))
    half = stdtrit(n - 1, 0.5 + confidence / 2) * error  # Student's quantile; t.ppf takes 40 times as long
    low, high = (np.clip(back(end), *possible)[()] for end in (centre - half, centre + half))
    # Where all units agree, rounding by the transform would leave the value outside.
    return Estimate(value, np.minimum(low, value), np.maximum(high, value), n=n)


@checked(table=head_table)
def distribution_over_heads(table, metric):
    """Return mean, std and iqr over heads of their mean of a metric (Table 3), Estimates over sequences."""
    _require_sequences_kept(table)
    statistics = {"mean": np.mean, "std": lambda heads: heads.std(ddof=1)}
    statistics["iqr"] = lambda heads: np.subtract(*np.quantile(heads, [0.75, 0.25]))
    return {name: student_interval(table.values(metric), f) for name, f in statistics.items()}


@checked(table=head_table, over=one_of("heads", "heads of a layer", "sequences"))
def position_spectrum_correlation(table, *, over="heads"):
    """Return the Pearson correlation of positional and spectral entropy (eqs. 8 and 9).

    The paper does not say what it is taken over. `over` is "heads" of the model, for each sequence; "heads of
    a layer", for each layer and sequence; "sequences", for each head. The mean is over those defined.
    """
    _require_sequences_kept(table)
    pair = [table.values(metric) for metric in ("positional_entropy", "spectral_entropy")]
    value = _mean_correlation(*pair, over)
    if np.isnan(value):
        raise ValueError(f"the correlation over {over} is not defined: one of the entropies is constant")
    left_out = [_mean_correlation(*np.delete(pair, i, 1), over) for i in range(len(pair[0]))]
    return jackknife_interval(value, left_out, possible=CORRELATION)


def pearson(x, y, *, axis):
    """Return Pearson's r along an axis over the finite pairs; NaN where x or y varies by mere rounding."""
    if x.shape != y.shape or not -x.ndim <= axis < x.ndim:
        refuse("x", x, f"of the same shape as y, {y.shape}, with an axis {axis}")
    known = np.isfinite(x) & np.isfinite(y)
    (x, x_spread, count), (y, y_spread, _) = (_centred(values, known, axis) for values in (x, y))
    return ((x * y).sum(axis, keepdims=True) / (count * x_spread * y_spread)).squeeze(axis)


@checked(predicted=array, measured=array)
def agreement(predicted, measured):
    """Return Pearson's r and R² of predicted curves with measured ones, over the last axis, finite in both.

    R², 1 − Σ (y − x)² / Σ y² with only the means taken off, is 0 for a flat prediction and negative for a
    worse one. NaN where nothing varies.
    """
    r, known = pearson(predicted, measured, axis=-1), np.isfinite(predicted) & np.isfinite(measured)
    x, y = (_centred(curve, known, -1)[0] for curve in (predicted, measured))
    spread = (y**2).sum(-1)
    return r, 1 - ((y - x) ** 2).sum(-1) / np.where(spread > 0, spread, np.nan)


@checked(given=several(any_array))
def partial_correlation(x, y, given):
    """Return the Pearson correlation of what a fit on other variables leaves of x and y, (..., observation).

    The arrays of `given` broadcast to their shape. Only finite observations count; NaN where the fit leaves
    no more than rounding, or where there are fewer than 3 observations more than variables.
    """
    try:
        data = [x, y, *(np.broadcast_to(each, x.shape) for each in given)]
        data = np.stack(data, -1, dtype=np.float64)  # (..., observation, variable)
    except ValueError:
        refuse("y and given", [y.shape, *map(np.shape, given)], f"of the same shape as x, {x.shape}")
    data, spread, count = _centred(data, np.isfinite(data).all(-1, keepdims=True), -2)
    data = np.nan_to_num(data / spread)  # 0 where nothing varies
    rest = data[..., :2]
    if len(given):
        basis, size, _ = np.linalg.svd(data[..., 2:], full_matrices=False)
        basis = basis * (size > SPREAD_FLOOR * np.sqrt(count[..., 0]))[..., None, :]
        rest = rest - basis @ (basis.swapaxes(-1, -2) @ rest)
    left = np.sqrt((rest**2).sum(-2) / count[..., 0, :])  # (..., 2), of spread 1 before the fit
    defined = (left > SPREAD_FLOOR).all(-1) & (count[..., 0, 0] >= len(given) + 3)
    product = (rest[..., 0] * rest[..., 1]).sum(-1) / count[..., 0, 0]
    return np.where(defined, product / np.where(defined, left.prod(-1), 1.0), np.nan).clip(-1, 1)


def known_mean(values, axis):
    """Return the mean of what is not NaN; NaN, without a warning, where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis) / np.maximum(count, 1), np.nan)[()]


@checked(clusters=array)
def permutation_test(values, other, *, clusters, statistic=None, n_draws=999, seed=0):
    """Test whether two properties of heads go together, exchanging whole KV groups within their layer.

    The observed arrangement counts among the draws: the test is exact. `values` and `other` are (layer,
    head), `clusters` the KV group of each head, groups of one size. `statistic` of the two arrays, 0 without
    an association, is the Pearson correlation over all heads if None.
    """
    values, other = np.asarray(values, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if values.ndim != 2 or other.shape != values.shape or clusters.shape != values.shape[1:]:
        given = values.shape, other.shape, clusters.shape
        refuse("values, other and clusters", given, "of shape (layer, head) twice and (head,)")
    groups, sizes = np.unique(clusters, return_counts=True)
    if len(groups) < 2 or len(set(sizes)) > 1:
        raise ValueError(f"groups are exchanged whole: at least 2 of one size; got sizes {sizes.tolist()}")
    members = np.stack([np.flatnonzero(clusters == group) for group in groups])  # (group, member)
    statistic = statistic or (lambda x, y: float(pearson(x.ravel(), y.ravel(), axis=0)))
    generator = np.random.default_rng(seed)
    group = np.tile(np.arange(len(members)), (len(values), 1))  # (layer, group)
    draws = np.empty(n_draws)
    for draw in range(n_draws):
        order = members[generator.permuted(group, axis=1)]  # (layer, group, member)
        exchanged = np.empty_like(values)
        exchanged[:, members.ravel()] = np.take_along_axis(values, order.reshape(len(values), -1), 1)
        draws[draw] = statistic(exchanged, other)
    value = float(statistic(values, other))
    if lost := (~np.isfinite([value, *draws])).sum():
        told = f"observed {value}, {lost} of it and the {n_draws} draws are NaN or infinite"
        raise ValueError(f"the statistic is not defined: {told}; a constant array has no association to test")
    # Equal arrangements may differ in the last digit, for their sums run in another order.
    n_beyond = int((np.abs(draws) >= (1 - SPREAD_FLOOR) * abs(value)).sum())
    estimate = Estimate(value, null=float(draws.mean()), p_value=(1 + n_beyond) / (n_draws + 1))
    return Permutation(estimate, draws)


@checked(against=any_array)
def equivalence_test(values, margin, *, against=0.0, alpha=0.05):
    """Test whether a mean over sequences is within a margin of another, by two one-sided t-tests.

    `against` is a number, or the values of the same sequences (paired). Where the p-value, the larger of the
    two, is below `alpha`, the t-interval of confidence 1 − 2·alpha of the difference lies inside ±margin.
    """
    if np.shape(against) not in ((), values.shape):
        refuse("against", against, f"a number, or of the shape of values, {values.shape}")
    difference = np.asarray(values, dtype=np.float64) - against
    if (n := len(difference)) < LEAST_SEQUENCES:
        refuse("values", difference, f"of at least {LEAST_SEQUENCES} sequences")
    found = student_interval(difference, confidence=1 - 2 * alpha)
    error, room = difference.std(ddof=1) / np.sqrt(n), margin - abs(found.value)
    return found._replace(p_value=float(scipy.stats.t.sf(room / error, n - 1) if error > 0 else room <= 0))


def _centred(values, known, axis):
    """Return values less their mean, 0 where not known; their spread, NaN for rounding; the count."""
    count = np.maximum(known.sum(axis, keepdims=True), 1)
    values = np.where(known, values, 0.0)
    mean = values.sum(axis, keepdims=True) / count
    centred = np.where(known, values - mean, 0.0)
    spread = np.sqrt((centred**2).sum(axis, keepdims=True) / count)
    return centred, np.where(spread > SPREAD_FLOOR * np.abs(mean), spread, np.nan), count


def _require_sequences_kept(table):
    if table.averaged:
        way_out = "has no sequences to draw again; measure with order='metric then mean'"
        raise ValueError(f"this table holds metrics of signals averaged over sequences, so it {way_out}")


def _mean_correlation(x, y, over):
    """Mean over the defined correlations of (sequence, layer, head) arrays; NaN if there is none."""
    if over == "heads":
        x, y = (values.reshape(len(values), 1, -1) for values in (x, y))
    r = pearson(x, y, axis=0 if over == "sequences" else 2)  # (layer, head) or (sequence, layer)
    defined = r[np.isfinite(r)]
    return float(defined.mean()) if defined.size else np.nan


check_all(globals())
