"""Rows of a sweep, of a notebook and of the paper in one frame, from summaries and tables made by hand."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from tiny_sweeps import leave_run

from nbhelpers.analysis import analyze
from nbhelpers.claims.paper import paper_table
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.nulls.summary import uniform_null
from nbhelpers.protocol import PAPER
from nbhelpers.sweeps.finished_runs import load_sweep
from nbhelpers.sweeps.grids import make_grid
from nbhelpers.sweeps.sweep_child import HeldModel, perform
from nbhelpers.sweeps.sweep_records import write_plan, write_record
from nbhelpers.sweeps.sweep_rows import (
    COLUMNS,
    paper_rows,
    row_labels,
    rows_beside,
    shown_rows,
    sweep_rows,
    table_rows,
)

MEANS = {
    "spectral_entropy": 2.0,
    "wavelet_entropy_a2": 0.3,
    "wavelet_entropy_d2": 0.2,
    "wavelet_entropy_d1": 0.1,
}
WANTED = ["spectral_entropy", "scale_0", "scale_2", "scale_5"]


def sweep_of(out, *, nulls=(0.5, None), **changes):
    """A finished sweep of a model that the paper has and one that it has not."""
    models = [{"name": "EleutherAI/pythia-12b", "paper": "Pythia-12B"}, "owner/b"]
    raw = {"model": models, "corpus": "moby-dick", "n_sequences": 5, "length": 64} | changes
    grid = make_grid(raw)
    write_plan(out, asdict(grid))
    for k, run in enumerate(grid.runs):
        leave_run(out, run, {name: mean + k for name, mean in MEANS.items()}, null=nulls[k % len(nulls)])
    return load_sweep(out)


def test_a_row_for_each_run_and_metric(tmp_path):
    rows = sweep_rows(sweep_of(tmp_path), WANTED)
    assert tuple(rows.columns) == COLUMNS
    assert set(rows.source) == {"sweep"}
    assert rows.metric.tolist() == ["spectral_entropy", "scale_0", "scale_2"] * 2, "scale 5 needs more tokens"
    assert rows.value.tolist() == pytest.approx([2.0, 0.3, 0.1, 3.0, 1.3, 1.1])
    assert (rows.value - rows.low).tolist() == pytest.approx([0.5] * 6)
    assert (rows.high - rows.value).tolist() == pytest.approx([0.5] * 6)
    assert rows.model.unique().tolist() == ["EleutherAI/pythia-12b", "owner/b"]
    fixed = rows[["corpus", "n_sequences", "length", "protocol"]].drop_duplicates()
    assert fixed.to_numpy().tolist() == [["moby-dick", 5.0, 64.0, "PAPER"]]


def test_a_row_without_a_null_says_so(tmp_path):
    rows = sweep_rows(sweep_of(tmp_path), ["spectral_entropy"])
    assert rows["null"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
    told = shown_rows(rows)["spectral entropy (nats)"]
    assert told.tolist() == ["2.000 [1.500, 2.500] | 0.500", "3.000 [2.500, 3.500] | no null"]


def test_metrics_that_no_run_has_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run of the sweep .* has any of sink_mass; they have spectral"):
        sweep_rows(sweep_of(tmp_path), ["sink_mass"])


def test_what_a_notebook_measured_is_summarised_as_a_run_is(tiny_llama_folder, tmp_path):
    raw = {"model": str(tiny_llama_folder), "corpus": "moby-dick", "n_sequences": 4, "length": 64}
    grid = make_grid(raw)
    (run,) = grid.runs
    write_record(
        tmp_path, perform_record(run) | {"facts": perform(run, tmp_path, cache=None, held=HeldModel())}
    )
    write_plan(tmp_path, asdict(grid))
    model = load_model(tiny_llama_folder, device="cpu")
    table = analyze(model, load_text("moby-dick", model, n_sequences=4, length=64), progress=False)
    wanted = ["spectral_entropy", "scale_0", "scale_sensitivity_0.5", "position_spectrum_correlation"]
    live, swept = (
        table_rows(table, wanted, corpus="moby-dick"),
        sweep_rows(load_sweep(tmp_path), wanted),
    )
    same = [name for name in COLUMNS if name not in ("source", "target")]
    pd.testing.assert_frame_equal(live[same], swept[same])
    assert swept.encoding.unique().tolist() == ["rope"]
    null = uniform_null(64, PAPER, causal=True)
    assert swept.null.iloc[[0, 2]].tolist() == [null["spectral_entropy"], null["scale_sensitivity_0.5"]]
    assert list(table_rows(table, ["nothing", "low_band"], corpus="x").metric) == ["low_band"]


def perform_record(run):
    return {"id": run.id, "status": "done", "settings": run.settings}


# The paper


def test_the_papers_rows_are_its_printed_means():
    rows = paper_rows((1, 3), ["scale_sensitivity_0.5", "spectral_entropy", "low_band"])
    for number, column, metric in (
        (1, "scale_sensitivity_0.5", "scale_sensitivity_0.5"),
        (3, "spectral_entropy_mean", "spectral_entropy"),
    ):
        own = rows[(rows.protocol == f"Table {number}") & (rows.metric == metric)]
        printed = paper_table(number)
        assert own.set_index("model").value.to_dict() == printed.set_index("model")[column].to_dict()
    assert rows["null"].isna().all()
    assert rows["low"].isna().all()
    assert set(rows.metric) == {"scale_sensitivity_0.5", "spectral_entropy"}
    assert rows.set_index("model").n_parameters["Qwen2.5-0.5B"].unique() == [5e8]


def test_steps_encodings_scales_and_windows_of_the_paper():
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


# Names


def test_names_hold_what_differs_and_no_more(tmp_path):
    plain = sweep_rows(sweep_of(tmp_path / "a", nulls=(None,)), ["spectral_entropy"])
    assert row_labels(plain).tolist() == ["EleutherAI/pythia-12b", "owner/b"]
    grid = {"length": [64, 128], "protocol": [{}, {"window": "boxcar"}], "seed": [0, 1]}
    varied = sweep_rows(sweep_of(tmp_path / "b", **grid), ["spectral_entropy"])
    labels = row_labels(varied)
    assert labels.is_unique
    assert labels.iloc[0] == "EleutherAI/pythia-12b, 5x64, seed 0, PAPER"
    assert labels.iloc[-1] == "owner/b, 5x128, seed 1, window=boxcar"
    live = plain.iloc[:1].assign(source="this notebook", corpus="other")
    both = pd.concat([live, plain, paper_rows((5,), ["spectral_entropy"]).iloc[3:4]], ignore_index=True)
    assert row_labels(both).tolist() == [
        "EleutherAI/pythia-12b, other (this notebook)",
        "EleutherAI/pythia-12b, moby-dick",
        "owner/b, moby-dick",
        "Pythia-6.9B at step 1000 (Table 5)",
    ]
