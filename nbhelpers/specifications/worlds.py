"""The curves of a model beside those of attention that learned nothing and of permuted data."""

import math
import operator
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce

import pandas as pd
import torch
from tqdm.auto import tqdm

from nbhelpers.arguments import checked, mapping, path, whole
from nbhelpers.claims.paper import claim
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.nulls import models as nulls

from .curve import CHOICES, map_variants, observe_variants, specification_curve

BASED = ("spectral entropy",)
UNTRAINED = "N1 random weights"
CRITERIA = {
    "C2": {"C2_low": "low band", "C2_mid": "mid band", "C2_high": "high band"},
    "C3": {"C3_low_change": "low band over depth"},
    "C5": {"C5_half": "S(0.5)", "C5_ratio": "S(0.25) / S(0.5)"},
    "C6": {"C6_rho": "position-spectrum correlation"},
}
NUMBERS = ("N0", "N2", "N3", "N4")
DRAWN = {f"{n.number} {n.name}": n.function for n in nulls.NULLS if n.number in NUMBERS}


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
        options = {"var_name": "statistic"}
        parts = [c.reset_index().melt(CHOICES[kind], **options).assign(world=w) for w, kind, c in tables]
        return pd.concat(parts, ignore_index=True).astype({"pad": "str"})  # a number or a word


def claims_hold(worlds):
    """Return in which specifications a claim's criteria hold for each world, claim → DataFrame of bool."""
    held = {}
    for name, columns in CRITERIA.items():
        ranges = {c.name: c.claimed for c in claim(name).criteria}
        tables = {criterion: worlds.column(statistic) for criterion, statistic in columns.items()}
        inside = [(ranges[c][0] <= table) & (table <= ranges[c][1]) for c, table in tables.items()]
        held[name] = reduce(operator.and_, inside)
    return held


@checked(model=path, text=path, grid=mapping, n_draws=whole(0, 10_000))
def measure_worlds(
    model,
    text,
    grid,
    *,
    n_sequences=6,
    length=256,
    bos="tokenizer",
    seed=0,
    n_draws=99,
    cache=None,
    progress=True,
):
    """Return the :class:`Worlds` of a model: itself, with random weights, four nulls, and permuted draws.

    `model` and `text` are names as in :func:`nbhelpers.load_model` and :func:`nbhelpers.load_text`, `grid` is
    that of :func:`load_choices`. One model is held at a time; `cache` is a folder for what was seen of it.
    """
    options, seconds = {"corpus": text, "seed": seed, "cache": cache, "progress": False}, {}
    with tqdm(total=2 + len(DRAWN) + n_draws, unit="world", disable=None if progress else True) as bar:

        def curves(name, make, grid):
            start, world = time.perf_counter(), make()
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

        def null(function, seed):
            return lambda: map_variants(seen, partial(function, seed=seed))

        natural, seeds = dict(grid) | {"log_base": (None,)}, range(seed + 1, seed + 1 + n_draws)
        jobs = [(model, lambda: seen, grid), (UNTRAINED, lambda: unlearned, grid)]
        jobs += [(name, null(function, seed), grid) for name, function in DRAWN.items()]
        names = [name for name, *_ in jobs]
        jobs += [("a draw", null(nulls.permuted, draw), natural) for draw in seeds]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            every = list(pool.map(curves, *zip(*jobs, strict=True)))
    return Worlds(dict(zip(names, every, strict=False)), every[len(names) :], length, seconds)
