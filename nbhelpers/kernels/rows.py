"""The spectra, wavelet and entropy metrics of very many attention rows at once, without needless passes over memory.

The definitions are those of :mod:`~nbhelpers.kernels.spectra` and :mod:`~nbhelpers.kernels.wavelets`, which the tests
hold this module to. Two facts make it fast: a causal row is zero beyond its query, and the metrics need sums over a
row, not the normalised row itself.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pywt
import torch

from .inputs import log_base
from .spectra import frequencies, psd, window
from .wavelets import dwt, max_level

__all__ = ["band_counts", "drop_sink", "row_psd", "row_spectral_metrics", "row_wavelet_entropies"]

# A split of the transform: these finest levels are taken of the non-zero head of the rows only.
HEAD_LEVELS = 5
ROWS_WORTH_A_THREAD = 64


def drop_sink(attn):
    """Return attention without key 0, divided by what remains; zeros where nothing remains.

    Parameters
    ----------
    attn : torch.Tensor, shape (..., key)

    Returns
    -------
    torch.Tensor, shape (..., key − 1)
    """
    rest = attn[..., 1:]
    total = rest.sum(-1, keepdim=True)
    return rest / torch.where(total > 0, total, 1.0)


def row_psd(rows, length, **options):
    """Return the power spectrum of signals of `length` samples of which only the first may differ from zero.

    Parameters
    ----------
    rows : torch.Tensor, shape (..., key)
        The first key ≤ `length` samples; the rest are zero.
    length : int
        Samples of the whole signal.
    **options
        `window`, `pad`, `detrend` and `sided` of :func:`nbhelpers.kernels.spectra.psd`.

    Returns
    -------
    torch.Tensor, shape (..., freq)
    """
    n_given = rows.shape[-1]
    if options["detrend"] != "none":
        return psd(torch.nn.functional.pad(rows, (0, length - n_given)), check=False, **options)
    n_bins = len(frequencies(length, pad=options["pad"], sided="two"))
    tapered = rows * _window(options["window"], length, rows.dtype, rows.device)[:n_given]  # (..., key)
    transform = torch.fft.rfft(tapered, n=n_bins) if options["sided"] == "one" else torch.fft.fft(tapered, n=n_bins)
    return transform.real.square().add_(transform.imag.square())  # (..., freq)


@lru_cache(maxsize=16)
def _window(name, length, dtype, device):
    return window(name, length, dtype=dtype, device=device)


def band_counts(frequency, edges):
    """Return how many bins of a spectrum lie in each band, and the order that sorts bins into bands (or None).

    Parameters
    ----------
    frequency : torch.Tensor, shape (freq,)
        Cycles/token, as from :func:`nbhelpers.kernels.spectra.frequencies`.
    edges : sequence of float
        Fractions of Nyquist; a bin at an edge belongs to the band above (eq. 2).
    """
    band = torch.bucketize(frequency.abs(), 0.5 * torch.as_tensor(edges, dtype=torch.float64), right=True)
    counts = torch.bincount(band, minlength=len(edges) + 1).tolist()
    order = None if bool((band.diff() >= 0).all()) else band.argsort(stable=True)
    return counts, order


def row_spectral_metrics(power, counts, order=None, *, base=None):
    """Return spectral entropy, selectivity and band shares (eqs. 7, 3, 2) of each spectrum.

    Parameters
    ----------
    power : torch.Tensor, shape (..., freq)
    counts, order
        From :func:`band_counts`.
    base : float, optional
        Logarithm base; natural (nats) if None.

    Returns
    -------
    metrics : torch.Tensor, shape (..., 2 + band)
        Zero for a spectrum without power.
    valid : torch.Tensor of bool, shape (...)
        Where there is power.
    """
    power = power if order is None else power[..., order.to(power.device)]
    bands = torch.stack([part.sum(-1) for part in power.split(counts, -1)], -1)  # (..., band)
    total = bands.sum(-1)  # (...)
    valid = total > 0
    total = torch.where(valid, total, 1.0)
    tiny = torch.finfo(power.dtype).tiny  # 0 log 0 = 0: the logarithm stays finite and its factor is 0
    p_log_p = torch.linalg.vecdot(power, power.clamp_min(tiny).log_())  # (...)
    entropies = (total.log() - p_log_p / total) / log_base(base)
    peak = power.amax(-1)
    metrics = torch.cat([torch.stack([entropies, peak / (total - peak)], -1), bands / total[..., None]], -1)
    return torch.where(valid[..., None], metrics, 0.0), valid


def row_wavelet_entropies(rows, length, *, wavelet, mode, level, base=None):
    """Return the wavelet entropy −Σ|W|² log|W|² of each level (eq. 5, literal) of signals with a zero tail.

    Parameters
    ----------
    rows, length
        As in :func:`row_psd`.
    wavelet, mode, level, base
        As in :func:`nbhelpers.kernels.wavelets.dwt` and :func:`~nbhelpers.kernels.wavelets.wavelet_entropy`.

    Returns
    -------
    torch.Tensor, shape (..., level)
        In the order of :func:`~nbhelpers.kernels.wavelets.dwt`: approximation, then details from coarse to fine.
    """
    if rows.device.type != "cpu":
        padded = torch.nn.functional.pad(rows, (0, length - rows.shape[-1]))
        coefficients = dwt(padded, wavelet=wavelet, mode=mode, level=level, check=False)
        return torch.stack([_energy_entropy(level) for level in coefficients], -1) / log_base(base)
    flat = rows.reshape(-1, rows.shape[-1])  # (row, key)
    n_parts = max(1, min(torch.get_num_threads(), len(flat) // ROWS_WORTH_A_THREAD))
    work = [(part, length, wavelet, mode, level) for part in flat.tensor_split(n_parts)]
    parts = [_head_coefficients(*work[0])] if n_parts == 1 else list(_pool().map(lambda w: _head_coefficients(*w), work))
    entropies = [torch.cat([_energy_entropy(part[k]) for part in parts]) for k in range(level + 1)]
    return torch.stack(entropies, -1).view(*rows.shape[:-1], level + 1) / log_base(base)


@lru_cache(maxsize=1)
def _pool():
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="nbhelpers-dwt")


def _energy_entropy(coefficients):
    """Return −Σ w² log w² over the last axis."""
    energy = coefficients.square()
    return -torch.linalg.vecdot(energy, energy.clamp_min(torch.finfo(energy.dtype).tiny).log_())


def _head_coefficients(rows, length, wavelet, mode, level):
    """Return the coefficients of each level without trailing zeros, by PyWavelets.

    The finest levels see the non-zero head and enough zeros behind it that the boundary rule meets only zeros; the
    approximation that is left is then filled up to the length it has for the whole signal.
    """
    filters = pywt.Wavelet(wavelet)
    fine = min(level, HEAD_LEVELS)
    head = rows.shape[-1] + 2 * filters.dec_len * 2**fine  # samples that the fine levels need to see
    if mode == "periodization" or head >= length or max_level(head, wavelet) < fine:
        head, fine = length, level
    signal = np.zeros((len(rows), head), dtype=rows.numpy().dtype)
    signal[:, : rows.shape[-1]] = rows.numpy()
    coefficients = pywt.wavedec(signal, filters, mode=mode, level=fine, axis=-1)
    if fine < level:
        full = length
        for _ in range(fine):
            full = pywt.dwt_coeff_len(full, filters, mode)
        approximation = np.zeros((len(rows), full), dtype=rows.numpy().dtype)
        kept = min(full, coefficients[0].shape[-1])
        approximation[:, :kept] = coefficients[0][:, :kept]
        coarse = pywt.wavedec(approximation, filters, mode=mode, level=level - fine, axis=-1)
        coefficients = [*coarse, *coefficients[1:]]
    return [torch.from_numpy(array) for array in coefficients]
