"""Train a run of the zoo to its end: measured at its checkpoints, safe against a kill at any time.

What its folder holds is always whole: run.json (settings, text, versions), measurements.parquet (one tidy
table of all checkpoints), weights/step<N> and weights/final in float16, and until the run is finished
state.safetensors, weights and moments of AdamW.
"""

import contextlib
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout

from nbhelpers import __version__, files
from nbhelpers.files import reading
from nbhelpers.inputs.files import quiet_progress
from nbhelpers.words import duration
from nbhelpers.zoo import measure
from nbhelpers.zoo.train import Trainer

FINAL = "final"
RUN, STATE, MEASUREMENTS, WEIGHTS = "run.json", "state.safetensors", "measurements.parquet", "weights"
STATE_EVERY = 100  # updates: what a kill loses at most
REPORT_SECONDS = 10.0


class BusyError(RuntimeError):
    """Another process is training this run."""


class RunFolder:
    """Reads and writes the files of one run; a damaged one is a ValueError, and nothing is changed then."""

    def __init__(self, folder, settings, corpus):
        self.folder, self.settings, self.corpus = Path(folder), settings, corpus
        self.way_out = f"Nothing was changed. To train this run anew, move {folder} away and start again."

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
        if not (self.folder / RUN).exists():
            if (self.folder / STATE).exists():
                raise ValueError(f"{self.folder} holds a training state without {RUN}. {self.way_out}")
            self._write_manifest(finished=False, seconds=0.0)
        found, here = self.manifest(), self.settings.to_dict()
        other, fingerprint = found["settings"], found["text"]["fingerprint"]
        if differing := [key for key in here if here[key] != other.get(key)]:
            listed = "; ".join(f"{key} {other.get(key)!r}, asked for {here[key]!r}" for key in differing)
            raise ValueError(f"{self.folder} holds another run: {listed}. Choose another --out folder.")
        if fingerprint != self.corpus.fingerprint:
            other = f"another text (fingerprint {fingerprint}, given {self.corpus.fingerprint})"
            raise ValueError(f"{self.folder} was trained on {other}; give that --text, or another --out.")

    def manifest(self):
        with reading(self.folder / RUN, f". {self.way_out}"):
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
        with reading(self.folder / STATE, f". {self.way_out}"):
            tensors, facts = files.read_tensors(self.folder / STATE)
            return facts["step"], tensors, facts["seconds"]

    def measurements(self):
        """Return the table of checkpoints; empty if there is none."""
        if not (self.folder / MEASUREMENTS).exists():
            return pd.DataFrame(columns=measure.COLUMNS)
        try:
            return files.read_parquet(self.folder / MEASUREMENTS)[0]
        except ValueError as error:
            raise ValueError(f"{error} {self.way_out}") from error

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


def train(settings, corpus, out, *, device="cpu", compiled=False, report=print):
    """Train a run to its end, or go on where it was interrupted, and return its folder in `out`.

    A folder of another run or text, or damaged, is a ValueError, a busy one a BusyError; either is left as it
    is.
    """
    run = RunFolder(Path(out) / settings.name, settings, corpus)
    with run.locked():
        run.begin()
        if run.manifest()["finished"]:
            report(f"{settings.name}: finished before, nothing to do")
            return run.folder
        trainer = Trainer(settings, corpus, device=device, compiled=compiled)
        seconds = 0.0  # spent by earlier processes
        if found := run.load_state():
            step, tensors, seconds = found
            trainer.restore(step, tensors)
            report(f"{settings.name}: goes on from step {step} of {settings.n_steps}")
        seconds = _loop(trainer, run, measure.Yardstick.of(corpus), seconds, report)
        frame = run.measurements()
        last = frame[(frame.signal == "model") & (frame.step == settings.n_steps)]
        final = {row.metric: float(row.value) for row in last.itertuples()}
        run.finish(seconds=round(seconds, 1), device=str(device), compiled=compiled, final=final)
    return run.folder


def _loop(trainer, run, yardstick, seconds, report):
    """Train to the end and return the seconds that took, those of earlier processes included."""
    settings, first = trainer.settings, trainer.step
    checkpoints = set(settings.checkpoints())
    measured = {step for step in run.measurements().step if step <= first}
    started = reported = time.perf_counter()
    while True:
        step = trainer.step
        if step in checkpoints:
            if step not in measured:
                _record(trainer, run, yardstick)
            trainer.history = []
        if step in checkpoints or step % STATE_EVERY == 0:
            run.save_state(step, trainer.state(), seconds=seconds + time.perf_counter() - started)
        if step == settings.n_steps:
            return seconds + time.perf_counter() - started
        loss, now = trainer.update(), time.perf_counter()
        if trainer.step == settings.n_steps or now - reported >= REPORT_SECONDS:
            reported = now
            speed = (trainer.step - first) * settings.tokens_per_step / (now - started)
            left = duration((settings.n_steps - trainer.step) * settings.tokens_per_step / speed)
            told = f"step {trainer.step}/{settings.n_steps}, loss {loss:.3f}, {speed:,.0f} tokens/s"
            report(f"{settings.name}: {told} with measurements, {left} left")


def _record(trainer, run, yardstick):
    """Measure the model as it is, add it to the table, keep its weights if they are wanted."""
    settings, step = trainer.settings, trainer.step
    model, last = trainer.snapshot(), step == settings.n_steps
    options = {"step": step, "bos": settings.bos}
    parts = [measure.measure_checkpoint(model, yardstick, **options)]
    parts += [measure.measure_lengths(model, yardstick, **options)] if last else []
    tokens = step * settings.tokens_per_step
    run.add_measurements([*parts, measure.training_scalars(trainer.history, step=step, tokens=tokens)])
    if last or step in settings.kept_steps():
        run.save_weights(model.half(), FINAL if last else f"step{step}")
