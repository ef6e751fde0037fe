"""One table of a whole sweep, and the paper's tables beside what was measured."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from nbhelpers.claims.paper import paper_table
from nbhelpers.files import replacing
from nbhelpers.protocol import PAPER
from nbhelpers.sweeps.grids import Grid, Run
from nbhelpers.sweeps.sweep_records import is_whole, summary_file

AXES = ("run", "model", "revision", "paper", "corpus", "n_sequences", "length", "seed", "protocol", "target")
STATISTICS = ("mean", "low", "high", "sd", "iqr", "n_heads")
SHOWN = (
    "spectral_entropy",
    "frequency_selectivity",
    "low_band",
    "scale_sensitivity_0.5",
    "scale_sensitivity_0.25",
    "position_spectrum_correlation",
)
# Columns of the paper's tables that are no measurement.
LABELS = ("model", "params", "heads_per_layer", "position_encoding", "training_step")
PARTS = {"_mean": "mean", "_std": "sd", "_iqr": "iqr"}
RENAMED = {"low_band_power": "low_band"} | {f"window_{w}": f"window_entropy_{w}" for w in (16, 32, 64)}


def sweep_table(grid: Grid, out: str | Path) -> pd.DataFrame:
    """Return one row per finished run and metric.

    Parameters
    ----------
    grid : Grid
    out : path
        The sweep's folder.

    Returns
    -------
    DataFrame
        The run's settings (`run`, `model`, `revision`, `paper`, `corpus`, `n_sequences`, `length`, `seed`,
        `protocol`, `target`), `metric`, and `mean`, `low`, `high` (over sequences), `sd`, `iqr` (over heads)
        and `n_heads`; `null`, what uniform attention of the same length, mask and protocol gives, where it
        was measured; for a notebook the numbers it recorded, with their `null` and `unit`.
    """
    parts = []
    for run in grid.runs:
        if is_whole(Path(out), run.id):
            summary = pd.read_parquet(summary_file(Path(out), run.id))
            summary = summary.drop(columns=["n_sequences"], errors="ignore")
            parts.append(summary.assign(**_axes_of(run)))
    columns = [*AXES, "metric", *STATISTICS]
    if not parts:
        return pd.DataFrame(columns=columns)
    frame = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    frame = frame.reindex(columns=[*columns, *(name for name in ("null", "unit", "note") if name in frame)])
    texts = ["run", "model", "revision", "paper", "corpus", "protocol", "target", "metric"]
    return frame.astype(dict.fromkeys(texts, "str")) if len(frame) else frame


def _axes_of(run: Run) -> dict:
    named = run.settings
    plain = {key: named[key] for key in ("model", "corpus", "n_sequences", "length", "seed", "target")}
    words = {"revision": run.revision or "", "paper": run.paper or "", "run": run.id}
    return plain | words | {"protocol": _protocol_words(run)}


def _protocol_words(run: Run) -> str:
    default = PAPER.to_dict()
    changed = [f"{name}={value}" for name, value in run.protocol.items() if value != default[name]]
    return ", ".join(changed) or "PAPER"


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a sweep's table with one row per run and the mean of the main metrics in a column each."""
    keys = [axis for axis in AXES if axis != "run" and frame[axis].nunique() > 1]
    keys = keys or ["model"]
    metrics = [name for name in SHOWN if name in set(frame.metric)] or list(frame.metric.unique()[:6])
    order = frame.run.drop_duplicates()
    rows = frame.pivot(index="run", columns="metric", values="mean").reindex(index=order, columns=metrics)
    named = frame.drop_duplicates("run").set_index("run")[keys]
    return named.join(rows).reset_index(drop=True).rename_axis(columns=None)


def beside_paper(grid: Grid, frame: pd.DataFrame, number: int) -> pd.DataFrame:
    """Return a table of the paper beside what a sweep measured, one row per printed number and run.

    Parameters
    ----------
    grid : Grid
    frame : DataFrame
        From `sweep_table`.
    number : int
        Of the paper's table. A run belongs to a row by the `paper` name of its model, in Table 5 also by its
        revision "stepN".

    Returns
    -------
    DataFrame
        Columns model, training_step (Table 5 only), column, printed, measured, low, high, corpus,
        n_sequences, length, protocol, run. `measured` is NaN for a row that the sweep has no run of.
    """
    rows = []
    printed = paper_table(number)
    columns = [column for column in printed.columns if column not in LABELS]
    for _, line in printed.iterrows():
        mine = [run for run in grid.runs if _is_of_row(run, line)]
        mine = [run for run in mine if (frame.run == run.id).any()]
        for column in columns:
            told = {name: line[name] for name in ("model", "training_step") if name in printed}
            told |= {"column": column, "printed": line[column]}
            rows += [told | _measured(frame, run, column) for run in mine] or [told]
    named = ["measured", "low", "high", "corpus", "n_sequences", "length", "protocol", "run"]
    first = [name for name in ("model", "training_step") if name in printed]
    frame = pd.DataFrame(rows).reindex(columns=[*first, "column", "printed", *named])
    return frame.astype({"n_sequences": "Int64", "length": "Int64"})  # integers that may be missing


def wide_beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `beside_paper` as the paper prints it: a row of printed numbers, then those of runs.

    Rows of the paper that the sweep has no run of are left out.
    """
    known = table.dropna(subset=["run"])
    keys = [name for name in ("model", "training_step") if name in table]
    columns = list(known.column.unique())
    lines = []
    for row, part in known.groupby(keys, sort=False):
        named = dict(zip(keys, row, strict=True))
        printed = part.drop_duplicates("column").set_index("column").printed
        lines.append(named | {"source": "paper"} | printed.to_dict())
        for _, mine in part.groupby("run", sort=False):
            first = mine.iloc[0]
            source = f"{Path(first.corpus).name} {first.n_sequences}x{first.length} {first.protocol}"
            lines.append(named | {"source": source} | mine.set_index("column").measured.to_dict())
    return pd.DataFrame(lines, columns=[*keys, "source", *columns])


def metric_of_column(column: str) -> tuple[str, str]:
    """Return which metric a column of the paper's tables prints, and which of `STATISTICS` of it.

    The entropies of Table 7 are called scale_0, scale_1, ... from coarse to fine, see `metric_at_scale`.
    """
    for suffix, statistic in PARTS.items():
        if column.endswith(suffix):
            return column.removesuffix(suffix), statistic
    return RENAMED.get(column, column), "mean"


def metric_at_scale(name: str, metrics: Iterable[str]) -> str:
    """Return what a run calls the entropy of scale k, the k-th wavelet entropy from coarse to fine.

    Parameters
    ----------
    name : str
        "scale_k"; any other name is returned as it is, as is a scale that the run does not have.
    metrics : iterable of str
        Those of the run, in order.
    """
    k = name.removeprefix("scale_")
    if k == name or not k.isdigit():
        return name
    scales = [metric for metric in metrics if metric.startswith("wavelet_entropy_")]
    return scales[int(k)] if int(k) < len(scales) else name


def _is_of_row(run, line):
    if run.paper != line["model"]:
        return False
    return "training_step" not in line or run.revision == f"step{line['training_step']}"


def _measured(frame, run, column):
    """Return what a run measured of one of the paper's columns; the number is NaN where it has none."""
    mine = frame[frame.run == run.id].set_index("metric")
    name, part = metric_of_column(column)
    metric = metric_at_scale(name, mine.index)
    axes = _axes_of(run)
    told = {key: axes[key] for key in ("corpus", "n_sequences", "length", "protocol", "run")}
    if metric not in mine.index:
        return told
    told["measured"] = mine.loc[metric, part]
    interval = {name: mine.loc[metric, name] for name in ("low", "high")} if part == "mean" else {}
    return told | interval


def write_tables(grid: Grid, out: str | Path) -> dict[str, pd.DataFrame]:
    """Write and return a sweep's tables: ``sweep.parquet`` and, for each table of the paper that the grid
    names, ``paper_table_N.parquet`` in the sweep's folder."""
    frame = sweep_table(grid, out)
    tables = {"sweep": frame}
    for number in grid.paper_tables:
        tables[f"paper_table_{number}"] = beside_paper(grid, frame, number)
    for name, table in tables.items():
        with replacing(Path(out) / f"{name}.parquet") as partial:
            table.to_parquet(partial, index=False)
    return tables
