import math
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from nbhelpers.zoo.live import live_training

N_FREQ = 129  # of 256 positions


@pytest.fixture(scope="module")
def snapshots():
    return list(live_training(seconds=4, n_snapshots=4))


def test_the_first_snapshot_is_uniform_attention(snapshots):
    first = snapshots[0]
    n = 256
    profile = np.array([sum(1 / (i + 1) for i in range(j, n)) / n for j in range(n)])
    power = np.abs(np.fft.rfft(profile * np.hanning(n))) ** 2
    assert first.step == 0
    assert math.isnan(first.loss)
    assert first.psd.shape == (*first.spectral_entropy.shape, N_FREQ)
    assert np.abs(first.psd - power / power.sum()).max() < 1e-3
    assert first.frequency[[0, -1]].tolist() == [0, 0.5]


def test_it_learns_and_ends(snapshots):
    last = snapshots[-1]
    assert last.step > 10
    assert 4 <= last.seconds < 30
    assert last.loss < snapshots[1].loss <= math.log(2048) + 0.1
    assert np.diff([s.step for s in snapshots]).min() >= 0
    assert all(np.allclose(s.psd.sum(-1), 1) for s in snapshots)


def test_the_loss_is_the_mean_since_the_snapshot_before(monkeypatch):
    def counted(self):
        time.sleep(0.02)
        self.step += 1
        self.history.append((float(self.step), 0.0))

    monkeypatch.setattr("nbhelpers.zoo.live.Trainer.update", counted)
    found = list(live_training(seconds=1, n_snapshots=5))
    assert len(found) >= 3
    for before, now in pairwise(found):
        assert now.loss == pytest.approx(np.mean(range(before.step + 1, now.step + 1)))


def test_threads_are_as_before(snapshots):
    before = torch.get_num_threads()
    training = live_training(seconds=60)
    next(training)
    training.close()  # as when the cell is interrupted
    assert torch.get_num_threads() == before


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        next(live_training(seconds=0))
