"""Figures of head metrics that tables hold: data first, `ax` optional, the axes returned, nothing shown."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nbhelpers.arguments import array, checked, head_table, one_of, real, several, text
from nbhelpers.metrics import find_metric, metric_label
from nbhelpers.stats import student_interval

SOURCES = {
    "ours": ("C0", "o"),
    "this notebook": ("C0", "o"),
    "sweep": ("0.1", "v"),
    "null": ("C1", "D"),
    "paper": ("0.45", "s"),
}
HEADS = ("#0b5cad", "-", "Blues"), ("#c4500b", "--", "Oranges")  # a head, and one beside it
UNIFORM = {"color": "0.45", "ls": ":", "lw": 1.2}
LEAST_ATTENTION, LEAST_SHARE = 1e-4, 1e-5  # smallest that logarithmic colours and axes show
VERDICTS = {  # all verdicts, with sign and colour; none is told by its colour alone
    "supported": ("✓", "#1b7837"),
    "explained by the null": ("≈", "#b35806"),
    "contradicted": ("✗", "#b2182b"),
    "undecided": ("?", "#555555"),
    "the quantity cannot tell": ("⊘", "#5e3c99"),
    "out of reach here": ("…", "#555555"),
    "not measured": ("–", "#555555"),
}


@checked(center=real())
def head_map(data, metric=None, *, ax=None, kv_groups=None, label=None, center=None, **options):
    """Draw a metric of every head as a layer × head heat map, lines between the KV groups.

    `data` is a HeadTable, of which `metric` is drawn, or an array (layer, head) or (sequence, layer, head)
    with `kv_groups`; means over sequences are drawn, layers without attention stay blank. `center` is the
    value in the middle of a diverging palette; `options` are those of `seaborn.heatmap`.
    """
    if hasattr(data, "per_head"):
        if metric is None:
            raise ValueError(f"say which metric of the table to draw: {', '.join(data.metrics)}")
        values, kv_groups = data.by_layer(metric), data.kv_groups
        values = values[0] if data.averaged else values
        label = label or metric_label(metric, data.protocol)
    else:
        values = array("data", data).astype(float)
    values = values.mean(0) if values.ndim == 3 else values  # (layer, head)
    if values.ndim != 2:
        raise ValueError(f"head_map draws (layer, head) or (sequence, layer, head), got shape {values.shape}")
    ax = axes_or_new(ax)
    style = {"cmap": "viridis"}
    if center is not None:
        half = np.nanmax(np.abs(values - center))
        style = {"cmap": "vlag", "vmin": center - half, "vmax": center + half}
    sns.heatmap(values, ax=ax, **({"cbar_kws": {"label": label or "value"}} | style | options))
    groups = np.arange(values.shape[1]) if kv_groups is None else np.asarray(kv_groups)
    if len(groups) != values.shape[1]:
        raise ValueError(f"kv_groups names {len(groups)} heads, the data have {values.shape[1]}")
    edges = (np.flatnonzero(np.diff(groups)) + 1).tolist()
    edges = edges if len(edges) + 1 < len(groups) else []  # none where each head has a group of its own
    for edge in edges:
        ax.axvline(edge, color="white" if center is None else "black", linewidth=1.5)
    ax.set(xlabel="head (lines separate the KV groups)" if edges else "head", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    return ax


@checked(table=head_table, order=one_of("layer", "share"))
def band_bars(table, *, ax=None, order="layer"):
    """Draw the band shares of heads as stacked bars (Figure 2), by "layer" or "share" of the first band."""
    bands = table.protocol.band_names
    heads = table.per_head().sort_values(["layer", "head"] if order == "layer" else bands, ignore_index=True)
    names = [find_metric(band, table.protocol).label for band in bands]
    tidy = heads[bands].set_axis(names, axis="columns").rename_axis("place").reset_index()
    tidy = tidy.melt("place", var_name="band", value_name="share")
    ax = axes_or_new(ax)
    palette = sns.color_palette("viridis", len(bands))
    # seaborn stacks from the top down: the reverse order puts the first band at the bottom
    options = {"hue_order": names[::-1], "palette": palette[::-1], "linewidth": 0, "alpha": 1}
    options |= {"multiple": "stack", "discrete": True, "ax": ax}
    sns.histplot(tidy, x="place", weights="share", hue="band", **options)
    ax.set(ylim=(0, 1), ylabel=find_metric(bands[0]).unit, xlim=(-0.5, len(heads) - 0.5))
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title=None)
    ax.set_xlabel(f"{len(heads)} heads, by share of the {names[0]}")
    if order == "layer":  # lines between the layers, the names of about ten at their centres
        layers = heads["layer"].to_numpy()
        starts = np.flatnonzero(np.diff(layers, prepend=-1))
        for start in starts[1:]:
            ax.axvline(start - 0.5, color="white", linewidth=0.8)
        centres = starts + np.diff(starts, append=len(layers)) / 2 - 0.5
        step = max(1, len(starts) // 10)
        ax.set_xticks(centres[::step], layers[starts[::step]])
        ax.set_xlabel(f"layer ({len(layers)} heads)")
    return ax


@checked(table=head_table, metrics=several(text, least=1))
def layer_trend(table, metrics, *, ax=None):
    """Draw means over heads of metrics of one unit at each layer, with their intervals (Figure 3)."""
    if table.averaged:
        raise ValueError("layer_trend needs one value per sequence; measure with order='metric then mean'")
    means = {find_metric(metric).label: table.values(metric).mean(-1).ravel() for metric in metrics}
    tidy = pd.DataFrame(means | {"layer": table.layers * table.n_sequences}).melt("layer", var_name="metric")
    ax = axes_or_new(ax)
    sns.lineplot(
        tidy, x="layer", y="value", hue="metric", style="metric", ax=ax, palette="colorblind",
        errorbar=lambda of: student_interval(of)[1:3], markers=True, dashes=False,
    )  # fmt: skip
    ax.set(xlabel="layer", ylabel=find_metric(metrics[0], table.protocol).unit)
    ax.legend(frameon=False, title=None)
    return ax


def compare_rows(frame, axes, *, metrics=None):
    """Draw a forest plot of a frame: a panel of `axes` per metric, a line per row; return the axes.

    Its columns are row, metric, value, source (a key of :data:`SOURCES`), and low and high where known.
    """
    if missing := [name for name in ("row", "metric", "value", "source") if name not in frame]:
        raise ValueError(f"compare_rows needs row, metric, value and source; {', '.join(missing)} missing")
    if unknown := sorted(set(frame["source"]) - set(SOURCES)):
        raise ValueError(f"unknown source {unknown}; there are {', '.join(SOURCES)}")
    known, rows = frame["metric"].unique(), list(frame["row"].unique())
    axes, metrics = np.atleast_1d(axes), known if metrics is None else metrics
    if absent := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"the frame has no metric {absent}; it has {', '.join(known)}")
    if len(axes) != len(metrics):
        raise ValueError(f"{len(metrics)} metrics need {len(metrics)} axes, got {len(axes)}")
    for ax, metric in zip(axes, metrics, strict=True):
        for source, (colour, marker) in SOURCES.items():
            own = frame[(frame["metric"] == metric) & (frame["source"] == source)]
            if own.empty:
                continue
            place = own["row"].map(rows.index)
            if {"low", "high"} <= set(own):
                ax.hlines(place, own["low"], own["high"], color=colour, linewidth=2.5, alpha=0.6)
            ax.scatter(own["value"], place, color=colour, marker=marker, s=32, zorder=3, label=source)
        ax.set_yticks(range(len(rows)), rows)
        ax.set(xlabel=metric_label(metric), ylabel="", ylim=(len(rows) - 0.5, -0.5))  # the first row on top
        ax.grid(axis="x", alpha=0.4)
    return axes


def difference_figure(frame, *, ax=None):
    """Draw what :func:`nbhelpers.compare` returns; filled differs at a false discovery rate of 5 %."""
    ax = axes_or_new(ax)
    scale = frame.effect / frame.difference.where(frame.difference != 0)
    at = np.arange(len(frame))
    ax.axvline(0, color="0.7", lw=1)
    ax.hlines(at, frame.low * scale, frame.high * scale, color="C0")
    for sure, style in ((True, "C0"), (False, "white")):
        some = (frame.adjusted_p < 0.05) == sure
        ax.plot(frame.effect[some], at[some], "o", mec="C0", mfc=style)
    ax.set_yticks(at, [metric_label(name) for name in frame.index])
    ax.set(xlabel="difference (standard deviations of passages)", ylim=(len(frame) - 0.5, -0.5))
    return ax


def verdict_figure(card, *, narrow=False):
    """Draw a scorecard in one figure: a row per claim, the number that decides it, what was seen in words.

    Numbers are rescaled so that the claimed range, grey, is 0 to 1; a range without an end is one |other end|
    wide and its grey runs on. Arrows stand for what lies further off. `narrow` stacks each row for a phone.
    """
    width, size = (4.5, 9.1) if narrow else (10.0, 10.4)
    line = size * 0.0178  # inches
    names, strip, words = ((0.1, 4.4),) * 3 if narrow else ((0.1, 2.55), (2.65, 4.85), (5.0, 9.9))
    figure = plt.figure(dpi=120)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    y, group = 3.4 * line if narrow else 2 * line, None

    def write(text, column, y, **style):
        letter = size * (0.0082 if "weight" in style else 0.0077)  # inches
        for part in textwrap.wrap(text.replace(" %", "\u00a0%"), int((column[1] - column[0]) / letter)):
            ax.text(column[0], y, part.replace("\u00a0", " "), va="top", fontsize=size, **style)
            y += line
        return y

    for row in card.itertuples():
        if row.group != group:
            group, y = row.group, y + 0.9 * line
            y = write(group[0].upper() + group[1:], (0.1, width), y, weight="bold") + 0.3 * line
        sign, colour = VERDICTS[row.verdict]
        end = write(f"{sign} {row.claim} {row.title}", names, y, color=colour, weight="bold")
        end = write(row.verdict, names, end, color=colour)
        if drawn := bool(np.isfinite(row.value)):
            _verdict_strip(ax, row, (end if narrow else y) + 0.9 * line, strip, colour)
        below = (end + 2 * line * drawn) if narrow else y
        y = max(write(row.why.partition(". ")[0].removesuffix("."), words, below), end) + 0.5 * line
    figure.set_size_inches(width, y + 0.1)
    ax.set(xlim=(0, width), ylim=(y + 0.1, 0))
    known = ("0.2", "o"), SOURCES["null"], SOURCES["paper"]
    labels = "the model, with interval", "its null", "printed by the paper"
    for label, (colour, marker) in zip(labels, known, strict=True):
        ax.plot([], [], marker, color=colour, label=label)
    ax.fill_between([], [], color="0.87", label="what the claim says")
    marks = {"fontsize": size, "frameon": False, "loc": "upper center", "ncols": 2 if narrow else 4}
    ax.legend(columnspacing=1, handletextpad=0.4, borderaxespad=0.2, **marks)
    return figure


def _verdict_strip(ax, row, y, ends, colour):
    """Draw the deciding number of one claim between two ends, in inches."""
    least, most = row.least, row.most
    if np.isinf(least) or np.isinf(most):
        end = most if np.isinf(least) else least
        unit = abs(end) or abs(row.value) or 1.0
        least, most = (end - unit, end) if np.isinf(least) else (end, end + unit)

    def place(number):
        return ends[0] + (ends[1] - ends[0]) * (1 + (number - least) / (most - least)) / 3

    left = ends[0] if np.isinf(row.least) else place(least)
    right = ends[1] if np.isinf(row.most) else place(most)
    ax.fill_betweenx([y - 0.12, y + 0.12], left, right, color="0.87", linewidth=0)
    ax.plot(ends, [y, y], color="0.75", linewidth=0.6)
    null, paper = SOURCES["null"], SOURCES["paper"]
    marks = (
        (row.value, row.low, row.high, colour, "o", 0.0),
        (row.null, row.null_low, row.null_high, *null, 0.07),
        (row.printed_low, row.printed_low, row.printed_high, *paper, -0.07),
        (row.printed_high, np.nan, np.nan, *paper, -0.07),
    )
    for value, low, high, shade, marker, shift in marks:
        if not np.isfinite(value):
            continue
        x = place(value)
        inside = np.clip(x, ends[0] + 0.12, ends[1] - 0.12)
        ax.plot(inside, y + shift, marker, color=shade, markersize=5, zorder=3)
        if x < ends[0] or x > ends[1]:
            edge, arrow = np.clip(x, *ends), {"arrowstyle": "-|>", "color": shade}
            ax.annotate("", (edge, y + shift), (inside, y + shift), arrowprops=arrow)
        elif np.isfinite(low):
            ax.plot(np.clip([place(low), place(high)], *ends), [y + shift] * 2, color=shade, linewidth=2)


def draw_heads(views, signal):
    """Return a figure of one HeadView, or of two: attention, profiles, spectrum of the signal."""
    figure = Figure(figsize=(4 + 3.7 * len(views), 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    images = top.subplots(1, len(views), squeeze=False)[0]
    curves = bottom.subplots(1, 3)
    for view, ax, (colour, style, ramp) in zip(views, images, HEADS, strict=False):
        extent = -0.5, view.attn.shape[1] - 0.5, len(view.attn) - 0.5, -0.5
        image = ax.imshow(block_max(view.attn), norm=LogNorm(LEAST_ATTENTION, 1), cmap=ramp, extent=extent)
        figure.colorbar(image, ax=ax, label="attention (probability)")
        ax.set_title(view.name, color=colour, fontsize=10)
        ax.set(xlabel="key (token number)", ylabel="query (token number)")
        line = {"color": colour, "ls": style, "lw": 1.2, "label": view.name}
        places = np.arange(len(view.key_profile)), view.lags, view.frequency
        for at, x, y in zip(curves, places, (view.key_profile, view.lag_profile, view.psd), strict=True):
            at.plot(x, np.clip(y, LEAST_SHARE, 1), **line)
    first = views[0]  # of the same lags and frequencies as the other
    nulls = first.null_key_profile, first.null_lag_profile, first.null_psd
    labels = "key (token number)", "lag (tokens)", "frequency (cycles/token)"
    titles = "mean attention to a key", "mean attention at a lag", f"power of the {signal.replace('_', ' ')}"
    for ax, x, null, label, title in zip(curves, places, nulls, labels, titles, strict=True):
        ax.plot(x, np.clip(null, LEAST_SHARE, 1), label="uniform attention", **UNIFORM)
        ax.set(xlabel=label, yscale="log", ylim=(LEAST_SHARE / 1.5, 1.5))
        ax.set_title(title, fontsize=9, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    curves[0].legend(frameon=False, fontsize=8)
    return figure


def block_max(attn, most=600):
    """Return a matrix of at most so many rows and columns: the largest entry of each block."""
    edges = [np.unique(np.linspace(0, n, min(n, most), endpoint=False, dtype=int)) for n in attn.shape]
    rows = np.maximum.reduceat(attn, edges[0], axis=0)
    return np.clip(np.maximum.reduceat(rows, edges[1], axis=1), LEAST_ATTENTION, 1)


def axes_or_new(ax):
    """Return the axes, or those of a new figure for None."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax
