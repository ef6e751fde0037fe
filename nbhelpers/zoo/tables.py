"""The zoo's tables as they were collected: runs, measurements, arrays by seed, and which runs are missing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from nbhelpers.files import read_parquet
from nbhelpers.inputs.files import shipped_folder
from nbhelpers.nulls.controls import uniform_null
from nbhelpers.protocol import PAPER
from nbhelpers.stats import LEAST_SEEDS, student_interval
from nbhelpers.sweeps.rows import HERE, tidy
from nbhelpers.zoo.measure import WHOLE, Yardstick

MEASUREMENTS, RUNS, TOKENS = "measurements.parquet", "runs.parquet", "tokens.safetensors"
COMMANDS = "python -m nbhelpers.zoo.training train-all, then python -m nbhelpers.zoo.training collect"
ROPE_FAMILY = ("rope", "prope")  # prope rotates three quarters of the pairs: RoPE all the same
WITHOUT_ROPE = ("learned", "sinusoidal", "alibi", "t5", "nope")
SIZES = ("rope-pico", "rope-micro", "rope", "rope-mini")
ROW_COLUMNS = ["run", "arm", "seed", "step", "signal", "sequence", "layer", "head", "metric", "value"]
SEQUENCES, HEADS = "sequences", "heads"


def zoo_yardstick():
    """Return the sequences that every run was measured on, as a :class:`nbhelpers.zoo.measure.Yardstick`."""
    tensors = load_file(shipped_folder() / TOKENS)
    return Yardstick(**{name: tensors[name].long() for name in Yardstick.__dataclass_fields__})


class Curves(NamedTuple):
    """One metric of one arm over training: steps (step,), seeds, values (seed, sequence, step)."""

    steps: np.ndarray
    seeds: tuple
    values: np.ndarray

    @property
    def log_step(self):
        """log10(step + 1), which has a place for step 0."""
        return np.log10(self.steps + 1.0)

    @property
    def by_seed(self):
        """Mean over sequences, (seed, step)."""
        return self.values.mean(1)


@dataclass(frozen=True)
class ZooTables:
    """What `python -m nbhelpers.zoo.training collect` left in a folder: all the runs, or those so far."""

    folder: Path
    runs: pd.DataFrame  # a row per finished run: settings, cost, final losses, those of n-grams beside them
    provenance: dict  # text, protocols and versions
    _kept: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # what `rows` has read

    @classmethod
    def read(cls, folder=None):
        """Read a folder of collected runs, by default what travels with the package."""
        folder = shipped_folder() if folder is None else Path(folder)
        if not (folder / RUNS).exists():
            raise FileNotFoundError(f"{folder} holds no {RUNS}; collect into it with --to {folder}")
        return cls(folder, *read_parquet(folder / RUNS))

    def rows(self, metrics, *, signal="key_profile", per=SEQUENCES, arms, last=False):
        """Return measurements as a tidy frame with the columns :data:`ROW_COLUMNS`.

        `per` is "sequences" (the mean over heads of each), "heads" (the mean over sequences of each) or
        "model" (of it as a whole); only the end of training if `last`.
        """
        words, metrics = ["run", "arm", "signal", "metric"], np.atleast_1d(metrics).tolist()
        if (key := (*metrics, signal, per)) not in self._kept:
            filters = [("metric", "in", metrics), ("signal", "=", signal)]
            filters += [("sequence", ">=", 0) if per == SEQUENCES else ("sequence", "=", WHOLE)]
            filters += [("layer", ">=", 0) if per == HEADS else ("layer", "=", WHOLE)]
            options = {"filters": filters, "columns": ROW_COLUMNS, "read_dictionary": words}
            self._kept[key], _ = read_parquet(self.folder / MEASUREMENTS, **options)
        frame = self._kept[key]
        frame = frame[frame.arm.isin(list(arms))].astype({"value": float} | dict.fromkeys(words, str))
        if last:
            frame = frame[frame.step == frame.groupby("run").step.transform("max")]
        return frame.reset_index(drop=True)

    def curves(self, metric, arm):
        """Return an arm's metric at the steps at which every seed was measured; None if no run is there."""
        frame = self.rows(metric, arms=[arm])
        if frame.empty:
            return None
        wide = frame.pivot(index="step", columns=["seed", "sequence"], values="value").dropna()
        seeds = tuple(sorted({seed for seed, _ in wide.columns}))
        values = np.stack([wide[seed].to_numpy().T for seed in seeds])  # (seed, sequence, step)
        return Curves(wide.index.to_numpy(), seeds, values)

    def head_curves(self, metrics, run, *, signal="key_profile"):
        """Return metrics of each head of one run over training, by name: (head, step)."""
        frame = self.rows(metrics, signal=signal, per=HEADS, arms=[self.runs.set_index("run").arm[run]])
        frame = frame[frame.run == run]
        wide = frame.pivot(index=["metric", "layer", "head"], columns="step", values="value")
        return {metric: wide.loc[metric].to_numpy() for metric in metrics}

    def ends(self, metric, arms, *, signal="key_profile", per=SEQUENCES, step="last"):
        """Return a metric at the end of training, or at step 0: Series over seeds, by arm with a run."""
        frame = self.rows(metric, signal=signal, per=per, arms=arms, last=step == "last")
        frame = frame if step == "last" else frame[frame.step == step]
        means = frame.groupby(["arm", "seed"]).value.mean()
        return {arm: means[arm].sort_index() for arm in arms if arm in means.index.levels[0]}

    def common(self, values):
        """Return, of :meth:`ends`, arrays (seed,) of the arms that have the seeds an interval needs."""
        wanted = list(range(LEAST_SEEDS))
        return {a: row.loc[wanted].to_numpy() for a, row in values.items() if set(wanted) <= set(row.index)}

    def seeds(self, arm):
        return sorted(self.runs.seed[self.runs.arm == arm].tolist())

    def present(self, arms):
        """Return those of the arms that have a run."""
        return [arm for arm in arms if self.seeds(arm)]

    def lacking(self, arms, *, n_seeds=LEAST_SEEDS):
        """Return in a sentence which runs are missing for a statistic over seeds; "" if none is."""
        missing = {arm: [seed for seed in range(n_seeds) if seed not in self.seeds(arm)] for arm in arms}
        if not (listed := "; ".join(f"{arm} {_joined(seeds)}" for arm, seeds in missing.items() if seeds)):
            return ""
        least = f"the seeds {_joined(range(n_seeds))}" if n_seeds > 1 else "seed 0"
        return f"Needed: {least} of each arm; not trained yet: {listed}. Make them with: {COMMANDS}."

    def said(self, arms):
        """Return in a line which seeds of which arms a table or figure shows."""
        return f"arms (seeds): {', '.join(f'{arm} ({_joined(self.seeds(arm))})' for arm in arms)}"


def zoo_rows(zoo, metrics, arms, *, steps=False):
    """Return means over seeds, with their interval, of arms of the zoo, as rows beside those of a sweep.

    At the end of training, or at all checkpoints if `steps`; `null` is uniform attention under that mask.
    """
    rows = []
    _, length = zoo.provenance["measured_on"]["attention"]
    for arm in zoo.present(arms):
        facts = zoo.runs[zoo.runs.arm == arm].iloc[0]
        null = uniform_null(length, PAPER, causal=facts["mask"] == "causal")
        fixed = {"source": HERE, "model": f"zoo {arm}", "encoding": facts["encoding"], "protocol": "PAPER"}
        fixed |= {"n_parameters": facts["n_parameters"], "length": length, "corpus": "held out"}
        frame = zoo.rows(list(metrics), arms=[arm], last=not steps)
        fixed |= {"n_sequences": frame.sequence.nunique()}
        by_seed = frame.groupby(["metric", "step", "seed"]).value.mean().unstack("seed")
        for metric, step in sorted(by_seed.index, key=lambda pair: (metrics.index(pair[0]), pair[1])):
            seeds = by_seed.loc[(metric, step)].dropna().to_numpy()
            ends = dict(zip(("value", "low", "high"), student_interval(seeds), strict=False))
            rows.append(fixed | {"metric": metric, "step": step, "null": null.get(metric)} | ends)
    return tidy(rows)


def _joined(seeds):
    return ", ".join(map(str, seeds))
