"""What the process of a run does: load once, measure, write whole files, tell what went wrong."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import asdict

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny_notebooks import make_notebook

from nbhelpers.nulls.summary import uniform_null
from nbhelpers.protocol import Protocol
from nbhelpers.sweeps import sweep_child
from nbhelpers.sweeps.grids import make_grid
from nbhelpers.sweeps.sweep_child import HeldModel, answer, perform
from nbhelpers.sweeps.sweep_records import summary_file, table_file


def grid_of(model, **changes):
    return make_grid({"model": str(model), "corpus": "moby-dick", "n_sequences": 3, "length": 32} | changes)


@pytest.fixture
def loads(monkeypatch):
    """Counts the models that are loaded."""
    counted, original = [], sweep_child.load_model

    def load(*args, **options):
        counted.append(args[0])
        return original(*args, **options)

    monkeypatch.setattr(sweep_child, "load_model", load)
    return counted


def test_runs_of_one_checkpoint_load_it_once(tiny_llama_folder, tmp_path, loads):
    held = HeldModel()
    for run in grid_of(tiny_llama_folder, length=[32, 48], protocol=[{}, {"detrend": "mean"}]).runs:
        facts = perform(run, tmp_path, cache=None, held=held)
    assert len(loads) == 1
    random = grid_of(f"random:{tiny_llama_folder}", seed=[0, 1], length=[32, 48])
    weights = [perform(run, tmp_path, cache=None, held=held)["weights"] for run in sorted_by_seed(random)]
    assert len(loads) == 3  # the seed is that of random weights
    assert weights[0] == weights[1] != weights[2] == weights[3] != facts["weights"]


def sorted_by_seed(grid):
    return sorted(grid.runs, key=lambda run: run.seed)


def test_protocols_share_one_capture(tiny_llama_folder, tmp_path, monkeypatch):
    held, captured = HeldModel(), []
    from nbhelpers.hooks import capture

    original = capture._run_batch
    monkeypatch.setattr(capture, "_run_batch", lambda *args: captured.append(1) or original(*args))
    runs = grid_of(tiny_llama_folder, protocol=[{}, {"window": "boxcar"}, {"mode": "zero"}]).runs
    assert len({run.observation_key for run in runs}) == 1
    for run in runs:
        perform(run, tmp_path, cache=tmp_path / "profiles", held=held)
    assert len(captured) == 3  # the sequences and their two scaled variants, for the first run only
    tables = [pd.read_parquet(table_file(tmp_path, run.id)) for run in runs]
    assert not tables[0].equals(tables[1])


def test_what_a_run_raises_is_its_answer(tmp_path, tiny_llama_folder):
    (run,) = grid_of(tiny_llama_folder, target="nbhelpers.inputs.text:scaled_variant").runs
    request = {"run": asdict(run), "out": str(tmp_path), "cache": None}
    reply = answer(json.loads(json.dumps(request)), HeldModel())
    assert reply["status"] == "failed"
    assert reply["error"].startswith("TypeError: ")
    assert "_function_table" in reply["trace"]
    assert not table_file(tmp_path, run.id).exists()


def test_a_target_returns_a_table(tmp_path, tiny_llama_folder, monkeypatch):
    import nbhelpers.inputs.text

    def count(model, ids, protocol, **options):
        return pd.DataFrame({"n": [len(ids)], "window": [protocol.window]})

    monkeypatch.setattr(nbhelpers.inputs.text, "counting", count, raising=False)
    (run,) = grid_of(tiny_llama_folder, target="nbhelpers.inputs.text:counting").runs
    perform(run, tmp_path, cache=None, held=HeldModel())
    assert pd.read_parquet(table_file(tmp_path, run.id)).to_dict("records") == [{"n": 3, "window": "hann"}]
    told = json.loads(pq.read_schema(table_file(tmp_path, run.id)).metadata[b"nbhelpers"])
    assert told["sweep"]["id"] == run.id
    monkeypatch.setattr(nbhelpers.inputs.text, "counting", lambda *args, **options: 3)
    with pytest.raises(TypeError, match="counting returned int; the target of a sweep returns a HeadTable"):
        perform(dataclasses.replace(run, seed=1), tmp_path, cache=None, held=HeldModel())


@pytest.mark.notebook
def test_a_notebook_as_target(tmp_path, monkeypatch):
    parameters = (
        'model = "m"  # a\ntext = "t"  # b\nn_sequences = 1  # c\nlength = 8  # d\nseed = 0  # e\n'
        'results = "r"  # f\nstrength = 1.0  # g'
    )
    record = (
        "from nbhelpers.collection.results import Results\nfrom nbhelpers.stats import Estimate\n"
        'Results("05_tiny", results).record("sum", Estimate(length + seed, 0, strength), unit=model + text)'
    )
    make_notebook(tmp_path / "notebooks" / "05_tiny.ipynb", record, parameters=parameters)
    monkeypatch.chdir(tmp_path)
    (run,) = grid_of("owner/x", target="notebook:05", seed=7, parameters={"strength": 2.5}).runs
    facts = perform(run, tmp_path / "out", cache=None, held=HeldModel())
    (row,) = pd.read_parquet(summary_file(tmp_path / "out", run.id)).to_dict("records")
    assert (row["metric"], row["mean"], row["high"], row["unit"]) == ("sum", 39, 2.5, "owner/xmoby-dick")
    assert (tmp_path / "out" / facts["executed"]).is_file()
    make_notebook(tmp_path / "notebooks" / "05_tiny.ipynb", "1 / 0", parameters=parameters)
    with pytest.raises(RuntimeError, match="notebook 05_tiny failed: error in cell 3: ZeroDivisionError"):
        perform(dataclasses.replace(run, seed=8), tmp_path / "out", cache=None, held=HeldModel())


def test_it_leaves_with_its_lease_and_keeps_its_answers_clean(tmp_path):
    lease = tmp_path / "lease"
    lease.touch()
    with subprocess.Popen(
        [sys.executable, "-m", "nbhelpers.sweeps.sweep_child", str(lease)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert json.loads(process.stdout.readline()) == {"status": "ready"}
        lease.unlink()
        assert process.wait(timeout=10) == 3
        assert process.stdout.read() == b""


def test_a_run_of_analyze_is_summarised_beside_uniform_attention(tiny_llama_folder, tmp_path, monkeypatch):
    held = HeldModel()
    runs = grid_of(tiny_llama_folder, length=[32, 48], protocol=[{}, {"signal": "rows"}]).runs
    for run in runs:
        perform(run, tmp_path, cache=None, held=held)
        null = pd.read_parquet(summary_file(tmp_path, run.id)).set_index("metric").null
        expected = uniform_null(run.length, Protocol(**run.protocol), causal=True)
        assert null.dropna().to_dict() == expected
        assert bool(expected) == (run.protocol["signal"] == "key_profile")
    import nbhelpers.analysis

    monkeypatch.setattr(nbhelpers.analysis, "another", nbhelpers.analysis.analyze, raising=False)
    (run,) = grid_of(tiny_llama_folder, target="nbhelpers.analysis:another").runs
    perform(run, tmp_path, cache=None, held=held)
    assert "null" not in pd.read_parquet(summary_file(tmp_path, run.id)), "what it measures is not known"
