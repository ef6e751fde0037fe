"""Train one model of the zoo, measure it as it learns, and survive being killed at any time."""

import copy
import time

import torch

from nbhelpers.inputs.zoo import build, stable_seed
from nbhelpers.words import duration
from nbhelpers.zoo import measure
from nbhelpers.zoo.settings import LENGTH
from nbhelpers.zoo.text import inputs_and_labels
from nbhelpers.zoo.training.runs import FINAL, RunFolder

STATE_EVERY = 100  # updates: what a kill loses at most
MOMENTS = ("exp_avg", "exp_avg_sq")
REPORT_SECONDS = 10.0


class Trainer:
    """A model, its optimiser and how many updates were made.

    Everything random is drawn anew from seed and step, so that a run that was interrupted goes on exactly as
    it would have.

    Parameters
    ----------
    settings : nbhelpers.zoo.settings.Settings
    corpus : nbhelpers.zoo.text.Corpus
    device : str or torch.device
    compiled : bool
        Train through torch.compile: 1.5 to 1.8 times as fast on a CPU, with other rounding. Needs a C++
        compiler.
    """

    def __init__(self, settings, corpus, *, device="cpu", compiled=False):
        self.settings, self.corpus = settings, corpus
        self.device = torch.device(device)
        self.model = build(settings.config(), seed=settings.seed).to(self.device)
        # Written out, attention trains fastest on a CPU in bfloat16; on a GPU the fused kernel does.
        self.model.set_attn_implementation("eager" if self.device.type == "cpu" else "sdpa")
        self.forward = torch.compile(self.model) if compiled else self.model  # the same parameters
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, fused=True)
        self.step = 0
        self.history = []  # (loss, gradient norm) of the updates since the last checkpoint

    def update(self):
        """Make one update and return its loss in nats per predicted token.

        Raises
        ------
        RuntimeError
            If the loss is not finite.
        """
        settings = self.settings
        windows = self.corpus.batch(settings.size.batch_size, LENGTH + 1, seed=settings.seed, step=self.step)
        seed = stable_seed("masks", settings.seed, self.step)
        ids, labels = inputs_and_labels(windows, causal=settings.causal, bos=settings.bos, seed=seed)
        enabled = settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            loss = self.forward(ids.to(self.device), labels=labels.to(self.device)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"{settings.name} diverged: loss {loss.item()}, gradient norm {norm.item()} at step "
                f"{self.step}. The learning rate was {settings.learning_rate(self.step):.3g}; the last state "
                "is kept."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.history.append((loss.item(), norm.item()))
        return loss.item()

    def snapshot(self):
        """Return a copy of the model with weights rounded to float16, as they are kept, ready to be measured.

        What is measured is then exactly what a reader of the kept weights measures.
        """
        model = copy.deepcopy(self.model).half().float().eval()
        model.set_attn_implementation("sdpa")
        return model

    def state(self):
        """Return weights and moments by name, on the CPU."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for moment in MOMENTS:
                kept = self.optimizer.state[parameter].get(moment)
                tensors[f"{moment}.{name}"] = torch.zeros_like(parameter) if kept is None else kept
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, 2)
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def restore(self, step, tensors):
        """Go on from what :meth:`state` returned after `step` updates."""
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(tensors[f"weight.{name}"])
            if step:
                count = torch.tensor(float(step), device=self.device)
                moments = {moment: tensors[f"{moment}.{name}"].to(self.device) for moment in MOMENTS}
                self.optimizer.state[parameter] = {"step": count, **moments}
        self.step = step
        self.history = [tuple(row) for row in tensors["history"].tolist()]


def train(settings, corpus, out, *, device="cpu", compiled=False, report=print, watch=None):
    """Train a run to its end, or go on where it was interrupted, and return its folder.

    Parameters
    ----------
    settings : nbhelpers.zoo.settings.Settings
    corpus : nbhelpers.zoo.text.Corpus
    out : path
        Folder of the runs; this one goes into the folder of its name.
    device : str or torch.device
    compiled : bool
        See :class:`Trainer`.
    report : callable
        Called with a line of progress about every ten seconds.
    watch : callable, optional
        Called at each checkpoint with the step, the table of what was measured, and the model.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        The folder holds another run, another text, or damaged files; nothing is changed then.
    BusyError
        Another process is training this run.
    RuntimeError
        Training diverged.
    OSError
        A file could not be written.
    """
    run = RunFolder(f"{out}/{settings.name}", settings, corpus)
    with run.locked():
        run.begin()
        if run.manifest()["finished"]:
            report(f"{settings.name}: finished before, nothing to do")
            return run.folder
        trainer = Trainer(settings, corpus, device=device, compiled=compiled)
        found = run.load_state()
        if found:
            step, tensors, _ = found
            trainer.restore(step, tensors)
            report(f"{settings.name}: goes on from step {step} of {settings.n_steps}")
        clock = _Clock(settings, step=trainer.step, before=found[2]["seconds"] if found else 0.0)
        yardstick = measure.Yardstick.of(corpus)
        _loop(trainer, run, yardstick, clock, report, watch)
        run.finish(
            seconds=round(clock.seconds(), 1), device=str(device), compiled=compiled, **_final_losses(run)
        )
    return run.folder


def _loop(trainer, run, yardstick, clock, report, watch):
    settings = trainer.settings
    checkpoints, kept = set(settings.checkpoints()), set(settings.kept_steps())
    measured = set(run.measurements(up_to=trainer.step).step)
    while True:
        step = trainer.step
        if step in checkpoints:
            if step not in measured:
                _record(trainer, run, yardstick, keep=step in kept, watch=watch)
            trainer.history = []
        if step in checkpoints or step % STATE_EVERY == 0:
            run.save_state(step, trainer.state(), {"seconds": clock.seconds()})
        if step == settings.n_steps:
            return
        loss = trainer.update()
        line = clock.line(trainer.step, loss)
        if line:
            report(line)


def _record(trainer, run, yardstick, *, keep, watch):
    """Measure the model as it is, add it to the table, keep its weights if wanted."""
    settings, step = trainer.settings, trainer.step
    model = trainer.snapshot()
    frame = measure.measure_checkpoint(model, yardstick, step=step, bos=settings.bos)
    last = step == settings.n_steps
    more = [measure.measure_lengths(model, yardstick, step=step, bos=settings.bos)] if last else []
    more.append(measure.training_scalars(trainer.history, step=step, tokens=step * settings.tokens_per_step))
    frame = measure.joined([frame, *more])
    run.add_measurements(frame)
    if keep or last:
        run.save_weights(model.half(), FINAL if last else f"step{step}")
    if watch:
        watch(step, frame, model.float())


def _final_losses(run):
    frame = run.measurements()
    frame = frame[(frame.signal == "model") & (frame.step == frame.step.max())]
    return {"final": dict(zip(frame.metric, frame.value.astype(float), strict=True))}


class _Clock:
    """Says every ten seconds how far a run is, how fast it goes and how long it will take."""

    def __init__(self, settings, *, step, before=0.0):
        self.settings, self.first, self.before = settings, step, before
        self.checkpoints = settings.checkpoints()
        self.started = self.reported = time.perf_counter()

    def seconds(self):
        """Return the time spent on the run, earlier processes included."""
        return self.before + time.perf_counter() - self.started

    def line(self, step, loss):
        now = time.perf_counter()
        if now - self.reported < REPORT_SECONDS and step < self.settings.n_steps:
            return None
        self.reported = now
        tokens = (step - self.first) * self.settings.tokens_per_step
        speed = tokens / (now - self.started)
        left = (self.settings.n_steps - step) * self.settings.tokens_per_step / speed
        return (
            f"{self.settings.name}: step {step}/{self.settings.n_steps}, loss {loss:.3f}, {speed:,.0f} "
            f"tokens/s with measurements, {duration(left)} left"
        )
