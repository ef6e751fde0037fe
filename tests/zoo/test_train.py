import dataclasses
import math

import numpy as np
import pytest
import torch

from nbhelpers.zoo.settings import CLIP, Settings
from nbhelpers.zoo.text import Corpus
from nbhelpers.zoo.train import Trainer, live_training

SETTINGS = Settings(preset="test", precision="float32")
# First losses on the bundled book with float32; a run of the same settings repeats them to rounding.
LOSSES = {
    ("rope", True): [7.622943, 7.62191, 7.625446, 7.612574, 7.573119, 7.582958, 7.556183, 7.489686],
    ("t5", False): [7.598364, 7.588231, 7.533452, 7.497921, 7.457966, 7.385063, 7.301763, 7.225638],
}


@pytest.fixture
def counting():
    tokens = torch.arange(3000, dtype=torch.int32) % 50 + 2
    return Corpus({"train": tokens}, {"train": torch.tensor([3000])}, None, "", [])


@pytest.mark.parametrize(("encoding", "causal"), LOSSES)
def test_first_losses_are_those_recorded(moby_dick, encoding, causal):
    trainer = Trainer(dataclasses.replace(SETTINGS, encoding=encoding, causal=causal), moby_dick)
    losses = [trainer.update() for _ in range(8)]
    assert losses == pytest.approx(LOSSES[encoding, causal], abs=2e-4)


def test_one_update_is_that_of_adamw_written_out(counting):
    trainer = Trainer(SETTINGS, counting)
    weight = trainer.model.model.layers[0].mlp_in.weight
    before = weight.detach().clone()
    gradients = []
    trainer.optimizer.register_step_pre_hook(lambda *_: gradients.append(weight.grad.detach().clone()))
    trainer.update()
    rate = SETTINGS.learning_rate(0)
    # At the first step of Adam the bias-corrected moments are g and g², so every entry moves by the rate.
    direction = gradients[0] / (gradients[0].abs() + 1e-8)
    expected = before * (1 - rate * 0.1) - rate * direction
    assert (weight - expected).abs().max() < 1e-6
    assert math.sqrt(sum(float((g**2).sum()) for g in gradients)) <= CLIP
    kept = trainer.snapshot()  # what is measured and kept has float16 weights
    for rounded, trained in zip(kept.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(rounded, trained.half().float())
    assert (kept.training, trainer.model.training) == (False, True)


def test_a_run_that_diverges_says_so(counting):
    trainer = Trainer(SETTINGS, counting)
    with torch.no_grad():
        trainer.model.model.token.weight[:] = torch.inf
    with pytest.raises(RuntimeError, match="diverged: loss nan"):
        trainer.update()


@pytest.fixture(scope="module")
def snapshots():
    n_threads = torch.get_num_threads()
    found = list(live_training(seconds=4, n_snapshots=4))
    assert torch.get_num_threads() == n_threads, "as before"
    return found


def test_the_first_snapshot_is_uniform_attention_and_the_last_has_learned(snapshots):
    first = snapshots[0]
    n = 256
    profile = np.array([sum(1 / (i + 1) for i in range(j, n)) / n for j in range(n)])
    power = np.abs(np.fft.rfft(profile * np.hanning(n))) ** 2
    assert first.step == 0
    assert math.isnan(first.loss)
    assert first.psd.shape == (*first.spectral_entropy.shape, 129)
    assert np.abs(first.psd - power / power.sum()).max() < 1e-3
    assert first.frequency[[0, -1]].tolist() == [0, 0.5]
    last = snapshots[-1]
    assert 4 <= last.seconds < 30
    assert last.loss < snapshots[1].loss <= math.log(2048) + 0.1
    assert all(np.allclose(s.psd.sum(-1), 1) for s in snapshots)
