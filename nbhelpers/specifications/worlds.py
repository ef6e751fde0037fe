"""The curves of a model beside those of attention that learned nothing and of permuted data; their figure."""

import itertools
import math
import operator
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ipywidgets import Dropdown
from tqdm.auto import tqdm

from nbhelpers.arguments import checked, mapping, path, whole
from nbhelpers.claims.paper import claim
from nbhelpers.collection.explore import Explorer
from nbhelpers.files import write_parquet
from nbhelpers.inputs.devices import return_freed_memory
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.nulls import models as nulls

from .curve import CHOICES, map_variants, observe_variants, shapley_shares, specification_curve

BASED = ("spectral entropy",)
UNTRAINED = "N1 random weights"
CRITERIA = {
    "C2": {"C2_low": "low band", "C2_mid": "mid band", "C2_high": "high band"},
    "C3": {"C3_low_change": "low band over depth"},
    "C5": {"C5_half": "S(0.5)", "C5_ratio": "S(0.25) / S(0.5)"},
    "C6": {"C6_rho": "position-spectrum correlation"},
}
DRAWN = {f"{n.number} {n.name}": n.function for n in nulls.NULLS if n.number in ("N0", "N2", "N3", "N4")}
SHOWN = {"N1 random weights": "C3", "N0 uniform": "C0", "N4 exponential": "C2"}  # beside the permuted draws
N_BINS = 96  # of the sorted specifications, in which options are counted


@dataclass(frozen=True)
class Worlds:
    """Specification curves by kind and world."""

    curves: dict  # world, the model first, → kind → what `specification_curve` returns
    draws: list = field(default_factory=list)  # kind → the same of permuted data; logarithms are natural
    length: int = 0  # tokens of a sequence
    seconds: dict = field(default_factory=dict)  # that each world took, two at a time, and one of the draws

    def column(self, statistic):
        """Return a statistic, a row per specification and a column per world; but for entropies one base."""
        kind = next(k for k, curve in next(iter(self.curves.values())).items() if statistic in curve)
        table = pd.DataFrame({world: curves[kind][statistic] for world, curves in self.curves.items()})
        if statistic in BASED or "log_base" not in table.index.names:
            return table
        return table.xs(table.index.unique("log_base")[0], level="log_base")

    def drawn(self, statistic):
        """Return a statistic of permuted data, the rows of :meth:`column` and a column per draw."""
        kind = next(k for k, curve in self.draws[0].items() if statistic in curve)
        drawn = pd.concat([curves[kind][statistic] for curves in self.draws], axis=1, ignore_index=True)
        if statistic in BASED:
            drawn, index = drawn.droplevel("log_base"), self.column(statistic).index
            scales = {b: 1 if b == "e" else math.log(float(b)) for b in index.unique("log_base")}
            drawn = pd.concat({b: drawn / scale for b, scale in scales.items()}, names=["log_base"])
            return drawn.reorder_levels(index.names).reindex(index)
        return drawn.droplevel("log_base") if "log_base" in drawn.index.names else drawn

    def frame(self):
        """Return every curve in tidy form: world, the choices, statistic and value."""
        tables = [(world, *table) for world, curves in self.curves.items() for table in curves.items()]
        parts = [c.reset_index().melt(CHOICES[k], var_name="statistic").assign(world=w) for w, k, c in tables]
        return pd.concat(parts, ignore_index=True).astype({"pad": "str"})  # a number or a word


def claims_hold(worlds):
    """Return in which specifications a claim's criteria hold for each world, claim → DataFrame of bool."""
    held = {}
    for name, columns in CRITERIA.items():
        ranges = {c.name: c.claimed for c in claim(name).criteria}
        tables = [(*ranges[criterion], worlds.column(statistic)) for criterion, statistic in columns.items()]
        held[name] = reduce(operator.and_, [(low <= table) & (table <= high) for low, high, table in tables])
    return held


@checked(model=path, text=path, grid=mapping, n_draws=whole(0, 10_000))
def measure_worlds(
    model, text, grid, *, n_sequences=6, length=256, bos="tokenizer", seed=0, n_draws=99, cache=None
):
    """Return the :class:`Worlds` of a model: itself, with random weights, four nulls, and permuted draws.

    `model` and `text` are names as in :func:`nbhelpers.load_model` and :func:`nbhelpers.load_text`, `grid` is
    that of :func:`load_choices`. One model is held at a time; `cache` is a folder for what was seen of it.
    """
    options, seconds = {"corpus": text, "seed": seed, "cache": cache, "progress": False}, {}
    with tqdm(total=2 + len(DRAWN) + n_draws, unit="world", disable=None) as bar:

        def curves(name, world, null, grid):
            start, world = time.perf_counter(), map_variants(world, null) if null else world
            found = {kind: specification_curve(world, grid, kind) for kind in CHOICES}
            seconds[name] = time.perf_counter() - start
            bar.update()
            return found

        loaded = load_model(model)
        ids = load_text(text, loaded, n_sequences=n_sequences, length=length, bos=bos, seed=seed)
        seen = observe_variants(loaded, ids, grid, **options)
        del loaded
        control = load_model(f"random:{model.removeprefix('random:')}", seed=seed)
        unlearned = observe_variants(control, ids, grid, **options)
        del control
        return_freed_memory()  # of the models
        natural, seeds = dict(grid) | {"log_base": (None,)}, range(seed + 1, seed + 1 + n_draws)
        jobs = [(model, seen, None, grid), (UNTRAINED, unlearned, None, grid)]
        jobs += [(name, seen, partial(function, seed=seed), grid) for name, function in DRAWN.items()]
        names = [name for name, *_ in jobs]
        jobs += [("a draw", seen, partial(nulls.permuted, seed=draw), natural) for draw in seeds]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            every = list(pool.map(curves, *zip(*jobs, strict=True)))
    return Worlds(dict(zip(names, every, strict=False)), every[len(names) :], length, seconds)


def curve_figure(worlds, statistic, *, claimed=None, marked=None):
    """Draw a statistic under every specification, sorted, over a rug of the choices; return the figure.

    `claimed` is the range that the paper claims or prints, `marked` a row of the curve's index to be shown.
    """
    model = next(iter(worlds.curves))
    table = worlds.column(statistic).sort_values(model)
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
    options = {name: values.index.get_level_values(name).map(str) for name in values.index.names}
    bins = np.arange(len(values)) * min(N_BINS, len(values)) // len(values)
    rows, names, starts = [], [], []
    for choice, share in shapley_shares(values).items():
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
