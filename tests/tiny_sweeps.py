"""Grids small enough for tests, and a stand-in for the process in which runs happen."""

import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil

from nbhelpers.sweeps.grids import Grid, make_grid
from nbhelpers.sweeps.sweep_records import read_records, summary_file, table_file, write_record

CHILD = "nbhelpers.sweeps.sweep_child"

# Python imports sitecustomize in every process that finds it; only the process of a run is replaced. What it
# does with a run is the run's revision, which no model of a test needs.
STAND_IN = """
    import ctypes, json, os, shutil, signal, sys, threading, time
    from pathlib import Path

    def leave_with_worker():
        while os.getppid() == WORKER and os.path.exists(sys.orig_argv[-1]):
            time.sleep(0.05)
        os._exit(3)

    def play(part, out, run_id):
        done = {"status": "done", "error": None, "trace": None, "facts": {"weights": part}}
        mark = out / "marks" / part
        with (out / "starts.txt").open("a") as file:
            file.write(part + "\\n")
        if part == "raise":
            return done | {"status": "failed", "error": "ValueError: no such thing\\nsecond line"}
        if part == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ctypes.PyDLL(None).pause()  # in C, holding the interpreter's lock: no Python runs any more
        if part == "kill worker" or (part == "kill worker once" and not mark.exists()):
            mark.touch()
            os.kill(WORKER, signal.SIGKILL)
            time.sleep(1000)
        if part == "die" or (part == "die once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if part == "leave":
            os._exit(7)
        time.sleep(0.3 if part.startswith("slow") else 0)
        for folder in ("tables", "summaries"):
            (out / folder).mkdir(exist_ok=True)
            shutil.copy(out / "template.parquet", out / folder / (run_id + ".parquet"))
        return done

    if "nbhelpers.sweeps.sweep_child" in getattr(sys, "orig_argv", ()):
        WORKER = os.getppid()
        threading.Thread(target=leave_with_worker, daemon=True).start()
        print(json.dumps({"status": "ready"}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            reply = play(request["run"]["revision"], Path(request["out"]), request["id"])
            print(json.dumps(reply), flush=True)
        os._exit(0)
"""


def play_in(folder):
    """Write the stand-in into a folder, to go on PYTHONPATH, and return a sweep's folder beside it."""
    Path(folder, "sitecustomize.py").write_text(textwrap.dedent(STAND_IN))
    out = Path(folder, "out")
    (out / "marks").mkdir(parents=True)
    pd.DataFrame({"metric": ["m"], "mean": [1.0]}).to_parquet(out / "template.parquet")
    return out


def leave_run(out, run, means, *, null=None):
    """Leave of a run what a sweep leaves of it, with given means by metric and one null for all."""
    mean = pd.Series(means, dtype=float)
    summary = pd.DataFrame({"metric": list(means), "mean": mean.array, "low": mean.array - 0.5})
    summary = summary.assign(high=mean.array + 0.5, sd=0.1, iqr=0.2, n_sequences=run.n_sequences, n_heads=8)
    summary = summary if null is None else summary.assign(null=null)
    for file in (table_file(out, run.id), summary_file(out, run.id)):
        file.parent.mkdir(exist_ok=True)
        summary.to_parquet(file)
    write_record(out, {"id": run.id, "status": "done", "settings": run.settings})


def starts(out):
    """Return how often each part was begun."""
    return Counter((out / "starts.txt").read_text().splitlines())


def parts_grid(*parts):
    """Return a grid with one run for each part that the stand-in plays."""
    return make_grid(
        {
            "model": "owner/model",
            "revision": list(parts),
            "corpus": "moby-dick",
            "n_sequences": 1,
            "length": 8,
        }
    )


def joined(*grids):
    """Return one grid with the runs of several."""
    return Grid("joined", "", tuple(run for grid in grids for run in grid.runs))


def run_processes(root=None):
    """Return the processes in which runs happen, below this one or `root`."""
    below = psutil.Process(root).children(recursive=True)
    return [process for process in below if CHILD in _command(process)]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it ended between the listing and the question
        return []


def wait_for(condition, *, seconds=90):
    """Wait until a condition holds; AssertionError if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.05)


def n_done(out):
    """Return how many runs are done in a sweep's folder."""
    return sum(record.get("status") == "done" for record in read_records(out))


def when(condition, action):
    """Start a thread that waits for a condition and then acts; return it."""

    def follow():
        wait_for(condition)
        action()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread
