"""The folder of one run: what is written there, always whole, and how it is read back after a kill.

run.json has settings, text and versions, state.safetensors weights and moments of AdamW (until the run is
finished), measurements.parquet one tidy table of all checkpoints, weights/step<N> and weights/final float16
weights.
"""

import contextlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout

from nbhelpers import __version__, files
from nbhelpers.files import reading
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
        files.writable_folder(self.folder)
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
        with reading(self.folder / RUN, f". {self._way_out()}"):
            return json.loads((self.folder / RUN).read_text(encoding="utf-8"))

    def finish(self, **facts):
        """Mark the run as finished, with some facts, and delete its training state."""
        self._write_manifest(finished=True, **facts)
        (self.folder / STATE).unlink(missing_ok=True)

    def save_state(self, step, tensors, *, seconds):
        files.write_tensors(tensors, self.folder / STATE, {"step": step, "seconds": seconds})

    def load_state(self):
        """Return (step, tensors, seconds) of the training state, or None if there is none."""
        if not (self.folder / STATE).exists():
            return None
        with reading(self.folder / STATE, f". {self._way_out()}"):
            tensors, facts = files.read_tensors(self.folder / STATE)
            return facts["step"], tensors, facts["seconds"]

    def measurements(self):
        """Return the table of checkpoints; empty if there is none."""
        if not (self.folder / MEASUREMENTS).exists():
            return pd.DataFrame(columns=COLUMNS)
        try:
            return files.read_parquet(self.folder / MEASUREMENTS)[0]
        except ValueError as error:
            raise ValueError(f"{error} {self._way_out()}") from error

    def add_measurements(self, parts):
        """Append the tables of one checkpoint; a later or equal step that is there is replaced."""
        before = self.measurements()
        before = before[before.step < parts[0].step.min()]
        whole = pd.concat(parts if before.empty else [before, *parts], ignore_index=True)
        files.write_parquet(whole, self.folder / MEASUREMENTS, compression="zstd")

    def save_weights(self, model, label):
        """Write the model and its tokenizer to weights/<label>, "step<N>" or "final"."""
        # A folder that is there is of a run that was killed between here and its next state.
        with files.replacing_folder(self.folder / WEIGHTS / label) as partial, quiet_progress():
            model.save_pretrained(partial)
            self.corpus.tokenizer(bos=self.settings.bos).save_pretrained(partial)

    def _write_manifest(self, **facts):
        versions = {name: version(name) for name in ("torch", "transformers", "pywavelets")}
        known = {
            "name": self.settings.name,
            "settings": self.settings.to_dict(),
            "text": {name: getattr(self.corpus, name) for name in ("fingerprint", "vocab_size", "sources")},
            "versions": versions | {"nbhelpers": __version__},
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        }
        files.write_text(self.folder / RUN, json.dumps(known | facts, indent=1))

    def _refuse_another(self, found):
        here, other, text = self.settings.to_dict(), found["settings"], found["text"]
        if differing := [key for key in here if here[key] != other.get(key)]:
            listed = "; ".join(f"{key} {other.get(key)!r}, asked for {here[key]!r}" for key in differing)
            raise ValueError(f"{self.folder} holds another run: {listed}. Choose another --out folder.")
        if text["fingerprint"] != self.corpus.fingerprint:
            other = f"another text (fingerprint {text['fingerprint']}, given {self.corpus.fingerprint})"
            raise ValueError(f"{self.folder} was trained on {other}; give that --text, or another --out.")

    def _way_out(self):
        return f"Nothing was changed. To train this run anew, move {self.folder} away and start again."
