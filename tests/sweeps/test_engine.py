import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from unittest.mock import Mock

import pandas as pd
import pytest
import yaml
from tiny_sweeps import parts_grid, run_processes, starts

from nbhelpers.__main__ import main
from nbhelpers.sweeps import engine
from nbhelpers.sweeps.engine import run_sweep
from nbhelpers.sweeps.grid import make_grid, run_file
from nbhelpers.sweeps.rows import load_sweep


def test_what_fails_is_listed_and_the_rest_is_done(out, capsys):
    grid = parts_grid("a", "raise", "hang", "b", "die", "leave", "c")
    sweep = run_sweep(grid, out, workers=2, timeout=5)
    failed = {run.revision: sweep.failed[run.id] for run in grid.runs if run.id in sweep.failed}
    assert failed == {
        "raise": "ValueError: no such thing",
        "hang": "still running after 5 s (timeout); its process was killed",
        "die": "its process was killed by signal 9, which often means that memory ran out",
        "leave": "its process ended with status 7; see log.txt",
    }
    assert sweep.table.revision.tolist() == ["a", "b", "c"]
    assert pd.read_parquet(out / "sweep.parquet").equals(sweep.table)
    assert starts(out) == dict.fromkeys(("a", "raise", "hang", "b", "die", "leave", "c"), 1)
    told = capsys.readouterr().out
    assert told.count("\n[") == 7
    hung = f"owner/model@hang moby-dick 1x8 (failed/{grid.runs[2].id}.txt)\n    still running"
    for part in ("done in 1 s, peak 700 MB", hung, "3 of 7 runs are finished"):
        assert part in told
    assert run_processes(out) == []


def test_the_runs_of_a_checkpoint_have_a_time_limit_each_and_another_process_after_one_that_dies(out):
    raw = {"model": "owner/model", "revision": ["leave", "slow"], "corpus": "moby-dick", "n_sequences": 1}
    grid = make_grid(raw | {"length": [8, 9, 10, 11, 12, 13]})
    sweep = run_sweep(grid, out, workers=2, timeout=5, progress=False)  # all that are slow take six seconds
    assert sweep.n_done == 6
    assert set(sweep.failed.values()) == {"its process ended with status 7; see log.txt"}
    assert starts(out) == {"leave": 6, "slow": 6}


def test_a_checkpoint_is_divided_where_workers_would_be_idle():
    raw = {"model": "owner/a", "corpus": ["moby-dick"], "n_sequences": 1, "length": [8, 9, 10]}
    grid = make_grid(raw | {"protocol": [{}, {"window": "boxcar"}]})
    short, middle, long = ([run.id for run in grid.runs if run.length == length] for length in (8, 9, 10))
    assert engine._tasks(grid.runs, 1) == [[*short, *middle, *long]]
    assert engine._tasks(grid.runs, 2) == [[*short, *long], middle], "protocols share what was captured"
    assert engine._tasks(grid.runs, 9) == [short, middle, long]
    two = make_grid(raw | {"model": ["owner/a", "owner/b"]})
    assert [len(task) for task in engine._tasks(two.runs, 2)] == [3, 3]


def test_resuming_does_what_is_not_done_and_nothing_else(out):
    grid = parts_grid("a", "raise", "b", "c")
    run_sweep(grid, out, progress=False)
    files = {run.revision: run_file(out, run.id) for run in grid.runs}
    files["b"].write_bytes(files["b"].read_bytes()[:-5])  # cut short
    files["c"].unlink()
    (out / "runs" / ".x.parquet.1.partial").touch()  # of a killed process
    before = files["a"].stat().st_mtime_ns
    sweep = run_sweep(grid, out, progress=False)
    assert starts(out) == {"a": 1, "raise": 2, "b": 2, "c": 2}
    assert files["a"].stat().st_mtime_ns == before
    assert (sweep.n_done, len(sweep.failed)) == (3, 1)
    assert list(out.rglob("*.partial")) == []
    run_sweep(grid, out, progress=False, fresh=True)
    assert starts(out) == {"a": 2, "raise": 3, "b": 3, "c": 3}


def test_a_full_disk_and_a_sweep_that_runs_into_the_folder_stop_the_sweep(out):
    with engine._lease(out), pytest.raises(ValueError, match="another sweep"):
        run_sweep(parts_grid("a"), out, progress=False)
    assert not (out / "starts.txt").exists()
    with pytest.raises(OSError, match="no space is left"):
        run_sweep(parts_grid("a", "slow b", "full disk"), out, workers=2, progress=False)
    assert load_sweep(out).failed == {}, "what found no space may find it later"


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_never_raised_inside_an_executor(out, interruptible, number):
    class Locked(Executor):
        lock, futures = threading.Lock(), []

        def submit(self, *_, **__):
            with self.lock:
                os.kill(os.getpid(), number)
                self.futures.append(Future())
                return self.futures[-1]

    executor = Locked()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(parts_grid("a", "b"), out, executor=executor, progress=False)
    assert not executor.lock.locked()
    assert [future.cancelled() for future in executor.futures] == [True, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_executor_of_ones_own(out):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        sweep = run_sweep(parts_grid("a", "raise", "b"), out, executor=executor, progress=False)
        assert list(sweep.failed.values()) == ["ValueError: no such thing"]
        assert executor.submit(abs, -1).result() == 1, "it is left open"
        executor.submit(os._exit, 1)
        with pytest.raises(ConnectionError, match="went away"):
            run_sweep(parts_grid("slow c"), out, executor=executor, progress=False)


def test_a_task_that_the_executor_gives_up_is_listed(out):
    future = Future()
    future.set_exception(RuntimeError("workers died while it ran"))
    executor = Mock(spec=Executor, submit=Mock(return_value=future))
    sweep = run_sweep(parts_grid("a"), out, executor=executor, progress=False)
    (why,) = sweep.failed.values()
    assert "workers died while it ran" in why


def test_options_that_cannot_work_are_refused(out, monkeypatch):
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 0.3)
    with pytest.raises(ConnectionError, match="no Dask scheduler"):
        run_sweep(parts_grid("a"), out, progress=False, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="not both"):
        run_sweep(parts_grid("a"), out, executor=ThreadPoolExecutor(1), scheduler="tcp://x:1")
    assert not (out / "starts.txt").exists()


def test_the_command_says_by_its_status_how_it_went(out, tmp_path, capsys):
    grid = {"model": "owner/model", "corpus": "moby-dick", "n_sequences": 1, "length": 8}
    file = tmp_path / "two.yaml"
    for revision, status in ((["a", "raise"], 1), ("a", 0), ([], 2)):
        file.write_text(yaml.safe_dump(grid | {"revision": revision}))
        assert main(["sweep", str(file), "--out", str(out)]) == status
    assert starts(out) == {"a": 1, "raise": 1}
    assert "empty list" in capsys.readouterr().err
    assert main(["sweep"]) == 0
    assert "pythia-6.9b-checkpoints" in capsys.readouterr().out


def test_workers_share_the_threads_of_this_machine_unless_the_user_says_otherwise(out, monkeypatch):
    stand_in = out.parent / "sitecustomize.py"
    play = "    for run_id in sys.orig_argv[4:]:"
    show = f"    print(os.environ['OMP_NUM_THREADS'], flush=True)\n{play}"
    stand_in.write_text(stand_in.read_text().replace(play, show))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    run_sweep(parts_grid("a"), out, workers=2, progress=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_sweep(parts_grid("b"), out, progress=False)
    assert (out / "log.txt").read_text().splitlines() == ["4", "3"]


def test_commands_start_without_what_takes_seconds_to_import():
    known = "print({'torch', 'matplotlib', 'scipy.stats', 'rfc3987_syntax'} & set(sys.modules))"
    imported = f"import sys, nbhelpers.sweeps.engine, nbhelpers.collection.run; {known}"
    done = subprocess.run([sys.executable, "-c", imported], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
