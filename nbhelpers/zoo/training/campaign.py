"""Train a run of the zoo to its end: measured at its checkpoints, safe against a kill at any time."""

import time
from pathlib import Path

from nbhelpers.words import duration
from nbhelpers.zoo import measure
from nbhelpers.zoo.train import Trainer
from nbhelpers.zoo.training.runs import FINAL, RunFolder

STATE_EVERY = 100  # updates: what a kill loses at most
REPORT_SECONDS = 10.0


def train(settings, corpus, out, *, device="cpu", compiled=False, report=print):
    """Train a run to its end, or go on where it was interrupted, and return its folder in `out`.

    `report` is called with a line of progress about every ten seconds. Left as it is: a folder of another
    run, another text or damaged files (ValueError), one that another process trains in (BusyError).
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
