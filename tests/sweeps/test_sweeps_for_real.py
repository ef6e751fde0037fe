"""Sweeps of real models: on Dask and on processes, with kills, a hang, a failure, Ctrl-C from a terminal."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock
from tiny_sweeps import joined, n_done, run_processes, wait_for, when

from nbhelpers.analysis import analyze
from nbhelpers.inputs.files import cache_folder, file_fingerprint
from nbhelpers.inputs.text import load_text
from nbhelpers.protocol import PAPER
from nbhelpers.sweeps.grids import load_grid, make_grid
from nbhelpers.sweeps.sweep_records import FOLDERS, read_record, read_records, table_file
from nbhelpers.sweeps.sweeps import run_sweep
from nbhelpers.table import HeadTable

TIMEOUT = 20  # seconds; a run takes one on a quiet machine


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory, tiny_llama_folder):
    """A grid of eight runs: a model and its untrained control, two lengths, two protocols."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "text.txt").write_text(" ".join(f"the whale and the sea {i}" for i in range(3000)))
    shutil.copytree(tiny_llama_folder, folder / "model")
    raw = {
        "about": "eight runs",
        "paper_table": 6,
        "model": [{"name": str(folder / "model"), "paper": "Pythia-14M"}, f"random:{folder / 'model'}"],
        "corpus": str(folder / "text.txt"),
        "n_sequences": 3,
        "length": [32, 48],
        "protocol": [{}, {"window": "boxcar"}],
    }
    (folder / "eight.yaml").write_text(yaml.safe_dump(raw))
    return folder / "eight.yaml"


@pytest.fixture
def one_thread(monkeypatch):
    """The tests run beside others; equal numbers of threads also give equal bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def variant(grid_file, **changes):
    return make_grid(yaml.safe_load(grid_file.read_text()) | changes, name="variant")


def contents(out):
    """Return bytes and time of each file of the finished runs."""
    done = {record["id"] for record in read_records(out) if record["status"] == "done"}
    files = [file for folder in FOLDERS for file in (out / folder).iterdir() if file.stem in done]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def kill_a_worker(*, sparing):
    """Send SIGKILL to a worker; not to the one that a given record names."""
    workers = [process.ppid() for process in run_processes()]
    os.kill(next(pid for pid in workers if pid != sparing["pid"]), signal.SIGKILL)


@pytest.fixture(scope="module")
def by_dask(grid_file, tmp_path_factory):
    """A sweep on a LocalCluster of two workers: eight runs, one that raises, one that hangs, one kill."""
    folder = tmp_path_factory.mktemp("dask")
    out = folder / "out"
    good = load_grid(grid_file)
    raises = variant(grid_file, model=str(grid_file.parent / "model"), length=300, protocol={})
    (folder / "stuck.gguf").write_bytes(b"GGUF" + bytes(100))
    hangs = variant(grid_file, model=str(folder / "stuck.gguf"), length=32, protocol={})
    grid = joined(hangs, good, raises)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("NBHELPERS_CACHE", str(folder / "cache"))
        cache_folder().mkdir()
        key = f"stuck-{file_fingerprint(folder / 'stuck.gguf')[:16]}"

        def kill():
            kill_a_worker(sparing=read_record(out, hangs.runs[0].id))

        thread = when(lambda: n_done(out) >= 2, kill)
        with FileLock(cache_folder() / f"{key}.lock"):  # as if another process converted it, for ever
            sweep = run_sweep(grid, out, executor="dask", workers=2, timeout=TIMEOUT, progress=False)
        thread.join()
    return sweep, out, {"good": good, "raises": raises, "hangs": hangs}


def test_dask_does_all_that_can_be_done(by_dask):
    sweep, _, parts = by_dask
    records = {name: [sweep.records[run.id] for run in part.runs] for name, part in parts.items()}
    assert [record["status"] for record in records["good"]] == ["done"] * 8
    (raised,) = records["raises"]
    assert raised["status"] == "failed"
    assert "ValueError: The sequences have 300 tokens but" in raised["error"]
    assert "Traceback" in raised["trace"]
    (hung,) = records["hangs"]
    assert hung["error"] == f"still running after {TIMEOUT} s (timeout); its process was killed"
    assert len(sweep.failed) == 2
    # One worker was killed with the run it had; everything else was begun once.
    attempts = [record["attempts"] for record in sweep.records.values()]
    assert sorted(attempts)[-2] == 1
    assert max(attempts) <= 2
    wait_for(lambda: run_processes() == [], seconds=10)


def test_a_run_is_what_the_library_gives(by_dask, grid_file, one_thread):
    sweep, out, parts = by_dask
    from nbhelpers.inputs.models import load_model

    run = next(run for run in parts["good"].runs if run.length == 48 and run.protocol["window"] == "boxcar")
    model = load_model(grid_file.parent / "model", device="cpu")
    ids = load_text(grid_file.parent / "text.txt", model, n_sequences=3, length=48)
    expected = analyze(model, ids, PAPER.replace(window="boxcar"), progress=False)
    stored = HeadTable.from_parquet(table_file(out, run.id))
    pd.testing.assert_frame_equal(stored.frame(), expected.frame(), rtol=1e-6)
    assert stored.provenance["sweep"] == {"id": run.id, "settings": json.loads(json.dumps(run.settings))}
    assert stored.provenance["protocol_hash"] == PAPER.replace(window="boxcar").hash
    rows = sweep.tables["sweep"].query("run == @run.id").set_index("metric")
    means = expected.summary()["mean"]
    pd.testing.assert_series_equal(
        rows["mean"].drop("position_spectrum_correlation"), means, check_names=False, rtol=1e-6
    )
    facts = sweep.records[run.id]["facts"]
    assert facts["n_parameters"] == model.description.n_parameters
    assert facts["revision"] == model.description.revision
    assert sweep.records[run.id]["peak_mb"] > 100  # torch alone is more


def finished_runs_of_the_command(process, out):
    assert process.poll() is None, process.communicate()[0].decode()
    return n_done(out)


def test_ctrl_c_and_resume_on_processes_give_the_table_of_dask(by_dask, grid_file, tmp_path, one_thread):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nbhelpers", "sweep", str(grid_file), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored and would be here too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: finished_runs_of_the_command(process, out) >= 2)
    children = run_processes(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends: to the command and its workers
    told = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, told
    assert "of 8 runs are done and kept" in told
    assert "Traceback" not in told
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() for child in children)
    before = contents(out)
    n_before = n_done(out)
    assert 2 <= n_before < 8

    sweep = run_sweep(load_grid(grid_file), out, timeout=TIMEOUT, progress=False)
    assert sweep.failed == []
    assert sweep.kept == n_before
    assert {file: contents(out)[file] for file in before} == before
    dask = by_dask[0].tables["sweep"]
    pd.testing.assert_frame_equal(sweep.tables["sweep"], dask, check_exact=True)
    beside = sweep.tables["paper_table_6"].dropna(subset=["measured"])
    assert set(beside.model) == {"Pythia-14M"}
    assert beside.run.nunique() == 4
