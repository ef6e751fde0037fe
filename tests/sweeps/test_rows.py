import numpy as np
import pandas as pd
import pytest
from tiny_sweeps import leave_run

from nbhelpers.analysis import analyze
from nbhelpers.claims.paper import paper_table
from nbhelpers.files import write_text
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import SPEECHES, load_text
from nbhelpers.sweeps import run as child
from nbhelpers.sweeps.grid import failure_file, make_grid, run_file, write_plan
from nbhelpers.sweeps.rows import (
    COLUMNS,
    load_sweep,
    paper_rows,
    row_labels,
    rows_beside,
    shown_rows,
    sweep_rows,
    table_rows,
    tidy,
    training_step,
)

LEVELS = ("spectral_entropy", "wavelet_entropy_a2", "wavelet_entropy_d2", "wavelet_entropy_d1")
MEANS = dict(zip(LEVELS, (2.0, 0.3, 0.2, 0.1), strict=True))
WANTED = ["spectral_entropy", "scale_0", "scale_2", "scale_5"]


def sweep_of(out, *, nulls=(0.5, None), **changes):
    models = [{"name": "EleutherAI/pythia-12b", "paper": "Pythia-12B"}, "owner/b"]
    grid = make_grid({"model": models, "corpus": "moby-dick", "n_sequences": 5, "length": 64} | changes)
    write_plan(out, grid)
    for k, run in enumerate(grid.runs):
        leave_run(out, run, {name: mean + k for name, mean in MEANS.items()}, null=nulls[k % len(nulls)])
    return load_sweep(out)


@pytest.fixture
def running(tmp_path):
    models = [{"name": "owner/a", "paper": "Pythia-14M", "revision": ["step0", "step1000"]}, "owner/b"]
    raw = {"model": models, "corpus": "moby-dick", "n_sequences": 5, "length": 512, "paper_table": 6}
    grid = make_grid(raw, name="mine")
    write_plan(tmp_path, grid)
    for k, run in enumerate(grid.runs[:2]):
        leave_run(tmp_path, run, {"spectral_entropy": 1.0 + k, "low_band": 0.5}, null=0.25, encoding="rope")
    return tmp_path, grid


def test_a_running_sweep_gives_what_is_finished(running):
    folder, grid = running
    sweep = load_sweep(str(folder))
    assert (sweep.n_done, len(sweep.grid.runs)) == (2, 3)
    assert tuple(sweep.table.columns) == COLUMNS
    assert sweep.table.value.tolist() == [1.0, 0.5, 2.0, 0.5]
    assert sweep.table.step.tolist() == [0, 0, 1000, 1000]
    assert sweep.table.run.unique().tolist() == [run.id for run in grid.runs[:2]]
    shared = sweep.table[["paper", "encoding", "null", "sd", "iqr"]].drop_duplicates()
    assert shared.to_numpy().tolist() == [["Pythia-14M", "rope", 0.25, 0.1, 0.2]]
    leave_run(folder, grid.runs[2], {"spectral_entropy": 3.0})
    assert load_sweep(folder).n_done == 3
    files = [run_file(folder, run.id) for run in grid.runs]
    files[0].write_bytes(files[0].read_bytes()[:-3])
    assert load_sweep(folder).n_done == 2, "a damaged file counts as not finished"
    for file in files:
        file.unlink()
    with pytest.raises(ValueError, match="none of the 3 runs"):
        load_sweep(folder)
    assert load_sweep(folder, allow_empty=True).n_done == 0


def test_failures_and_equal_weights_are_reported(running):
    folder, grid = running
    write_text(failure_file(folder, grid.runs[2].id), "Traceback ...\n\nValueError: no such thing")
    for run in grid.runs[:2]:
        leave_run(folder, run, {"spectral_entropy": 1.0}, weights="c0ffee")
    sweep = load_sweep(folder)
    assert sweep.failed == {grid.runs[2].id: "ValueError: no such thing"}
    assert sweep.same_weights == [["owner/a@step0", "owner/a@step1000"]]
    told = sweep.report()
    assert "the same weights were loaded for owner/a@step0, owner/a@step1000" in told
    assert f"(failed/{grid.runs[2].id}.txt)\n    ValueError: no such thing" in told
    assert "Pythia-14M (Table 6)" in told


def test_the_training_step_ends_the_revision_or_the_name_and_a_zoo_arm_names_the_encoding(tmp_path):
    assert set(sweep_of(tmp_path, model="zoo:prope@step10").table.encoding) == {"prope"}
    for model, revision, step in [
        ("owner/pythia-6.9b", "step1000", 1000), ("zoo:rope@step0", "", 0), ("owner/a-step3", "step7", 7),
        ("/models/step512", "", 512), ("owner/twostep9", "", np.nan), ("owner/step5-chat", "main", np.nan),
    ]:  # fmt: skip
        assert training_step(model, revision) == pytest.approx(step, nan_ok=True), model


def test_a_row_for_each_run_and_metric(tmp_path):
    rows = sweep_rows(sweep_of(tmp_path), WANTED)
    assert tuple(rows.columns) == COLUMNS
    assert set(rows.source) == {"sweep"}
    assert rows.metric.tolist() == ["spectral_entropy", "scale_0", "scale_2"] * 2, "scale 5 needs more tokens"
    assert rows.value.tolist() == pytest.approx([2.0, 0.3, 0.1, 3.0, 1.3, 1.1])
    for ends in (rows.value - rows.low, rows.high - rows.value):
        assert ends.tolist() == pytest.approx([0.5] * 6)
    fixed = rows[["model", "corpus", "n_sequences", "length", "protocol"]].drop_duplicates()
    sizes = ["moby-dick", 5.0, 64.0, "PAPER"]
    assert fixed.to_numpy().tolist() == [["EleutherAI/pythia-12b", *sizes], ["owner/b", *sizes]]
    told = shown_rows(rows)["spectral entropy (nats)"]
    assert told.tolist() == ["2.000 [1.500, 2.500] | 0.500", "3.000 [2.500, 3.500] | no null"]
    rows.loc[0, "protocol"] = "sink=drop, log_base=2.0"
    assert "spectral entropy (bits or nats)" in shown_rows(rows)
    with pytest.raises(ValueError, match="has any of sink_mass"):
        sweep_rows(sweep_of(tmp_path), ["sink_mass"])


def test_what_a_notebook_measured_is_summarised_as_a_run_is(tiny_llama_folder, tmp_path):
    (run,) = sweep_of(tmp_path, model=str(tiny_llama_folder), n_sequences=4).grid.runs
    assert child.main(tmp_path, run.id) == 0
    model = load_model(tiny_llama_folder, device="cpu")
    table = analyze(model, load_text("moby-dick", model, n_sequences=4, length=64), progress=False)
    wanted = ["spectral_entropy", "scale_0", "scale_sensitivity_0.5", "position_spectrum_correlation"]
    live, swept = table_rows(table, wanted, corpus="moby-dick"), sweep_rows(load_sweep(tmp_path), wanted)
    same = [name for name in COLUMNS if name not in ("source", "run")]
    pd.testing.assert_frame_equal(live[same], swept[same])
    assert swept.encoding.unique().tolist() == ["rope"]


def test_the_papers_rows_are_its_printed_means():
    rows = paper_rows((1, 3), ["scale_sensitivity_0.5", "spectral_entropy", "low_band"])
    for number, metric, suffix in ((1, "scale_sensitivity_0.5", ""), (3, "spectral_entropy", "_mean")):
        own = rows[(rows.protocol == f"Table {number}") & (rows.metric == metric)]
        printed = paper_table(number).set_index("model")[metric + suffix]
        assert own.set_index("model").value.to_dict() == printed.to_dict()
    assert rows[["null", "low"]].isna().all(axis=None)
    assert set(rows.metric) == {"scale_sensitivity_0.5", "spectral_entropy"}
    assert rows.set_index("model").n_parameters["Qwen2.5-0.5B"].unique() == [5e8]
    steps = paper_rows((5,), ["low_band"])
    assert steps.step.tolist() == paper_table(5).training_step.tolist()
    assert steps.value.tolist() == paper_table(5).low_band_power.tolist()
    encodings = paper_rows((4,), ["spectral_entropy"], models=["gpt2"])
    assert encodings.encoding.tolist() == ["labelled 'No PE' in the paper"]
    rows = paper_rows((2, 7), ["window_entropy_64", "scale_5"], models=["Pythia-12B"])
    assert rows.value.tolist() == [0.916, 0.772]


def test_the_paper_stands_beside_its_models_only(tmp_path):
    sweep = sweep_of(tmp_path)
    live = sweep_rows(sweep, WANTED).iloc[:0]
    rows = rows_beside(sweep, live, WANTED, tables=(3, 7))
    assert rows.source.value_counts().to_dict() == {"sweep": 6, "paper": 4}
    printed = rows[rows.source == "paper"]
    assert set(printed.model) == {"Pythia-12B"}
    assert printed.value.tolist() == [2.783, 0.822, 0.766, 0.772]
    every = rows_beside(sweep, live, WANTED, tables=(3,), every_model=True)
    assert (every.source == "paper").sum() == len(paper_table(3))


def test_checkpoints_stand_beside_the_rows_of_their_step(tmp_path):
    model = {"name": "owner/a", "paper": "Pythia-6.9B", "revision": ["step0", "step1000"]}
    sweep = sweep_of(tmp_path, model=[model])
    table = rows_beside(sweep, tidy([]), ["spectral_entropy"], tables=(5,))
    wide = table.pivot(index="step", columns="source", values="value")
    assert wide.loc[1000, ["paper", "sweep"]].tolist() == [3.522, 3.0]
    assert np.isnan(wide.loc[143000, "sweep"])


def test_names_hold_what_differs_and_no_more(tmp_path):
    plain = sweep_rows(sweep_of(tmp_path / "a", nulls=(None,)), ["spectral_entropy"])
    assert row_labels(plain).tolist() == ["EleutherAI/pythia-12b", "owner/b"]
    grid = {"length": [64, 128], "protocol": [{}, {"window": "boxcar"}], "seed": [0, 1]}
    labels = row_labels(sweep_rows(sweep_of(tmp_path / "b", **grid), ["spectral_entropy"]))
    assert labels.is_unique
    assert labels.iloc[-1] == "owner/b, 5x128, seed 1, window=boxcar"
    speeches = plain.assign(corpus=f"/x/{SPEECHES}", protocol=["PAPER", "PAPER, BOS: add"])
    told = row_labels(pd.concat([plain, speeches])).tolist()
    assert told[2] == "EleutherAI/pythia-12b, state-of-the-union, PAPER"
    assert told[3] == "owner/b, state-of-the-union, BOS: add"
    live = plain.iloc[:1].assign(source="this notebook", corpus="other")
    both = pd.concat([live, plain, paper_rows((5,), ["spectral_entropy"]).iloc[3:4]], ignore_index=True)
    assert row_labels(both).tolist() == [
        "EleutherAI/pythia-12b, other (this notebook)",
        "EleutherAI/pythia-12b, moby-dick",
        "owner/b, moby-dick",
        "Pythia-6.9B at step 1000 (Table 5)",
    ]
