"""Kernels of the heads, computed from mean query and key on some passages, against the logits of others."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from nbhelpers.arguments import checked, made_by, share, token_ids
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import EARLY
from nbhelpers.hooks.rotary import Moments, query_key_moments
from nbhelpers.kernels.rope import wavelengths
from nbhelpers.profiles import Profiles
from nbhelpers.stats import agreement, permutation_test, student_interval

KEPT = ("lag_logits", "logit_variance", "lag_profile")


@dataclass(frozen=True)
class HeadKernels:
    """What weights and mean query and key say of each lag, and what was seen, in units of the logits."""

    moments: Moments
    computed: np.ndarray  # (layer, head, lag)
    measured: np.ndarray  # (passage, layer, head, lag); NaN where a head sees no such lag
    profiles: Profiles  # of the passages that were measured

    def agreement(self):
        """Return r and R² of each head, (layer, head) each."""
        return agreement(self.computed, self.measured.mean(0))

    def median(self, computed=None):
        """Return the medians over heads of r and R², Estimates over passages; of other kernels if given.

        A flat kernel says nothing: its r counts as 0.
        """
        kernels = self.computed if computed is None else np.asarray(computed)
        return self._over_passages(lambda measured: agreement(kernels, measured))

    def median_of_others(self):
        """Return the same medians where each head is held against the kernels of its layer's other heads."""
        own = np.eye(self.computed.shape[1], dtype=bool)
        return self._over_passages(lambda measured: [each[:, ~own] for each in self._crossed(measured)])

    def exchange_p(self, *, n_draws=999, seed=0):
        """Return the p-value of the median r where KV groups exchange their kernels within their layer."""
        crossed = np.nan_to_num(self._crossed(self.measured.mean(0))[0])  # (layer, computed, measured)
        layer, heads = np.indices(self.computed.shape[:2])
        usual = np.median(crossed)

        def statistic(x, y):
            return float(np.median(crossed[layer, x.astype(int), y.astype(int)]) - usual)

        options = {"clusters": self.profiles.kv_groups, "n_draws": n_draws, "seed": seed}
        return permutation_test(heads, heads, statistic=statistic, **options).estimate.p_value

    def parts(self, layer):
        """Return what each pair adds to the kernels of one layer, (head, pair, lag), means taken off."""
        amplitudes, frequencies = self.moments.amplitudes(layer)[0], self.moments.rotations[layer].frequencies
        angle = frequencies.cpu()[:, None] * torch.arange(self.computed.shape[-1])  # (pair, lag)
        parts = (amplitudes[..., None] * torch.exp(1j * angle)).real  # (head, pair, lag)
        return (parts - parts.mean(-1, keepdim=True)).numpy()

    @checked(least=share)
    def pairs_needed(self, least=0.9):
        """Return how many pairs, strongest first, explain so much of the computed kernel, (layer, head)."""
        needed = []
        for layer in range(len(self.moments.layers)):
            parts = self.parts(layer)
            order = (parts**2).sum(-1).argsort(-1)[:, ::-1]  # (head, pair)
            partial = np.take_along_axis(parts, order[..., None], 1).cumsum(1)  # (head, pair, lag)
            explained = agreement(partial, np.broadcast_to(partial[:, -1:], partial.shape))[1]
            needed.append(np.where(np.isnan(explained[:, 0]), np.nan, 1 + (explained < least).sum(-1)))
        return np.stack(needed)

    def kernel_share(self):
        """Return the variance of the computed kernel over that of all logits, (layer, head)."""
        n_lags = len(self.profiles.coordinates["lag_logits"])
        kernels = self.moments.kernels(n_lags).numpy()  # of all lags that were read
        pairs = n_lags - np.maximum(EARLY, np.arange(n_lags) + 1)  # of query and key at each
        weight = np.where(np.isnan(kernels), 0, np.maximum(pairs, 0))
        mean = (np.nan_to_num(kernels) * weight).sum(-1, keepdims=True) / weight.sum(-1, keepdims=True)
        variance = (np.nan_to_num(kernels - mean) ** 2 * weight).sum(-1) / weight.sum(-1)
        return variance / self.profiles.logit_variance.double().numpy().mean(0)

    def table(self):
        """Return a row per head: agreement, pairs needed, strongest pair, share of the logits' variance."""
        n_layers, n_heads = self.computed.shape[:2]
        (r, explained), needed = self.agreement(), self.pairs_needed()
        strongest = np.stack([(self.parts(layer) ** 2).sum(-1).argmax(-1) for layer in range(n_layers)])
        lengths = [wavelengths(rotation.frequencies).numpy() for rotation in self.moments.rotations]
        length = np.stack([own[k] for own, k in zip(lengths, strongest, strict=True)])  # (layer, head)
        columns = {
            "layer": np.repeat(self.moments.layers, n_heads),
            "head": np.tile(np.arange(n_heads), n_layers),
            "r": r.ravel(),
            "explained": explained.ravel(),
            "pairs_needed": needed.ravel(),
            "strongest_wavelength": np.where(np.isnan(needed), np.nan, length).ravel(),
            "kernel_sd": np.nanstd(self.computed, -1).ravel(),
            "share_of_logit_variance": self.kernel_share().ravel(),
        }
        return pd.DataFrame(columns)

    def _crossed(self, measured):
        """Return r and R² of every computed with every measured kernel of a layer, (layer, head, head)."""
        return agreement(*np.broadcast_arrays(self.computed[:, :, None], measured[:, None]))

    def _over_passages(self, function):
        known = np.nan_to_num(self.measured)  # a lag that is not seen is NaN in the computed kernel
        return [
            student_interval(
                known, lambda mean, k=k: np.median(np.nan_to_num(function(mean)[k])), possible=possible
            )
            for k, possible in enumerate([(-1, 1), (-np.inf, 1)])
        ]


@checked(calibration=token_ids, held_out=token_ids)
def head_kernels(model, calibration, held_out, *, n_lags=None, **options):
    """Compute the kernel of every head on some passages and measure its mean logit at each lag on others.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
    calibration, held_out : torch.LongTensor, shape (sequence, position)
        Passages of one length each, without padding; mean query and key are of the first, logits of the
        second.
    n_lags : int, optional
        Lags from 0 on that are compared; half of the held-out length if None.
    **options
        `batch_size`, `chunk`, `cache` and `progress` of :func:`nbhelpers.capture`.

    Returns
    -------
    HeadKernels
    """
    n_lags = held_out.shape[-1] // 2 if n_lags is None else n_lags
    if calibration.shape[-1] != held_out.shape[-1] or not 2 <= n_lags < held_out.shape[-1]:
        shapes = tuple(calibration.shape), tuple(held_out.shape)
        raise ValueError(
            f"passages of one length, at 2 lags or more below it, are compared; got {shapes}, {n_lags} lags"
        )
    moments = query_key_moments(model, calibration)
    profiles = capture(model, held_out, list(KEPT), **options)
    measured = profiles.lag_logits[..., torch.tensor(profiles.coordinates["lag_logits"]) >= 0]
    if measured.isnan().all():
        raise ValueError("the logits of this family are not known: a learned sink joins its softmax")
    return HeadKernels(
        moments, moments.kernels(n_lags).numpy(), measured[..., :n_lags].double().numpy(), profiles
    )


def causal_profile(kernels):
    """Return the lag profile of causal attention whose logits are a kernel, (..., lag), over all lags read.

    The mean over queries of softmax(κ): exp κ(l) Σ_{q ≥ l} 1 / Σ_{m ≤ q} exp κ(m), over their number.
    """
    weight = np.exp(kernels - np.max(kernels, -1, keepdims=True))
    inverse = 1 / weight.cumsum(-1)
    return weight * inverse[..., ::-1].cumsum(-1)[..., ::-1] / weight.shape[-1]


@checked(kernels=made_by("HeadKernels", "head_kernels"))
def draw_kernels(kernels, *, n_heads=12, axes=None):
    """Draw measured and computed kernels of heads from the best explained to the worst; return the axes."""
    r, explained = kernels.agreement()
    ranked = np.argsort(-np.nan_to_num(explained, nan=-np.inf), axis=None)
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(n_heads, len(ranked))).round().astype(int)]
    if axes is None:
        n_rows = -(-len(chosen) // 4)
        _, axes = plt.subplots(n_rows, 4, figsize=(12, 2.5 * n_rows), sharex=True, layout="constrained")
    axes = np.ravel(axes)
    for ax, index in zip(axes, chosen, strict=False):
        at = np.unravel_index(index, r.shape)
        seen, kernel = kernels.measured[(slice(None), *at)], kernels.computed[at]
        seen = seen - np.nanmean(seen)  # (passage, lag)
        ax.plot(seen.T, color="0.75", lw=0.7, label="each passage")
        ax.plot(seen.mean(0), color="black", lw=1.8, label="mean logit, measured")
        ax.plot(kernel - np.nanmean(kernel), "--", color="C1", lw=1.4, label="computed from q̄, k̄, θ")
        layer = kernels.moments.layers[at[0]]
        ax.set_title(f"layer {layer}, head {at[1]}: R² {explained[at]:.2f}", fontsize=9)
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    handles = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    figure = axes[0].figure
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel("lag (tokens)", fontsize=10)
    figure.supylabel("logit less its mean (no unit)", fontsize=10)
    return axes
