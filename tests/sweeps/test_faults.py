"""A sweep broken in every way, then resumed: its table is that of a sweep that was left alone.

Models of the zoo are measured for real where the process of a run takes part in what happens; on a cluster
and where a clock decides, runs are played (`tiny_sweeps`).
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from tiny_sweeps import n_done, run_processes, stand_in, starts, wait_for

from nbhelpers.sweeps import engine
from nbhelpers.sweeps import run as child
from nbhelpers.sweeps.engine import run_sweep
from nbhelpers.sweeps.rows import load_sweep


def grid_file(folder, raw):
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(raw | {"corpus": "moby-dick", "n_sequences": 3}))
    return file


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    file = grid_file(folder, {"model": "zoo:rope", "length": [32, 40, 48, 56, 64, 72]})
    return file, measured_here(file, folder / "out")


def measured_here(file, out):
    """Return the table of a sweep whose runs are measured by this process, which need not be started."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_run_process", lambda out, ids, *_: (child.main(out, *ids), None))
        run_sweep(file, out, progress=False)
    torch.set_num_threads(n_threads)
    return (out / "sweep.parquet").read_bytes()


@pytest.fixture
def played(out):
    raw = {"model": "owner/model", "revision": [f"slow {k}" for k in range(6)], "length": 8}
    return grid_file(out.parent, raw)


def start(file, out, *options):
    """Start the command in a session of its own, as a terminal does."""
    command = [sys.executable, "-m", "nbhelpers", "sweep", str(file), "--out", str(out), "--workers", "2"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    # Where the tests run in the background, Ctrl-C is ignored and would be here too.
    how |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # equal numbers of threads give equal bits
    return subprocess.Popen([*command, *options], env=one_thread, **how)


def end(process, *expected):
    try:
        told = process.communicate(timeout=180)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs: {process.communicate()[0]}")
    assert process.returncode in expected, told
    return told


def interrupt(process, out):
    for _ in range(2):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    interrupted = time.monotonic()
    told = end(process, 130, -signal.SIGINT)  # the latter before Python is up; a shell shows 130 for both
    assert time.monotonic() - interrupted < 30
    wait_for(lambda: run_processes(out) == [], seconds=10)
    return told


def test_ctrl_c_at_any_moment_and_twice(real, tmp_path):
    file, expected = real
    out = tmp_path / "out"
    process = start(file, out, "--workers", "1")
    time.sleep(random.uniform(0.5, 5))  # while the library is imported, here or there
    interrupt(process, out)
    process = start(file, out)
    wait_for(lambda: n_done(out) >= 1)  # while runs are measured
    told = interrupt(process, out)
    assert "of 6 runs are finished and kept" in told
    assert "Traceback" not in told
    kept = {file: file.stat().st_mtime_ns for file in (out / "runs").glob("*.parquet")}
    assert measured_here(file, out) == expected
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_kill_of_a_run_and_of_the_command(real, tmp_path):
    file, expected = real
    out = tmp_path / "out"
    process = start(file, out)
    wait_for(lambda: len(run_processes(out)) == 2)
    run_processes(out)[0].kill()
    wait_for(lambda: n_done(out) >= 1 and len(run_processes(out)) >= 1)
    process.kill()
    wait_for(lambda: run_processes(out) == [], seconds=5)
    process.communicate()
    (why,) = load_sweep(out).failed.values()
    assert "killed by signal 9" in why
    assert measured_here(file, out) == expected


def test_a_full_disk(real, small_disk):
    file, expected = real
    out = small_disk() / "out"
    told = end(start(file, out, "--workers", "1"), 2)
    assert "no space is left" in told.splitlines()[-1].lower()
    assert "Traceback" not in told
    subprocess.run(["mount", "-o", "remount,size=50m", str(out.parent)], check=True)
    assert measured_here(file, out) == expected


def test_a_run_that_is_stopped_for_ever(played, out):
    process = start(played, out, "--timeout", "5")
    wait_for(lambda: run_processes(out))
    run_processes(out)[0].suspend()
    told = end(process, 1)
    assert "still running after 5 s" in told
    assert load_sweep(out).n_done == 5
    assert run_processes(out) == []
    end(start(played, out), 0)
    assert load_sweep(out).n_done == 6


CLUSTER = """
import time
from distributed import LocalCluster

cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
print(cluster.scheduler_address, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    played = os.environ | {"PYTHONPATH": stand_in(tmp_path_factory.mktemp("cluster"))}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "env": played}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], start_new_session=True, **how)
    below = psutil.Process(process.pid)
    yield below, process.stdout.readline().strip()
    for each in [*below.children(recursive=True), below] if below.is_running() else []:
        each.kill()
    process.communicate()


def test_kill_of_a_worker_and_ctrl_c_on_a_cluster(played, out, cluster):
    _, address = cluster
    process = start(played, out, "--scheduler", address)
    wait_for(lambda: len(run_processes(out)) == 2)
    wait_for(lambda: (out / "starts.txt").exists() and len(starts(out)) >= 2)  # what is killed has begun
    run_processes(out)[0].parent().kill()
    end(process, 0)
    assert max(starts(out).values()) == 2, "its task went to another worker"
    shutil.rmtree(out / "runs")
    process = start(played, out, "--scheduler", address)
    wait_for(lambda: n_done(out) >= 1)
    assert "of 6 runs are finished and kept" in interrupt(process, out)
    assert 1 <= n_done(out) < 6


def test_kill_of_the_scheduler(played, out, cluster):
    scheduler, address = cluster
    process = start(played, out, "--scheduler", address)
    wait_for(lambda: n_done(out) >= 1)
    workers = scheduler.children(recursive=True)
    scheduler.kill()
    told = end(process, 2)
    assert "the executor went away" in told.splitlines()[-1]
    assert "Traceback" not in told
    wait_for(lambda: run_processes(out) == [], seconds=20)
    for worker in filter(psutil.Process.is_running, workers):
        worker.kill()
    end(start(played, out), 0)
    assert load_sweep(out).n_done == 6
