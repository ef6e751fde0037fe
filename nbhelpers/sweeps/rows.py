"""Rows of a sweep, of what a notebook measured and of what the paper prints, in one tidy frame."""

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.claims.paper import paper_table
from nbhelpers.files import write_parquet
from nbhelpers.inputs.files import ZOO_PREFIX
from nbhelpers.inputs.text import corpus_title
from nbhelpers.protocol import PAPER
from nbhelpers.stats import known_mean
from nbhelpers.sweeps import grid as grids
from nbhelpers.sweeps.grid import Grid, changes, read_run, run_file
from nbhelpers.table import HeadTable

HERE, SWEEP, PRINTED = "this notebook", "sweep", "paper"
WHAT = ("model", "revision", "paper", "encoding", "step", "n_parameters")
HOW = ("corpus", "n_sequences", "length", "seed", "protocol")
STATISTICS = ("value", "low", "high", "sd", "iqr", "null")
COLUMNS = ("source", "run", *WHAT, *HOW, "metric", *STATISTICS)
NUMBERS = ("step", "n_parameters", "n_sequences", "length", "seed", *STATISTICS)
TEXTS = tuple(name for name in COLUMNS if name not in NUMBERS)
# Columns of the paper's tables that are no measurement, and those that are named otherwise than our metrics.
LABELS = ("model", "params", "heads_per_layer", "position_encoding", "training_step")
PARTS = {"_mean": "value", "_std": "sd", "_iqr": "iqr"}
RENAMED = {"low_band_power": "low_band"} | {f"window_{w}": f"window_entropy_{w}" for w in (16, 32, 64)}
SWEEPS = resources.files("nbhelpers.data").joinpath("sweeps")  # those that come with the package
MAIN = ("spectral_entropy", "frequency_selectivity", "low_band", "scale_sensitivity_0.5")
MAIN += ("scale_sensitivity_0.25", "position_spectrum_correlation")


@dataclass(frozen=True)
class Sweep:
    """What is finished of a sweep.

    `table` has a row for each finished run and metric, with the columns :data:`COLUMNS`: `low` and `high` are
    the interval of the mean over sequences, `sd` and `iqr` are over heads, `null` is uniform attention of the
    same length, mask and protocol.
    """

    folder: Path
    grid: Grid
    table: pd.DataFrame
    n_done: int
    same_weights: list[list[str]]  # checkpoints that hold the same weights under different names
    failed: dict[str, str]  # why runs failed, by their id

    def status(self):
        """Return in a line how much of the sweep is there."""
        return f"sweep of the grid {self.grid.name}: {self.n_done} of {len(self.grid.runs)} runs are finished"

    def report(self):
        """Return the main numbers beside the paper's as text, and what went wrong."""
        lines = [""]
        if metrics := [name for name in MAIN if name in set(self.table.metric)]:
            rows = rows_beside(self, tidy([]), metrics, tables=self.grid.paper_tables)
            lines += [_wide(rows).to_string(index=False)]
        for names in self.same_weights:
            lines.append(f"warning: the same weights were loaded for {', '.join(names)}")
        lines += [f"{len(self.failed)} failed:"] * bool(self.failed)
        failed = [run for run in self.grid.runs if run.id in self.failed]
        lines += [f"  {run.label} (failed/{run.id}.txt)\n    {self.failed[run.id]}" for run in failed]
        return "\n".join([*lines, f"{self.status()}; {self.folder / 'sweep.parquet'}"])


def load_sweep(folder, *, allow_empty=False):
    """Load the completed runs of a sweep, even an unfinished one, from the folder that was its ``--out``.

    A sweep that comes with the package has a name, "packaged-models". ValueError if no run is finished,
    unless `allow_empty`.
    """
    if not Path(folder).exists() and (shipped := Path(str(SWEEPS)) / folder).is_dir():
        folder = shipped
    grid = grids.read_plan(folder)
    done = [(run, facts) for run in grid.runs if (facts := read_run(folder, run))]
    if not done and not allow_empty:
        none = f"none of the {len(grid.runs)} runs of the sweep in {folder} is finished"
        raise ValueError(f"{none}; go on with: python -m nbhelpers sweep {grid.name} --out {folder}")
    rows = [_of_run(run, facts) | line for run, facts in done for line in facts["summary"]]
    names = {}
    for run, facts in done:
        null = {line["metric"]: line["null"] for line in facts["summary"]}
        fixed = _of_run(run, facts) | {"run": f"{run.id}, untrained", "model": f"random:{run.model}"}
        fixed |= {"n_sequences": min(run.n_sequences, grids.CONTROL_SEQUENCES)}
        rows += [fixed | line | {"null": null[line["metric"]]} for line in facts.get("controls", [])]
        names.setdefault(facts["sweep"]["weights"], {})[run.checkpoint] = None
    same = [list(group) for group in names.values() if len(group) > 1]
    failed = {run.id: why for run in grid.runs if (why := grids.read_failure(folder, run)) is not None}
    return Sweep(Path(folder), grid, tidy(rows), len(done), same, failed)


def _of_run(run, facts):
    """Return what the rows of a finished run share."""
    shared = ("model", "revision", "paper", "corpus", "n_sequences", "length", "seed")
    fixed = {name: getattr(run, name) for name in shared} | {"source": SWEEP, "run": run.id}
    words = [_words(run.protocol)] + [f"BOS: {run.bos}"] * (run.bos != grids.OPTIONS["bos"])
    fixed |= {"protocol": ", ".join(words), "step": training_step(run.model, run.revision or "")}
    encoding = facts["model"]["position_encoding"]
    if run.model.startswith(ZOO_PREFIX):  # the name of the arm, which tells partial RoPE from RoPE
        encoding = run.model.removeprefix(ZOO_PREFIX).partition("@")[0]
    return fixed | {"encoding": encoding, "n_parameters": facts["model"]["n_parameters"]}


def _words(protocol):
    return ", ".join(changes(protocol)) or "PAPER"


def training_step(model, revision=""):
    """Return the training step that a revision, or else a model's name, ends in: "step1000", NaN if none."""
    found = [re.search(r"(?:^|[@/_-])step(\d+)$", name) for name in (revision, model)]
    return next((float(match[1]) for match in found if match), np.nan)


def ship(sweep, out):
    """Write the finished runs of a sweep as they travel with the package; the bytes depend on numbers alone.

    Of a table the mean over the heads of each layer is kept, in float32; paths, times and memory are not.
    """
    for run in (run for run in sweep.grid.runs if read_run(sweep.folder, run) is not None):
        table = HeadTable.from_parquet(run_file(sweep.folder, run.id))
        took = {"settings": run.settings, "weights": table.provenance["sweep"]["weights"]}
        means = {name: known_mean(values, 2)[:, :, None] for name, values in table.arrays.items()}
        frame = HeadTable(means, [0], layers=table.layers).frame().astype({"value": "float32"})
        write_parquet(frame, run_file(out, run.id), table.provenance | {"sweep": took}, compression="zstd")
    runs = (replace(run, **{k: run.settings[k] for k in ("model", "corpus")}) for run in sweep.grid.runs)
    grids.write_plan(out, replace(sweep.grid, runs=tuple(runs)))


def sweep_rows(sweep, metrics):
    """Return the rows of some metrics of a sweep, run by run; `ValueError` if no run has any of them.

    The metric scale_k is the k-th wavelet entropy from coarse to fine, as Table 7 prints it.
    """
    rows = _together(*(_chosen(run, metrics) for _, run in sweep.table.groupby("run", sort=False)))
    if rows.empty:
        known, wanted = ", ".join(sweep.table.metric.unique()[:8]), ", ".join(metrics)
        raise ValueError(f"no run of the sweep in {sweep.folder} has any of {wanted}; they have {known}")
    return rows


def _together(*frames):
    return pd.concat([frame for frame in frames if len(frame)] or [tidy([])], ignore_index=True)


def _chosen(rows, metrics):
    """Return those of the rows of one run that have some metrics, in the order of these."""
    scales = [metric for metric in rows.metric if metric.startswith("wavelet_entropy_")]
    own = {f"scale_{k}": metric for k, metric in enumerate(scales)}
    known = rows.set_index("metric", drop=False)
    found = [known.loc[[own.get(m, m)]].assign(metric=m) for m in metrics if own.get(m, m) in known.index]
    return _together(*found)


def table_rows(table, metrics, *, corpus):
    """Return rows of a HeadTable that a notebook measured, summarised as a sweep summarises its runs."""
    from nbhelpers.nulls.controls import null_of, summarise  # late: torch, which the command does without

    facts, model = table.provenance, table.provenance["model"]
    fixed = {"source": HERE, "model": model["name"], "encoding": model["position_encoding"]}
    fixed |= {"step": training_step(model["name"]), "n_parameters": model["n_parameters"], "corpus": corpus}
    fixed |= {"seed": facts.get("seed"), "length": facts["length"], "protocol": _words(facts["protocol"])}
    summary = summarise(table, null=null_of(table)).to_dict("records")
    return _chosen(tidy([fixed | line for line in summary]), metrics)


def paper_rows(tables, metrics, *, models=None):
    """Return rows of what the paper prints in tables on some `metrics`, of some `models` or of all (None)."""
    sizes = pd.concat([paper_table(1), paper_table(6)]).drop_duplicates("model").set_index("model").params
    sizes = sizes.map(lambda size: float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1]])
    rows = []
    for number in tables:
        printed = paper_table(number)
        for _, line in printed[printed.model.isin(printed.model if models is None else models)].iterrows():
            fixed = {"source": PRINTED, "model": line["model"], "paper": line["model"]}
            fixed |= {"protocol": f"Table {number}", "encoding": line.get("position_encoding", "")}
            fixed |= {"step": line.get("training_step"), "n_parameters": sizes.get(line["model"])}
            named = {}
            for column in line.index.difference(LABELS, sort=False):
                suffix = next((part for part in PARTS if column.endswith(part)), "")
                metric = RENAMED.get(column, column.removesuffix(suffix))
                named.setdefault(metric, {})[PARTS.get(suffix, "value")] = line[column]
            rows += [fixed | {"metric": name} | named[name] for name in metrics if name in named]
    return tidy(rows)


def rows_beside(sweep, live, metrics, *, tables=(), every_model=False):
    """Return the rows of a notebook (`live`), of a sweep, and of the paper on its models, in this order.

    The grid says by `paper` which models these are; without such names, or if asked for, it is `every_model`.
    """
    measured = sweep_rows(sweep, metrics)
    models = None if every_model or not any(measured.paper) else measured.paper.unique()
    return _together(live, measured, paper_rows(tables, metrics, models=models))


def beside_sweep(store, sweep, live, metrics, grid, *, tables=(), every_model=False):
    """Show the rows that `live()` gives with those of a finished sweep and of the paper; return them.

    `store` keeps all as the table "sweep". If `sweep` is None, a line says how to make one of a `grid`.
    """
    from IPython.display import display  # late: the command does without it

    from nbhelpers.collection.scorecard import wrapped  # late, as above

    if sweep is None:
        how = f"Make one with: python -m nbhelpers sweep {grid} --out build/sweeps/{grid} (the grid zoo needs"
        how += " no network). It is shown, also before it is done, by: python -m nbhelpers run"
        print(f"No sweep was given. {how} {store.notebook[:2]} -p sweep build/sweeps/{grid}")
        return None
    finished = load_sweep(sweep)
    print(finished.status())
    rows = rows_beside(finished, live(), metrics, tables=tables, every_model=every_model)
    store.table("sweep", rows)
    display(wrapped(shown_rows(rows), fold="The numbers of every row"))
    return rows


def tidy(rows):
    """Return rows, with value or mean, as a frame of :data:`COLUMNS`; what a row lacks is "" or NaN."""
    frame = pd.DataFrame(rows).rename(columns={"mean": "value"}).reindex(columns=list(COLUMNS))
    texts = {name: [value if isinstance(value, str) else "" for value in frame[name]] for name in TEXTS}
    return frame.assign(**texts).astype(dict.fromkeys(NUMBERS, float) | dict.fromkeys(TEXTS, "str"))


# Rows to look at


def row_labels(rows):
    """Return a name for each row: the model, and whatever else differs between the measured rows."""
    measured = rows[rows.source != PRINTED]
    varied = [name for name in HOW if measured[name].replace("", np.nan).nunique() > 1]
    return rows.apply(lambda row: _label(row, varied), axis=1) if len(rows) else pd.Series(dtype=str)


def _label(row, varied):
    model = Path(row["model"]).name if Path(row["model"]).is_absolute() else row["model"]
    if row["source"] == PRINTED:
        at = "" if np.isnan(row["step"]) else f" at step {row['step']:.0f}"
        return f"{model}{at} ({row['protocol']})"
    size = f"{row['n_sequences']:.0f}x{row['length']:.0f}"
    seed = "" if np.isnan(row["seed"]) else f"seed {row['seed']:.0f}"
    told = {"corpus": corpus_title(row["corpus"]), "n_sequences": size, "length": size, "seed": seed}
    told |= {"protocol": row["protocol"].removeprefix("PAPER, ")}
    words = [model + (f"@{row['revision']}" if row["revision"] else "")]
    words += dict.fromkeys(told[name] for name in HOW if name in varied and told[name])
    return ", ".join(words) + (f" ({HERE})" if row["source"] == HERE else "")


def shown_rows(rows):
    """Return rows as a table of texts: a line per row, a column per metric, "value [low, high] | null"."""
    from nbhelpers.metrics import metric_label  # late, as in `table_rows`

    return _wide(rows).rename(columns=lambda name: metric_label(name, *protocols_of(rows, name)))


def protocols_of(rows, metric):
    """Return protocols with the logarithms of the rows of a metric, which decide its units."""
    found = rows.protocol[rows.metric == metric].str.extract(r"log_base=([\d.]+)")[0]
    return [PAPER if pd.isna(base) else PAPER.replace(log_base=float(base)) for base in found.unique()]


def _wide(rows):
    cells = rows.assign(line=row_labels(rows), text=[_cell(row) for row in rows.itertuples()])
    cells = cells.drop_duplicates(["source", "line", "metric"])
    wide = cells.pivot(index=["source", "line"], columns="metric", values="text")
    order = cells[["source", "line"]].drop_duplicates()
    wide = wide.reindex(index=pd.MultiIndex.from_frame(order), columns=list(cells.metric.unique()))
    return wide.fillna("–").rename_axis(columns=None).reset_index()


def _cell(row):
    ends = "" if pd.isna(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
    null = "no null" if pd.isna(row.null) else f"{row.null:.3f}"
    return f"{row.value:.3f}{ends}" + ("" if row.source == PRINTED else f" | {null}")
