"""What the heads of a model do with distance: statistics of stationary lag profiles, for the second rules.

A stationary lag profile K(d) is the mean attention at d tokens back over queries that all see d; neither the
causal mask nor the first token is in it. Statistics come with their values that leave one sequence out.
"""

import math
from typing import NamedTuple

import torch

from nbhelpers.stats import ANY, CORRELATION, LEAST_SEQUENCES, NOT_NEGATIVE, SHARE, jackknife_interval

LEAST_HEADS = 3  # resolved heads of a layer, for a line over them
LEVELS = torch.arange(1, 10, dtype=torch.float64) / 10  # of the quantiles that say where a kernel lies
LEAST_KEPT, FARTHEST = 0.5, 0.75  # of a resolved head: mass over the median, 90 % quantile over the lags
MOST_AT_ITSELF = 0.5  # of its mass at lag 0; a narrower head has no shape that tokens could show
PROMINENCE = 0.06  # of a tuned head: height of its peak over the valley before it, in units of C(0)
NEXT_PEAK = 0.5  # of it: how high any peak half an octave away may be
FLOOR = 1e-3  # of an even profile: attention below it counts as so much
CONSTANTS = LEAST_HEADS, LEAST_KEPT, FARTHEST, MOST_AT_ITSELF, PROMINENCE, NEXT_PEAK, FLOOR  # of the rules


class LagKernels(NamedTuple):
    """The heads' kernels: of all sequences (first entry of `draw`), and with each sequence left out."""

    kernel: torch.Tensor  # (draw, layer, head, lag), over its median, sum 1
    resolved: torch.Tensor  # (draw, layer, head), bool
    quantiles: torch.Tensor  # (draw, layer, head, level), log2 of tokens
    power: torch.Tensor  # (draw, layer, head, freq), cross-power over sequences; noise cancels in it

    @property
    def counted(self):
        """Which heads take part in lines over the heads of a layer."""
        return self.resolved & (self.resolved.sum(-1, keepdim=True) >= LEAST_HEADS)


def lag_kernels(profile):
    """Return the :class:`LagKernels` of profiles (sequence, layer, head, lag), 3 sequences or more.

    Over sequences the geometric mean is taken; the kernel is what lies over the median of its lags. The
    cross-power of S sequences is (|Σ F|² − Σ |F|²) / (S (S − 1)), F the transform of K under the falling half
    of a Hann window, padded to twice its length: noise that sequences do not share has expectation 0 in it.
    """
    profile = torch.as_tensor(profile).double()
    n, n_lags = len(profile), profile.shape[-1]
    if n < LEAST_SEQUENCES:
        raise ValueError(f"kernels need at least {LEAST_SEQUENCES} sequences, got {n}; draw more")
    falling = torch.hann_window(2 * n_lags, periodic=False, dtype=torch.float64)[n_lags:]
    line = torch.fft.rfft(profile * falling, n=2 * n_lags)  # (sequence, layer, head, freq)
    total, squares = _leaving_out(line), _leaving_out(line.abs().square())
    count = torch.tensor([n, *[n - 1] * n]).view(-1, 1, 1, 1)  # (draw, 1, 1, 1)
    power = (total.abs().square() - squares) / (count * (count - 1))
    shares = profile / profile.sum(-1, keepdim=True)
    mean = (_leaving_out((shares + FLOOR / n_lags).log()) / count).exp()
    mean = mean / mean.sum(-1, keepdim=True)  # (draw, layer, head, lag)
    over = (mean - mean.median(-1, keepdim=True).values).clamp_min(0)
    kept = over.sum(-1, keepdim=True)
    kernel = torch.where(kept > 1e-9, over / kept.clamp_min(1e-9), mean)
    cumulated = kernel.cumsum(-1)
    within = ((cumulated < 0.9).sum(-1) <= FARTHEST * n_lags) & (cumulated[..., 0] <= MOST_AT_ITSELF)
    return LagKernels(kernel, (kept[..., 0] >= LEAST_KEPT) & within, _log_quantiles(cumulated), power)


def _alignment(kernels):
    quantiles = torch.where(kernels.counted[..., None], kernels.quantiles, torch.nan)
    shift = quantiles.mean(-1, keepdim=True)
    rest = _centred(quantiles - shift).square().mean(-1).nansum((1, 2))
    moved = _centred(shift[..., 0]).square().nansum((1, 2))
    return moved / (moved + rest).clamp_min(1e-12)


def _overlap(kernels):
    x = kernels.kernel - kernels.kernel.mean(-1, keepdim=True)
    x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    pair = kernels.counted[..., None] & kernels.counted[..., None, :] & (torch.eye(x.shape[2]) == 0)
    cosine = torch.where(pair, (x @ x.mT).abs(), 0.0).sum((1, 2, 3))
    return torch.where(pair.flatten(1).any(1), cosine / pair.sum((1, 2, 3)).clamp_min(1), 1.0)


STATISTICS = {  # (draw,) of LagKernels, and what is possible; lines and spreads are over the heads of a layer
    # Shares of heads: with a kernel (half of their attention over the median, not at lag 0 and not beyond),
    # and with one outstanding peak of the spectrum away from frequency 0.
    "resolved_share": (lambda k: k.resolved.double().mean((1, 2)), SHARE),
    "tuned_share": (lambda k: _peaks(k).isfinite().double().mean((1, 2)), SHARE),
    # Standard deviations of log2 of the peak's frequency and of the place (octaves), and of the width (bits).
    "peak_spread": (lambda k: _spread(_peaks(k).log2().flatten(1)[:, None]), NOT_NEGATIVE),
    "place_spread": (lambda k: _spread(_of_counted(k, _place(k))), NOT_NEGATIVE),
    "width_spread": (lambda k: _spread(_of_counted(k, _bits(k.kernel))), NOT_NEGATIVE),
    # Of dilated copies, width grows with place at a slope of 1 and the line explains its whole variance; one
    # shift of a common shape explains all log quantiles; octaves between those of .2 and .8 stay the same.
    "width_slope": (lambda k: _line(k, _place(k), _bits(k.kernel))[0], ANY),
    "width_fit": (lambda k: _line(k, _place(k), _bits(k.kernel))[1].square(), SHARE),
    "alignment": (_alignment, SHARE),
    "shape_drift": (lambda k: _line(k, _place(k), k.quantiles[..., 7] - k.quantiles[..., 1])[0], ANY),
    # Correlation of width and spectral entropy, and the slope, bits for bits.
    "tradeoff": (lambda k: _line(k, _bits(k.kernel), _spectral_bits(k))[1], CORRELATION),
    "exchange_rate": (lambda k: _line(k, _bits(k.kernel), _spectral_bits(k))[0], ANY),
    "overlap": (_overlap, SHARE),  # mean absolute cosine of centred kernels over pairs; 1 without any
}


def measure_second(profile, *claims, nulls=()):
    """Return an Estimate, by jackknife over sequences, of what the second rules of claims need, by criterion.

    `profile` are stationary profiles (sequence, layer, head, lag), `nulls` those of attention that learned
    nothing, of which the nearest to the claimed range counts.
    """
    found, *unlearned = (_estimates(lag_kernels(each)) for each in (profile, *nulls))
    records = {}
    for criterion in (criterion for claim in claims for criterion in claim.second):
        name, (least, most) = criterion.name.partition("_")[2], criterion.claimed
        outside = [max(least - of[name].value, of[name].value - most, 0) for of in unlearned]
        null = unlearned[outside.index(min(outside))][name] if unlearned else None
        records[criterion.name] = found[name] if null is None else found[name].against(null)
    return records


def _estimates(kernels):
    drawn = {name: (statistic(kernels).tolist(), end) for name, (statistic, end) in STATISTICS.items()}
    return {name: jackknife_interval(v[0], v[1:], possible=end).widened() for name, (v, end) in drawn.items()}


def _leaving_out(values):
    """Sum over sequences of all, then of all but each: (1 + sequence, ...)."""
    total = values.sum(0, keepdim=True)
    return torch.cat([total, total - values])


def _bits(share):
    return -torch.xlogy(share, share).sum(-1) / math.log(2)


def _place(kernels):  # where a kernel lies: mean of its log2 quantiles, (draw, layer, head)
    return kernels.quantiles.mean(-1)


def _spectral_bits(kernels):
    power = kernels.power[..., 1:].clamp_min(0)
    return _bits(power / power.sum(-1, keepdim=True).clamp_min(1e-30))


def _log_quantiles(cumulated):
    """log2 of the quantiles at LEVELS of cumulated kernels (..., lag); lag d reaches from d to d + 1."""
    levels = LEVELS.expand(*cumulated.shape[:-1], len(LEVELS)).contiguous()
    at = torch.searchsorted(cumulated.contiguous(), levels).clamp_max(cumulated.shape[-1] - 1)
    above = cumulated.gather(-1, at)
    below = torch.where(at > 0, cumulated.gather(-1, (at - 1).clamp_min(0)), 0.0)
    within = (levels - below) / (above - below).clamp_min(1e-30)
    return (at + within.clamp(1e-3, 1)).log2()


def _peaks(kernels):
    """Return the frequency of the highest peak of tuned heads, (draw, layer, head); NaN for the others."""
    relative = (kernels.power / kernels.power[..., :1]).clamp_min(0)
    prominence = relative - relative.cummin(-1).values
    highest, at = prominence.max(-1)
    octaves = torch.arange(relative.shape[-1]).log2() - at[..., None].log2()
    following = torch.where(octaves.abs() > 0.5, prominence, 0.0).amax(-1)
    tuned = (highest >= PROMINENCE) & (following <= NEXT_PEAK * highest)
    return torch.where(tuned, at.double() / (2 * (relative.shape[-1] - 1)), torch.nan)


def _of_counted(kernels, values):
    return torch.where(kernels.counted, values, torch.nan)


def _centred(values):
    """Subtract the mean over the heads of each layer that are not NaN, (draw, layer, head)."""
    return values - values.nanmean(2, keepdim=True)


def _spread(values):
    """Standard deviation of (draw, layer, head) within layers; 0 where nothing is known."""
    centred = _centred(values)
    known = ~centred.isnan()
    freedom = known.sum((1, 2)) - known.any(2).sum(1)
    return (centred.square().nansum((1, 2)) / freedom.clamp_min(1)).sqrt()


def _line(kernels, x, y):
    """Return slope of y on x and their correlation within layers, (draw,); 0 where nothing varies."""
    x, y = (_centred(_of_counted(kernels, values)).nan_to_num(0.0).flatten(1) for values in (x, y))
    xx, yy, xy = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
    both = (xx * yy).sqrt()
    return torch.where(xx > 1e-9, xy / xx.clamp_min(1e-9), 0.0), torch.where(both > 1e-9, xy / both, 0.0)
