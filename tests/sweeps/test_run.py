"""What the process of a run does: load once, measure, write a whole file, tell what went wrong."""

import json
from unittest.mock import Mock

import pandas as pd
from safetensors import SafetensorError

from nbhelpers.analysis import analyze
from nbhelpers.hooks import capture
from nbhelpers.inputs.text import load_text
from nbhelpers.nulls.summary import uniform_null
from nbhelpers.protocol import PAPER, Protocol
from nbhelpers.sweeps import run as child
from nbhelpers.sweeps.engine import NO_SPACE
from nbhelpers.sweeps.grid import make_grid, read_failure, read_run, run_file, write_plan
from nbhelpers.sweeps.rows import load_sweep
from nbhelpers.table import HeadTable


def do(out, model, **changes):
    """Plan a grid and do its runs in this process; return the exit status and the runs."""
    grid = make_grid({"model": model, "corpus": "moby-dick", "n_sequences": 3, "length": 32} | changes)
    write_plan(out, grid)
    return child.main(out, *(run.id for run in grid.runs)), grid.runs


def test_a_run_is_what_the_library_gives(tiny_llama_folder, tiny_llama, tmp_path, monkeypatch):
    loads, batches = Mock(wraps=child.load_model), Mock(wraps=capture._run_batch)
    monkeypatch.setattr(child, "load_model", loads)
    monkeypatch.setattr(capture, "_run_batch", batches)
    status, runs = do(tmp_path, str(tiny_llama_folder), length=[32, 48], protocol=[{}, {"window": "boxcar"}])
    assert (status, len(runs)) == (0, 4)
    # One model; for each length the sequences and their two scaled variants, which both protocols read.
    assert (loads.call_count, batches.call_count) == (1, 2 * 3)
    (run,) = [run for run in runs if run.length == 48 and run.protocol["window"] == "boxcar"]
    ids = load_text("moby-dick", tiny_llama, n_sequences=3, length=48)
    protocol = PAPER.replace(window="boxcar")
    expected = analyze(tiny_llama, ids, protocol, progress=False)
    stored = HeadTable.from_parquet(run_file(tmp_path, run.id))
    pd.testing.assert_frame_equal(stored.frame(), expected.frame(), rtol=1e-6)
    assert stored.provenance["sweep"]["settings"] == json.loads(json.dumps(run.settings))
    assert stored.provenance["sweep"]["peak_mb"] > 100, "torch alone is more"
    rows = load_sweep(tmp_path).table.query("run == @run.id").set_index("metric")
    summary = expected.summary()
    for column, of in {"value": "mean", "low": "low", "high": "high", "sd": "sd", "iqr": "iqr"}.items():
        known = rows[column].drop("position_spectrum_correlation")
        pd.testing.assert_series_equal(known, summary[of], check_names=False, rtol=1e-6)
    assert rows["null"].dropna().to_dict() == uniform_null(48, protocol, causal=True)


def test_random_weights_are_those_of_the_seed(tiny_llama_folder, tmp_path):
    weights = {}
    for model in (str(tiny_llama_folder), f"random:{tiny_llama_folder}"):
        for seed in (1, 2):
            _, (run,) = do(tmp_path, model, seed=seed)
            weights[model, seed] = read_run(tmp_path, run)["sweep"]["weights"]
    trained, again, random, other = weights.values()
    assert trained == again
    assert len({trained, random, other}) == 3


def test_signals_without_a_null_say_so(tiny_llama_folder, tmp_path):
    _, (run,) = do(tmp_path, str(tiny_llama_folder), protocol={"signal": "rows"})
    assert uniform_null(32, Protocol(**run.protocol), causal=True) == {}
    assert load_sweep(tmp_path).table["null"].isna().all()


def test_what_a_run_raises_is_its_failure_and_the_next_goes_on(tiny_llama_folder, tmp_path):
    status, runs = do(tmp_path, str(tiny_llama_folder), length=[300, 32])
    assert status == 0
    assert "300 tokens" in read_failure(tmp_path, runs[0])
    assert "Traceback" in (tmp_path / "failed" / f"{runs[0].id}.txt").read_text()
    assert read_run(tmp_path, runs[1]) is not None


def test_a_full_disk_is_no_failure_of_the_run(tiny_llama_folder, tmp_path, monkeypatch):
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(child, "analyze", Mock(side_effect=full))
    status, (run,) = do(tmp_path, str(tiny_llama_folder))
    assert status == NO_SPACE
    assert read_failure(tmp_path, run) is None
