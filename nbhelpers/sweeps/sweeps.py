"""Run a grid on an executor: what is done stays, what fails is listed, the next call resumes.

A sweep leaves in its folder the grid and, for each run, a record, a table and a summary (see
`nbhelpers.sweeps.sweep_records`), the logs of the workers, and at the end ``sweep.parquet`` and the paper's
tables beside it.
"""

import contextlib
import os
import queue
import signal
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from nbhelpers.sweeps.executors import EXECUTORS, open_executor, threads_per_run
from nbhelpers.sweeps.grids import Grid, Run, load_grid
from nbhelpers.sweeps.sweep_log import SweepLog
from nbhelpers.sweeps.sweep_records import (
    is_whole,
    new_record,
    read_record,
    remove_leftovers,
    write_plan,
    write_record,
)
from nbhelpers.sweeps.sweep_tables import write_tables
from nbhelpers.sweeps.sweep_worker import run_in_worker

BREAKS_WITHOUT_A_RUN = 3  # a pool that dies this often before any run begins will not come up


@dataclass(frozen=True)
class Sweep:
    """What a sweep did.

    Attributes
    ----------
    grid : Grid
    records : dict of str to dict
        The record of each run, by its id: ``status`` done, failed or interrupted, ``seconds``, ``peak_mb``,
        ``error``, ``attempts``.
    kept : int
        How many of them were done before.
    tables : dict of str to DataFrame
        ``sweep``, and ``paper_table_N`` for each table of the paper that the grid names.
    """

    grid: Grid
    records: dict[str, dict[str, Any]]
    kept: int
    tables: dict[str, pd.DataFrame]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records of the runs that are not done."""
        return [record for record in self.records.values() if record["status"] != "done"]

    @property
    def same_weights(self) -> list[list[str]]:
        """Groups of checkpoints ("model@revision") that held the same weights under different names.

        Branches of a repository sometimes do: a training curve would show a plateau that is none.
        """
        names = {}
        for run in self.grid.runs:
            weights = self.records.get(run.id, {}).get("facts", {}).get("weights")
            if weights is not None:
                name = f"{run.model}@{run.revision}" if run.revision else run.model
                names.setdefault(weights, {})[name] = None
        return [list(group) for group in names.values() if len(group) > 1]


def run_sweep(
    grid: Grid | str | Path,
    out: str | Path,
    *,
    executor: str | Executor = "processes",
    scheduler: str | None = None,
    workers: int = 1,
    timeout: float | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> Sweep:
    """Do every run of a grid that is not done yet, and write the tables.

    Parameters
    ----------
    grid : Grid, path or str
        A grid, its YAML file, or the name of a shipped one.
    out : path
        The sweep's folder; created. All workers must see it under this path.
    executor : {"processes", "dask"} or concurrent.futures.Executor
        Where the runs go. An executor that is given is not closed, and a broken one is not replaced.
    scheduler : str, optional
        Address of a Dask scheduler; with "dask" alone, a LocalCluster of this machine is started.
    workers : int
        Runs at a time. The threads of torch are shared between them.
    timeout : float, optional
        Seconds that one run may take, loading its model included; its process is killed after that.
    fresh : bool
        Do all runs again, also those that are done.
    progress : bool
        Print a line for each run.

    Returns
    -------
    Sweep

    Raises
    ------
    ValueError, FileNotFoundError
        Before anything runs: a wrong grid, executor, number of workers or timeout, or another sweep that is
        running into the same folder.
    ConnectionError, ModuleNotFoundError
        No such scheduler, or no Dask.
    RuntimeError
        The pool of processes breaks again and again before any run begins, or an executor that was given
        breaks.
    KeyboardInterrupt
        On Ctrl-C, after the runs in progress are ended. What is done is kept.
    """
    _check(executor, scheduler, workers, timeout)
    grid = grid if isinstance(grid, Grid) else load_grid(grid)
    out = Path(out).resolve()
    with _lease(out) as lease:
        remove_leftovers(out)
        write_plan(out, asdict(grid))
        todo = [run for run in grid.runs if fresh or not is_whole(out, run.id)]
        log = SweepLog(grid, todo, out, workers=workers, enabled=progress)
        log.start()
        # Workers elsewhere have other cores than this machine: there $OMP_NUM_THREADS of the worker decides.
        elsewhere = isinstance(executor, Executor) or scheduler is not None
        threads = None if elsewhere else threads_per_run(workers)
        tasks = [_task(run, grid, out, lease, timeout, threads) for run in todo]
        try:
            if isinstance(executor, Executor):
                _run_on_given(tasks, executor, log, lease)
            else:
                options = {"workers": workers, "scheduler": scheduler}
                _run_all(tasks, executor, options, log, out, lease)
        except KeyboardInterrupt:
            log.interrupted(_records(grid, out))
            raise
        tables = write_tables(grid, out)
        sweep = Sweep(grid, _records(grid, out), len(grid.runs) - len(todo), tables)
        log.summary(sweep)
    return sweep


def _check(executor, scheduler, workers, timeout):
    if not isinstance(executor, Executor) and executor not in EXECUTORS:
        raise ValueError(f"executor is {executor!r}, expected one of {', '.join(EXECUTORS)}")
    if scheduler is not None and executor != "dask":
        raise ValueError(f"scheduler={scheduler!r} belongs to executor 'dask'; executor is {executor!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}")


@contextlib.contextmanager
def _lease(out: Path) -> Iterator[Path]:
    """Yield a file that exists as long as the sweep goes on, in a folder that no other sweep runs into."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another sweep is running into {out}; wait for it, or give another folder"
        ) from error
    lease = out / f".lease-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        for earlier in out.glob(".lease-*"):  # of a sweep that was killed: its workers see it go, and leave
            earlier.unlink()
        lease.touch()
        yield lease
    finally:
        lease.unlink(missing_ok=True)
        lock.release()


def _task(
    run: Run, grid: Grid, out: Path, lease: Path, timeout: float | None, threads: int | None
) -> dict[str, Any]:
    shared = Counter(other.observation_key for other in grid.runs)
    words = {"run": asdict(run), "id": run.id, "label": run.label, "settings": run.settings}
    places = {"out": str(out), "lease": str(lease), "model_key": run.model_key}
    # Profiles are large, so they are kept only where another run of the grid will read them.
    cache = str(out / "profiles") if shared[run.observation_key] > 1 else None
    return words | places | {"cache": cache, "timeout": timeout, "threads": threads}


def _run_on_given(tasks, executor, log, lease):
    ended, broken = _submit(tasks, executor, log, lease)
    if broken:
        raise RuntimeError(
            f"the executor broke after {len(ended)} of {len(tasks)} runs; what is done is kept, and the same "
            "call with a new executor resumes"
        )


def _run_all(tasks, kind, options, log, out, lease):
    """Submit all tasks; when the pool breaks, open another for those that have not ended.

    What was running when the pool broke goes on alone, so that a run that brings its worker down is told
    from those that were beside it.
    """
    waiting, alone, idle_breaks = list(tasks), [], 0
    while waiting or alone:
        batch, workers = (alone, 1) if alone else (waiting, options["workers"])
        with open_executor(kind, **options | {"workers": workers}) as executor:
            ended, broken = _submit(batch, executor, log, lease)
        waiting = [task for task in waiting if task["id"] not in ended]
        alone = [task for task in alone if task["id"] not in ended]
        if broken:
            alone = [task for task in waiting if _was_running(task, out)]
            idle_breaks = 0 if alone or ended else idle_breaks + 1
            log.broken(len(waiting))
        if idle_breaks >= BREAKS_WITHOUT_A_RUN:
            raise RuntimeError(
                f"the pool of processes broke {idle_breaks} times before any run began; what the "
                "workers printed says why"
            )


def _was_running(task, out):
    record = read_record(out, task["id"])
    return record.get("status") == "running" and record.get("lease") == task["lease"]


def _submit(tasks, executor, log, lease):
    """Submit tasks and follow them to their end; return the ids that ended, and whether the pool broke."""
    futures, ended, broken = {}, set(), False
    arrived = queue.SimpleQueue()
    with _ctrl_c_arrives_in(arrived):
        for task in tasks:
            try:
                future = executor.submit(run_in_worker, task)
            except BrokenExecutor:  # those that were submitted are told so one by one, below
                broken = True
                break
            futures[future] = task
            future.add_done_callback(arrived.put)
        for _ in range(len(futures)):
            future = arrived.get()
            if future is None:
                lease.unlink(missing_ok=True)  # the workers see it, end their children and come back
                for waiting in futures:
                    waiting.cancel()
                raise KeyboardInterrupt
            try:
                record = future.result()
            except BrokenExecutor:  # every future that was left gets this, and is gone through here
                broken = True
                continue
            except Exception as error:  # of the executor: run_in_worker returns what a run raises
                record = _lost(futures[future], error)
            ended.add(futures[future]["id"])
            log.done(record)
    return ended, broken


@contextlib.contextmanager
def _ctrl_c_arrives_in(arrived: queue.SimpleQueue) -> Iterator[None]:
    """Put None into a queue on Ctrl-C, where a KeyboardInterrupt could be raised between any two steps.

    One that is raised while this thread holds a lock of an executor or a future leaves the lock held: the
    executor then waits for it for ever, and the sweep with it.
    """
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():  # no Ctrl-C comes here
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: arrived.put(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _lost(task, error):
    """Record a run that the executor gave up."""
    told = f"the executor gave it up: {type(error).__name__}: {error}"
    record = new_record(task) | {"status": "failed", "error": told, "attempts": 0}
    write_record(Path(task["out"]), record)
    return record


def _records(grid: Grid, out: Path) -> dict[str, dict[str, Any]]:
    records = {run.id: read_record(out, run.id) for run in grid.runs}
    return {run_id: record for run_id, record in records.items() if record}
