"""Train a tiny model while somebody watches: snapshots of its heads' spectra as they evolve."""

import dataclasses
import tempfile
import time
from typing import NamedTuple

import numpy as np
import torch

from nbhelpers.hooks.capture import capture
from nbhelpers.kernels import spectra
from nbhelpers.protocol import PAPER
from nbhelpers.zoo.settings import LENGTH, Settings
from nbhelpers.zoo.text import prepare
from nbhelpers.zoo.train import Trainer

PRESET = "test"  # 2 layers of 2 heads: the smallest, so that a minute holds many updates
N_UPDATES = 2000  # of the learning-rate schedule, about what a busy core makes in a minute
N_SEQUENCES = 4  # held-out windows whose attention is measured


class Snapshot(NamedTuple):
    """A model after some updates, and what its heads do then."""

    step: int
    seconds: float
    loss: float  # nats per token, the mean since the snapshot before; NaN before the first update
    frequency: np.ndarray  # (freq,), cycles/token
    psd: np.ndarray  # (layer, head, freq), each summing to 1
    spectral_entropy: np.ndarray  # (layer, head), nats, the mean over sequences


def live_training(*, seconds, encoding="rope", seed=0, n_snapshots=20):
    """Train from scratch on the bundled book for so many seconds, and yield Snapshots now and then."""
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    first = Settings(preset=PRESET, encoding=encoding, seed=seed, precision="float32")
    settings = dataclasses.replace(first, n_tokens=N_UPDATES * first.tokens_per_step)
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare(["moby-dick"], folder)  # bundled: needs no network
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model trains fastest on one
    try:
        yield from _trained(Trainer(settings, corpus), seconds, n_snapshots)
    finally:
        torch.set_num_threads(n_threads)


def _trained(trainer, seconds, n_snapshots):
    ids = trainer.corpus.windows("measurement", N_SEQUENCES, LENGTH)  # (sequence, position)
    started = due = time.perf_counter()
    while True:
        now = time.perf_counter()
        over = trainer.step == trainer.settings.n_steps or (trainer.step > 0 and now - started >= seconds)
        if over or now >= due:
            yield _snapshot(trainer, ids, now - started)
            due = now + seconds / n_snapshots
            trainer.history = []
        if over:
            return
        trainer.update()


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
