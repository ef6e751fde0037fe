"""What is read of a sweep's folder while it runs, once interrupted and when done; and what is refused."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_sweeps import leave_run

from nbhelpers.sweeps.finished_runs import how_to_sweep, load_sweep, training_step
from nbhelpers.sweeps.grids import make_grid, shipped_grids
from nbhelpers.sweeps.sweep_records import record_file, summary_file, table_file, write_plan, write_record
from nbhelpers.sweeps.sweep_tables import sweep_table, write_tables
from nbhelpers.sweeps.sweeps import run_sweep


@pytest.fixture
def grid():
    models = [{"name": "owner/a", "paper": "Pythia-14M", "revision": ["step0", "step1000"]}, "owner/b"]
    raw = {"model": models, "corpus": "moby-dick", "n_sequences": 5, "length": 512, "paper_table": 6}
    return make_grid(raw, name="mine")


@pytest.fixture
def running(grid, tmp_path):
    """The folder of a sweep of which the first two of three runs are finished."""
    write_plan(tmp_path, asdict(grid))
    for k, run in enumerate(grid.runs[:2]):
        leave_run(tmp_path, run, {"spectral_entropy": 1.0 + k, "low_band": 0.5}, null=0.25)
    record = {"id": grid.runs[2].id, "status": "running", "settings": grid.runs[2].settings}
    write_record(tmp_path, record)
    return tmp_path


def test_a_running_sweep_gives_what_is_finished(grid, running):
    sweep = load_sweep(str(running))
    assert sweep.said() == "sweep of the grid mine: 2 of 3 runs are finished"
    known = sweep_table(grid, running)
    pd.testing.assert_frame_equal(sweep.table[known.columns], known)
    assert sweep.table.step.tolist() == [0, 0, 1000, 1000]
    assert set(sweep.table.paper) == {"Pythia-14M"}
    assert sweep.table["null"].tolist() == [0.25] * 4


def test_one_run_more_is_one_run_more(grid, running):
    leave_run(running, grid.runs[2], {"spectral_entropy": 3.0})
    sweep = load_sweep(running)
    assert sweep.said().endswith("3 of 3 runs are finished")
    assert sweep.table["mean"].tolist() == [1.0, 0.5, 2.0, 0.5, 3.0]
    assert np.isnan(sweep.table["null"].iloc[-1]), "a run of a version that measured no null"


def test_a_damaged_summary_counts_as_not_finished(grid, running):
    file = summary_file(running, grid.runs[0].id)
    file.write_bytes(file.read_bytes()[:-3])
    assert load_sweep(running).said().endswith("1 of 3 runs are finished")


def test_a_folder_of_an_earlier_version_is_read_from_its_records(grid, running):
    (running / "grid.json").unlink()
    sweep = load_sweep(running)
    assert sweep.said() == "sweep: 2 runs are finished; the folder does not say how many it is to have"
    assert sorted(sweep.table["mean"]) == [0.5, 0.5, 1.0, 2.0]
    assert set(sweep.table.paper) == {""}, "which a record does not hold"
    write_tables(grid, running)
    assert set(load_sweep(running).table.paper) == {"Pythia-14M"}, "which the final table does"


def test_the_final_table_alone_will_do(grid, running):
    write_tables(grid, running)
    before = load_sweep(running).table
    (running / "grid.json").unlink()
    for folder in ("runs", "tables", "summaries"):
        for file in (running / folder).iterdir():
            file.unlink()
    after = load_sweep(running)
    assert after.n_runs is None
    pd.testing.assert_frame_equal(after.table, before)


def test_the_grid_is_there_from_the_start(out):
    """A sweep that is interrupted, here by an executor that breaks, leaves the grid all the same."""
    grid = make_grid(
        {"model": "o/m", "revision": ["a", "raise"], "corpus": "moby-dick", "n_sequences": 1, "length": 8},
        name="two",
    )
    run_sweep(grid, out, progress=False)
    plan = json.loads((out / "grid.json").read_text())
    assert plan == json.loads(json.dumps(asdict(grid)))
    sweep = load_sweep(out)
    assert sweep.said() == "sweep of the grid two: 1 of 2 runs are finished"
    assert sweep.table.revision.tolist() == ["a"]


def test_the_model_is_described_by_the_run_s_own_table(grid, running):
    file = table_file(running, grid.runs[0].id)
    described = {"model": {"position_encoding": "rope", "n_parameters": 14_100_000}}
    table = pa.table({"x": [1]}).replace_schema_metadata({b"nbhelpers": json.dumps(described).encode()})
    pq.write_table(table, file)
    sweep = load_sweep(running).table.drop_duplicates("run")
    assert sweep.encoding.tolist() == ["rope", ""]
    assert sweep.n_parameters.iloc[0] == 14_100_000
    assert np.isnan(sweep.n_parameters.iloc[1])


def test_a_model_of_the_zoo_has_the_encoding_of_its_arm(tmp_path):
    raw = {"model": ["zoo:prope@step10"], "corpus": "moby-dick", "n_sequences": 1, "length": 8}
    (run,) = make_grid(raw).runs
    leave_run(tmp_path, run, {"m": 1.0})
    assert load_sweep(tmp_path).table[["encoding", "step"]].to_dict("records") == [
        {"encoding": "prope", "step": 10.0}
    ]


@pytest.mark.parametrize(
    ("model", "revision", "step"),
    [
        ("EleutherAI/pythia-6.9b", "step1000", 1000),
        ("zoo:rope@step0", "", 0),
        ("/models/converted/step512", "", 512),
        ("owner/a-step3", "step7", 7),
        ("owner/twostep9", "", np.nan),
        ("owner/step5-chat", "main", np.nan),
    ],
)
def test_the_training_step_is_in_the_name(model, revision, step):
    assert training_step(model, revision) == pytest.approx(step, nan_ok=True)


# Refusals


def test_no_such_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*nowhere; make a sweep with: python -m nbhelpers"
    ):
        load_sweep(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_sweep(tmp_path / "file")


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="not the folder of a sweep: it holds nothing"):
        load_sweep(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "executed").mkdir()
    (tmp_path / "runs" / "07_frequency_bands.json").write_text('{"name": "07_frequency_bands"}')
    with pytest.raises(
        ValueError, match=r"holds executed, runs, .* looks like what `python -m nbhelpers run`"
    ):
        load_sweep(tmp_path)


def test_nothing_finished_says_how_many_of_how_many_and_the_command(grid, tmp_path):
    write_plan(tmp_path, asdict(grid) | {"name": "zoo"})
    for run, status in zip(grid.runs, ("failed", "failed", "running"), strict=True):
        write_record(tmp_path, {"id": run.id, "status": status, "settings": run.settings})
    told = r"none of the 3 runs .* \(2 failed, 1 running\); go on with: python -m nbhelpers sweep zoo --out "
    with pytest.raises(ValueError, match=told):
        load_sweep(tmp_path)


def test_a_damaged_grid_and_another_version(grid, running):
    (running / "grid.json").write_text("{")
    with pytest.raises(ValueError, match=r"grid\.json is damaged"):
        load_sweep(running)
    (running / "grid.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no list of runs"):
        load_sweep(running)
    (running / "grid.json").unlink()
    file = record_file(running, grid.runs[0].id)
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"settings": record["settings"] | {"temperature": 1}}))
    with pytest.raises(ValueError, match=r"another version of nbhelpers .*temperature"):
        load_sweep(running)


def test_the_command_names_a_grid_that_exists():
    for notebook, grid in (("10", "paper-models"), ("13", "pythia-sizes")):
        told = how_to_sweep(notebook, grid)
        assert grid in shipped_grids()
        assert f"python -m nbhelpers sweep {grid} --out build/sweeps/{grid}" in told
        assert f"python -m nbhelpers run {notebook} -p sweep build/sweeps/{grid}" in told
        assert "\n" not in told
