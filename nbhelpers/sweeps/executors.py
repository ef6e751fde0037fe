"""The executors a sweep runs on: spawned processes, or a Dask cluster (optional extra ``cluster``)."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

EXECUTORS = ("processes", "dask")
CONNECT_SECONDS = 15  # for a scheduler that was given to answer


@contextlib.contextmanager
def open_executor(kind: str, *, workers: int, scheduler: str | None = None) -> Iterator[Executor]:
    """Yield an executor of a kind and close it after the block, waiting for what still runs.

    Parameters
    ----------
    kind : {"processes", "dask"}
        Spawned processes of this machine, or Dask.
    workers : int
        Runs at a time; of a scheduler that was given, its own number of workers counts.
    scheduler : str, optional
        Address of a Dask scheduler; a LocalCluster of this machine if None.

    Raises
    ------
    ModuleNotFoundError
        Dask is not installed; the message holds the pip command.
    ConnectionError
        No scheduler answers at the address.
    """
    if kind == "processes":
        # Spawned, because a fork of a process that holds torch's threads, or a GPU, does not work.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_sweep)
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return
    with _dask_client(workers, scheduler) as client:
        yield client.get_executor(pure=False)  # a run is never taken for another that looks the same


def _leave_interrupts_to_the_sweep():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the workers as well


def dask_setup(worker):
    """Prepare a worker of a LocalCluster, which finds this function in its preloaded module by its name."""
    _leave_interrupts_to_the_sweep()


@contextlib.contextmanager
def _dask_client(workers, scheduler):
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "executor 'dask' needs Dask, which is not installed; install it with\n"
            "    pip install 'nbhelpers[cluster]'"
        ) from error
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            # One run at a time in a worker; the dashboard takes any free port, of this machine only.
            options = {
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
                "silence_logs": "CRITICAL",
            }
            options["preload"] = [__name__]
            scheduler = stack.enter_context(LocalCluster(n_workers=workers, **options))
        try:
            client = stack.enter_context(Client(scheduler, set_as_default=False, timeout=CONNECT_SECONDS))
        except OSError as error:
            raise ConnectionError(
                f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`, or "
                "leave --scheduler out for a cluster on this machine"
            ) from error
        yield client


def threads_per_run(workers: int) -> int:
    """Return how many threads a run may use: $OMP_NUM_THREADS, else the cores shared between the workers."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() else max(1, (os.cpu_count() or 1) // workers)
