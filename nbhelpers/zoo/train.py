"""One model of the zoo in training: an update at a time, a state to go on from, or while somebody watches."""

import copy
import tempfile
import time
from collections import namedtuple

import numpy as np
import torch

from nbhelpers.hooks.capture import capture
from nbhelpers.inputs.zoo import build, stable_seed
from nbhelpers.kernels import spectra
from nbhelpers.protocol import PAPER
from nbhelpers.zoo.settings import BETAS, CLIP, LENGTH, WEIGHT_DECAY, Settings
from nbhelpers.zoo.text import inputs_and_labels, prepare

LIVE = {"preset": "test", "precision": "float32"}  # 2 layers of 2 heads, so that a minute holds many updates
LIVE_TOKENS = 2000 * 512  # of the learning-rate schedule, updates that a busy core makes in about a minute
LIVE_SEQUENCES = 4  # held-out windows whose attention is measured
# A model in training: loss in nats per token, the mean since the snapshot before, NaN at first; frequency
# (freq,) in cycles/token; psd (layer, head, freq), each summing to 1; spectral entropy (layer, head) in nats.
Snapshot = namedtuple("Snapshot", ("step", "seconds", "loss", "frequency", "psd", "spectral_entropy"))


class Trainer:
    """A model, its optimiser and how many updates were made.

    Everything random is drawn anew from seed and step: an interrupted run goes on exactly as it would have.
    """

    def __init__(self, settings, corpus, *, device="cpu"):
        self.settings, self.corpus = settings, corpus
        self.device = torch.device(device)
        self.model = build(settings.config(), seed=settings.seed).to(self.device)
        # Written out, attention trains fastest on a CPU in bfloat16; on a GPU the fused kernel does.
        self.model.set_attn_implementation("eager" if self.device.type == "cpu" else "sdpa")
        weights = {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY}
        vectors = {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW([weights, vectors], lr=0.0, betas=BETAS, fused=True)
        self.step, self.history = 0, []  # (loss, gradient norm) of the updates since the last checkpoint

    def update(self):
        """Make one update and return its loss in nats per predicted token; RuntimeError if it diverges."""
        settings = self.settings
        windows = self.corpus.batch(settings.size.batch_size, LENGTH + 1, seed=settings.seed, step=self.step)
        seed = stable_seed("masks", settings.seed, self.step)
        ids, labels = inputs_and_labels(windows, causal=settings.causal, bos=settings.bos, seed=seed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = self.model(ids.to(self.device), labels=labels.to(self.device)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        if not torch.isfinite(norm):
            told = f"diverged: loss {loss.item()}, gradient norm {norm.item()} at step {self.step}"
            raise RuntimeError(f"{settings.name} {told}, rate {settings.learning_rate(self.step):.3g}.")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.history.append((loss.item(), norm.item()))
        return loss.item()

    def snapshot(self):
        """Return a copy with weights rounded to float16, so that what is measured is what is kept."""
        model = copy.deepcopy(self.model).half().float().eval()
        model.set_attn_implementation("sdpa")
        return model

    def state(self):
        """Return what :meth:`restore` goes on from."""
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return kept | {"step": self.step, "history": self.history}

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]


def live_training(*, seconds, encoding="rope", seed=0, n_snapshots=20):
    """Train from scratch on the bundled book for so many seconds, and yield Snapshots now and then."""
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    settings = Settings(**LIVE, encoding=encoding, seed=seed, n_tokens=LIVE_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare(["moby-dick"], folder)  # bundled: needs no network
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model trains fastest on one
    try:
        trainer, over = Trainer(settings, corpus), False
        ids = corpus.windows("measurement", LIVE_SEQUENCES, LENGTH)  # (sequence, position)
        started = due = time.perf_counter()
        while not over:
            now = time.perf_counter()
            over = trainer.step == settings.n_steps or (trainer.step > 0 and now - started >= seconds)
            if over or now >= due:
                yield _snapshot(trainer, ids, now - started)
                due = now + seconds / n_snapshots
                trainer.history = []
            if not over:
                trainer.update()
    finally:
        torch.set_num_threads(n_threads)


def _snapshot(trainer, ids, seconds):
    profiles = capture(trainer.snapshot(), ids, "key_profile", progress=False)
    signal = profiles.key_profile.double()  # (sequence, layer, head, key)
    options = PAPER.spectrum_options
    psd = spectra.psd(signal, **options)  # (sequence, layer, head, freq)
    entropies = spectra.spectral_entropy(psd, base=PAPER.log_base).mean(0)  # (layer, head)
    shares = (psd / psd.sum(-1, keepdim=True)).mean(0)  # (layer, head, freq)
    frequency = spectra.frequencies(signal.shape[-1], pad=options["pad"], sided=options["sided"])
    loss = float(np.mean([loss for loss, _ in trainer.history])) if trainer.history else float("nan")
    return Snapshot(trainer.step, seconds, loss, np.asarray(frequency), shares.numpy(), entropies.numpy())
