"""The process in which the runs of a sweep happen, one after the other: library imported once, model kept.

Started by a worker as ``python -m nbhelpers.sweeps.sweep_child LEASE`` (`nbhelpers.sweeps.sweep_worker`). It
reads requests from standard input and answers on standard output, a line of JSON each. When its worker is
gone or the sweep's lease is, it leaves at once, in the middle of a run if need be.
"""

import gc
import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nbhelpers.files import replacing
from nbhelpers.hooks.capture import weight_fingerprint
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import corpus_description, load_text
from nbhelpers.nulls.summary import null_of, summarise
from nbhelpers.protocol import Protocol
from nbhelpers.sweeps.grids import ANALYZE, NOTEBOOK, NOTEBOOK_AXES, Run
from nbhelpers.sweeps.sweep_records import summary_file, table_file
from nbhelpers.table import HeadTable

LEASE_SECONDS = 0.5  # how often the lease is looked for


class HeldModel:
    """The model of the last run, so that runs of one checkpoint load it once."""

    def __init__(self):
        self._key = self._loaded = self._facts = None

    def get(self, run):
        """Return what `load_model` gives for a run, and facts about it; those held if it is the same."""
        if self._key != run.model_key:
            self._key = self._loaded = self._facts = None  # freed first: two large models would not fit
            gc.collect()
            options = {"device": run.device, "dtype": run.dtype, "seed": run.seed}
            self._loaded = load_model(run.model, revision=run.revision, **options)
            told = self._loaded.description
            self._facts = {
                "revision": told.revision,
                "n_parameters": told.n_parameters,
                "weights": weight_fingerprint(self._loaded.model).hex()[:16],
            }
            self._key = run.model_key
        return self._loaded, self._facts


def perform(run, out, *, cache, held):
    """Do one run and write its table and its summary.

    Parameters
    ----------
    run : Run
    out : path
        The sweep's folder.
    cache : path or None
        Where captured profiles are kept, as in `capture`.
    held : HeldModel

    Returns
    -------
    dict
        ``revision``, ``n_parameters`` and ``weights`` (a hash) of the model where the run loaded one,
        ``gpu_mb`` on a GPU.
    """
    if run.target.startswith(NOTEBOOK):
        table, provenance, facts = _notebook_numbers(run, Path(out))
        summary = table.rename(columns={"name": "metric", "value": "mean"})
    else:
        table, provenance, facts = _function_table(run, cache, held)
        summary = _summary(run, table)
    provenance = provenance | {"sweep": {"id": run.id, "settings": run.settings}}
    frame = table.frame() if isinstance(table, HeadTable) else table
    _write(frame, provenance, table_file(out, run.id))
    _write(summary, {"sweep": provenance["sweep"]}, summary_file(out, run.id))
    return facts


def _function_table(run, cache, held):
    module, _, name = run.target.partition(":")
    function = getattr(importlib.import_module(module), name)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loaded, facts = held.get(run)
    ids = load_text(
        run.corpus, loaded, n_sequences=run.n_sequences, length=run.length, bos=run.bos, seed=run.seed
    )  # (sequence, position)
    options = {"corpus": corpus_description(run.corpus), "seed": run.seed, "batch_size": run.batch_size}
    table = function(loaded, ids, Protocol(**run.protocol), cache=cache, progress=False, **options)
    if not isinstance(table, (HeadTable, pd.DataFrame)):
        raise TypeError(
            f"{run.target} returned {type(table).__name__}; the target of a sweep returns a HeadTable or a "
            "DataFrame"
        )
    if torch.cuda.is_available():
        facts = facts | {"gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1)}
    return table, table.provenance if isinstance(table, HeadTable) else {}, facts


def _summary(run, table):
    """Return a run's table in one row per metric; without a null where another function measured it."""
    if not isinstance(table, HeadTable):
        return pd.DataFrame(columns=["metric"])
    return summarise(table, null=null_of(table) if run.target == ANALYZE else None)


def _notebook_numbers(run, out):
    """Run a notebook of the collection and return the numbers it recorded."""
    from nbhelpers.collection.results import load_provenance, load_results
    from nbhelpers.collection.run import run_notebooks  # papermill and what is under it, which few runs need

    named = run.settings
    parameters = {parameter: named[axis] for axis, parameter in NOTEBOOK_AXES.items()} | run.parameters
    parameters |= {"seed": run.seed} | ({"bos": run.bos} if run.bos != "tokenizer" else {})
    del parameters["model"]
    notebook = run.target.removeprefix(NOTEBOOK)
    folder = out / "notebooks" / run.id
    extra = {"parameters": parameters, "model": run.model}
    (done,) = run_notebooks([notebook], out=folder, cell_timeout=1e6, progress=False, **extra)
    if done.status in ("failed", "skipped"):
        told = f"the notebook {done.name} {done.status}: {done.error}\n(executed part: {done.output})"
        raise RuntimeError(told)
    facts = {"executed": str(done.output.relative_to(out))}
    return load_results(folder), {"notebooks": load_provenance(folder)}, facts


def _write(frame, provenance, path):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    told = {b"nbhelpers": json.dumps(provenance, default=str).encode()}
    with replacing(path) as partial:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **told}), partial)


def answer(request, held):
    """Return the reply to a request: the status of its run, and the reason where it failed."""
    run = Run(**request["run"])
    try:
        facts = perform(run, request["out"], cache=request["cache"], held=held)
    except Exception as error:  # whatever a run raises is its own failure; the next run goes on
        text = f"{type(error).__name__}: {error}"
        return {"status": "failed", "error": text, "trace": traceback.format_exc(), "facts": {}}
    return {"status": "done", "error": None, "trace": None, "facts": facts}


def _listen(requests):
    for line in sys.stdin:
        requests.put(json.loads(line))
    _leave()  # the worker closed the pipe, or died


def _watch_lease(lease):
    while lease.exists():
        time.sleep(LEASE_SECONDS)
    _leave()


def _leave():
    for kernel in psutil.Process().children(recursive=True):
        kernel.kill()
    os._exit(3)  # also while the main thread is deep in torch


def main(lease):
    """Answer requests until the worker or the lease is gone."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log, not between the replies
    requests = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    threading.Thread(target=_watch_lease, args=(Path(lease),), daemon=True).start()
    held = HeldModel()
    importlib.import_module("transformers.models.auto.modeling_auto")  # the slow part, before any clock runs
    reply = {"status": "ready"}
    while True:
        print(json.dumps(reply), file=replies, flush=True)
        reply = answer(requests.get(), held)


if __name__ == "__main__":
    main(sys.argv[1])
