"""What is measured: one tidy table of head metrics with its provenance, kept as Parquet."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from nbhelpers.files import read_parquet, write_parquet

COLUMNS = ["sequence", "layer", "head", "kv_group", "metric", "value"]
AVERAGED = -1  # the sequence number of a metric taken of signals averaged over sequences


@dataclass(frozen=True)
class HeadTable:
    """Metrics of every head for every sequence.

    Attributes
    ----------
    frame : pandas.DataFrame
        Columns sequence, layer, head, kv_group, metric, value (float64). With the protocol order "mean then
        metric", sequence −1 is the metric of the averaged signals and sequence i the one with sequence i left
        out.
    provenance : dict
        Model, revision, corpus, lengths, protocol and its hash, versions, seed, device.
    """

    frame: pd.DataFrame
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        if list(self.frame.columns) != COLUMNS:
            raise ValueError(f"A HeadTable has the columns {COLUMNS}; got {list(self.frame.columns)}.")

    def __repr__(self):
        name = self.provenance.get("model", {}).get("name", "?")
        n_sequences, metrics = self.frame.sequence.nunique(), ", ".join(self.metrics)
        return f"HeadTable({name}: {n_sequences} sequences, {len(self.heads)} heads; {metrics})"

    @property
    def metrics(self):
        """Names of the metrics, in order."""
        return list(self.frame.metric.unique())

    @property
    def heads(self):
        """The (layer, head) pairs."""
        return self.frame[["layer", "head"]].drop_duplicates()

    @property
    def averaged(self):
        """Whether the metrics were taken of averaged signals."""
        return bool((self.frame.sequence == AVERAGED).any())

    def values(self, metric):
        """Return an array (sequence, layer, head) of one metric; left-one-out sequences included if
        averaged."""
        part = self.frame[self.frame.metric == metric]
        if part.empty:
            raise KeyError(f"The table has no metric {metric!r}; it has {', '.join(self.metrics)}.")
        part = part.sort_values(["sequence", "layer", "head"])
        return part.value.to_numpy().reshape(part.sequence.nunique(), part.layer.nunique(), -1)

    def per_head(self):
        """Return one row per head, the mean over sequences of each metric in a column each."""
        frame = self.frame[self.frame.sequence == AVERAGED] if self.averaged else self.frame
        keys = ["layer", "head", "kv_group"]
        wide = frame.groupby([*keys, "metric"], observed=True)["value"].mean().unstack("metric")
        return wide.reindex(columns=self.metrics).rename_axis(columns=None).reset_index()

    def summary(self, *, n_boot=1000, confidence=0.95, seed=0):
        """Return mean, sd and IQR over heads of each metric, with a bootstrap interval of the mean over
        sequences.

        Parameters
        ----------
        n_boot : int
            Bootstrap draws of whole sequences (heads stay together, so that they need not be independent).
        confidence : float
        seed : int

        Returns
        -------
        pandas.DataFrame
            Index metric; columns mean, low, high (of the mean), sd, iqr, q25, q75 (over heads), n_sequences,
            n_heads. One sequence gives no interval (NaN). Averaged signals get a jackknife interval.
        """
        rows = {metric: self._summarise(metric, n_boot, confidence, seed) for metric in self.metrics}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")

    def _summarise(self, metric, n_boot, confidence, seed):
        values = self.values(metric)
        values = values.reshape(len(values), -1)  # (sequence, head)
        heads = values[0] if self.averaged else _known_mean(values, 0)
        per_sequence = _known_mean(values, 1)
        if self.averaged:
            low, high = _jackknife_interval(per_sequence[0], per_sequence[1:], confidence)
        else:
            low, high = _bootstrap_interval(per_sequence, n_boot, confidence, seed)
        known = heads[~np.isnan(heads)]
        q25, q75 = np.quantile(known, [0.25, 0.75]) if len(known) else (np.nan, np.nan)
        return {
            "mean": _known_mean(heads, 0),
            "low": low,
            "high": high,
            "sd": np.std(known, ddof=1) if len(known) > 1 else np.nan,
            "iqr": q75 - q25,
            "q25": q25,
            "q75": q75,
            "n_sequences": len(values) - self.averaged,
            "n_heads": len(heads),
        }

    def to_parquet(self, path):
        """Write table and provenance to one Parquet file, whole or not at all, and return its path."""
        return write_parquet(self.frame, path, self.provenance)

    @classmethod
    def from_parquet(cls, path):
        """Read what :meth:`to_parquet` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged or has no provenance of ours.
        """
        frame, provenance = read_parquet(path)
        if provenance is None:
            raise ValueError(f"{path} is a Parquet file without the provenance of a HeadTable.")
        return cls(frame, provenance)


def _known_mean(values, axis):
    """Return the mean of what is not NaN; NaN, without a warning, where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis) / np.maximum(count, 1), np.nan)[()]


def _bootstrap_interval(per_sequence, n_boot, confidence, seed):
    """Return the percentile interval of the mean over sequences; NaN for a single one."""
    known = per_sequence[np.isfinite(per_sequence)]
    if len(known) < 2:
        return np.nan, np.nan
    options = {"n_resamples": n_boot, "confidence_level": confidence, "method": "percentile"}
    interval = stats.bootstrap(
        (known,), np.mean, rng=np.random.default_rng(seed), **options
    ).confidence_interval
    return interval.low, interval.high


def _jackknife_interval(value, left_out, confidence):
    """Return the normal interval around `value` from the values with one sequence left out each."""
    n = len(left_out)
    if n < 2:
        return np.nan, np.nan
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    half = stats.norm.ppf(0.5 + confidence / 2) * error
    return value - half, value + half
