"""The folder of one run: what is written there, always whole, and how it is read back after a kill.

===================== ===========================================================================
run.json              settings, text and versions; `finished` once all is done
state.safetensors     weights and moments of AdamW after so many steps; gone once finished
measurements.parquet  one tidy table of all checkpoints so far
weights/step<N>/      float16 weights of kept checkpoints, as `save_pretrained` writes them
weights/final/        those of the last
===================== ===========================================================================
"""

import contextlib
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nbhelpers import __version__
from nbhelpers.files import read_parquet, replacing, write_parquet
from nbhelpers.inputs.files import quiet_progress
from nbhelpers.zoo.measure import COLUMNS

FINAL = "final"
RUN, STATE, MEASUREMENTS, WEIGHTS = "run.json", "state.safetensors", "measurements.parquet", "weights"


class BusyError(RuntimeError):
    """Another process is training this run."""


class RunFolder:
    """Reads and writes the files of one run; a damaged one is a ValueError, and nothing is changed then."""

    def __init__(self, folder, settings, corpus):
        self.folder, self.settings, self.corpus = Path(folder), settings, corpus

    @contextlib.contextmanager
    def locked(self):
        """Hold the folder for this process, or BusyError; the system lets go of it when the process dies."""
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(f"Another process trains in {self.folder}; wait for it, or end it.") from error
        with held:
            yield

    def begin(self):
        """Mark a new folder as this run's; ValueError if it holds another run or text."""
        if (self.folder / RUN).exists():
            self._refuse_another(self.manifest())
        elif (self.folder / STATE).exists():
            raise ValueError(f"{self.folder} holds a training state without {RUN}. {self._way_out()}")
        else:
            self._write_manifest(finished=False, seconds=0.0)

    def manifest(self):
        with self._whole(RUN) as path:
            return json.loads(path.read_text(encoding="utf-8"))

    def finish(self, **facts):
        """Mark the run as finished, with some facts, and delete its training state."""
        self._write_manifest(finished=True, **facts)
        (self.folder / STATE).unlink(missing_ok=True)

    def save_state(self, step, tensors, *, seconds):
        path, metadata = self.folder / STATE, {"nbhelpers": json.dumps({"step": step, "seconds": seconds})}
        with _explained(path), replacing(path) as partial:
            save_file(tensors, partial, metadata=metadata)

    def load_state(self):
        """Return (step, tensors, seconds) of the training state, or None if there is none."""
        if not (self.folder / STATE).exists():
            return None
        with self._whole(STATE) as path, safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["nbhelpers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return facts["step"], tensors, facts["seconds"]

    def measurements(self):
        """Return the table of checkpoints; empty if there is none."""
        if not (self.folder / MEASUREMENTS).exists():
            return pd.DataFrame(columns=COLUMNS)
        try:
            return read_parquet(self.folder / MEASUREMENTS)[0]
        except ValueError as error:
            raise ValueError(f"{error} {self._way_out()}") from error

    def add_measurements(self, parts):
        """Append the tables of one checkpoint; a later or equal step that is there is replaced."""
        before, path = self.measurements(), self.folder / MEASUREMENTS
        before = before[before.step < parts[0].step.min()]
        whole = pd.concat(parts if before.empty else [before, *parts], ignore_index=True)
        with _explained(path):
            write_parquet(whole, path, compression="zstd")

    def save_weights(self, model, label):
        """Write the model and its tokenizer to weights/<label>, "step<N>" or "final"."""
        target = self.folder / WEIGHTS / label
        partial = target.with_name(f".{label}.{os.getpid()}.partial")
        with _explained(target):
            try:
                with quiet_progress():
                    model.save_pretrained(partial)
                self.corpus.tokenizer(bos=self.settings.bos).save_pretrained(partial)
                if target.exists():  # of a run that was killed between here and its next state
                    shutil.rmtree(target)
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # gone already after success

    def _write_manifest(self, **facts):
        path = self.folder / RUN
        versions = {name: version(name) for name in ("torch", "transformers", "pywavelets")}
        known = {
            "name": self.settings.name,
            "settings": self.settings.to_dict(),
            "text": {name: getattr(self.corpus, name) for name in ("fingerprint", "vocab_size", "sources")},
            "versions": versions | {"nbhelpers": __version__},
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        }
        with _explained(path), replacing(path) as partial:
            partial.write_text(json.dumps(known | facts, indent=1), encoding="utf-8")

    def _refuse_another(self, found):
        here, other, text = self.settings.to_dict(), found["settings"], found["text"]
        if differing := [key for key in here if here[key] != other.get(key)]:
            listed = "; ".join(f"{key} {other.get(key)!r}, asked for {here[key]!r}" for key in differing)
            raise ValueError(f"{self.folder} holds another run: {listed}. Choose another --out folder.")
        if text["fingerprint"] != self.corpus.fingerprint:
            other = f"another text (fingerprint {text['fingerprint']}, given {self.corpus.fingerprint})"
            way_out = "Give the same --text, or another --out folder."
            raise ValueError(f"{self.folder} was trained on {other}. {way_out}")

    @contextlib.contextmanager
    def _whole(self, name):
        path = self.folder / name
        try:
            yield path
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}). {self._way_out()}") from error

    def _way_out(self):
        return f"Nothing was changed. To train this run anew, move {self.folder} away and start again."


@contextlib.contextmanager
def _explained(path):
    """Say which file could not be written, and that nothing is lost."""
    try:
        yield
    except (OSError, SafetensorError, pa.ArrowException) as error:
        way_out = "Make room, or choose another --out folder; the same command goes on from the last state"
        told = f"Could not write {path}: {error}. What was written before is whole."
        raise OSError(f"{told} {way_out}.") from error
