"""Do the runs of one checkpoint in a process of their own: ``python -m nbhelpers.sweeps.run FOLDER RUN ...``.

A run leaves one file, ``runs/RUN.parquet``, whole or not at all: the table of every head, with provenance,
summary and what it took in the metadata. One that raises leaves ``failed/RUN.txt``, and the next goes on.
Standard input is a pipe that the parent holds open.
"""

import gc
import os
import sys
import threading


def _leave_with_parent():
    os.read(0, 1)  # returns when the parent is gone, however it went
    os._exit(3)  # also while the main thread is deep in torch


if __name__ == "__main__":  # first of all: the imports below take seconds
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    gc.disable()  # what is imported stays: to walk it again and again takes a fifth of a short run

import resource
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from nbhelpers.analysis import analyze, measure, observe
from nbhelpers.claims import paper
from nbhelpers.claims.lag_kernels import measure_second
from nbhelpers.claims.statistics import measure_criteria, rules_digest
from nbhelpers.collection.scorecard import rules_version
from nbhelpers.files import refused, write_text
from nbhelpers.hooks.store import weight_fingerprint
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import corpus_description, load_text
from nbhelpers.nulls.controls import null_of, summarise, white_noise
from nbhelpers.nulls.models import NULLS
from nbhelpers.protocol import Protocol
from nbhelpers.stats import known_mean, student_interval
from nbhelpers.sweeps.engine import NO_SPACE
from nbhelpers.sweeps.grid import CONTROL_SEQUENCES, failure_file, read_plan, run_file
from nbhelpers.table import ESTIMATE

# Their rules need a model, its controls and nulls of its profiles.
JUDGED = ("C1", "C2", "C3", "C4", "C5", "C6", "C11", "C12", "C13", "C14")
MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


def perform(run, model, out, *, cache=None):
    """Measure one run of a loaded model and write its file; `cache` is a folder for captured profiles."""
    started = time.monotonic()
    sizes = {"n_sequences": run.n_sequences, "length": run.length, "bos": run.bos, "seed": run.seed}
    options = {"corpus": corpus_description(run.corpus), "seed": run.seed, "batch_size": run.batch_size}
    ids = load_text(run.corpus, model, **sizes)  # (sequence, position)
    protocol, options = Protocol(**run.protocol), options | {"cache": cache, "progress": False}
    if run.control_seeds:
        table, judged = _judged(run, model, ids, protocol, options)
    else:
        table, judged = analyze(model, ids, protocol, **options), {}
    took = {
        "settings": run.settings,
        "seconds": round(time.monotonic() - started, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MAXRSS_PER_MB, 1),
        "weights": weight_fingerprint(model.model).hex()[:16],  # two names of one checkpoint share it
    }
    summary = summarise(table, null=null_of(table)).to_dict("records")
    table.with_provenance(sweep=took, summary=summary, **judged).to_parquet(run_file(out, run.id))


def _judged(run, model, ids, protocol, options):
    """Return the table of a run; the estimates that the rules need to judge, a summary of its controls."""
    seen, controls = observe(model, ids, protocol, **options), []
    table, name = measure(seen, protocol), f"random:{run.model.removeprefix('random:')}"
    for seed in range(run.seed, run.seed + run.control_seeds):
        control = load_model(name, seed=seed, device=run.device, dtype=run.dtype)
        observed = observe(control, ids[:CONTROL_SEQUENCES], protocol, **options)
        controls.append((measure(observed, protocol), observed.profiles))
        del control  # the next one would stand beside it in memory
    against = {"N1": controls}
    for null in (null for null in NULLS if null.number in ("N0", "N2", "N3", "N4")):
        drawn = seen.map(partial(null.function, seed=run.seed))
        against[null.number] = measure(drawn, protocol), drawn.profiles
    against["white noise"] = white_noise(against["N0"], protocol=protocol, seed=run.seed)
    claims, told = [paper.claim(number) for number in JUDGED], {"nulls": against, "protocol": protocol}
    records = measure_second(seen.profiles.stationary_profile, *claims)
    for claim in claims:
        records |= measure_criteria(table, seen.profiles, claim, **told, seed=run.seed)
    means = {m: [known_mean(t.values(m).ravel(), 0) for t, _ in controls] for m in table.metrics}
    rows = {m: student_interval(values)[:3] for m, values in means.items() if np.isfinite(values).all()}
    return table, {
        "rules": {"version": rules_version(), "digest": rules_digest()},
        "records": {name: estimate._asdict() for name, estimate in records.items()},
        "controls": [dict(zip(("metric", *ESTIMATE), (m, *row), strict=True)) for m, row in rows.items()],
    }


def main(out, *ids):
    """Do runs of one checkpoint, one after the other; return the exit status."""
    grid, model = read_plan(out), None
    runs, shared = {run.id: run for run in grid.runs}, Counter(run.observation_key for run in grid.runs)
    for run in map(runs.get, ids):
        # Profiles are large: kept only where another run of the grid reads them.
        cache = Path(out, "profiles") if shared[run.observation_key] > 1 else None
        try:
            if model is None:
                options = {"device": run.device, "dtype": run.dtype, "seed": run.seed}
                model = load_model(run.model, revision=run.revision, **options)
            perform(run, model, out, cache=cache)
        except Exception as error:  # whatever a run raises is its own failure, but for a disk that is full
            if refused(error):
                return NO_SPACE
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            write_text(failure_file(out, run.id), f"{traceback.format_exc()}\n{why}")
    return 0


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    sys.exit(main(*sys.argv[1:]))
