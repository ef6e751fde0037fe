"""The metrics of very many attention rows at once, without needless passes over memory.

The definitions are those of :mod:`~nbhelpers.kernels.spectra` and :mod:`~nbhelpers.kernels.wavelets`. Two
facts make it fast: a causal row is zero beyond its query, and the metrics need sums over a row alone.
"""

import itertools
from functools import lru_cache

import numpy as np
import pywt
import scipy.fft
import torch

from .checks import log_base
from .spectra import frequencies, psd, window
from .wavelets import wavedec, wavelet_entropy, weighted_sum

__all__ = ["band_runs", "drop_sink", "row_psd", "row_spectral_metrics", "row_wavelet_entropies"]

_window = lru_cache(maxsize=16)(window)
AWKWARD = range(17, 100)  # prime factors of a length that torch's transform is slow at


def drop_sink(attn):
    """Return attention (..., key) without key 0, divided by what remains; zeros where nothing remains."""
    rest = attn[..., 1:]  # (..., key − 1)
    total = rest.sum(-1, keepdim=True)  # (..., 1)
    return rest / torch.where(total > 0, total, 1.0)


def row_psd(rows, length, *, relative=False, **options):
    """Return the power spectrum (..., freq) of `length` samples: `rows` (..., key) with zeros behind them.

    `options` are those of :func:`nbhelpers.kernels.spectra.psd`. `relative` divides each signal, tapered and
    not detrended, by its largest sample: where a Hann window removes nearly all of a row with its key 0, the
    power of the rest would be too small for float32.
    """
    n_given = rows.shape[-1]
    if options["detrend"] != "none":
        return psd(torch.nn.functional.pad(rows, (0, length - n_given)), check=False, **options)
    n_bins = len(frequencies(length, pad=options["pad"], sided="two"))
    tapered = rows.new_zeros(*rows.shape[:-1], n_bins)  # (..., padded)
    taper = _window(options["window"], length, dtype=rows.dtype, device=rows.device)
    kept = torch.mul(rows, taper[:n_given], out=tapered[..., :n_given])  # (..., key)
    if relative and n_given:
        largest = kept.amax(-1, keepdim=True)  # (..., 1)
        kept /= torch.where(largest > 0, largest, 1.0)
    transform = real_fft(tapered) if options["sided"] == "one" else torch.fft.fft(tapered)
    squares = torch.view_as_real(transform).square_()  # (..., freq, 2): contiguous, so one fast pass
    power = squares[..., 0] + squares[..., 1]  # (..., freq)
    if options["dc"] == "drop":
        power[..., 0] = 0
    return power


def real_fft(signals):
    """Return the one-sided transform (..., freq) of real signals (..., position), by the quicker library.

    On a CPU that is scipy where the largest prime factor of the length is in `AWKWARD` (517, 1023, 2047).
    """
    factor = _largest_prime_factor(signals.shape[-1])
    if factor not in AWKWARD or signals.device.type != "cpu" or signals.requires_grad:
        return torch.fft.rfft(signals)
    return torch.from_numpy(scipy.fft.rfft(signals.numpy(), workers=torch.get_num_threads()))


@lru_cache
def _largest_prime_factor(n):
    factor = 2
    while factor * factor <= n:
        n, factor = (n, factor + 1) if n % factor else (n // factor, factor)
    return n


def band_runs(frequency, edges):
    """Return where the bins of each band lie in a spectrum, slices for each, from the lowest to the highest.

    `frequency` (freq,) is in cycles/token, `edges` are fractions of Nyquist, and a bin at an edge belongs to
    the band above (eq. 2). A band of a two-sided spectrum may be in two places; one without bins has no run.
    Slices need not be brought to the device of the spectrum, as an index tensor would.
    """
    band = np.digitize(np.abs(np.asarray(frequency)), 0.5 * np.asarray(edges, dtype=float))  # (freq,)
    cuts = [0, *(np.flatnonzero(np.diff(band)) + 1).tolist(), len(band)]
    runs = [[] for _ in range(len(edges) + 1)]
    for start, stop in itertools.pairwise(cuts):
        runs[band[start]].append(slice(start, stop))
    return runs


def row_spectral_metrics(power, runs, *, base=None):
    """Return entropy, selectivity, band shares (eqs. 7, 3, 2) of spectra (..., freq); and which have power.

    The metrics are (..., 2 + band), 0 without power; the second, bool, is (...). `runs` are those of
    :func:`band_runs`, with every bin in one of them.
    """
    # In float64, or total - peak would lose the digits of a sharp spectrum.
    none = power[..., :0].sum(-1, dtype=torch.float64)  # (...)
    parts = [[power[..., run].sum(-1, dtype=torch.float64) for run in band] for band in runs]
    bands = torch.stack([sum(part, start=none) for part in parts], -1)  # (..., band)
    total = bands.sum(-1)  # (...)
    valid = total > 0
    total = torch.where(valid, total, 1.0)
    tiny = torch.finfo(power.dtype).tiny  # 0 log 0 = 0: the logarithm stays finite and its factor is 0
    p_log_p = torch.linalg.vecdot(power, power.clamp_min(tiny).log_())  # (...)
    entropies = (total.log() - p_log_p / total) / log_base(base)
    peak = power.amax(-1).double()
    metrics = torch.cat([torch.stack([entropies, peak / (total - peak)], -1), bands / total[..., None]], -1)
    return torch.where(valid[..., None], metrics, 0.0).to(power.dtype), valid


def row_wavelet_entropies(rows, length, *, wavelet, mode, level, base=None):
    """Return the wavelet entropy −Σ|W|² log|W|² of each level (eq. 5, literal) of signals with a zero tail.

    `rows` and `length` are as in :func:`row_psd`; the result (..., level) is in the order of `wavedec`.
    """
    filters = pywt.Wavelet(wavelet)
    if mode == "periodization" or rows.shape[-1] < filters.dec_len:
        padded = torch.nn.functional.pad(rows, (0, length - rows.shape[-1]))
        levels = wavedec(padded, wavelet=wavelet, mode=mode, level=level, check=False)
        return wavelet_entropy(levels, base=base)
    flat = rows.reshape(-1, rows.shape[-1])  # (row, key)
    entropies = list(_level_entropies(flat, length, filters, mode, level))[::-1]
    return torch.stack(entropies, -1).view(*rows.shape[:-1], level + 1) / log_base(base)


def _level_entropies(rows, length, filters, mode, level):
    """Yield −Σ w² log w² of each level (row,), finest detail first, the approximation last.

    Samples are the first axis, so that every tap of the filters sums contiguous memory. Each level keeps its
    non-zero head and the length `full` it would have with the zeros behind it.
    """
    n_taps, margin = filters.dec_len, filters.dec_len - 2
    n, full = rows.shape[-1], length
    samples = rows.new_empty(margin + n + 2 * n_taps, len(rows))  # (before + sample + after, row)
    samples[margin : margin + n] = rows.T
    for _ in range(level):
        at_end = n + n_taps > full  # the boundary rule meets samples that may differ from zero
        count = ((full if at_end else n) + n_taps - 1) // 2
        samples[:margin] = 0
        samples[margin + n :] = 0
        if mode == "symmetric":
            samples[:margin] = samples[margin : 2 * margin].flip(0)
            if at_end:
                end, after = margin + full, 2 * count - full
                samples[end : end + after] = samples[end - after : end].flip(0)
        taps = [samples[tap : tap + 2 * count - 1 : 2] for tap in range(n_taps)]  # (coefficient, row) each
        yield _energy_entropy(weighted_sum(taps, filters.dec_hi[::-1]))
        coarser = rows.new_empty(margin + count + 2 * n_taps, len(rows))
        weighted_sum(taps, filters.dec_lo[::-1], out=coarser[margin : margin + count])
        samples, n, full = coarser, count, (full + n_taps - 1) // 2
    yield _energy_entropy(samples[margin : margin + n])


def _energy_entropy(coefficients):
    """Return −Σ w² log w² over the first axis, in place."""
    energy = coefficients.square_()
    logs = energy.clamp_min(torch.finfo(energy.dtype).tiny).log_()  # 0 log 0 = 0: finite, and its factor is 0
    return logs.mul_(energy).sum(0).neg_()
