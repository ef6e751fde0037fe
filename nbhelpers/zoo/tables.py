"""The zoo's measurements as the notebooks read them: what is there, what is missing, arrays by seed.

Everything works with whatever was collected, nothing included; what needs more says so in a sentence with the
commands that make it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from nbhelpers.inputs.files import shipped_folder
from nbhelpers.nulls.summary import uniform_null
from nbhelpers.protocol import PAPER
from nbhelpers.stats import LEAST_SEEDS, seed_interval
from nbhelpers.sweeps.rows import HERE, tidy
from nbhelpers.zoo.measure import WHOLE
from nbhelpers.zoo.settings import arms as planned_arms
from nbhelpers.zoo.shipped import MEASUREMENTS, RUNS

COMMANDS = "python -m nbhelpers.zoo.training train-all, then python -m nbhelpers.zoo.training collect"
ROPE_FAMILY = ("rope", "prope")  # prope rotates three quarters of the pairs: RoPE all the same
WITHOUT_ROPE = ("learned", "sinusoidal", "alibi", "t5", "nope")
SIZES = ("rope-pico", "rope-micro", "rope", "rope-mini", "rope-small")
LOSSES = ["validation_loss", "unigram", "bigram", "trigram"]
RUN_COLUMNS = [
    *("run", "arm", "encoding", "mask", "bos", "preset", "seed"),
    *("n_parameters", "n_tokens", "warmup_share", "position_initializer_range"),
    *LOSSES,
]
ROW_COLUMNS = ["run", "arm", "seed", "step", "signal", "sequence", "layer", "head", "metric", "value"]
SEQUENCES, HEADS = "sequences", "heads"


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
    """What `python -m nbhelpers.zoo.training collect` left in a folder.

    Attributes
    ----------
    folder : pathlib.Path
    runs : pandas.DataFrame
        One row per finished run, as :func:`nbhelpers.zoo.zoo_runs`; empty if nothing was collected.
    provenance : dict
        Text, protocols and versions of the runs; empty likewise.
    """

    folder: Path
    runs: pd.DataFrame
    provenance: dict

    @classmethod
    def read(cls, folder=None):
        """Read a folder of collected runs, by default what travels with the package.

        Raises
        ------
        FileNotFoundError
            If a folder is named and holds no collected runs.
        """
        path = shipped_folder() if folder is None else Path(folder)
        if not (path / RUNS).exists():
            if folder is not None:
                raise FileNotFoundError(f"{path} holds no {RUNS}; collect into it with --to {path}")
            return cls(path, pd.DataFrame(columns=RUN_COLUMNS), {})
        table = pq.read_table(path / RUNS)
        provenance = json.loads((table.schema.metadata or {}).get(b"nbhelpers", b"{}"))
        return cls(path, table.to_pandas(), provenance)

    def rows(self, metrics, *, signal="key_profile", per=SEQUENCES, arms=None, last=False):
        """Return measurements as a tidy frame with the columns :data:`ROW_COLUMNS`.

        Parameters
        ----------
        metrics : str or sequence of str
        signal : str
            key_profile, lag_profile, attention or model.
        per : {"sequences", "heads", "model"}
            The mean over heads of each sequence, the mean over sequences of each head, or what is measured
            of the model as a whole.
        arms : sequence of str, optional
            All if None.
        last : bool
            Only the end of training.
        """
        if self.runs.empty:
            return pd.DataFrame(columns=ROW_COLUMNS).astype({"value": float})
        filters = [("metric", "in", _listed(metrics)), ("signal", "=", signal)]
        filters += [("arm", "in", list(arms))] if arms is not None else []
        where = {SEQUENCES: (">", "="), HEADS: ("=", ">"), "model": ("=", "=")}[per]
        filters += [
            (name, ">=" if sign == ">" else "=", 0 if sign == ">" else WHOLE)
            for name, sign in zip(("sequence", "layer"), where, strict=True)
        ]
        frame = pq.read_table(self.folder / MEASUREMENTS, filters=filters, columns=ROW_COLUMNS).to_pandas()
        frame = frame.astype({"value": float, "run": str, "arm": str, "metric": str})
        if last:
            frame = frame[frame.step == frame.groupby("run").step.transform("max")]
        return frame.reset_index(drop=True)

    def curves(self, metric, arm, *, signal="key_profile"):
        """Return a metric of an arm over training as :class:`Curves`, or None if no run of it is there.

        Only steps at which every seed was measured take part.
        """
        frame = self.rows(metric, signal=signal, arms=[arm])
        if frame.empty:
            return None
        wide = frame.pivot(index="step", columns=["seed", "sequence"], values="value").dropna()
        seeds = tuple(sorted({seed for seed, _ in wide.columns}))
        values = np.stack([wide[seed].to_numpy().T for seed in seeds])  # (seed, sequence, step)
        return Curves(wide.index.to_numpy(), seeds, values)

    def head_curves(self, metrics, run, *, signal="key_profile"):
        """Return metrics of each head of one run over training, by name: (head, step)."""
        arm = self.runs.set_index("run").arm[run]
        frame = self.rows(metrics, signal=signal, per=HEADS, arms=[arm])
        frame = frame[frame.run == run]
        wide = frame.pivot(index=["metric", "layer", "head"], columns="step", values="value")
        return {metric: wide.loc[metric].to_numpy() for metric in _listed(metrics)}

    def ends(self, metric, arms, *, signal="key_profile", per=SEQUENCES, step="last"):
        """Return a metric of each run at the end of training (or at step 0), by arm: arrays (seed,).

        Arms without a run are left out; each has its own seeds, see :meth:`common`.
        """
        frame = self.rows(metric, signal=signal, per=per, arms=arms, last=step == "last")
        frame = frame if step == "last" else frame[frame.step == step]
        means = frame.groupby(["arm", "seed"]).value.mean()
        present = [arm for arm in arms if arm in means.index.get_level_values(0)]
        return {arm: means[arm].sort_index() for arm in present}

    def common(self, values, *, n_seeds=LEAST_SEEDS):
        """Return the arms that have the seeds 0, 1, … n − 1, as arrays of these: what pairs by seed.

        Parameters
        ----------
        values : dict of str to pandas.Series
            From :meth:`ends`.
        """
        wanted = list(range(n_seeds))
        return {
            arm: row.loc[wanted].to_numpy() for arm, row in values.items() if set(wanted) <= set(row.index)
        }

    def seeds(self, arm):
        """Return the seeds of an arm that are there, sorted."""
        return sorted(self.runs.seed[self.runs.arm == arm].tolist())

    def present(self, arms):
        """Return those of the arms that have a run, in the order given."""
        return [arm for arm in arms if self.seeds(arm)]

    def lacking(self, arms, *, n_seeds=LEAST_SEEDS):
        """Return in a sentence which runs are missing for a statistic over seeds; "" if none is."""
        missing = {arm: [seed for seed in range(n_seeds) if seed not in self.seeds(arm)] for arm in arms}
        listed = "; ".join(f"{arm} {_told(seeds)}" for arm, seeds in missing.items() if seeds)
        if not listed:
            return ""
        least = f"the seeds {_told(range(n_seeds))}" if n_seeds > 1 else "seed 0"
        return f"Needed: {least} of each arm; not trained yet: {listed}. Make them with: {COMMANDS}."

    def said(self, arms):
        """Return in a line which seeds of which arms a table or figure shows, and which are missing."""
        have = {arm: self.seeds(arm) for arm in arms}
        shown = [f"{arm} ({_told(seeds)})" for arm, seeds in have.items() if seeds]
        missing = [arm for arm, seeds in have.items() if not seeds]
        line = f"arms (seeds): {', '.join(shown) or 'none'}"
        return line + (f"; not trained yet: {', '.join(missing)} ({COMMANDS})" if missing else "")

    def coverage(self):
        """Return one row per arm of the collection: which seeds are there and which are not trained yet."""
        planned = {}
        for settings in planned_arms():
            planned.setdefault(settings.name.rsplit("-seed", 1)[0], []).append(settings.seed)
        if not self.seeds("rope-small"):
            planned.pop("rope-small")  # needs a GPU; not part of train-all
        rows = [
            {
                "arm": arm,
                "seeds": _told(self.seeds(arm)) or "–",
                "not trained yet": _told(s for s in seeds if s not in self.seeds(arm)) or "–",
            }
            for arm, seeds in planned.items()
        ]
        return pd.DataFrame(rows)


def zoo_rows(zoo, metrics, arms, *, steps=False):
    """Return tidy rows of the arms of the zoo: the mean over seeds, with Student's interval from 3 seeds on.

    Parameters
    ----------
    zoo : ZooTables
    metrics : sequence of str
        Those that were not collected are left out.
    arms : iterable of str
    steps : bool
        Every checkpoint instead of the end of training.

    Returns
    -------
    pandas.DataFrame
        As of `nbhelpers.sweeps.rows.table_rows`. `null` is uniform attention under the arm's mask, not
        the arm before training; NaN where the collection does not say how long its sequences are.
    """
    rows = []
    _, length = zoo.provenance.get("measured_on", {}).get("attention", (None, np.nan))
    for arm in zoo.present(arms):
        facts = zoo.runs[zoo.runs.arm == arm].iloc[0]
        null = {} if np.isnan(length) else uniform_null(length, PAPER, causal=facts["mask"] == "causal")
        fixed = {"source": HERE, "model": f"zoo {arm}", "encoding": facts["encoding"], "protocol": "PAPER"}
        fixed |= {"n_parameters": facts["n_parameters"], "length": length, "corpus": "held out"}
        frame = zoo.rows(list(metrics), arms=[arm], last=not steps)
        fixed |= {"n_sequences": frame.sequence.nunique()}
        by_seed = frame.groupby(["metric", "step", "seed"]).value.mean().unstack("seed")
        for metric, step in sorted(by_seed.index, key=lambda pair: (metrics.index(pair[0]), pair[1])):
            seeds = by_seed.loc[(metric, step)].dropna().to_numpy()
            ends = dict(zip(("value", "low", "high"), seed_interval(seeds), strict=False))
            rows.append(fixed | {"metric": metric, "step": step, "null": null.get(metric)} | ends)
    return tidy(rows)


def _listed(metrics):
    return [metrics] if isinstance(metrics, str) else list(metrics)


def _told(seeds):
    return ", ".join(map(str, seeds))
