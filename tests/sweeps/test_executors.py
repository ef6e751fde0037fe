"""Where runs go: what an executor needs, and what is said when it is not there."""

import os
import sys

import pytest
from tiny_sweeps import parts_grid, starts

from nbhelpers.__main__ import main
from nbhelpers.sweeps import executors
from nbhelpers.sweeps.executors import open_executor, threads_per_run
from nbhelpers.sweeps.sweeps import run_sweep


def test_processes_are_other_processes():
    with open_executor("processes", workers=2) as executor:
        pids = {executor.submit(os.getpid).result() for _ in range(4)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_dask_that_is_not_installed_is_one_line_and_status_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["sweep", "zoo", "--out", str(tmp_path), "--executor", "dask"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'nbhelpers[cluster]'" in told
    assert told.count("\n") == 1


@pytest.fixture
def scheduler():
    """The address of a Dask scheduler with one worker, both threads of this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


def test_the_address_of_a_scheduler(scheduler, out):
    """Two runs at a time in one worker: each has a process of its own."""
    grid = parts_grid("slow a", "slow b", "raise", "c")
    sweep = run_sweep(grid, out, executor="dask", scheduler=scheduler, progress=False)
    assert starts(out) == {"slow a": 1, "slow b": 1, "raise": 1, "c": 1}
    assert [record["error"].splitlines()[0] for record in sweep.failed] == ["ValueError: no such thing"]


def test_a_scheduler_that_does_not_answer(monkeypatch, out):
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 1)
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_sweep(parts_grid("a"), out, executor="dask", scheduler="tcp://127.0.0.1:9", progress=False)


def test_threads_are_shared_between_workers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_run(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads_per_run(n) for n in (1, 3, 16)] == [8, 2, 1]
