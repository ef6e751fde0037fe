import math

import numpy as np
import pytest
import torch

from nbhelpers.zoo.live import live_training


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
