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
import importlib.metadata
import json
import os
import platform
import shutil
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
DISK_ERRORS = (OSError, SafetensorError, pa.ArrowException)


class BusyError(RuntimeError):
    """Another process is training this run."""


class RunFolder:
    """Reads and writes the files of one run.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    settings : nbhelpers.zoo.settings.Settings
    corpus : nbhelpers.zoo.text.Corpus
    """

    def __init__(self, folder, settings, corpus):
        self.folder = Path(folder)
        self.settings = settings
        self.corpus = corpus

    @property
    def manifest_path(self):
        """run.json."""
        return self.folder / "run.json"

    @property
    def state_path(self):
        """state.safetensors."""
        return self.folder / "state.safetensors"

    @property
    def measurements_path(self):
        """measurements.parquet."""
        return self.folder / "measurements.parquet"

    def weights_path(self, label):
        """weights/<label>, the label being "step<N>" or "final"."""
        return self.folder / "weights" / label

    @contextlib.contextmanager
    def locked(self):
        """Hold the folder for this process; the system lets go of it when the process dies.

        Raises
        ------
        BusyError
            If another process holds it.
        """
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(
                f"Another process is training in {self.folder}; wait for it, or end it."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def manifest(self):
        """Return run.json as a dict, empty if the run was never begun.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        if not self.manifest_path.exists():
            return {}
        try:
            return json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.manifest_path} is damaged ({error}). {self._way_out()}") from error

    def begin(self):
        """Compare the folder with this run, or mark it as this run's if it is new.

        Raises
        ------
        ValueError
            If the folder holds a run with other settings, or trained on another text or vocabulary.
        """
        found = self.manifest()
        if found:
            self._check_same(found)
        elif self.state_path.exists():
            raise ValueError(f"{self.folder} holds a training state without run.json. {self._way_out()}")
        else:
            self.write_manifest(finished=False, seconds=0.0)

    def write_manifest(self, **facts):
        """Write run.json with some facts beside what the run is."""
        known = {
            "name": self.settings.name,
            "settings": self.settings.to_dict(),
            "text": self._text(),
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "transformers", "pywavelets")
            }
            | {"nbhelpers": __version__},
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        }
        with _explained(self.manifest_path), replacing(self.manifest_path) as partial:
            partial.write_text(json.dumps(known | facts, indent=1), encoding="utf-8")

    def save_state(self, step, tensors, facts):
        """Write the training state after `step` updates."""
        metadata = {"nbhelpers": json.dumps({"step": step, **facts})}
        with _explained(self.state_path), replacing(self.state_path) as partial:
            save_file(tensors, partial, metadata=metadata)

    def load_state(self):
        """Return (step, tensors, facts) of the training state, or None if there is none.

        Raises
        ------
        ValueError
            If the file is damaged; nothing is changed.
        """
        if not self.state_path.exists():
            return None
        try:
            with safe_open(self.state_path, framework="pt") as file:
                facts = json.loads(file.metadata()["nbhelpers"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{self.state_path} is damaged ({error}). {self._way_out()}") from error
        return facts.pop("step"), tensors, facts

    def measurements(self, *, up_to=None):
        """Return the table of checkpoints, up to a step; empty if there is none.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        if not self.measurements_path.exists():
            return pd.DataFrame(columns=COLUMNS)
        try:
            frame, _ = read_parquet(self.measurements_path)
        except ValueError as error:
            raise ValueError(f"{error} {self._way_out()}") from error
        return frame if up_to is None else frame[frame.step <= up_to]

    def add_measurements(self, frame):
        """Append one checkpoint to the table; a later or equal step that is there is replaced."""
        before = self.measurements()
        before = before[before.step < frame.step.min()]
        whole = frame if before.empty else pd.concat([before, frame], ignore_index=True)
        with _explained(self.measurements_path):
            write_parquet(whole, self.measurements_path, compression="zstd")

    def save_weights(self, model, label):
        """Write the model and its tokenizer to weights/<label>."""
        target = self.weights_path(label)
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

    def finish(self, **facts):
        """Mark the run as finished and delete its training state."""
        self.write_manifest(finished=True, **facts)
        self.state_path.unlink(missing_ok=True)

    def _text(self):
        corpus = self.corpus
        return {"fingerprint": corpus.fingerprint, "vocab_size": corpus.vocab_size, "sources": corpus.sources}

    def _check_same(self, found):
        here = self.settings.to_dict()
        other = found.get("settings", {})
        keys = [key for key in here if here[key] != other.get(key)]
        if keys:
            listed = "; ".join(f"{key} {other.get(key)!r}, asked for {here[key]!r}" for key in keys)
            raise ValueError(
                f"{self.folder} holds another run: {listed}. Choose another --out folder, or the settings of "
                "the run that is there."
            )
        text = found.get("text", {})
        if text.get("fingerprint") != self.corpus.fingerprint:
            raise ValueError(
                f"{self.folder} was trained on another text or vocabulary: {text.get('vocab_size')} tokens, "
                f"fingerprint {text.get('fingerprint')}; the text given has {self.corpus.vocab_size} tokens, "
                f"fingerprint {self.corpus.fingerprint}. Give the same --text, or another --out folder."
            )

    def _way_out(self):
        return (
            f"Nothing was changed. To train this run anew, move {self.folder} away and start the same "
            "command again."
        )


@contextlib.contextmanager
def _explained(path):
    """Say which file could not be written, and that nothing is lost."""
    try:
        yield
    except DISK_ERRORS as error:
        raise OSError(
            f"Could not write {path}: {error}. What was written before is whole. Make room, or choose "
            "another --out folder, and start the same command again: it goes on from the last state."
        ) from error
