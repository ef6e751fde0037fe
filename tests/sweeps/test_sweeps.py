"""Sweeps on spawned processes whose runs are played: killed, hanging, failing, interrupted, resumed."""

import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor

import pytest
import yaml
from tiny_sweeps import n_done, parts_grid, run_processes, starts, wait_for, when

from nbhelpers.__main__ import main
from nbhelpers.sweeps.sweep_records import read_record, record_file, summary_file, table_file
from nbhelpers.sweeps.sweeps import run_sweep


def by_part(sweep):
    return {run.revision: sweep.records[run.id] for run in sweep.grid.runs}


def test_what_fails_is_listed_and_the_rest_is_done(out, capsys):
    grid = parts_grid("a", "raise", "hang", "b", "die once", "die", "leave", "c")
    sweep = run_sweep(grid, out, workers=2, timeout=1.5)
    parts = by_part(sweep)
    failed = {part for part, record in parts.items() if record["status"] == "failed"}
    assert failed == {"raise", "hang", "die", "leave"}
    assert parts["raise"]["error"].startswith("ValueError: no such thing")
    assert parts["hang"]["error"] == "still running after 1.5 s (timeout); its process was killed"
    assert parts["die"]["error"].startswith("its process was killed by signal 9, 2 times; signal 9 often")
    assert parts["leave"]["error"] == "its process ended with exit status 7, 2 times"
    assert 1.5 <= parts["hang"]["seconds"] < 10
    assert starts(out) == {"a": 1, "raise": 1, "hang": 1, "b": 1, "die once": 2, "die": 2, "leave": 2, "c": 1}
    assert parts["die once"]["attempts"] == 2
    told = capsys.readouterr().out
    assert told.count("\n[") == 8
    assert "[8/8]" in told
    assert "4 failed:" in told
    assert f"owner/model@hang moby-dick 1x8 ({parts['hang']['id']})\n    still running after 1.5 s" in told
    assert "4 of 8 runs done" in told
    assert "second line" not in told
    wait_for(lambda: run_processes() == [], seconds=5)


def test_resuming_does_what_is_not_done_and_nothing_else(out, capsys):
    grid = parts_grid("a", "raise", "b", "c")
    run_sweep(grid, out, progress=False)
    ids = {run.revision: run.id for run in grid.runs}
    table_file(out, ids["b"]).write_bytes(table_file(out, ids["b"]).read_bytes()[:-5])  # cut short
    summary_file(out, ids["c"]).unlink()
    (out / "tables" / f".{ids['a']}.parquet.1.partial").touch()  # of a killed process
    sweep = run_sweep(grid, out)
    assert starts(out) == {"a": 1, "raise": 2, "b": 2, "c": 2}
    assert sweep.kept == 1
    assert [record["id"] for record in sweep.failed] == [ids["raise"]]
    assert "4 runs, 1 kept from before" in capsys.readouterr().out
    assert list(out.rglob("*.partial")) == []
    record_file(out, ids["a"]).write_text("{ not json")
    run_sweep(grid, out, progress=False)
    assert starts(out)["a"] == 2
    run_sweep(grid, out, progress=False, fresh=True)
    assert starts(out) == {"a": 3, "raise": 4, "b": 3, "c": 3}


def test_a_killed_worker_is_replaced_and_only_its_run_goes_again(out, capsys):
    grid = parts_grid("a", "b", "kill worker once", "c", "d", "e")
    sweep = run_sweep(grid, out, workers=1)
    assert {record["status"] for record in sweep.records.values()} == {"done"}
    assert starts(out) == dict.fromkeys("abcde", 1) | {"kill worker once": 2}
    assert "a worker was killed: its pool is opened anew" in capsys.readouterr().out


def test_a_run_that_kills_its_worker_twice_fails_and_spares_those_beside_it(out):
    grid = parts_grid("slow a", "kill worker", "slow b", "c", "d")
    sweep = run_sweep(grid, out, workers=2, progress=False)
    parts = by_part(sweep)
    assert parts.pop("kill worker")["error"].startswith("its worker was killed 2 times while it ran")
    assert {record["status"] for record in parts.values()} == {"done"}
    assert starts(out)["kill worker"] == 2
    assert all(record["attempts"] <= 2 for record in parts.values())


def test_a_pool_that_never_comes_up_is_given_up(out, monkeypatch):

    # The initializer is pickled by name, so the spawned process has to find one that fails.
    monkeypatch.setattr("nbhelpers.sweeps.executors._leave_interrupts_to_the_sweep", os.abort)
    with pytest.raises(RuntimeError, match="broke 3 times before any run began"):
        run_sweep(parts_grid("a"), out, progress=False)


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_what_runs_and_keeps_what_is_done(out, capsys, interruptible):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    grid = parts_grid("a", "b", "hang", "c")
    thread = when(lambda: n_done(out) == 2 and starts(out)["hang"], interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, out)
    thread.join()
    assert "interrupted; 2 of 4 runs are done and kept" in capsys.readouterr().out
    statuses = [read_record(out, run.id).get("status") for run in grid.runs]
    assert statuses == ["done", "done", "interrupted", None]
    assert list(out.glob(".lease-*")) == []
    wait_for(lambda: run_processes() == [], seconds=5)


def test_ctrl_c_is_never_raised_inside_an_executor(out, interruptible):
    """Raised where a lock is held, it would leave the lock held and the executor waiting for ever."""

    class Locked(Executor):
        def __init__(self):
            self.lock = threading.Lock()
            self.futures = []

        def submit(self, *_):
            self.lock.acquire()
            os.kill(os.getpid(), signal.SIGINT)
            self.futures.append(Future())
            self.lock.release()
            return self.futures[-1]

    executor = Locked()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(parts_grid("a", "b"), out, executor=executor, progress=False)
    assert not executor.lock.locked()
    assert [future.cancelled() for future in executor.futures] == [True, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_executor_of_ones_own(out):
    """As `Client(cluster).get_executor(pure=False)` of any Dask cluster."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        sweep = run_sweep(parts_grid("a", "raise", "b"), out, executor=executor, progress=False)
        assert [record["error"] for record in sweep.failed] == ["ValueError: no such thing\nsecond line"]
        assert executor.submit(abs, -1).result() == 1  # it is left open
    with (
        ProcessPoolExecutor(1, mp_context=context) as executor,
        pytest.raises(RuntimeError, match=r"broke after 0 of 1 runs; .* a new executor resumes"),
    ):
        run_sweep(parts_grid("kill worker"), out, executor=executor, progress=False)


def test_two_sweeps_in_one_folder(out):
    grid = parts_grid("hang")
    first = threading.Thread(target=lambda: run_sweep(grid, out, progress=False, timeout=3))
    first.start()
    wait_for(lambda: (out / "starts.txt").exists())
    with pytest.raises(ValueError, match=r"another sweep is running into .*; wait for it, or give another"):
        run_sweep(grid, out, progress=False)
    first.join()
    assert starts(out) == {"hang": 1}


def test_records_are_json_with_what_a_reader_asks(out):
    sweep = run_sweep(parts_grid("a", "raise"), out, progress=False)
    for record in sweep.records.values():
        assert json.loads(record_file(out, record["id"]).read_text()) == record
        assert record["settings"]["model"] == "owner/model"
        assert {"status", "seconds", "peak_mb", "error", "attempts", "host", "version"} <= set(record)


def test_checkpoints_with_the_same_weights_are_told(out, capsys):
    sweep = run_sweep(parts_grid("a", "b"), out, progress=False)
    assert sweep.same_weights == []
    for record in sweep.records.values():
        record["facts"]["weights"] = "c0ffee"
    assert sweep.same_weights == [["owner/model@a", "owner/model@b"]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"executor": "threads"}, "executor is 'threads', expected one of processes, dask"),
        ({"scheduler": "tcp://x:1"}, "scheduler='tcp://x:1' belongs to executor 'dask'"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"timeout": 0}, "timeout must be above 0 seconds, got 0"),
    ],
)
def test_wrong_options(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        run_sweep(parts_grid("a"), tmp_path, **options)


def test_the_command_says_by_its_status_how_it_went(out, tmp_path, capsys):
    grid = {"model": "owner/model", "revision": ["a", "raise"], "corpus": "moby-dick"}
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(grid | {"n_sequences": 1, "length": 8}))
    command = ["sweep", str(file), "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert not (out / "starts.txt").exists()
    assert main(command) == 1
    assert "1 failed:\n  owner/model@raise moby-dick 1x8" in capsys.readouterr().out
    file.write_text(yaml.safe_dump(grid | {"n_sequences": 1, "length": 8, "revision": "a"}))
    assert main(command) == 0
    assert starts(out) == {"a": 1, "raise": 1}
    file.write_text("model: []")
    assert main(command) == 2
    assert "'model' is missing or empty" in capsys.readouterr().err
    assert main(["sweep"]) == 0
    assert "pythia-6.9b-checkpoints" in capsys.readouterr().out
