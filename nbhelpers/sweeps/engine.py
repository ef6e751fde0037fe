"""Do the runs of a grid that are not done: a process for each checkpoint, started here or by a Dask worker.

What is done is a file (see `nbhelpers.sweeps.run`), so the same call resumes. This module imports neither
torch nor a model: what waits for a process stays small beside it.
"""

import contextlib
import functools
import itertools
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock, Timeout

from nbhelpers.arguments import checked
from nbhelpers.files import UnwritableError, writable_folder, write_parquet, write_text
from nbhelpers.sweeps import grid as grids
from nbhelpers.sweeps.rows import load_sweep
from nbhelpers.words import duration, memory

POLL_SECONDS = 0.5
CONNECT_SECONDS = 15  # for a scheduler to answer
NO_SPACE = 74  # the exit status EX_IOERR of a process that found the disk full
ENVIRONMENT = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}


@checked
def run_sweep(
    grid, out, *, executor=None, scheduler=None, workers=1, timeout=None, fresh=False, progress=True
):
    """Do every run of a grid that is not done yet, write ``sweep.parquet``, and return what is there.

    `grid` is a Grid, its YAML file or the name of a shipped one; `out` is the sweep's folder, which all
    workers must see under this path. Processes are started on this machine, `workers` at a time; by the
    workers of the Dask scheduler at the address `scheduler`; or in an executor of one's own, which is left
    open, such as ``Client(cluster).get_executor(pure=False)``. A process that needs more than `timeout`
    seconds for a run, its start included, is killed. `fresh` does all runs again.

    `ConnectionError` says that the scheduler or the executor went away, `OSError` that the disk is full,
    `KeyboardInterrupt` comes after Ctrl-C or SIGTERM. What is done is kept, and the same call resumes.
    """
    if executor is not None and scheduler is not None:
        raise ValueError(f"give an executor or a scheduler, not both (scheduler={scheduler!r})")
    grid = grid if isinstance(grid, grids.Grid) else grids.load_grid(grid)
    out = Path(out).resolve()
    say = functools.partial(print, flush=True) if progress else lambda *_: None
    with _ctrl_c_sets() as interrupted, _lease(out) as lease:
        todo = _prepare(grid, out, fresh)
        kept = f"{len(grid.runs)} runs, {len(grid.runs) - len(todo)} kept from before"
        say(f"sweep {grid.name}: {kept}; {workers} at a time; {out}")
        here = executor is None and scheduler is None  # elsewhere the worker's own $OMP_NUM_THREADS decides
        threads = max(1, (os.cpu_count() or 1) // workers) if here else None
        with _opened(executor, scheduler, workers) as pool:
            submit = functools.partial(pool.submit, do_runs, str(out), str(lease), timeout, threads)
            _follow(submit, _tasks(todo, workers), todo, out, lease, interrupted, say)
        sweep = load_sweep(out, allow_empty=True)
        write_parquet(sweep.table, out / "sweep.parquet")
        if interrupted.is_set():
            say(f"interrupted; {sweep.status()} and kept in {out}. The same command resumes there.")
            raise KeyboardInterrupt
        say(sweep.report())
    return sweep


def _prepare(grid, out, fresh):
    """Write the plan, delete what is not to be kept, and return the runs that are not done."""
    for left in out.glob("*/.*.partial"):  # of a process that was killed
        left.unlink(missing_ok=True)
    grids.write_plan(out, grid)
    shutil.rmtree(out / "failed", ignore_errors=True)
    todo = [run for run in grid.runs if fresh or grids.read_run(out, run) is None]
    for run in todo:  # a file that is there is cut short, or is to be measured again
        grids.run_file(out, run.id).unlink(missing_ok=True)
    return todo


@contextlib.contextmanager
def _ctrl_c_sets():
    """Yield an event that Ctrl-C or SIGTERM sets: raised while an executor holds a lock, it would hang."""
    event, before = threading.Event(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored, as in a shell's background
                before[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _lease(out):
    """Yield a file that exists as long as the sweep goes on, in a folder that no other sweep runs into."""
    out = writable_folder(out)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another sweep is running into {out}; wait, or give another folder") from error
    lease = out / f".running-{os.getpid()}-{time.time_ns()}"
    try:
        for left in out.glob(".running-*"):  # of a command that was killed: workers elsewhere see it go
            left.unlink(missing_ok=True)
        lease.touch()
        yield lease
    finally:
        lease.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _opened(executor, scheduler, workers):
    """Yield the executor on which a task starts a process and waits for it."""
    if scheduler is None:
        with ThreadPoolExecutor(workers) if executor is None else contextlib.nullcontext(executor) as pool:
            yield pool
        return
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a scheduler needs Dask: pip install 'nbhelpers[cluster]'") from error
    for name in ("distributed.client", "asyncio", "tornado.application"):  # one line of ours says it
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(scheduler, set_as_default=False, timeout=CONNECT_SECONDS)
    except OSError as error:
        hint = "start one with `dask scheduler`, or leave --scheduler out to run on this machine"
        raise ConnectionError(f"no Dask scheduler answers at {scheduler} ({error}); {hint}") from error
    with client:
        yield client.get_executor(pure=False)  # a task is never taken for another that looks the same


def _tasks(todo, workers):
    """Return lists of ids, each for one process: a checkpoint's runs, divided where workers would be idle."""
    checkpoints, tasks = defaultdict(lambda: defaultdict(list)), []
    for run in todo:
        checkpoints[run.weights_key][run.observation_key].append(run.id)
    for observations in checkpoints.values():  # of which one run captures what its others read
        n_parts = min(math.ceil(workers / len(checkpoints)), len(observations))
        parts = (list(observations.values())[part::n_parts] for part in range(n_parts))
        tasks += [[*itertools.chain.from_iterable(part)] for part in parts]
    return tasks


def _follow(submit, tasks, todo, out, lease, interrupted, say):
    """Submit tasks and follow them to their end or to Ctrl-C; tell each run as it is settled."""
    left, started, futures = {run.id: run for run in todo}, time.monotonic(), {}
    n_tokens = sum(run.n_tokens for run in todo)
    try:
        for ids in tasks:
            futures[submit(ids)] = ids
        while futures and not interrupted.is_set():
            for future in wait(futures, POLL_SECONDS, FIRST_COMPLETED).done:
                _settle(future, futures.pop(future), out)
            waiting = grids.unsettled(out, left)
            for run in [run for run in left.values() if run.id not in waiting]:
                del left[run.id]
                n_left = sum(other.n_tokens for other in left.values())
                seconds = (time.monotonic() - started) * n_left / (n_tokens - n_left)
                until = f"  (about {duration(seconds)} left)" if left else ""
                if (why := grids.read_failure(out, run)) is None:
                    took = grids.read_run(out, run)["sweep"]
                    told = f"done in {duration(took['seconds'])}, peak {memory(took['peak_mb'])}"
                else:
                    told = f"failed: {why}"
                say(f"[{len(todo) - len(left)}/{len(todo)}] {run.label}: {told}{until}")
    except (CancelledError, BrokenExecutor) as error:
        gone = f"the executor went away ({type(error).__name__}); what is done is kept in {out}"
        raise ConnectionError(f"{gone}, and the same command resumes") from None
    finally:  # the tasks that run see the lease go, and end their processes
        lease.unlink(missing_ok=True)
        for future in futures:
            future.cancel()


def _settle(future, ids, out):
    """Say of the runs of a task that was given up why they failed; raise where no further run can be done."""
    try:
        future.result()
    except (CancelledError, BrokenExecutor, OSError):
        raise
    except Exception as error:  # such as Dask's of a task whose workers were killed again and again
        for run_id in grids.unsettled(out, ids):
            why = f"the executor gave it up: {type(error).__name__}: {error}"
            write_text(grids.failure_file(out, run_id), why)


def do_runs(out, lease, timeout, threads, ids):
    """Do runs of one checkpoint in a process, and in another one after a run that hangs or brings it down."""
    while (left := grids.unsettled(out, ids)) and Path(lease).exists():
        code, why = _run_process(out, left, lease, timeout, threads)
        if code == NO_SPACE:
            raise UnwritableError(f"no space is left for {out}; make room, and the same command resumes")
        if (left := grids.unsettled(out, left)) and Path(lease).exists():
            write_text(grids.failure_file(out, left[0]), why)


def _run_process(out, ids, lease, timeout, threads):
    """Run a process until it ends, a run takes too long or the lease is gone; return its status and why."""
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with open(Path(out, "log.txt"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nbhelpers.sweeps.run", out, *ids],
            env=ENVIRONMENT | environment | os.environ,
            stdin=subprocess.PIPE,  # it ends when this end is closed, by us or by our death
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the sweep, and what the process starts is ended with it
        )
    why, n_left, since = None, len(ids), time.monotonic()
    while why is None and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
        if (now := len(grids.unsettled(out, ids))) < n_left:
            n_left, since = now, time.monotonic()
        elif timeout is not None and time.monotonic() - since > timeout:
            why = f"still running after {timeout:g} s (timeout); its process was killed"
        elif not Path(lease).exists():
            why = "interrupted"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdin.close()
    if (code := process.wait()) >= 0:
        return code, why or f"its process ended with status {code}; see log.txt"
    hint = ", which often means that memory ran out" * (code == -signal.SIGKILL)
    return code, why or f"its process was killed by signal {-code}{hint}"
