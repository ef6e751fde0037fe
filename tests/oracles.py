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


def assert_near(numbers, expected):
    """Assert that recorded numbers lie in (value, room), by name, and inside their intervals, if any."""
    for name, (value, room) in expected.items():
        row = numbers[name]
        assert abs(row.value - value) <= room, f"{name} is {row.value}, expected {value} ± {room}"
        assert np.isnan(row.low) or row.low <= row.value <= row.high, name


def uniform_row_correlation(n, window, *, demeaned):
    """Return ρ of both entropies over rows with power of A[i, j] = 1/(i + 1)."""
    pairs = []
    for n_seen in range(1, n + 1):
        row = np.where(np.arange(n) < n_seen, 1 / n_seen, 0.0)
        spectrum = power(row - row.mean() if demeaned else row, window)
        if spectrum.sum() > 1e-20:
            pairs.append((np.log(n_seen), entropy(spectrum)))
    return np.corrcoef(np.transpose(pairs))[0, 1]
