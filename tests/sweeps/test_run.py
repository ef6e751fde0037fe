import json
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError

from nbhelpers import nulls
from nbhelpers.analysis import analyze, measure, observe
from nbhelpers.claims.statistics import measure_criteria, rules_digest
from nbhelpers.hooks import capture
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.nulls.controls import uniform_null
from nbhelpers.protocol import PAPER
from nbhelpers.stats import Estimate
from nbhelpers.sweeps import run as child
from nbhelpers.sweeps.engine import NO_SPACE
from nbhelpers.sweeps.grid import make_grid, read_failure, read_run, run_file, write_plan
from nbhelpers.sweeps.rows import load_sweep, ship
from nbhelpers.table import HeadTable, compare


def do(out, model, **changes):
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


def test_a_judged_run_keeps_what_the_rules_need_and_travels_in_equal_bytes(tmp_path):
    name, sizes = "zoo:rope@step1000", {"n_sequences": 4, "length": 96}
    folders = [tmp_path / "once", tmp_path / "again"]
    for folder in folders:
        status, (run,) = do(folder, name, **sizes, control_seeds=3)
        assert status == 0
        ship(load_sweep(folder), folder / "shipped")
    model = load_model(name, device="cpu")
    ids = load_text("moby-dick", model, **sizes)
    seen = observe(model, ids, corpus=run.corpus, progress=False)
    controls = [load_model(f"random:{name}", seed=seed, device="cpu") for seed in range(3)]
    untrained = [observe(control, ids, progress=False) for control in controls]
    against = {"N1": [(measure(one), one.profiles) for one in untrained]}
    made = {"N0": nulls.uniform, "N2": nulls.permuted, "N3": nulls.iid_softmax, "N4": nulls.exponential}
    for number, null in made.items():
        of = seen.map(null)
        against[number] = measure(of), of.profiles
    facts = read_run(folders[0], run)
    for claim in ("C2", "C6", "C14"):
        measured = measure_criteria(measure(seen), seen.profiles, claim, nulls=against)
        for criterion, estimate in measured.items():
            kept = Estimate(**facts["records"][criterion])
            pair = (np.array(e, dtype=float) for e in (kept, estimate))
            np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-9)
    assert facts["rules"]["digest"] == rules_digest()
    rows = load_sweep(folders[0] / "shipped").table.set_index(["model", "metric"])
    for of, tables in ((name, [measure(seen)]), (f"random:{name}", [table for table, _ in against["N1"]])):
        mean = np.mean([table.values("low_band") for table in tables])
        assert rows.value[of, "low_band"] == pytest.approx(mean, rel=1e-5)
    first, again = (sorted(f for f in (p / "shipped").rglob("*") if f.is_file()) for p in folders)
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in again]
    whole, mean = (HeadTable.from_parquet(run_file(f, run.id)) for f in (folders[0], folders[0] / "shipped"))
    assert compare(whole, mean).difference.abs().max() < 1e-5
