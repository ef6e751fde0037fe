"""What is measured: the metrics of every head with their provenance, as arrays, a tidy frame, or a file."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy

from nbhelpers.arguments import array, checked, head_table, such_that
from nbhelpers.files import read_parquet, write_parquet
from nbhelpers.protocol import Protocol
from nbhelpers.stats import LEAST_SEQUENCES, Estimate, jackknife_interval, known_mean, student_interval

COLUMNS = ["sequence", "layer", "head", "kv_group", "metric", "value"]
AXES = COLUMNS[:3]
ESTIMATE, ENDS = ["mean", "low", "high"], ("", "_low", "_high")
AVERAGED = -1  # the sequence number of a metric taken of signals averaged over sequences


def _is_null(null):
    return isinstance(null, HeadTable) or (isinstance(null, dict) and all(map(np.isscalar, null.values())))


@checked
@dataclass(frozen=True)
class HeadTable:
    """Metrics of every head for every sequence; not changed after it is made.

    `arrays` are (sequence, layer, head) by metric, made float64. With the protocol order "mean then metric"
    the table is `averaged`: the first entry is the metric of the averaged signals, entry i + 1 the one with
    sequence i left out. `kv_groups` has the key-value group of each head of a layer: heads of one group are
    not independent. `layers` numbers the layer axis as the model does; 0, 1, … if not given. `provenance` has
    model, revision, corpus, lengths, protocol and its hash, versions, seed, device; under "nulls", if
    `analyze` was asked for some, the mean, low and high of each metric, by the name of the null.
    """

    arrays: dict
    kv_groups: list
    provenance: dict = field(default_factory=dict)
    averaged: bool = False
    layers: list = None

    def __post_init__(self):
        arrays = {name: array(f"{name} of arrays", values) for name, values in self.arrays.items()}
        arrays = {name: values.astype(float, order="C") for name, values in arrays.items()}  # copies
        object.__setattr__(self, "arrays", arrays)
        shapes = {array.shape for array in arrays.values()}
        if [(len(shape), *shape[2:]) for shape in shapes] != [(3, len(self.kv_groups))]:
            told = f"got {sorted(shapes)} and {len(self.kv_groups)} groups"
            raise ValueError(f"arrays are of one shape (sequence, layer, head), groups of heads; {told}")
        if self.layers is None:
            object.__setattr__(self, "layers", list(range(next(iter(shapes))[1])))

    def __repr__(self):
        model = self.provenance.get("model", "?")
        name = model.get("name", "?") if isinstance(model, dict) else model
        n_layers, n_heads = next(iter(self.arrays.values())).shape[1:]
        size = f"{self.n_sequences} sequences, {n_layers * n_heads} heads"
        return f"HeadTable({name}: {size}; {', '.join(self.metrics)})"

    @property
    def protocol(self):
        """The protocol it was measured with; `PAPER` if the provenance has none."""
        return Protocol(**self.provenance.get("protocol", {}))

    @property
    def metrics(self):
        """Names of the metrics, in order."""
        return list(self.arrays)

    @property
    def n_sequences(self):
        """Number of sequences."""
        return len(next(iter(self.arrays.values()))) - self.averaged

    @checked
    def values(self, metric):
        """Return a copy of the array (sequence, layer, head) of a metric; of an averaged table, as held."""
        if metric not in self.arrays:
            raise KeyError(f"The table has no metric {metric!r}; it has {', '.join(self.metrics)}.")
        return self.arrays[metric].copy()

    @property
    def n_layers(self):
        """Layers of the model as far as known, those without softmax attention included."""
        model = self.provenance.get("model")
        known = isinstance(model, dict) and self.provenance.get("stream") == "self"
        return max(self.layers[-1] + 1, model.get("n_layers", 0) if known else 0)

    def by_layer(self, metric):
        """Return the array of a metric as :meth:`values` does, with NaN for layers without attention."""
        values = self.values(metric)
        every = np.full((len(values), self.n_layers, values.shape[2]), np.nan)
        every[:, self.layers] = values
        return every

    def with_provenance(self, **facts):
        """Return the same table with facts added to its provenance."""
        return dataclasses.replace(self, provenance=self.provenance | facts)

    def frame(self):
        """Return a tidy frame: sequence (−1 of averaged signals), layer, head, kv_group, metric and value."""
        return self._wide().melt(COLUMNS[:4], var_name="metric")

    def per_head(self):
        """Return a row per head: layer, head, kv_group, the mean of each metric over sequences, NaN aside."""
        wide = self._wide()
        wide = wide[wide.sequence == AVERAGED] if self.averaged else wide
        return wide.drop(columns="sequence").groupby(["layer", "head", "kv_group"], as_index=False).mean()

    def _wide(self):
        sequence, layer, head = map(np.ravel, np.indices(next(iter(self.arrays.values())).shape))
        keys = {"sequence": sequence - self.averaged, "layer": np.asarray(self.layers)[layer]}
        keys |= {"head": head, "kv_group": np.asarray(self.kv_groups)[head]}
        return pd.DataFrame(keys | {name: array.ravel() for name, array in self.arrays.items()})

    @checked(null=such_that(_is_null, "a HeadTable, or a dict of numbers by metric"))
    def summary(self, *, null=None, confidence=0.95):
        """Return mean, sd and IQR over heads of each metric, with an interval of the mean over sequences.

        `null` is a HeadTable measured under the same protocol, such as ``measure(seen.map(nulls.uniform))``,
        or plain numbers by metric; those that `analyze` measured if not given. The interval is over whole
        sequences, so that heads need not be independent. The frame has the index metric and the columns mean,
        low, high (of the mean), sd, iqr, q25, q75 (over heads), n_sequences, n_heads. After high stands the
        same of each null: null, null_low, null_high, or its name in place of null; NaN for metrics that it
        lacks. NaN values are left out; one sequence or two give no interval.
        """
        rows = {metric: self._summarise(metric, confidence) for metric in self.metrics}
        columns = [*ESTIMATE, "sd", "iqr", "q25", "q75", "n_sequences", "n_heads"]
        summary = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")
        known = self.provenance.get("nulls", {}) if null is None else {}
        if isinstance(null, HeadTable):
            if null.protocol != self.protocol:
                raise ValueError("null of summary was measured under another protocol; measure both alike")
            known = {"null": null.summary(confidence=confidence)[ESTIMATE].T.to_dict("list")}
        elif null is not None:
            summary.insert(summary.columns.get_loc("sd"), "null", [null.get(m, np.nan) for m in rows])
        for name, numbers in known.items():
            for at, end in enumerate(ENDS):
                column = [numbers[m][at] if m in numbers else np.nan for m in rows]
                summary.insert(summary.columns.get_loc("sd"), name + end, column)
        return summary

    def _summarise(self, metric, confidence):
        values = self.arrays[metric].reshape(self.n_sequences + self.averaged, -1)  # (sequence, head)
        heads, per_sequence = values[0] if self.averaged else known_mean(values, 0), known_mean(values, 1)
        known = per_sequence[~np.isnan(per_sequence)]
        if self.averaged:
            i = jackknife_interval(per_sequence[0], per_sequence[1:], confidence=confidence)
        else:
            i = student_interval(known, confidence=confidence) if len(known) else Estimate(np.nan)
        known = heads[~np.isnan(heads)]
        q25, q75 = np.quantile(known, [0.25, 0.75]) if len(known) else (np.nan, np.nan)
        sd = np.std(known, ddof=1) if len(known) > 1 else np.nan
        return known_mean(heads, 0), i.low, i.high, sd, q75 - q25, q25, q75, self.n_sequences, len(heads)

    @checked
    def to_parquet(self, path):
        """Write the tidy frame and the provenance to one Parquet file; return its path."""
        return write_parquet(self.frame(), path, self.provenance)

    @classmethod
    def from_parquet(cls, path):
        """Read what :meth:`to_parquet` wrote; a file that is damaged or of another kind is a ValueError."""
        frame, provenance = read_parquet(path)
        if provenance is None or list(frame.columns) != COLUMNS:
            raise ValueError(f"{path} is a Parquet file, but not of a HeadTable.")
        shape = tuple(frame[axis].nunique() for axis in AXES)
        parts = frame.groupby("metric", sort=False)["value"]
        arrays = {name: part.to_numpy().reshape(shape) for name, part in parts}
        groups, averaged = frame.kv_group[: shape[2]].tolist(), bool(frame.sequence[0] == AVERAGED)
        return cls(arrays, groups, provenance, averaged, frame.layer.unique().tolist())


@checked(a=head_table, b=head_table)
def compare(a, b, metrics=None, *, paired=None, confidence=0.95):
    """Return how two tables differ in each metric: models, checkpoints, corpora, anything of one protocol.

    `a` and `b` are HeadTables of 3 passages or more, of one protocol and length (a ValueError says what is
    otherwise), `metrics` all that both have if None. `paired` says whether passage i of both is the same
    text; if None it is where both were measured on the same tokens.

    Returns a DataFrame with a row per metric: a, b (means over heads and passages), difference (a − b) with
    its interval low to high over passages (Student's of pairs, else Welch's), effect (in standard deviations
    of passages), p_value of no difference, adjusted_p of all rows as one family (Benjamini and Hochberg),
    paired. NaN where a passage has no such number. :func:`nbhelpers.plots.difference_figure` draws it.
    """
    _require_alike(a, b)
    if paired is None:
        tokens = [table.provenance.get("tokens") for table in (a, b)]
        paired = tokens[0] is not None and tokens[0] == tokens[1]
    if paired and a.n_sequences != b.n_sequences:
        raise ValueError(f"pairs have the same passages, and these are {a.n_sequences} and {b.n_sequences}")
    shared = [name for name in a.metrics if name in b.metrics] if metrics is None else list(metrics)
    if not shared:
        raise ValueError(f"no metric is in both tables: {', '.join(a.metrics)}; {', '.join(b.metrics)}")
    rows = {}
    for metric in shared:
        x, y = (known_mean(t.values(metric).reshape(t.n_sequences, -1), 1) for t in (a, b))  # (sequence,)
        samples, gap = [x - y] if paired else [x, y], x.mean() - y.mean()
        parts = np.array([each.var(ddof=1) / len(each) for each in samples])
        below = sum(part**2 / (len(each) - 1) for part, each in zip(parts, samples, strict=True))
        error, freedom = np.sqrt(parts.sum()), parts.sum() ** 2 / below if below else np.inf
        half = scipy.stats.t.ppf(0.5 + confidence / 2, freedom) * error
        p_value = 2 * scipy.stats.t.sf(abs(gap) / error, freedom) if error else float(not gap)
        spread = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2) or np.nan
        rows[metric] = x.mean(), y.mean(), gap, gap - half, gap + half, gap / spread, p_value
    columns = ["a", "b", "difference", "low", "high", "effect", "p_value"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")
    frame = frame.assign(adjusted_p=np.nan, paired=paired)
    if (known := frame.p_value.notna()).any():
        frame.loc[known, "adjusted_p"] = scipy.stats.false_discovery_control(frame.p_value[known])
    return frame


def _require_alike(a, b):
    """Raise, in words, unless two tables can be compared number by number."""
    if changed := [f for f in a.protocol.to_dict() if getattr(a.protocol, f) != getattr(b.protocol, f)]:
        told = "; ".join(f"{f} is {getattr(a.protocol, f)} and {getattr(b.protocol, f)}" for f in changed)
        raise ValueError(f"the tables were measured under different protocols ({told}): measure both alike")
    lengths = [table.provenance.get("length") for table in (a, b)]
    if lengths[0] != lengths[1]:
        told = " and ".join(map(str, lengths))
        raise ValueError(f"the tables are of {told} tokens, and most metrics depend on the length")
    if a.averaged or b.averaged:
        raise ValueError("a table of averaged signals keeps no passages; measure with 'metric then mean'")
    if (least := min(a.n_sequences, b.n_sequences)) < LEAST_SEQUENCES:
        raise ValueError(f"an interval needs {LEAST_SEQUENCES} passages in each table, got {least}")
