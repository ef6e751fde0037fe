"""Grids small enough for tests, runs that were never measured, and a stand-in for the process of a run."""

import os
import textwrap
import time
from collections import Counter

import pandas as pd
import psutil

from nbhelpers.files import write_parquet
from nbhelpers.sweeps.grid import make_grid, run_file

# Python imports sitecustomize in every process that finds it; only the process of a run is replaced, which
# then starts at once. What it does with a run is the run's revision, which no model of a test needs.
STAND_IN = textwrap.dedent("""
    import ctypes, hashlib, json, os, shutil, signal, sys, threading, time
    from pathlib import Path

    def leave_with_parent():
        os.read(0, 1)
        os._exit(3)

    def play(part, out, run_id):
        with (out / "starts.txt").open("a") as file:
            file.write(part + "\\n")
        if part == "hang":
            ctypes.PyDLL(None).pause()  # in C, holding the interpreter's lock: no Python runs any more
        if part == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if part in ("leave", "full disk"):
            os._exit({"leave": 7, "full disk": 74}[part])
        if part == "raise":
            (out / "failed").mkdir(exist_ok=True)
            (out / "failed" / (run_id + ".txt")).write_text("Traceback\\nValueError: no such thing")
            return
        time.sleep(1 if part.startswith("slow") else 0)
        (out / "runs").mkdir(exist_ok=True)
        shutil.copy(out / "template.parquet", out / "runs" / ("." + run_id + ".partial"))
        os.replace(out / "runs" / ("." + run_id + ".partial"), out / "runs" / (run_id + ".parquet"))

    def id_of(run):
        settings = {name: run[name] for name in run if name not in ("paper", "n_parameters")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    if "nbhelpers.sweeps.run" in getattr(sys, "orig_argv", ()):
        threading.Thread(target=leave_with_parent, daemon=True).start()
        out = Path(sys.orig_argv[3])
        runs = json.loads((out / "grid.json").read_text())["runs"]
        parts = {id_of(run): run["revision"] for run in runs}
        for run_id in sys.orig_argv[4:]:
            play(parts[run_id], out, run_id)
        os._exit(0)
""")


def stand_in(folder):
    """Write the stand-in into a folder; return the value of PYTHONPATH with which it is found."""
    (folder / "sitecustomize.py").write_text(STAND_IN)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def write_run(file, means, *, null=None, seconds=1.0, peak_mb=700.0, weights="", encoding=""):
    """Write what a finished run leaves, with given means by metric and one null for all."""
    rows = [
        {"metric": metric, "mean": mean, "low": mean - 0.5, "high": mean + 0.5, "sd": 0.1, "iqr": 0.2}
        | {"n_sequences": 5, "n_heads": 8, "null": null}
        for metric, mean in means.items()
    ]
    told = {"sweep": {"seconds": seconds, "peak_mb": peak_mb, "weights": weights or str(file)}}
    told |= {"model": {"position_encoding": encoding, "n_parameters": 14_100_000}, "summary": rows}
    write_parquet(pd.DataFrame({"head": [0]}), file, told)


def leave_run(out, run, means, **told):
    """Leave in a sweep's folder what a finished run leaves."""
    write_run(run_file(out, run.id), means, **told)


def parts_grid(*parts):
    """Return a grid with one run for each part that the stand-in plays."""
    sizes = {"corpus": "moby-dick", "n_sequences": 1, "length": 8}
    return make_grid({"model": "owner/model", "revision": list(parts)} | sizes)


def starts(out):
    """Return how often each part was begun."""
    return Counter((out / "starts.txt").read_text().splitlines())


def run_processes(out):
    """Return the processes that do runs of the sweep in a folder, wherever they were started."""
    command = {"nbhelpers.sweeps.run", str(out)}
    return [p for p in psutil.process_iter(["cmdline"]) if command <= set(p.info["cmdline"] or ())]


def wait_for(condition, *, seconds=90):
    """Wait until a condition holds; AssertionError if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.05)


def n_done(out):
    """Return how many runs are done in a sweep's folder."""
    return len(list((out / "runs").glob("[!.]*.parquet")))
