"""What a worker does with a run, the process of which is played."""

import time

import pytest
from tiny_sweeps import parts_grid, run_processes, starts, when

from nbhelpers.sweeps import sweep_worker, sweeps


def task(out, part, lease, *, timeout=None):
    (run,) = parts_grid(part).runs
    return sweeps._task(run, parts_grid(part), out, lease, timeout, 1)


@pytest.fixture
def lease(out):
    file = out / ".lease-test"
    file.touch()
    yield file
    file.unlink(missing_ok=True)
    sweep_worker._CHILDREN.end_finished()


def test_a_run_that_hangs_is_really_ended(out, lease):
    """The stand-in ignores SIGTERM and waits in C with the interpreter's lock: no Python can stop it."""
    record = sweep_worker.run_in_worker(task(out, "hang", lease, timeout=1))
    assert record["error"] == "still running after 1 s (timeout); its process was killed"
    assert run_processes() == []
    assert sweep_worker.run_in_worker(task(out, "a", lease, timeout=1))["status"] == "done"


def test_an_answer_that_was_lost_is_not_worked_for_again(out, lease):
    first = sweep_worker.run_in_worker(task(out, "a", lease))
    again = sweep_worker.run_in_worker(task(out, "a", lease))
    assert first == again
    assert starts(out) == {"a": 1}


def test_runs_of_a_worker_share_one_process(out, lease):
    pids = []
    for part in ("a", "b", "raise", "c"):
        sweep_worker.run_in_worker(task(out, part, lease))
        pids += [process.pid for process in run_processes()]
    assert len(set(pids)) == 1


def test_a_lease_that_goes_stops_the_run(out, lease):
    thread = when(lambda: (out / "starts.txt").exists(), lease.unlink)
    started = time.monotonic()
    record = sweep_worker.run_in_worker(task(out, "hang", lease))
    thread.join()
    assert record["status"] == "interrupted"
    assert time.monotonic() - started < 20
    assert run_processes() == []
