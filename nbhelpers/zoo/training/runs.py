"""Train a run of the zoo to its end: measured at its checkpoints, safe against a kill at any time.

What its folder holds is always whole: measurements.parquet (one tidy table of all checkpoints),
weights/step<N> in float16, state.pt to go on from, and in its place run.json once the run is finished.
"""

import io
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from nbhelpers import __version__, files
from nbhelpers.inputs.files import quiet_progress
from nbhelpers.words import duration
from nbhelpers.zoo.measure import Yardstick, measure_checkpoint
from nbhelpers.zoo.settings import VOCABULARY
from nbhelpers.zoo.tables import MEASUREMENTS
from nbhelpers.zoo.train import Trainer

RUN, STATE = "run.json", "state.pt"
STATE_EVERY = 100  # updates: what a kill loses at most


def train(settings, corpus, out, *, device="cpu", report=print):
    """Train a run to its end, or go on where it was interrupted, and return its folder in `out`.

    A folder of another run or text, or damaged, is a ValueError, one in which another process trains a
    `filelock.Timeout`; either is left as it is.
    """
    folder = files.writable_folder(Path(out) / settings.name)
    with FileLock(folder / ".lock", timeout=0):  # the system lets go of it when the process dies
        if (folder / RUN).exists():
            report(f"{settings.name}: finished before, nothing to do")
        else:
            _finish(settings, corpus, folder, device, report)
    return folder


def _finish(settings, corpus, folder, device, report):
    trainer, yardstick = Trainer(settings, corpus, device=device), Yardstick.of(corpus)
    of_run = {"settings": vars(settings), "text": corpus.fingerprint}
    seconds, started = 0.0, time.perf_counter()  # the first of earlier processes

    def keep():
        spent = {"seconds": seconds + time.perf_counter() - started}
        torch.save(trainer.state() | of_run | spent, kept := io.BytesIO())
        with files.replacing(folder / STATE) as partial:  # of a full disk torch says less than the system
            partial.write_bytes(kept.getbuffer())

    if (folder / STATE).exists():
        state = _read_state(folder, of_run)
        trainer.restore(state)
        seconds = state["seconds"]
        report(f"{settings.name}: goes on from step {trainer.step} of {settings.n_steps}")
    else:
        _record(trainer, yardstick, folder)
        keep()
    first, checkpoints = trainer.step, set(settings.checkpoints())
    while trainer.step < settings.n_steps:
        loss = trainer.update()
        if trainer.step in checkpoints:
            _record(trainer, yardstick, folder)
        if trainer.step in checkpoints or trainer.step % STATE_EVERY == 0:
            keep()
            speed = (trainer.step - first) * settings.tokens_per_step / (time.perf_counter() - started)
            left = duration((settings.n_steps - trainer.step) * settings.tokens_per_step / speed)
            told = f"step {trainer.step}/{settings.n_steps}, loss {loss:.3f}, {speed:,.0f} tokens/s"
            report(f"{settings.name}: {told} with measurements, {left} left")
    names = ("torch", "transformers", "pywavelets")
    about = {
        "settings": vars(settings),
        "text": {"fingerprint": corpus.fingerprint, "vocab_size": VOCABULARY, "sources": corpus.sources},
        "versions": {name: version(name) for name in names} | {"nbhelpers": __version__},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "seconds": round(seconds + time.perf_counter() - started, 1),
        "device": str(device),
    }
    files.write_text(folder / RUN, json.dumps(about, indent=1))
    (folder / STATE).unlink()


def _read_state(folder, of_run):
    """Return the state to go on from; ValueError if it is damaged, or of another run."""
    way_out = f"Nothing was changed. To train this run anew, move {folder} away and start again."
    try:
        state = torch.load(folder / STATE, weights_only=True)
        files.read_parquet(folder / MEASUREMENTS)
    except Exception as error:  # torch has many
        raise ValueError(f"What {folder} holds is damaged ({error}). {way_out}") from error
    if other := [f"{name} {state[name]}, not {own}" for name, own in of_run.items() if state[name] != own]:
        raise ValueError(f"{folder} holds another run: {'; '.join(other)}. {way_out}")
    return state


def _record(trainer, yardstick, folder):
    """Measure the model as it is, add it to the table, keep its weights if they are wanted."""
    settings, step = trainer.settings, trainer.step
    model, last = trainer.snapshot(), step == settings.n_steps
    loss, norm = np.mean(trainer.history, 0).tolist() if trainer.history else (np.nan, np.nan)
    scalars = {"train_loss": loss, "gradient_norm": norm, "tokens": step * settings.tokens_per_step}
    frame = measure_checkpoint(model, yardstick, step=step, bos=settings.bos, lengths=last, **scalars)
    if step:
        before, _ = files.read_parquet(folder / MEASUREMENTS)
        # A later step that is there is of a process that was killed.
        frame = pd.concat([before[before.step < step], frame], ignore_index=True)
    files.write_parquet(frame, folder / MEASUREMENTS, compression="zstd")
    if step in settings.kept_steps():
        with files.replacing_folder(folder / "weights" / f"step{step}") as partial, quiet_progress():
            model.half().save_pretrained(partial)
            trainer.corpus.tokenizer(bos=settings.bos).save_pretrained(partial)
    trainer.history = []
