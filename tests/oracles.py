"""What the tests of notebooks expect, by loops, numpy and pywt alone."""

import numpy as np
import pywt


def uniform_profile(n):
    """Return the key profile of uniform causal attention, the mean row of A[i, j] = 1/(i + 1)."""
    return np.array([sum(1 / (i + 1) for i in range(j, n)) / n for j in range(n)])


def entropy(weights):
    """Return the entropy, in nats, of non-negative weights."""
    share = weights[weights > 0] / weights.sum()
    return -(share * np.log(share)).sum()


def power(signal, window="hann"):
    """Return the power spectrum of a signal (eq. 1)."""
    return np.abs(np.fft.rfft(signal * (np.hanning(len(signal)) if window == "hann" else 1))) ** 2


def scale_sensitivities(signals, mode="symmetric"):
    """Return eq. 10 of the second and each later signal against the first: db2, coefficients truncated."""
    level = pywt.dwt_max_level(len(signals[-1]), "db2")
    full, *scaled = [np.concatenate(pywt.wavedec(signal, "db2", mode, level)) for signal in signals]
    pairs = [(full[: len(part)], part) for part in scaled]
    return [1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in pairs]
