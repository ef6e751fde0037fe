"""The statistics that the rules of :mod:`nbhelpers.claims.paper` ask for, by name of criterion.

All are functions of means over sequences, so one interval serves; models, nulls, planted attention are alike.
"""

import hashlib
from collections import namedtuple
from typing import NamedTuple

import numpy as np
import scipy
import torch

from nbhelpers import stats
from nbhelpers.arguments import checked, head_table, mapping, text
from nbhelpers.kernels import entropy, frames, rows, spectra, wavelets
from nbhelpers.metrics import Signals
from nbhelpers.protocol import PAPER
from nbhelpers.stats import known_mean, partial_correlation, pearson, student_interval

from . import lag_kernels, paper
from .verdicts import LEAST_RATE, Claim

LOCAL, GLOBAL = 2 / 3, 1 / 3  # shares of attention nearby from which a head counts as local, and as global
FLOAT32_RANK = 1e-6  # profiles are float32: smaller singular values, relatively, are rounding
RANDOM_SETS = 64
TABLE7 = paper.paper_table(7).drop(columns="model").mean().to_numpy()  # (scale,), mean of the paper's models
ANY, SHARE, POSITIVE, CORRELATION = stats.ANY, stats.SHARE, stats.NOT_NEGATIVE, stats.CORRELATION
Measured = namedtuple("Measured", ("table", "profiles"))  # attention as a rule sees it


class Statistic(NamedTuple):
    """How a criterion's number is made.

    ``columns`` takes a table, its profiles and the protocol, and returns an array (sequence, column);
    ``combine`` takes means over sequences, (..., column), and returns the number, (...), in the range
    ``possible``. ``null`` makes an Estimate of profiles and a seed, where the null is not attention. The
    interval ``by_sequence``, for ranks, is as wide as that of the numbers of single sequences.
    """

    columns: object
    combine: object = staticmethod(lambda means: means[..., 0])
    possible: tuple = ANY
    null: object = None
    by_sequence: bool = False

    def interval(self, columns, of_mean, possible=ANY):
        """Return an Estimate of a function of the mean of (sequence, ...) over sequences."""
        if not self.by_sequence:
            return student_interval(columns, of_mean, possible=possible)
        each = student_interval([of_mean(row) for row in columns], possible=possible)
        value = np.asarray(of_mean(columns.mean(0)))[()]
        low, high = (value + (end - each.value) for end in each[1:3])
        return each._replace(value=value, low=low, high=high)


@checked(table=head_table, nulls=mapping)
def measure_criteria(table, profiles, claim, *, nulls, protocol=PAPER, seed=0):
    """Return an Estimate of everything that the rule of a claim (or its number) needs, by name of criterion.

    `table` is of the key profile, measured with `protocol` from `profiles`. `nulls` has, by the names that
    criteria use, such as "N2", pairs (HeadTable, Profiles), or lists of pairs (seeds) of which the mean
    counts. The null of an estimate is the most conservative, None where no null defines the statistic; its
    interval is over sequences, paired with those of `table`, or over 3 or more untrained networks.
    """
    claim = claim if isinstance(claim, Claim) else paper.claim(claim)
    records = {}
    for criterion in claim.criteria:
        statistic = _statistic(criterion.name)
        columns = _columns(statistic, (table, profiles), protocol)
        known = _finite_rows(columns)
        if not len(known):
            told = f"{criterion.name} ({criterion.statistic}) is not defined for any of the"
            raise ValueError(f"{told} {profiles.n_sequences} sequences: the heads do not differ in it")
        found = statistic.interval(known, statistic.combine, statistic.possible)
        beside = columns, nulls, statistic, protocol
        if less := _defined(criterion.name, criterion.less, nulls, protocol):
            gap = _held_against(found, max(less, key=less.get), *beside).gap
            found = found._replace(value=gap.value, low=gap.low, high=gap.high)
        if statistic.null:
            found = found.against(statistic.null(profiles, seed))
        elif defined := _defined(criterion.name, criterion.nulls, nulls, protocol):
            found = _held_against(found, criterion.most_conservative(found.value, defined)[0], *beside)
        records[criterion.name] = found.widened()
    return records


def rules_digest():
    """Return a hash (12 digits) of every number and null in the rules; `paper.rule_changes` ends with it."""
    parts = [LEAST_RATE, LOCAL, GLOBAL, *lag_kernels.CONSTANTS]
    rules = (c for known in paper.CLAIMS for c in known.criteria + known.second)
    parts += [(c.name, c.claimed, c.nulls, c.less, c.away, c.margin) for c in rules]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@checked(name=text, table=head_table)
def criterion_value(name, table, profiles, *, protocol=PAPER):
    """Return the number of a criterion, before `Criterion.less` is taken off; NaN where not defined."""
    statistic = _statistic(name)
    columns = _finite_rows(_columns(statistic, (table, profiles), protocol))
    return float(statistic.combine(columns.mean(0))) if len(columns) else float("nan")


def values_of(statistic, table, n):
    """Return a Statistic of `n` groups of sequences in a row, (group,), as `criterion_value` gives each."""
    columns = _columns(statistic, (table, None), None)  # of the table alone
    columns = columns.reshape(n, -1, columns.shape[1])  # (group, sequence, column)
    known = np.isfinite(columns).all(2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # a ratio of two numbers that are 0
        return statistic.combine(known_mean(np.where(known, columns, np.nan), 1))


def null_values(name, nulls, *, protocol=PAPER):
    """Return the mean `criterion_value` of every null, by name; NaN where the number is not defined."""
    found = {n: [criterion_value(name, *one, protocol=protocol) for one in _seeds(nulls[n])] for n in nulls}
    return {label: float(known_mean(np.array(values), 0)) for label, values in found.items()}


def _held_against(found, label, columns, nulls, statistic, protocol):
    """Return an estimate with a null that defines the statistic."""
    combine, possible = statistic.combine, statistic.possible
    each = [_columns(statistic, one, protocol) for one in _seeds(nulls[label])]  # of (sequence, column)
    each = [one for one in each if len(_finite_rows(one))]
    values = np.array([combine(_finite_rows(one).mean(0)) for one in each])  # (seed,)
    # The seeds of N1 are networks of their own, those of the other nulls are drawn for the same sequences.
    if label == "N1" and len(each) >= stats.LEAST_SEEDS:
        return found.against(student_interval(values, possible=possible))
    paired = {len(one) for one in each} == {len(columns)}
    both = _finite_rows(np.concatenate([columns, *each], 1)) if paired else columns[:0]
    if not len(both):
        return found.against(float(values.mean()))
    both = both.reshape(len(both), 1 + len(each), -1)  # (sequence, itself and seeds, column)
    null = statistic.interval(both, lambda means: combine(means[1:]).mean(0), possible)
    gap = statistic.interval(both, lambda means: combine(means[0]) - combine(means[1:]).mean(0))
    return found.against(null._replace(value=float(values.mean())).widened(), gap)


def _defined(name, needed, nulls, protocol):
    """Return the values of the nulls that are needed, without those that do not define the criterion."""
    if missing := [label for label in needed if label not in nulls]:
        told = f"{name} is held against {', '.join(needed)}; of these {', '.join(missing)} is not given"
        raise LookupError(f"{told}, only {', '.join(nulls) or 'none'}. Make it with nbhelpers.nulls.")
    values = null_values(name, {label: nulls[label] for label in needed}, protocol=protocol)
    return {label: value for label, value in values.items() if np.isfinite(value)}


def _statistic(name):
    if name not in STATISTICS:
        raise LookupError(f"no statistic is called {name!r}; there are {', '.join(STATISTICS)}")
    return STATISTICS[name]


def _seeds(of):
    return [of] if isinstance(of, tuple) else of


def _columns(statistic, measured, protocol):
    columns = np.asarray(statistic.columns(*measured, protocol), dtype=np.float64)
    return columns.reshape(len(columns), -1)  # (sequence, column)


def _finite_rows(columns):
    return columns[np.isfinite(columns).all(1)]


def _mean_over_heads(values):
    """Mean over the heads that are not NaN of (sequence, layer, head), or over those of (sequence, layer)."""
    return known_mean(values.reshape(len(values), -1), 1)


def change_over_depth(per_layer):
    """Least-squares change from the first to the last layer, (sequence, layer) to (sequence,)."""
    if per_layer.shape[1] < 2:
        raise ValueError("a change over depth needs at least 2 layers, got 1")
    return np.polyfit(np.linspace(0, 1, per_layer.shape[1]), per_layer.T, 1)[0]


def _kinds(table, profiles, protocol):
    """Whether heads are global, mixed or local, (sequence, layer, head, kind)."""
    local = table.values(f"local_mass_{protocol.local_distance}")
    return np.stack([local < GLOBAL, (local >= GLOBAL) & (local <= LOCAL), local > LOCAL], -1).astype(float)


def _of_heads(function, possible=SHARE, **options):
    """Return the Statistic that is the mean over heads, or layers, of a function of the same arguments."""
    return Statistic(lambda *of: _mean_over_heads(np.asarray(function(*of))), possible=possible, **options)


def _metric(name, possible=SHARE):
    return _of_heads(lambda table, *_: table.values(name), possible)


def _peak_tracking(table, profiles, protocol):
    """Spearman's correlation over heads of S with the largest share of a bin above the low band."""
    signal = profiles[protocol.signal].double()  # (sequence, layer, head, position)
    signals = Signals(rows.drop_sink(signal) if protocol.sink != "keep" else signal, {}, protocol)
    above = signals.frequency.abs() >= 0.5 * protocol.edges[0]
    peak = (signals.psd[..., above].amax(-1) / signals.psd.sum(-1)).numpy()  # (sequence, layer, head)
    both = table.values("frequency_selectivity"), peak
    ranks = [scipy.stats.rankdata(values.reshape(len(values), -1), axis=1) for values in both]
    return pearson(*ranks, axis=1)


def _sensitivities(table, *_):
    return np.stack([_mean_over_heads(table.values(f"scale_sensitivity_{a}")) for a in ("0.25", "0.5")], -1)


def _entropies(table):
    return table.values("positional_entropy"), table.values("spectral_entropy")


def _partial_rho(table, *_):
    """Correlation over the heads of a layer of what log N_eff leaves of both entropies."""
    return partial_correlation(*_entropies(table), [np.log(table.values("effective_support"))])


def _scale_entropies(table, profiles, protocol):
    """Normalised wavelet entropy at the six scales of Table 7, (sequence, scale), approximation first."""
    options = {"wavelet": protocol.wavelet, "mode": protocol.mode, "level": len(TABLE7) - 1}
    coefficients = wavelets.wavedec(profiles.key_profile.double(), **options)
    return wavelets.wavelet_entropy(coefficients, normalize=True).mean((1, 2)).numpy()


def _like_table7(means):
    ranks = scipy.stats.rankdata(means, axis=-1)  # (..., scale)
    return pearson(ranks, np.broadcast_to(scipy.stats.rankdata(TABLE7), ranks.shape), axis=-1)


def _constant_q(table, profiles, protocol):
    lag_profile = profiles.lag_profile.double().flatten(1, 2)  # (sequence, head of any layer, lag)
    # No window: a Hann window is zero at the ends, and the nearest keys are an end of a causal lag profile.
    power = spectra.psd(lag_profile, window="boxcar", detrend="mean")
    return frames.constant_q_slope(power, spectra.frequencies(lag_profile.shape[-1])).slope.numpy()


def _coherence(table, profiles, protocol):
    similarity = frames.head_similarity(profiles.lag_profile.double(), center=True)
    return frames.mean_off_diagonal(similarity, absolute=True)


def _condition(table, profiles, protocol):
    return frames.frame_bounds(profiles.lag_profile.double(), normalize=True, rtol=FLOAT32_RANK).ratio.log10()


def _random_condition(profiles, seed):
    """Mean log10 B/A of random sets of vectors with the lag profiles' effective supports, over the sets."""
    profile = profiles.lag_profile.double().mean(0)  # (layer, head, lag)
    support = entropy.effective_support(profile / profile.sum(-1, keepdim=True))  # (layer, head)
    n_draws = max(RANDOM_SETS, len(support))
    support = support[torch.arange(n_draws) % len(support)]  # (draw, head)
    options = {"n_draws": n_draws, "effective_support": support, "seed": seed}
    bounds = frames.random_frame_bounds(*profile.shape[1:], **options)
    return student_interval(bounds.ratio.log10().numpy())


STATISTICS = {
    "C1_mixed_share": Statistic(lambda *of: _kinds(*of)[..., 1].mean((1, 2)), possible=SHARE),
    "C1_rarer_share": Statistic(lambda *of: _kinds(*of)[..., ::2].mean((1, 2)), lambda m: m.min(-1), SHARE),
    "C1_mixed_change": Statistic(lambda *of: change_over_depth(_kinds(*of)[..., 1].mean(2))),
    "C2_low": _metric("low_band"),
    "C2_mid": _metric("mid_band"),
    "C2_high": _metric("high_band"),
    "C3_low_change": Statistic(lambda t, *_: change_over_depth(t.values("low_band").mean(2))),
    "C4_selectivity_over_null": _metric("frequency_selectivity", POSITIVE),
    "C4_tracks_peak": Statistic(_peak_tracking, possible=CORRELATION),
    "C5_half": _metric("scale_sensitivity_0.5", POSITIVE),
    "C5_ratio": Statistic(_sensitivities, lambda means: means[..., 0] / means[..., 1], possible=POSITIVE),
    "C6_rho": _of_heads(lambda t, *_: pearson(*_entropies(t), axis=2), CORRELATION),
    "C6_partial_rho": _of_heads(_partial_rho, CORRELATION),
    "C6_slack": _of_heads(lambda t, p, _: entropy.entropic_slack(p.key_profile.double().sqrt()), POSITIVE),
    "C11_error": _metric("reconstruction_error", POSITIVE),
    "C12_change": _of_heads(lambda t, *_: t.values("window_entropy_64") - t.values("window_entropy_16"), ANY),
    "C12_level": _metric("window_entropy_32"),
    "C13_rank_correlation": Statistic(_scale_entropies, _like_table7, by_sequence=True),
    "C14_constant_q": Statistic(_constant_q),
    "C14_coherence": _of_heads(_coherence),
    "C14_condition": _of_heads(_condition, POSITIVE, null=_random_condition),
}
