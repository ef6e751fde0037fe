"""Kernels of the heads, computed from mean query and key on some passages, against the logits of others."""

from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from nbhelpers.arguments import checked, token_ids
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.rotary import Moments, kept_moments, query_key_moments
from nbhelpers.kernels.rope import wavelengths
from nbhelpers.profiles import Profiles
from nbhelpers.stats import agreement, permutation_test, student_interval


@dataclass(frozen=True)
class HeadKernels:
    """What weights with mean query and key say of each lag, and what was seen, in units of the logits."""

    moments: Moments
    profiles: Profiles  # of the passages that were measured
    computed: np.ndarray  # (layer, head, lag)
    measured: np.ndarray  # (passage, layer, head, lag); NaN where a head sees no such lag

    def agreement(self):
        """Return r and R² of each head, (layer, head) each."""
        return agreement(self.computed, self.measured.mean(0))

    def median(self, computed=None):
        """Return the medians over heads of r and R², Estimates over passages; of other kernels if given."""
        kernels = self.computed if computed is None else np.asarray(computed)
        return self._over_passages(lambda measured: agreement(kernels, measured))

    def median_of_others(self):
        """Return the same medians where each head is held against the kernels of its layer's other heads."""
        others = ~np.eye(self.computed.shape[1], dtype=bool)
        return self._over_passages(lambda measured: [each[:, others] for each in self._crossed(measured)])

    def by_rotation(self):
        """Return the medians of r and R² of layers that rotate alike together, {longest wavelength: pair}."""
        slowest = np.array([float(wavelengths(own.frequencies).max()) for own in self.moments.rotations])
        alike = {turn: slowest == turn for turn in np.unique(slowest).tolist()}
        of = {turn: (self.computed[at], self.measured[:, at]) for turn, at in alike.items()}
        return {turn: replace(self, computed=c, measured=m).median() for turn, (c, m) in of.items()}

    def exchange_p(self, *, n_draws=999, seed=0):
        """Return the p-value of the median r where KV groups exchange their kernels within their layer."""
        r = np.nan_to_num(self._crossed(self.measured.mean(0))[0])  # (layer, head computed, head measured)
        layer, heads = np.indices(r.shape[:2])
        options = {"clusters": self.profiles.kv_groups, "n_draws": n_draws, "seed": seed}
        options["statistic"] = lambda x, y: np.median(r[layer, x.astype(int), y.astype(int)]) - np.median(r)
        return permutation_test(heads, heads, **options).estimate.p_value

    def table(self, least=0.9):
        """Return a row per head: agreement, mean miss, how many pairs, strongest first, explain 90 %."""
        rows = []
        for at, (layer, rotation) in enumerate(zip(self.moments.layers, self.moments.rotations, strict=True)):
            parts = self.moments.parts(at, self.computed.shape[-1]).numpy()  # (head, pair, lag)
            order = (parts**2).sum(-1).argsort(-1)[:, ::-1]  # (head, pair)
            partial = np.take_along_axis(parts, order[..., None], 1).cumsum(1)
            explained = agreement(partial, np.broadcast_to(partial[:, -1:], partial.shape))[1]  # (head, pair)
            turns = wavelengths(rotation.frequencies).numpy()
            flat = np.isnan(explained[:, 0])  # nothing rotates
            own = pd.DataFrame({"layer": layer, "head": np.arange(len(parts))})
            own["pairs_needed"] = np.where(flat, np.nan, 1.0 + (explained < least).sum(-1))
            own["strongest_wavelength"] = np.where(flat, np.nan, turns[order[:, 0]])
            rows.append(own.assign(longest_wavelength=float(turns.max())))
        r, explained = (each.ravel() for each in self.agreement())
        measures = {"r": r, "explained": explained, "kernel_sd": np.nanstd(self.computed, -1).ravel()}
        measures["offset"] = np.nanmean(self.measured.mean(0) - self.computed, -1).ravel()
        return pd.concat(rows, ignore_index=True).assign(**measures)

    def _crossed(self, measured):
        """Return r and R² of every computed with every measured kernel of a layer, (layer, head, head)."""
        return agreement(*np.broadcast_arrays(self.computed[:, :, None], measured[:, None]))

    def _over_passages(self, function):
        known = np.nan_to_num(self.measured)  # a lag that is not seen is NaN in the computed kernel too

        def median(of):  # a flat kernel says nothing: its r counts as 0
            return lambda mean: np.median(np.nan_to_num(function(mean)[of]))

        ends = (-1, 1), (-np.inf, 1)
        return [student_interval(known, median(of), possible=end) for of, end in enumerate(ends)]


@dataclass(frozen=True)
class LayerKernels:
    """Kernels of a layer's heads on one text, in units of the logits, and what each rotary pair adds."""

    computed: np.ndarray  # (head, lag), lags from 0, from the mean query and key of the text
    measured: np.ndarray  # (head, lag), mean logit; NaN where there is none
    wavelengths: np.ndarray  # (pair,), tokens; infinite for a pair that does not turn
    amplitudes: np.ndarray  # (head, pair)


def layer_kernels(cache, layer, rotations, n_lags, *, causal):
    """Return the :class:`LayerKernels` of a text kept by `cache_attention`, and `rotations_of` its model."""
    seen = cache.lag_logits(layer, causal=causal)
    seen = seen[:, 0 if causal else seen.shape[-1] // 2 :][:, :n_lags]
    moments = kept_moments(cache, layer, rotations)
    [rotation], [query], [key] = moments.rotations, moments.query, moments.key
    amplitudes = moments.scaling[0] * (rotation.pairs(query) * rotation.pairs(key).conj()).abs()
    parts = moments.kernels(n_lags)[0], seen, wavelengths(rotation.frequencies), amplitudes
    return LayerKernels(*(part.numpy() for part in parts))


@checked(calibration=token_ids, held_out=token_ids)
def head_kernels(model, calibration, held_out, **options):
    """Return the :class:`HeadKernels` of passages, (sequence, position) of one length, without padding.

    Mean query and key are of `calibration`, logits of `held_out`, at lags below half of their length;
    `options` are those of :func:`nbhelpers.capture`.
    """
    n_lags = held_out.shape[-1] // 2
    if calibration.shape[-1] != held_out.shape[-1]:
        shapes = tuple(calibration.shape), tuple(held_out.shape)
        raise ValueError(f"calibration and held_out must be passages of one length; got {shapes}")
    moments = query_key_moments(model, calibration)
    profiles = capture(model, held_out, ["lag_logits", "logit_variance", "lag_profile"], **options)
    start = profiles.coordinates["lag_logits"].index(0)
    measured = profiles.lag_logits[..., start : start + n_lags].double().numpy()
    if np.isnan(measured).all():
        raise ValueError("the logits of this family are not known: a learned sink joins its softmax")
    return HeadKernels(moments, profiles, moments.kernels(n_lags).numpy(), measured)


def dilation(usual, changed, alpha):
    """Return g for which changed curves are the usual ones at α^g times the lag: 1 dilates, 0 stays.

    Curves are (..., lag), from lag 1 on. Of g from −0.5 to 1.5 it is the best by squares over lag.
    """
    n, tried, misses = min(usual.shape[-1], changed.shape[-1]), np.linspace(-0.5, 1.5, 41), []
    lag = np.arange(1, int(0.75 * n / max(alpha, 1) ** 1.5))
    weight = 1 / lag / (1 / lag).sum()
    for g in tried:
        at = np.clip(lag * alpha**g - 1, 0, n - 1.001)
        low = at.astype(int)
        rest = changed[..., lag - 1] - usual[..., low] * (1 - at % 1) - usual[..., low + 1] * (at % 1)
        misses.append(((rest - (rest * weight).sum(-1, keepdims=True)) ** 2 * weight).sum(-1))
    best = np.argmin(misses, 0).clip(1, len(tried) - 2)
    left, here, right = (np.take_along_axis(np.array(misses), best[None] + k, 0)[0] for k in (-1, 0, 1))
    beside = (left - right) / (2 * np.maximum(left - 2 * here + right, 1e-300))
    return tried[best] + beside.clip(-1, 1) * (tried[1] - tried[0])


def draw_kernels(kernels, *, n_heads=12):
    """Draw measured and computed kernels of heads, from the best explained to the worst; return the axes."""
    explained = kernels.agreement()[1]  # (layer, head)
    ranked = np.argsort(-np.nan_to_num(explained, nan=-np.inf), axis=None)
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(n_heads, len(ranked))).round().astype(int)]
    n_rows = -(-len(chosen) // 4)
    figure, axes = plt.subplots(n_rows, 4, figsize=(12, 2.5 * n_rows), sharex=True, layout="constrained")
    axes = np.ravel(axes)
    for ax, index in zip(axes, chosen, strict=False):
        at = np.unravel_index(index, explained.shape)
        seen, kernel = kernels.measured[(slice(None), *at)], kernels.computed[at]
        seen = seen - np.nanmean(seen, -1, keepdims=True)  # (passage, lag)
        thin = ax.plot(seen.T, color="0.75", lw=0.7)
        thick = ax.plot(seen.mean(0), color="black", lw=1.8)
        dashed = ax.plot(kernel - np.nanmean(kernel), "--", color="C1", lw=1.4)
        ax.set_title(f"layer {kernels.moments.layers[at[0]]}, head {at[1]}: R² {explained[at]:.2f}", size=9)
    names = ("each passage", "mean logit, measured", "computed from mean query, mean key, rates")
    lines = thin[0], thick[0], dashed[0]
    figure.legend(lines, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel("lag (tokens)", fontsize=10)
    figure.supylabel("logit less its mean (no unit)", fontsize=10)
    return axes
