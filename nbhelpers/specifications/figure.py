"""The figure of a specification curve, and dropdowns that find one specification on it."""

import itertools
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ipywidgets import Dropdown

from nbhelpers.collection.explore import Explorer
from nbhelpers.files import write_parquet

from .curve import shapley_shares

SHOWN = {"N1 random weights": "C3", "N0 uniform": "C0", "N4 exponential": "C2"}  # beside the permuted draws
N_BINS = 96  # of the sorted specifications, in which options are counted


def curve_figure(worlds, statistic, *, claimed=None, marked=None):
    """Draw a statistic under every specification, sorted, over a rug of the choices; return the figure.

    `claimed` is the range that the paper claims or prints, `marked` a row of the curve's index to be shown.
    """
    table = worlds.column(statistic)
    model = table.columns[0]
    table = table.sort_values(model)
    place = np.arange(len(table))
    options = {"figsize": (10, 7.5), "layout": "constrained", "height_ratios": (1.15, 1)}
    fig, (top, rug) = plt.subplots(2, sharex=True, **options)
    if worlds.draws:
        drawn = worlds.drawn(statistic).reindex(table.index)
        ends = drawn.min(axis=1), drawn.max(axis=1)
        top.fill_between(place, *ends, color="0.6", lw=0.8, label=f"{drawn.shape[1]} permuted draws, all")
    for world, color in SHOWN.items():
        if world in table and table[world].notna().any():
            top.plot(place, table[world], ".", ms=2, color=color, alpha=0.6, label=world)
    top.plot(place, table[model], "k.", ms=3, label=model)
    if claimed is not None:
        top.set_ylim(top.get_ylim())  # no room for values that are claimed and that nothing has
        top.axhspan(*claimed, color="C8", alpha=0.25, lw=0, label="the paper's range", zorder=0)
    if marked in table.index:
        at = table.index.get_loc(marked)
        top.plot(at, table[model].iloc[at], "o", ms=12, mfc="none", mec="C1", mew=2.5)
        rug.axvline(at, color="C1", lw=1.5)
    top.set(ylabel=statistic, xlim=(0, len(table) - 1))
    values = table[model].to_numpy()
    if (values > 0).all() and values.max() > 100 * values.min():
        top.set(yscale="log", ylim=(values.min() / 3, values.max() * 3))
    top.legend(frameon=False, fontsize=8, markerscale=4, loc="upper left", bbox_to_anchor=(1, 1))
    _draw_rug(rug, table[model])
    return fig


def _draw_rug(ax, values):
    """Draw how many of the specifications at each place of the sorted curve take each option."""
    shares = shapley_shares(values)
    options = {name: values.index.get_level_values(name).map(str) for name in values.index.names}
    bins = np.arange(len(values)) * min(N_BINS, len(values)) // len(values)
    rows, names, starts = [], [], []
    for choice, share in shares.items():
        starts.append((len(rows), f"{choice.replace('_', ' ')} ({share:.0%})"))
        named = pd.Series(list(zip(*(options[part] for part in choice.split(" and ")), strict=True)))
        for option in named.unique():
            chosen = (named == option).to_numpy(float)
            rows.append(np.bincount(bins, chosen) / np.bincount(bins))
            names.append(", ".join(option).replace("_", " "))
    ax.imshow(rows, aspect="auto", cmap="Greys", vmin=0, vmax=1, extent=(0, len(values), len(rows), 0))
    ax.set_yticks(np.arange(len(rows)) + 0.5, names, fontsize=7)
    for start, _ in starts[1:]:
        ax.axhline(start, color="k", lw=0.8)
    right = ax.secondary_yaxis("right")
    ends = [*(start for start, _ in starts), len(rows)]
    right.set_yticks([(a + b) / 2 for a, b in itertools.pairwise(ends)], [t for _, t in starts], fontsize=7)
    ax.set_xlabel("specification, sorted; the darker, the more of these specifications take the option")


def explore(worlds, statistic, **options):
    """Return an `Explorer` with a dropdown per choice, which lights up a specification on the curve."""
    curve = worlds.column(statistic)
    controls, style = {}, {"description_width": "initial"}
    for name in curve.index.names:
        every = [(str(o), o) for o in curve.index.unique(name)]
        controls[name] = Dropdown(options=every, description=name.replace("_", " "), style=style)

    def draw(**chosen):
        marked = tuple(chosen.values())
        known = marked in curve.index
        value = f"{statistic} = {curve.loc[marked].iloc[0]:.4g}" if known else "this pair cannot be measured"
        figure = curve_figure(worlds, statistic, marked=marked, **options)
        figure.suptitle(value)
        return figure

    return Explorer(draw, **controls)


def write_worlds(worlds, folder, provenance):
    """Write curves (Parquet), shares of the choices (CSV) and a figure of every number; return the shares."""
    folder = Path(folder)
    model = next(iter(worlds.curves))
    write_parquet(worlds.frame(), folder / "curves.parquet", provenance)
    shares = {}
    for statistic in [name for curve in worlds.curves[model].values() for name in curve]:
        shares[statistic] = shapley_shares(worlds.column(statistic)[model])
        fig = curve_figure(worlds, statistic)
        fig.savefig(folder / f"{slug(statistic)}.png", dpi=150)
        plt.close(fig)
    shares = pd.DataFrame(shares).T
    shares.to_csv(folder / "shares.csv", index_label="number")
    return shares


def slug(statistic):
    """Return the name of a number as files and records spell it."""
    return re.sub(r"\W+", "_", statistic.lower().replace("/", "over")).strip("_")
