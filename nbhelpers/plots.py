"""Figures of head metrics: data first, `ax` optional, the axes returned, nothing shown.

Each function draws numbers that a table already holds; an interval is over sequences, or columns that
the caller computed.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from nbhelpers.arguments import array, checked, head_table, one_of, real, several, text
from nbhelpers.metrics import find_metric, metric_label
from nbhelpers.protocol import BANDS, PAPER
from nbhelpers.stats import student_interval

SOURCES = {
    "ours": ("C0", "o"),
    "this notebook": ("C0", "o"),
    "sweep": ("0.1", "v"),
    "null": ("C1", "D"),
    "paper": ("0.45", "s"),
}
COMPARED = ("row", "metric", "value", "source")


@checked(center=real())
def head_map(data, metric=None, *, ax=None, kv_groups=None, label=None, center=None, **options):
    """Draw a metric of every head as a layer × head heat map, lines between the KV groups.

    `data` is a HeadTable, of which `metric` is drawn, or an array (layer, head) or (sequence, layer, head),
    whose KV groups are `kv_groups`; means over sequences are drawn, layers without attention stay blank.
    `center` is the value in the middle of a diverging palette; `options` are those of `seaborn.heatmap`, such
    as `vmin`.
    """
    values, kv_groups = _per_head(data, metric, kv_groups)
    if values.ndim == 3:
        values = values.mean(0)  # (layer, head)
    if values.ndim != 2:
        raise ValueError(f"head_map draws (layer, head) or (sequence, layer, head), got shape {values.shape}")
    ax = _axes(ax)
    label = label or (metric_label(metric, getattr(data, "protocol", PAPER)) if metric else "value")
    style = {"cmap": "viridis"}
    if center is not None:
        half = np.nanmax(np.abs(values - center))
        style = {"cmap": "vlag", "vmin": center - half, "vmax": center + half}
    sns.heatmap(values, ax=ax, **({"cbar_kws": {"label": label}} | style | options))
    edges = _group_edges(kv_groups, values.shape[1])
    for edge in edges:
        ax.axvline(edge, color="white" if center is None else "black", linewidth=1.5)
    ax.set(xlabel="head (lines separate the KV groups)" if edges else "head", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    return ax


@checked(table=head_table, order=one_of("layer", "share"))
def band_bars(table, *, ax=None, order="layer", bands=BANDS):
    """Draw the band shares of every head as stacked bars (the paper's Figure 2).

    Heads stand by "layer", a line between layers, or by "share" of the first band.
    """
    heads = table.per_head()
    total = heads[list(bands)].sum(axis=1)
    if not np.allclose(total, 1, atol=1e-5):
        raise ValueError(
            f"the bands {', '.join(bands)} sum to {total.min():.4f} to {total.max():.4f} over a head, not 1"
        )
    heads = heads.sort_values(["layer", "head"] if order == "layer" else list(bands), ignore_index=True)
    names = [find_metric(band).label for band in bands]
    tidy = heads[list(bands)].set_axis(names, axis="columns").rename_axis("place").reset_index()
    tidy = tidy.melt("place", var_name="band", value_name="share")
    ax = _axes(ax)
    palette = sns.color_palette("viridis", len(bands))
    # seaborn stacks from the top down: the reverse order puts the first band at the bottom
    options = {"hue_order": names[::-1], "palette": palette[::-1], "linewidth": 0, "alpha": 1}
    sns.histplot(
        tidy, x="place", weights="share", hue="band", multiple="stack", discrete=True, ax=ax, **options
    )
    ax.set(ylim=(0, 1), ylabel=find_metric(bands[0]).unit, xlim=(-0.5, len(heads) - 0.5))
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title=None)
    if order == "share":
        ax.set_xlabel(f"{len(heads)} heads, by share of the {names[0]}")
        return ax
    _mark_layers(ax, heads["layer"].to_numpy())
    return ax


@checked(table=head_table)
def layer_trend(table, metrics, *, ax=None, confidence=0.95, ylabel=None):
    """Draw the mean over heads of metrics at each layer, with its interval over sequences (Figure 3).

    Several metrics share the axis, so they must have one unit.
    """
    metrics = several(text, least=1)("metrics", [metrics] if isinstance(metrics, str) else metrics)
    if table.averaged:
        raise ValueError("layer_trend needs one value per sequence; measure with order='metric then mean'")
    parts = []
    for metric in metrics:
        values = table.values(metric).mean(-1)  # (sequence, layer)
        layer = np.tile(table.layers, len(values))
        parts.append(
            pd.DataFrame({"metric": find_metric(metric).label, "layer": layer, "value": values.ravel()})
        )
    ax = _axes(ax)
    sns.lineplot(
        pd.concat(parts, ignore_index=True), x="layer", y="value", hue="metric", style="metric",
        errorbar=lambda of: student_interval(of, confidence=confidence)[1:3],
        palette="colorblind", markers=True, dashes=False, ax=ax,
    )  # fmt: skip
    label = metric_label(metrics[0], table.protocol)
    unit = find_metric(metrics[0], table.protocol).unit
    ax.set(xlabel="layer", ylabel=ylabel or (unit if len(metrics) > 1 else label))
    ax.legend(frameon=False, title=None)
    return ax


def compare_rows(frame, *, axes=None, metrics=None):
    """Draw a forest plot: one panel per metric, one line per row, intervals where there are any.

    `frame` has the columns row (what is compared, in the order drawn), metric, value, source (a key of
    :data:`SOURCES`), and low and high, NaN or absent where there is no interval. Returns the axes.
    """
    metrics = _checked_comparison(frame, metrics)
    rows = list(dict.fromkeys(frame["row"]))
    if axes is None:
        size = (3.1 * len(metrics) + 1.5, 0.3 * len(rows) + 1.2)
        axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False)[1][0]
    axes = np.atleast_1d(axes)
    if len(axes) != len(metrics):
        raise ValueError(f"{len(metrics)} metrics need {len(metrics)} axes, got {len(axes)}")
    for ax, metric in zip(axes, metrics, strict=True):
        _forest(ax, frame[frame["metric"] == metric], rows)
        ax.set(xlabel=metric_label(metric), ylabel="")
    return axes


def criterion_panels(frame, *, columns=4):
    """Draw every criterion of a scorecard in a panel of its own: claimed range, interval and null.

    `frame` is that of :func:`nbhelpers.collection.scorecard.criteria`. Returns the axes, one per row.
    """
    if frame.empty:
        raise ValueError("no criterion was measured, so there is nothing to draw; run 07 to 13 first")
    rows = -(-len(frame) // columns)
    shape = {"figsize": (2.8 * columns, 1.15 * rows + 0.7), "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, squeeze=False, **shape)
    for ax, row in zip(grid.flat, frame.itertuples(), strict=False):
        _criterion(ax, row)
    for ax in grid.flat[len(frame) :]:
        ax.set_visible(False)
    marks = {}  # of all panels: the first need not have a null
    for ax in grid.flat:
        handles, labels = ax.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    figure.legend(marks.values(), marks, loc="outside upper center", ncols=len(marks), frameon=False)
    return grid.ravel()[: len(frame)]


def _criterion(ax, row):
    """Draw one criterion; an infinite end of the claimed range runs to the end of the axis."""
    ours, null = SOURCES["ours"], SOURCES["null"]
    shown = [
        x for x in (row.low, row.high, row.null, row.least, row.most) if x is not None and np.isfinite(x)
    ]
    pad = 0.08 * (max(shown) - min(shown)) or 0.1
    left, right = min(shown) - pad, max(shown) + pad
    ax.axvspan(max(row.least, left), min(row.most, right), color="0.88", zorder=0, label="claimed range")
    ax.hlines(0, row.low, row.high, color=ours[0], linewidth=3, alpha=0.6)
    ax.scatter(row.value, 0, color=ours[0], marker=ours[1], s=36, zorder=3, label="ours, with interval")
    if row.null is not None and np.isfinite(row.null):
        ax.scatter(row.null, 0, color=null[0], marker=null[1], s=36, zorder=2, label="most conservative null")
    ax.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
    ax.set_title(f"{row.claim} {row.criterion}", fontsize=9, loc="left")
    ax.tick_params(labelsize=8)
    ax.spines[["left", "top", "right"]].set_visible(False)


def _checked_comparison(frame, metrics):
    missing = [column for column in COMPARED if column not in frame]
    if missing:
        raise ValueError(
            f"compare_rows needs the columns {', '.join(COMPARED)}; {', '.join(missing)} missing"
        )
    unknown = sorted(set(frame["source"]) - set(SOURCES))
    if unknown:
        raise ValueError(f"unknown source {unknown}; there are {', '.join(SOURCES)}")
    known = list(dict.fromkeys(frame["metric"]))
    metrics = known if metrics is None else list(metrics)
    absent = [metric for metric in metrics if metric not in known]
    if absent:
        raise ValueError(f"the frame has no metric {absent}; it has {', '.join(known)}")
    return metrics


def _forest(ax, part, rows):
    """Draw the points and intervals of one metric."""
    for source, (colour, marker) in SOURCES.items():
        own = part[part["source"] == source]
        if own.empty:
            continue
        place = own["row"].map(rows.index).to_numpy()
        if {"low", "high"} <= set(own):
            ax.hlines(place, own["low"], own["high"], color=colour, linewidth=2.5, alpha=0.6)
        ax.scatter(own["value"], place, color=colour, marker=marker, s=32, zorder=3, label=source)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    ax.grid(axis="x", alpha=0.4)


def _axes(ax):
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _per_head(data, metric, kv_groups):
    """Return values and KV groups of a HeadTable or an array."""
    if not hasattr(data, "per_head"):
        return array("data", data).astype(float), kv_groups
    if metric is None:
        raise ValueError(f"say which metric of the table to draw: {', '.join(data.metrics)}")
    values = data.by_layer(metric)
    return (values[:1] if data.averaged else values), data.kv_groups


def _group_edges(kv_groups, n_heads):
    """Return where KV groups meet; nothing if each head has its own, or all share one."""
    if kv_groups is None:
        return []
    groups = np.asarray(kv_groups)
    if len(groups) != n_heads:
        raise ValueError(f"kv_groups names {len(groups)} heads, the data have {n_heads}")
    edges = (np.flatnonzero(np.diff(groups)) + 1).tolist()
    return edges if len(edges) + 1 < n_heads else []


def _mark_layers(ax, layers):
    """Separate the layers by thin lines and name about ten of them, at their centres."""
    starts = np.flatnonzero(np.diff(layers, prepend=-1))
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="white", linewidth=0.8)
    centres = starts + np.diff(starts, append=len(layers)) / 2 - 0.5
    step = max(1, len(starts) // 10)
    ax.set_xticks(centres[::step], layers[starts[::step]])
    ax.set_xlabel(f"layer ({len(layers)} heads)")
