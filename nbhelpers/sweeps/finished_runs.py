"""What is finished of a sweep, read from its folder: while it runs, once it was interrupted, or when done."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from nbhelpers.inputs.files import ZOO_PREFIX
from nbhelpers.sweeps.grids import Grid, Run, shipped_grids
from nbhelpers.sweeps.sweep_records import read_plan, read_records, table_file
from nbhelpers.sweeps.sweep_tables import sweep_table

FINISHED = "sweep.parquet"


@dataclass(frozen=True)
class FinishedRuns:
    """What is finished of a sweep.

    Attributes
    ----------
    folder : pathlib.Path
    name : str
        Of the grid; "" where the folder does not say.
    table : pandas.DataFrame
        As of `sweep_table`, with the columns `encoding` (position encoding), `step` (of training) and
        `n_parameters`, empty or NaN where unknown.
    n_runs : int or None
        How many runs the grid has; None where the folder does not say.
    """

    folder: Path
    name: str
    table: pd.DataFrame
    n_runs: int | None

    def said(self) -> str:
        """Return in a line how much of the sweep is there."""
        n_done = self.table.run.nunique()
        grid = f" of the grid {self.name}" if self.name else ""
        if self.n_runs is None:
            return f"sweep{grid}: {n_done} runs are finished; the folder does not say how many it is to have"
        return f"sweep{grid}: {n_done} of {self.n_runs} runs are finished"


def how_to_sweep(notebook: str, grid: str) -> str:
    """Return in a line how to make a sweep and show it in a notebook.

    Parameters
    ----------
    notebook : str
        Its number.
    grid : str
        The shipped grid of the paper's tables that the notebook regenerates.
    """
    return (
        f"No sweep was given, so none is shown. Make one with: python -m nbhelpers sweep {grid} --out "
        f"build/sweeps/{grid} (the grid zoo needs no network). It is shown, also before it is done, by: "
        f"python -m nbhelpers run {notebook} -p sweep build/sweeps/{grid}"
    )


def load_sweep(folder: str | Path) -> FinishedRuns:
    """Read what is finished of a sweep that is running, was interrupted or is done.

    Parameters
    ----------
    folder : path
        The sweep's folder (``--out`` of the command).

    Returns
    -------
    FinishedRuns

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is the folder of something else, or no run is finished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder.absolute()}; make a sweep with: "
            f"python -m nbhelpers sweep GRID --out {folder}"
        )
    plan = read_plan(folder)
    records = [record for record in read_records(folder) if "settings" in record]
    if plan is not None:
        runs = [_run(fields, folder) for fields in plan["runs"]]
        grid = Grid(plan["name"], plan["about"], tuple(runs), tuple(plan["paper_tables"]))
    elif records:  # of a version that did not write the grid
        grid = _grid_of_records(records, folder)
    elif (folder / FINISHED).is_file():
        grid = Grid("", "", ())
    else:
        raise ValueError(_not_a_sweep(folder))
    table = sweep_table(grid, folder) if grid.runs else pd.read_parquet(folder / FINISHED)
    if table.empty:
        raise ValueError(_nothing_finished(grid, records, folder))
    return FinishedRuns(folder, grid.name, _with_facts(table, folder), len(grid.runs) if plan else None)


def _run(fields: dict[str, Any], folder: Path) -> Run:
    try:
        return Run(**fields)
    except TypeError as error:
        raise ValueError(
            f"the sweep in {folder} has runs of another version of nbhelpers ({error}); "
            "measure it again with this one"
        ) from error


def _grid_of_records(records, folder):
    """Return the runs that left a record; their names in the paper are known once the sweep is done."""
    finished = folder / FINISHED
    table = pd.read_parquet(finished) if finished.is_file() else pd.DataFrame({"run": [], "paper": []})
    paper = table.drop_duplicates("run").set_index("run").paper.to_dict()
    runs = [
        _run(record["settings"] | {"paper": paper.get(record["id"]) or None}, folder) for record in records
    ]
    return Grid("", "", tuple(sorted(runs, key=lambda run: run.label)))


def _not_a_sweep(folder: Path) -> str:
    held = sorted(path.name for path in folder.iterdir())
    told = ", ".join(held[:6]) + (", ..." if len(held) > 6 else "") if held else "nothing"
    other = "; it looks like what `python -m nbhelpers run` leaves" if "executed" in held else ""
    return (
        f"{folder} is not the folder of a sweep: it holds {told}, and no grid.json, record of a run or "
        f"{FINISHED}{other}. Give the folder that was --out of python -m nbhelpers sweep"
    )


def _nothing_finished(grid: Grid, records, folder: Path) -> str:
    there = {run.id for run in grid.runs}
    states = pd.Series([record.get("status", "?") for record in records if record["id"] in there])
    told = ", ".join(f"{n} {status}" for status, n in states.value_counts().items())
    name = grid.name if grid.name in shipped_grids() else "GRID"
    return (
        f"none of the {len(grid.runs)} runs of the sweep in {folder} has finished with numbers"
        f"{f' ({told})' if told else ''}; go on with: python -m nbhelpers sweep {name} --out {folder}"
    )


def _with_facts(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return a sweep's table with what each run's own table says of the model."""
    named = table.drop_duplicates("run").set_index("run")
    facts = {run: _facts(table_file(folder, run)) for run in named.index}
    encodings = {run: _encoding(named.model[run], facts[run]) for run in named.index}
    return table.assign(
        encoding=table.run.map(encodings),
        n_parameters=[float(facts[run].get("n_parameters", np.nan)) for run in table.run],
        step=[training_step(*pair) for pair in zip(table.model, table.revision, strict=True)],
    )


def _encoding(model: str, facts: dict[str, Any]) -> str:
    """Return a model's position encoding; of the zoo the arm, which tells partial RoPE from RoPE."""
    if model.startswith(ZOO_PREFIX):
        return model.removeprefix(ZOO_PREFIX).partition("@")[0]
    return facts.get("position_encoding", "")


def _facts(file: Path) -> dict[str, Any]:
    """Return the description of the model in the provenance of a run's table; of a notebook's, its own."""
    if not file.is_file():
        return {}
    told = json.loads((pq.read_schema(file).metadata or {}).get(b"nbhelpers", b"{}"))
    described = [part["model"] for part in (told, *told.get("notebooks", {}).values()) if "model" in part]
    return described[0] if described else {}


def training_step(model: str, revision: str = "") -> float:
    """Return the training step that a revision, or else a model's name, ends in: "step1000", NaN if none."""
    for name in (revision, model):
        if found := re.search(r"(?:^|[@/_-])step(\d+)$", name):
            return float(found[1])
    return np.nan
