"""The metrics of one signal, and of every row, from the paper's equations, literally, in float64."""

import itertools

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


def signal_of(row, protocol):
    if protocol.sink == "keep":
        return row
    rest = row[1:]
    return rest / rest.sum() if rest.sum() > 0 else rest


def spectrum(signal, protocol):
    n = len(signal)
    n_bins = {1: n, 2: 2 * n, "next_pow2": 2 ** int(np.ceil(np.log2(n)))}[protocol.pad]
    signal = signal - signal.mean() if protocol.detrend == "mean" else signal
    signal = signal * (np.hanning(n) if protocol.window == "hann" else 1.0)
    bins = np.fft.fft(signal, n_bins)
    return abs(bins[: n_bins // 2 + 1] if protocol.sided == "one" else bins) ** 2


def slow_row_metrics(a, real, protocol):
    """Means over rows of eqs. 7, 3, 2, 6 and 5, and the correlation of eqs. 8 and 9 over rows with power."""
    n = a.shape[-1] - (protocol.sink != "keep")
    base = np.log(protocol.log_base or np.e)
    shortest = n if protocol.level == "own" else int(n * 0.25)
    level = pywt.dwt_max_level(shortest, protocol.wavelet)
    n_bins = {1: n, 2: 2 * n, "next_pow2": 2 ** int(np.ceil(np.log2(n)))}[protocol.pad]
    frequency = np.fft.rfftfreq(n_bins) if protocol.sided == "one" else abs(np.fft.fftfreq(n_bins))
    limits = [-1.0, *(0.5 * edge for edge in protocol.edges), 1.0]
    spectral, positional, scales = [], [], []
    for i in real:
        signal = signal_of(a[i], protocol)
        power = spectrum(signal, protocol)
        if power.sum() > 0:
            share = power / power.sum()
            inside = [(frequency >= lo) & (frequency < hi) for lo, hi in itertools.pairwise(limits)]
            bands = [share[one].sum() for one in inside]
            rest = np.delete(share, share.argmax()).sum()
            spectral.append([entropy(share) / base, share.max() / rest, *bands, entropy(signal) / base])
        positional.append(entropy(signal) / base)
        coefficients = pywt.wavedec(signal, protocol.wavelet, protocol.mode, level)
        scales.append([entropy(c**2) / base for c in coefficients])
    spectral = np.array(spectral)
    correlation = np.corrcoef(spectral[:, 0], spectral[:, -1])[0, 1]
    return [*spectral[:, :-1].mean(0), np.mean(positional), *np.mean(scales, 0), correlation]
