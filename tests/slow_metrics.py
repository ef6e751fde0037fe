"""The metrics of one signal from the paper's equations, literally, in float64 numpy and PyWavelets."""

import numpy as np
import pywt


def entropy(p):
    return -sum(a * np.log(a) for a in p if a > 0)


def slow_metrics(signal, variants, *, window=np.hanning, windows=(16, 32, 64), first="sink_mass"):
    """Eqs. 1-11 of one signal and its scaled variants (factor → signal), by name."""
    power = abs(np.fft.rfft(signal * window(len(signal)))) ** 2  # eq. 1
    frequency = np.fft.rfftfreq(len(signal)) / 0.5  # in units of Nyquist
    share = power / power.sum()
    found = {
        "spectral_entropy": entropy(share),  # eq. 7
        "frequency_selectivity": power.max() / np.delete(power, power.argmax()).sum(),  # eq. 3
        "low_band": share[frequency < 0.25].sum(),  # eq. 2
        "mid_band": share[(frequency >= 0.25) & (frequency < 0.75)].sum(),
        "high_band": share[frequency >= 0.75].sum(),
        "positional_entropy": entropy(signal),  # eq. 6
        "effective_support": 1 / (signal**2).sum(),
        first: signal[0],
    }
    for size in windows:
        parts = [signal[at : at + size] for at in range(0, len(signal) - size + 1, size)]
        parts = [part / part.sum() for part in parts if part.sum() > 0]
        if parts:
            found[f"window_entropy_{size}"] = np.mean([entropy(part) / np.log(size) for part in parts])
    shortest = min([len(signal), *map(len, variants.values())])
    level = pywt.dwt_max_level(shortest, "db2")
    coefficients = pywt.wavedec(signal, "db2", "symmetric", level)  # eq. 4
    for name, c in zip([f"a{level}", *(f"d{k}" for k in range(level, 0, -1))], coefficients, strict=True):
        found[f"wavelet_entropy_{name}"] = entropy(c**2)  # eq. 5
    for factor, variant in variants.items():  # eq. 10
        u, v = (np.concatenate(pywt.wavedec(x, "db2", "symmetric", level)) for x in (signal, variant))
        n = min(len(u), len(v))
        cosine = u[:n] @ v[:n] / np.sqrt((u[:n] @ u[:n]) * (v[:n] @ v[:n]))
        found[f"scale_sensitivity_{factor:g}"] = 1 - cosine
    return found
