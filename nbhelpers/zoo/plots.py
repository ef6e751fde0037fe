"""Figures of the zoo: arms and seeds side by side, over training and over size; data first, axes returned."""

import numpy as np
import seaborn as sns

from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.metrics import metric_label
from nbhelpers.plots import axes_or_new

MARKERS = dict(zip(ENCODINGS, "osD^vPX", strict=True))
TICKS = (0, 1, 10, 100, 1000, 10_000)
NOTHING = "no run of these arms was collected yet"


def encoding_colour(arm):
    """Return the colour of an arm's encoding: the same in every figure."""
    palette = [*sns.color_palette("colorblind", len(ENCODINGS) - 1), (0.15, 0.15, 0.15)]
    return palette[ENCODINGS.index(arm.partition("-")[0])]


def arm_points(values, *, ax=None, label="", nulls=None):
    """Draw a row per arm: a mark for each seed, a bar for their mean, a diamond for what it had untrained."""
    ax = axes_or_new(ax)
    ax.set(xlabel=label)
    if not values:
        return _empty(ax)
    for row, (arm, seeds) in enumerate(values.items()):
        colour, style = encoding_colour(arm), {"ms": 6, "alpha": 0.75, "ls": "none", "mew": 0.5}
        ax.plot(seeds, np.full(len(seeds), row), MARKERS[arm.partition("-")[0]], color=colour, **style)
        ax.vlines(np.mean(seeds), row - 0.32, row + 0.32, color=colour, lw=2.5)
        if nulls and arm in nulls:
            ax.plot(nulls[arm], row, "D", color="0.55", ms=5, mfc="none")
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.4)
    return ax


def arm_curves(curves, *, ax=None, label="", named=None):
    """Draw a metric over training, one colour per encoding: thin lines for seeds, a thick one for their mean.

    `curves` are (steps, values) by arm, of shapes (step,) and (seed, step). Where arms are `named`, each has
    its name at the end of its curve, and the others are grey.
    """
    ax = axes_or_new(ax)
    ax.set(ylabel=label, xlabel="updates")
    if not curves:
        return _empty(ax)
    last = 1
    for arm, (steps, values) in curves.items():
        x, values = np.log10(np.asarray(steps) + 1.0), np.atleast_2d(values)
        colour, marker = encoding_colour(arm), MARKERS[arm.partition("-")[0]]
        if named is not None and arm not in named:
            colour = "0.75"
        elif named:
            ax.text(x[-1], values.mean(0)[-1], f"  {arm}", color=colour, va="center")
        if len(values) > 1:
            ax.plot(x, values.T, color=colour, lw=0.7, alpha=0.5)
        told = f"{arm} ({len(values)} seed{'s' if len(values) > 1 else ''})"
        ax.plot(x, values.mean(0), color=colour, lw=2, marker=marker, markevery=6, ms=4.5, label=told)
        last = max(last, max(steps))
    step_ticks(ax, last)
    return ax


def step_ticks(ax, last):
    """Name the updates on an axis that shows log10(update + 1)."""
    ticks = [tick for tick in TICKS if tick <= 1.2 * last]
    ax.set_xticks(np.log10(np.array(ticks) + 1.0), [f"{tick:,}" for tick in ticks])


def breakpoint_marks(log_step, breakpoints, *, ax, colour="0.2"):
    """Draw a fitted piecewise-linear curve over log10(step + 1), with the interval of each knot."""
    ax.plot(log_step, breakpoints.fit.fitted, color=colour, lw=1.4, ls="--")
    heights = np.interp(breakpoints.knots.value, log_step, breakpoints.fit.fitted)
    for knot, low, high, height in zip(*breakpoints.knots[:3], heights, strict=True):
        ax.hlines(height, low, high, color=colour, lw=4, alpha=0.35)
        ax.plot(knot, height, "|", color=colour, ms=11, mew=2)
    return ax


def share_bars(frame, *, ax=None):
    """Draw shares of variance with their intervals: columns metric, factor, share, low, high of a frame."""
    ax = axes_or_new(ax)
    ax.set(xlabel="share of the variance between runs", xlim=(-0.02, 1.02))
    if frame.empty:
        return _empty(ax)
    metrics, factors = list(dict.fromkeys(frame.metric)), list(dict.fromkeys(frame.factor))
    palette = sns.color_palette("colorblind", len(factors))
    for k, factor in enumerate(factors):
        own = frame[frame.factor == factor]
        place = own.metric.map(metrics.index).to_numpy() + (k - (len(factors) - 1) / 2) * 0.8 / len(factors)
        ax.hlines(place, own.low, own.high, color=palette[k], lw=3, alpha=0.5)
        ax.plot(own.share, place, "oDs^"[k % 4], color=palette[k], ms=6, label=factor)
    ax.set_yticks(range(len(metrics)), [metric_label(metric) for metric in metrics])
    ax.set_ylim(len(metrics) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.4)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def live_panels(snapshots, *, figure):
    """Clear the figure and draw the heads in training: spectra now, spectral entropy and loss so far."""
    figure.clear()
    now, axes = snapshots[-1], figure.subplots(1, 3)
    names = [f"layer {layer} head {head}" for layer, head in np.ndindex(now.spectral_entropy.shape)]
    for ax in axes[:2]:
        ax.set_prop_cycle(color=sns.color_palette("viridis", len(names)))
    x = np.log10([snapshot.step + 1 for snapshot in snapshots])
    entropies = np.stack([snapshot.spectral_entropy.ravel() for snapshot in snapshots])  # (snapshot, head)
    axes[0].plot(now.frequency, now.psd.reshape(len(names), -1).clip(1e-12).T, lw=1.5, label=names)
    axes[1].plot(x, entropies, lw=1.5, marker="o", ms=2.5)
    axes[0].set(yscale="log", ylim=(1e-6, 2), xlabel="frequency (cycles/token)", ylabel="share of power")
    axes[0].set_title(f"Spectra of the heads, update {now.step}", fontsize=11)
    axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
    axes[1].set(xlabel="updates", ylabel="spectral entropy (nats)", ylim=(0, np.log(len(now.frequency))))
    axes[1].set_title("Each head's spectral entropy", fontsize=11)
    axes[2].plot(x, [snapshot.loss for snapshot in snapshots], color="0.2", marker="o", ms=2.5)
    axes[2].set(xlabel="updates", ylabel="training loss (nats/token)")
    axes[2].set_title(f"Loss, {now.seconds:.0f} s", fontsize=11)
    for ax in axes[1:]:
        ax.set_xlim(0, max(1.0, x[-1]) * 1.03)
        step_ticks(ax, max(10, now.step))
    return axes


def _empty(ax):
    ax.text(0.5, 0.5, NOTHING, ha="center", va="center", transform=ax.transAxes, color="0.4")
    ax.set_yticks([])
    return ax
