"""Figures of a sweep's rows beside those of a notebook and of the paper; data first, axes returned."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from nbhelpers.metrics import metric_label
from nbhelpers.plots import SOURCES, axes_or_new, compare_rows
from nbhelpers.sweeps.rows import HERE, PRINTED, SWEEP, protocols_of, row_labels

OVER = {"step": "training step (+ 1)", "n_parameters": "parameters"}
NAMES = {"null": "uniform attention", PRINTED: "printed by the paper"}


def compare_sources(rows, *, metrics=None):
    """Draw a panel per metric and a line per measured row of `rows_beside`; return the array of axes.

    A line has value, interval and null. A printed value stands on the lines of the sweep that have its model
    (and its step, where it has one), and on a line of its own where there is none.
    """
    metrics = list(rows.metric.unique() if metrics is None else metrics)
    forest = _forest_of(rows[rows.metric.isin(metrics)])
    size = (min(2.6 * len(metrics) + 3.5, 14), 0.3 * forest.row.nunique() + 1.9)  # at most a page's width
    options = {"sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(metrics), figsize=size, **options)
    axes = compare_rows(forest, axes[0], metrics=metrics)
    marks = {}  # of all panels: the first need not have a null
    for ax, metric in zip(axes, metrics, strict=True):
        ax.set_xlabel(textwrap.fill(metric_label(metric, *protocols_of(rows, metric)), 18))
        handles, labels = ax.get_legend_handles_labels()
        marks |= {NAMES.get(name, name): handle for name, handle in zip(labels, handles, strict=True)}
    figure.legend(marks.values(), marks, frameon=False, loc="outside lower center", ncols=len(marks))
    return axes


def _forest_of(rows):
    """Return what `compare_rows` draws: nulls and printed values as marks on the lines they belong to."""
    rows = rows.assign(row=row_labels(rows))
    measured, printed = rows[rows.source != PRINTED], rows[rows.source == PRINTED]
    nulls = measured.dropna(subset=["null"])
    nulls = nulls.assign(value=nulls.null, source="null", low=np.nan, high=np.nan)
    lines = []  # a printed value once for each measured row of its model, or once under its own name
    for line in printed.to_dict("records"):
        mine = (measured.paper == line["paper"]) & (measured.metric == line["metric"])
        mine &= (measured.step == line["step"]) | pd.isna(line["step"])
        lines += [line | {"row": name} for name in list(measured.row[mine].unique()) or [line["row"]]]
    lines = pd.DataFrame(lines, columns=rows.columns).astype(rows.dtypes)
    return pd.concat([measured, nulls, lines], ignore_index=True)


def rows_over(rows, over, metric, *, ax=None):
    """Draw a metric over the training "step" or over "n_parameters", on a logarithmic axis; return the axes.

    `rows` are those of `rows_beside`; those without a place on the axis are left out. Hollow diamonds are
    uniform attention of the same length and mask.
    """
    if over not in OVER:
        raise ValueError(f"rows have a place over {' or '.join(OVER)}, not over {over!r}")
    drawn = rows[(rows.metric == metric) & rows[over].notna()]
    if drawn.empty:
        raise ValueError(f"none of the {len(rows)} rows has {metric} and a known {over}")
    ax = axes_or_new(ax)
    for source in (HERE, SWEEP, PRINTED):
        own = drawn[drawn.source == source].sort_values(over)
        # The checkpoints of a model make a curve; the models of different sizes make one together.
        series = "model" if over == "step" and source == HERE else "source"
        for number, (name, part) in enumerate(own.groupby(series, sort=False)):
            colour, marker = SOURCES[source]
            colour = sns.color_palette("colorblind")[number % 10] if source == HERE else colour
            x = part[over] + (over == "step")
            ax.vlines(x, part.low, part.high, color=colour, alpha=0.5, linewidth=2)
            style = {"ls": "-", "lw": 1.2, "ms": 4} if source == HERE else {"ls": "", "ms": 6, "zorder": 3}
            ax.plot(x, part.value, marker, color=colour, label=NAMES.get(name, name), **style)
    nulls = drawn.dropna(subset=["null"]).drop_duplicates([over, "null"])
    ax.plot(nulls[over] + (over == "step"), nulls.null, "D", c="0.55", mfc="none", ms=4, label=NAMES["null"])
    ax.set(xscale="log", xlabel=OVER[over], ylabel=metric_label(metric, *protocols_of(rows, metric)))
    return ax
