"""The table of a sweep, and the paper's tables beside it, from summaries written by hand."""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.claims.paper import paper_table
from nbhelpers.sweeps.grids import make_grid
from nbhelpers.sweeps.sweep_records import summary_file, table_file, write_record
from nbhelpers.sweeps.sweep_tables import beside_paper, sweep_table, wide, wide_beside_paper, write_tables

METRICS = [
    "spectral_entropy", "frequency_selectivity", "low_band", "scale_sensitivity_0.5",
    "scale_sensitivity_0.25", "position_spectrum_correlation", "reconstruction_error",
    "window_entropy_16", "window_entropy_32", "window_entropy_64",
    *(f"wavelet_entropy_{level}" for level in ("a5", "d5", "d4", "d3", "d2", "d1")),
]  # fmt: skip


def measure(out, run, *, start):
    """Leave of a run what a sweep leaves: mean k + start for metric k, sd and iqr a tenth and a hundredth."""
    mean = start + np.arange(len(METRICS), dtype=float)
    columns = {"low": mean - 0.5, "high": mean + 0.5, "sd": mean / 10, "iqr": mean / 100, "n_heads": 8}
    summary = pd.DataFrame({"metric": METRICS, "mean": mean, "n_sequences": run.n_sequences} | columns)
    for file in (table_file(out, run.id), summary_file(out, run.id)):
        file.parent.mkdir(exist_ok=True)
        summary.to_parquet(file)
    write_record(out, {"id": run.id, "status": "done"})


def grid_of(models, **changes):
    sizes = {"corpus": "wikipedia", "n_sequences": 5, "length": 512}
    return make_grid({"model": models} | sizes | changes)


def test_one_row_per_finished_run_and_metric(tmp_path):
    grid = grid_of(["owner/a", "owner/b"], length=[256, 512], protocol=[{}, {"window": "boxcar"}])
    for k, run in enumerate(grid.runs[:-1]):
        measure(tmp_path, run, start=100 * k)
    frame = sweep_table(grid, tmp_path)
    assert len(frame) == 7 * len(METRICS)
    for k, run in enumerate(grid.runs[:-1]):
        mine = frame[frame.run == run.id]
        assert mine["mean"].tolist() == [100 * k + j for j in range(len(METRICS))]
        assert set(mine.model) == {run.model}
        assert set(mine.length) == {run.length}
        assert set(mine.protocol) == {"PAPER" if run.protocol["window"] == "hann" else "window=boxcar"}
    shown = wide(frame)
    assert list(shown.columns[:3]) == ["model", "length", "protocol"]  # what differs, and no more
    assert shown["spectral_entropy"].tolist() == [100.0 * k for k in range(7)]
    assert shown["scale_sensitivity_0.25"].tolist() == [100.0 * k + 4 for k in range(7)]


def test_a_sweep_without_a_finished_run_has_an_empty_table(tmp_path):
    grid = grid_of("owner/a", paper_table=6)
    tables = write_tables(grid, tmp_path)
    assert len(tables["sweep"]) == 0
    assert tables["paper_table_6"].measured.isna().all()
    assert pd.read_parquet(tmp_path / "sweep.parquet").columns.tolist() == tables["sweep"].columns.tolist()


def test_runs_of_every_kind_in_one_table(tmp_path):
    """A function that gives no metrics, one sequence (no interval), the numbers of a notebook."""
    grid = grid_of(["owner/a", "owner/b", "owner/c"])
    parts = [
        pd.DataFrame(columns=["metric"]),
        pd.DataFrame({"metric": ["m"], "mean": [1.0], "low": [np.nan], "high": [np.nan], "n_heads": [4]}),
        pd.DataFrame(
            {"metric": ["k"], "mean": [2.0], "null": [0.5], "unit": ["1"], "notebook": ["07"], "note": [""]}
        ),
    ]
    for run, part in zip(grid.runs, parts, strict=True):
        measure(tmp_path, run, start=0)
        part.to_parquet(summary_file(tmp_path, run.id))
    frame = write_tables(grid, tmp_path)["sweep"]
    assert frame[["model", "metric", "mean", "null", "unit"]].to_dict("records") == [
        {
            "model": "owner/b",
            "metric": "m",
            "mean": 1.0,
            "null": pytest.approx(np.nan, nan_ok=True),
            "unit": np.nan,
        },
        {"model": "owner/c", "metric": "k", "mean": 2.0, "null": 0.5, "unit": "1"},
    ]
    assert len(wide(frame)) == 2


def lookup(table, model, column, **where):
    mine = table[(table.model == model) & (table.column == column)]
    for name, value in where.items():
        mine = mine[mine[name] == value]
    (row,) = mine.to_dict("records")
    return row


def test_every_column_of_the_paper_meets_its_metric(tmp_path):
    grid = grid_of([{"name": "owner/a", "paper": "Llama-3.2-1B"}], paper_table=[1, 2, 3, 7])
    measure(tmp_path, grid.runs[0], start=0)
    tables = write_tables(grid, tmp_path)
    expected = {
        1: {"scale_sensitivity_0.5": 3, "scale_sensitivity_0.25": 4, "position_spectrum_correlation": 5,
            "reconstruction_error": 6},
        2: {"window_16": 7, "window_32": 8, "window_64": 9},
        3: {"spectral_entropy_mean": 0, "spectral_entropy_std": 0, "spectral_entropy_iqr": 0,
            "frequency_selectivity_mean": 1, "frequency_selectivity_std": 0.1,
            "frequency_selectivity_iqr": 0.01},
        7: {f"scale_{k}": 10 + k for k in range(6)},
    }  # fmt: skip
    for number, columns in expected.items():
        table = tables[f"paper_table_{number}"]
        printed = paper_table(number).set_index("model")
        assert len(table) == len(printed) * len(columns)
        for column, value in columns.items():
            row = lookup(table, "Llama-3.2-1B", column)
            assert row["measured"] == pytest.approx(value)
            assert row["printed"] == printed.loc["Llama-3.2-1B", column]
            plain = not column.endswith(("_std", "_iqr"))  # the interval is that of the mean
            assert row["low"] == pytest.approx(value - 0.5, nan_ok=True) if plain else np.isnan(row["low"])
        other = table[table.model == "Mistral-7B"]
        assert other.measured.isna().all()
        assert other.printed.notna().all()
        assert pd.read_parquet(tmp_path / f"paper_table_{number}.parquet").equals(table)


def test_checkpoints_meet_the_rows_of_their_step(tmp_path):
    model = {"name": "owner/a", "paper": "Pythia-6.9B", "revision": ["step0", "step1000", "main"]}
    grid = grid_of([model], length=[256, 512])
    for k, run in enumerate(grid.runs):
        measure(tmp_path, run, start=100 * k)
    table = beside_paper(grid, sweep_table(grid, tmp_path), 5)
    assert lookup(table, "Pythia-6.9B", "low_band_power", training_step=0, length=512)["measured"] == 102
    row = lookup(table, "Pythia-6.9B", "spectral_entropy", training_step=1000, length=256)
    assert (row["measured"], row["printed"]) == (200, 3.522)
    assert table[table.training_step == 143000].measured.isna().all()
    shown = wide_beside_paper(table)
    assert shown.training_step.tolist() == [0, 0, 0, 1000, 1000, 1000]
    assert shown.source.tolist() == ["paper", "wikipedia 5x256 PAPER", "wikipedia 5x512 PAPER"] * 2
    assert shown.spectral_entropy.tolist() == [2.277, 0, 100, 3.522, 200, 300]


def test_fewer_scales_than_the_paper_leave_the_rest_open(tmp_path):
    grid = grid_of([{"name": "owner/a", "paper": "Llama-3.2-1B"}])
    (run,) = grid.runs
    measure(tmp_path, run, start=0)
    summary = pd.read_parquet(summary_file(tmp_path, run.id))
    summary[~summary.metric.isin(["wavelet_entropy_d1", "wavelet_entropy_d2"])].to_parquet(
        summary_file(tmp_path, run.id)
    )
    table = beside_paper(grid, sweep_table(grid, tmp_path), 7)
    mine = table[table.model == "Llama-3.2-1B"].measured.tolist()
    assert mine[:4] == [10, 11, 12, 13]
    assert np.isnan(mine[4:]).all()
