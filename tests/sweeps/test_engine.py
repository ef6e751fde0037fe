"""The engine with processes whose runs are played: what fails, what resumes, what is refused."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import yaml
from tiny_sweeps import parts_grid, run_processes, starts, wait_for

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
    assert starts(out) == dict.fromkeys(("a", "raise", "hang", "b", "die", "leave", "c"), 1)
    told = capsys.readouterr().out
    assert told.count("\n[") == 7
    assert "[7/7]" in told
    assert "done in 1 s, peak 700 MB" in told
    assert "4 failed:" in told
    assert f"owner/model@hang moby-dick 1x8 (failed/{grid.runs[2].id}.txt)\n    still running" in told
    assert "3 of 7 runs are finished" in told
    assert run_processes(out) == []


def test_another_process_takes_what_a_dead_one_leaves(out):
    raw = {"model": "owner/model", "revision": ["a", "leave"], "corpus": "moby-dick", "n_sequences": 1}
    sweep = run_sweep(make_grid(raw | {"length": [8, 9, 10]}), out, progress=False)
    assert sweep.n_done == 3
    assert set(sweep.failed.values()) == {"its process ended with status 7; see log.txt"}
    assert starts(out) == {"a": 3, "leave": 3}


def test_the_timeout_is_for_one_run_not_for_a_process(out):
    raw = {"model": "owner/model", "revision": "slow", "corpus": "moby-dick", "n_sequences": 1}
    sweep = run_sweep(make_grid(raw | {"length": [8, 9, 10, 11, 12, 13]}), out, timeout=5, progress=False)
    assert sweep.failed == {}


def test_a_checkpoint_is_divided_where_workers_would_be_idle():
    raw = {"model": "owner/a", "corpus": ["moby-dick"], "n_sequences": 1, "length": [8, 9, 10]}
    grid = make_grid(raw | {"protocol": [{}, {"window": "boxcar"}]})
    short, middle, long = ([run.id for run in grid.runs if run.length == length] for length in (8, 9, 10))
    assert engine._tasks(grid.runs, 1) == [[*short, *middle, *long]]
    assert engine._tasks(grid.runs, 2) == [[*short, *long], middle], "protocols share what was captured"
    assert engine._tasks(grid.runs, 9) == [short, middle, long]
    two = make_grid(raw | {"model": ["owner/a", "owner/b"]})
    assert [len(task) for task in engine._tasks(two.runs, 2)] == [3, 3]


def test_resuming_does_what_is_not_done_and_nothing_else(out, capsys):
    grid = parts_grid("a", "raise", "b", "c")
    run_sweep(grid, out, progress=False)
    files = {run.revision: run_file(out, run.id) for run in grid.runs}
    files["b"].write_bytes(files["b"].read_bytes()[:-5])  # cut short
    files["c"].unlink()
    (out / "runs" / ".x.parquet.1.partial").touch()  # of a killed process
    before = files["a"].stat().st_mtime_ns
    sweep = run_sweep(grid, out)
    assert starts(out) == {"a": 1, "raise": 2, "b": 2, "c": 2}
    assert files["a"].stat().st_mtime_ns == before
    assert (sweep.n_done, len(sweep.failed)) == (3, 1)
    assert "4 runs, 1 kept from before" in capsys.readouterr().out
    assert list(out.rglob("*.partial")) == []
    run_sweep(grid, out, progress=False, fresh=True)
    assert starts(out) == {"a": 2, "raise": 3, "b": 3, "c": 3}


def test_a_full_disk_stops_the_sweep(out):
    with pytest.raises(OSError, match=r"no space is left for .*; make room, and the same command resumes"):
        run_sweep(parts_grid("a", "full disk"), out, progress=False)
    assert load_sweep(out).failed == {}, "what found no space may find it later"


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_never_raised_inside_an_executor(out, interruptible):
    """Raised where a lock is held, it would leave the lock held and the executor waiting for ever."""

    class Locked(Executor):
        def __init__(self):
            self.lock = threading.Lock()
            self.futures = []

        def submit(self, *_, **__):
            with self.lock:
                os.kill(os.getpid(), signal.SIGINT)
                self.futures.append(Future())
                return self.futures[-1]

    executor = Locked()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(parts_grid("a", "b"), out, executor=executor, progress=False)
    assert not executor.lock.locked()
    assert [future.cancelled() for future in executor.futures] == [True, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list(out.glob(".running-*")) == []


def test_an_executor_of_ones_own(out):
    """As `Client(cluster).get_executor(pure=False)` of any Dask cluster."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        sweep = run_sweep(parts_grid("a", "raise", "b"), out, executor=executor, progress=False)
        assert list(sweep.failed.values()) == ["ValueError: no such thing"]
        assert executor.submit(abs, -1).result() == 1, "it is left open"
        executor.submit(os._exit, 1)
        with pytest.raises(ConnectionError, match=r"the executor went away .*; what is done is kept"):
            run_sweep(parts_grid("slow c"), out, executor=executor, progress=False)


def test_a_task_that_the_executor_gives_up_is_listed(out):
    class GivesUp(Executor):
        def submit(self, *_, **__):
            future = Future()
            future.set_exception(RuntimeError("workers died while it ran"))
            return future

    sweep = run_sweep(parts_grid("a"), out, executor=GivesUp(), progress=False)
    assert list(sweep.failed.values()) == ["the executor gave it up: RuntimeError: workers died while it ran"]


def test_two_sweeps_in_one_folder(out):
    grid = parts_grid("hang")
    first = threading.Thread(target=lambda: run_sweep(grid, out, progress=False, timeout=3))
    first.start()
    wait_for(lambda: (out / "starts.txt").exists())
    with pytest.raises(ValueError, match=r"another sweep is running into .*; wait for it, or give another"):
        run_sweep(grid, out, progress=False)
    first.join()
    assert starts(out) == {"hang": 1}


def test_wrong_options(tmp_path):
    for options in ({"workers": 0}, {"timeout": 0}):
        with pytest.raises(ValueError, match=r"workers=\d and timeout=\w+ must be above 0"):
            run_sweep(parts_grid("a"), tmp_path, **options)
    with pytest.raises(ValueError, match="not both"):
        run_sweep(parts_grid("a"), tmp_path, executor=ThreadPoolExecutor(1), scheduler="tcp://x:1")


def test_no_scheduler_is_told_in_a_line(out, monkeypatch):
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 0.3)
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 "):
        run_sweep(parts_grid("a"), out, scheduler="tcp://127.0.0.1:9", progress=False)
    assert not (out / "starts.txt").exists()


def test_the_command_says_by_its_status_how_it_went(out, tmp_path, capsys):
    grid = {"model": "owner/model", "revision": ["a", "raise"], "corpus": "moby-dick"}
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(grid | {"n_sequences": 1, "length": 8}))
    command = ["sweep", str(file), "--out", str(out)]
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


def test_workers_share_the_threads_of_this_machine_unless_the_user_says_otherwise(out, monkeypatch):
    stand_in = out.parent / "sitecustomize.py"
    show = "import os, sys\nif 'nbhelpers.sweeps.run' in getattr(sys, 'orig_argv', ()):\n    "
    show += "print(os.environ['OMP_NUM_THREADS'], flush=True)\n"
    stand_in.write_text(show + stand_in.read_text())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    run_sweep(parts_grid("a"), out, workers=2, progress=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_sweep(parts_grid("b"), out, progress=False)
    assert (out / "log.txt").read_text().splitlines() == ["4", "3"]


def test_the_command_starts_without_torch():
    imported = "import sys, nbhelpers.sweeps.engine; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", imported], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
