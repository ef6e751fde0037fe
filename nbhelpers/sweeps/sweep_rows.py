"""Rows of a sweep, of the notebook that shows them and of the paper's tables, in one tidy frame."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbhelpers.claims.paper import paper_table
from nbhelpers.metrics import metric_label
from nbhelpers.nulls.summary import null_of, summarise
from nbhelpers.protocol import PAPER
from nbhelpers.sweeps.finished_runs import FinishedRuns, training_step
from nbhelpers.sweeps.sweep_tables import metric_at_scale, metric_of_column

HERE, SWEEP, PRINTED = "this notebook", "sweep", "paper"
WHAT = ("model", "revision", "paper", "encoding", "step", "n_parameters")
HOW = ("corpus", "n_sequences", "length", "seed", "protocol", "target")
COLUMNS = ("source", *WHAT, *HOW, "metric", "value", "low", "high", "null")
TEXTS = ("source", "model", "revision", "paper", "encoding", "corpus", "protocol", "target", "metric")
NUMBERS = ("step", "n_parameters", "n_sequences", "length", "seed", "value", "low", "high", "null")
UNITS = {"M": 1e6, "B": 1e9}


def sweep_rows(sweep: FinishedRuns, metrics: Sequence[str]) -> pd.DataFrame:
    """Return tidy rows of some metrics of a sweep.

    Parameters
    ----------
    sweep : FinishedRuns
    metrics : sequence of str
        Names as in the summaries; scale_k is the k-th wavelet entropy from coarse to fine.

    Returns
    -------
    pandas.DataFrame
        Columns :data:`COLUMNS`, source "sweep"; `null` is that of uniform attention of the same length, mask
        and protocol, NaN where the sweep has none.

    Raises
    ------
    ValueError
        If no run has any of the metrics.
    """
    rows = []
    for _, part in sweep.table.groupby("run", sort=False):
        known = part.rename(columns={"mean": "value"}).set_index("metric")
        for metric in metrics:
            own = metric_at_scale(metric, known.index)
            if own in known.index:
                rows.append(known.loc[own].to_dict() | {"source": SWEEP, "metric": metric})
    if not rows:
        raise ValueError(
            f"no run of the sweep in {sweep.folder} has any of {', '.join(metrics)}; they have "
            f"{', '.join(sweep.table.metric.unique()[:8])}"
        )
    return tidy(rows)


def table_rows(table: Any, metrics: Sequence[str], *, corpus: str, seed: int = 0) -> pd.DataFrame:
    """Return tidy rows of what a notebook measured, summarised as a sweep summarises its runs.

    Parameters
    ----------
    table : HeadTable
        From `analyze` or `measure`.
    metrics : sequence of str
        As in `sweep_rows`; those that the table lacks are left out.
    corpus : str
        The name by which the text was loaded.
    seed : int
        Of the bootstrap over sequences.

    Returns
    -------
    pandas.DataFrame
        As of `sweep_rows`, source "this notebook".
    """
    told, known = table.provenance, summarise(table, null=null_of(table), seed=seed).set_index("metric")
    changed = {name: value for name, value in told["protocol"].items() if value != PAPER.to_dict()[name]}
    model = told["model"]
    fixed = {"source": HERE, "model": model["name"], "encoding": model["position_encoding"]}
    fixed |= {"step": training_step(model["name"]), "n_parameters": model["n_parameters"]}
    fixed |= {"corpus": corpus, "seed": told.get("seed"), "length": told["length"]}
    fixed |= {"protocol": ", ".join(f"{name}={value}" for name, value in changed.items()) or "PAPER"}
    rows = []
    for metric in metrics:
        own = metric_at_scale(metric, known.index)
        if own in known.index:
            rows.append(
                known.rename(columns={"mean": "value"}).loc[own].to_dict() | fixed | {"metric": metric}
            )
    return tidy(rows)


def paper_rows(
    tables: Iterable[int], metrics: Sequence[str], *, models: Iterable[str] | None = None
) -> pd.DataFrame:
    """Return tidy rows of the means that the paper prints.

    Parameters
    ----------
    tables : iterable of int
        Numbers of the paper's tables, which stand in the column `protocol`.
    metrics : sequence of str
        As in `sweep_rows`.
    models : iterable of str, optional
        The paper's names of the models wanted; all if None.

    Returns
    -------
    pandas.DataFrame
        As of `sweep_rows`, source "paper"; without interval and null, which the paper does not print.
    """
    sizes = pd.concat([paper_table(1), paper_table(6)]).drop_duplicates("model").set_index("model").params
    wanted, rows = None if models is None else set(models), []
    for number in tables:
        for _, line in paper_table(number).iterrows():
            if wanted is not None and line["model"] not in wanted:
                continue
            fixed = {"source": PRINTED, "model": line["model"], "paper": line["model"]}
            fixed |= {"protocol": f"Table {number}", "encoding": line.get("position_encoding", "")}
            fixed |= {"step": line.get("training_step", np.nan)}
            fixed |= {"n_parameters": _count(sizes.get(line["model"]))}
            named = {metric_of_column(column): line[column] for column in line.index}
            rows += [
                fixed | {"metric": m, "value": named[m, "mean"]} for m in metrics if (m, "mean") in named
            ]
    return tidy(rows)


def _count(params: str | None) -> float:
    """Return the number of parameters of a text such as "160M"."""
    return np.nan if params is None else float(params[:-1]) * UNITS[params[-1]]


def rows_beside(
    sweep: FinishedRuns,
    live: pd.DataFrame,
    metrics: Sequence[str],
    *,
    tables: Iterable[int] = (),
    every_model: bool = False,
) -> pd.DataFrame:
    """Return the rows of a notebook, of a sweep and of the paper, in this order.

    Parameters
    ----------
    sweep : FinishedRuns
    live : pandas.DataFrame
        From `table_rows`, or of the zoo from `nbhelpers.zoo.tables.zoo_rows`.
    metrics : sequence of str
        As in `sweep_rows`.
    tables : iterable of int
        Of the paper.
    every_model : bool
        All models of these tables, not only those of the sweep (known by the grid's `paper` names).

    Returns
    -------
    pandas.DataFrame
        Columns :data:`COLUMNS`.
    """
    measured = sweep_rows(sweep, metrics)
    models = None if every_model else measured.paper.unique()
    parts = [live, measured, paper_rows(tables, metrics, models=models)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def row_labels(rows: pd.DataFrame) -> pd.Series:
    """Return a name for each row: the model, and whatever else differs between the measured rows."""
    measured = rows[rows.source != PRINTED]
    varied = [name for name in HOW if measured[name].replace("", np.nan).nunique() > 1]
    return rows.apply(lambda row: _label(row, varied), axis=1) if len(rows) else pd.Series(dtype=str)


def _label(row, varied):
    model = Path(row["model"]).name if Path(row["model"]).is_absolute() else row["model"]
    words = [model + (f"@{row['revision']}" if row["revision"] else "")]
    if row["source"] == PRINTED:
        at = "" if np.isnan(row["step"]) else f" at step {row['step']:.0f}"
        return f"{model}{at} ({row['protocol']})"
    if "corpus" in varied and row["corpus"]:
        words.append(Path(row["corpus"]).name)
    if {"n_sequences", "length"} & set(varied):
        words.append(f"{row['n_sequences']:.0f}x{row['length']:.0f}")
    if "seed" in varied and not np.isnan(row["seed"]):
        words.append(f"seed {row['seed']:.0f}")
    words += [row[name].rpartition(":")[2] for name in ("protocol", "target") if name in varied and row[name]]
    return ", ".join(words) + (f" ({HERE})" if row["source"] == HERE else "")


def shown_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows as a table to look at: a line per row, a column per metric, each number beside its null.

    Parameters
    ----------
    rows : pandas.DataFrame
        With the columns :data:`COLUMNS`.

    Returns
    -------
    pandas.DataFrame
        Texts: "value [low, high] | null"; "no null" where there is none.
    """
    told = rows.assign(line=row_labels(rows), told=[_told(row) for row in rows.itertuples()])
    told = told.drop_duplicates(["source", "line", "metric"])
    wide = told.pivot(index=["source", "line"], columns="metric", values="told")
    order = told[["source", "line"]].drop_duplicates()
    wide = wide.reindex(index=pd.MultiIndex.from_frame(order), columns=list(told.metric.unique()))
    return wide.fillna("–").rename(columns=metric_label).rename_axis(columns=None).reset_index()


def _told(row):
    ends = "" if pd.isna(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
    null = "no null" if pd.isna(row.null) else f"{row.null:.3f}"
    return f"{row.value:.3f}{ends}" + ("" if row.source == PRINTED else f" | {null}")


def tidy(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a frame with the columns :data:`COLUMNS`; what a row lacks is "" or NaN."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    texts = {name: [value if isinstance(value, str) else "" for value in frame[name]] for name in TEXTS}
    return frame.assign(**texts).astype(dict.fromkeys(NUMBERS, float) | dict.fromkeys(TEXTS, "str"))
