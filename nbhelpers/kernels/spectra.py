"""Power spectra of attention signals, and the numbers read from them (eqs. 1, 2, 3 and 7).

Frequencies are in cycles/token, so the Nyquist frequency is 0.5.
"""

import math

import torch

from nbhelpers.arguments import RULES, check_all, checked, refuse, several, share, whole

from .checks import as_double, as_power, as_signal, log_base, negative_p_log_p


@checked(name=RULES["window"], dtype=None)
def window(name, length, *, dtype=torch.float64, device=None):
    """Return a symmetric window (position,), to be multiplied into a signal before its Fourier transform.

    "hann" is `numpy.hanning`: zero at both ends, so the first and the last token do not contribute (an
    attention sink at key 0 is removed); of length 1 it is ``[1.]``, of length 2 ``[0., 0.]``. "boxcar" is
    ones.
    """
    if name == "boxcar" or length == 1:
        return torch.ones(length, dtype=dtype, device=device)
    steps = torch.arange(1 - length, length, 2, dtype=torch.float64, device=device)  # (position,)
    return (0.5 + 0.5 * torch.cos(math.pi * steps / (length - 1))).to(dtype)  # (position,)


def frequencies(length, *, pad=1, sided="one"):
    """Return the frequencies of the bins of `psd` for signals of `length` tokens, in cycles/token, (freq,).

    float64, on the CPU. One-sided: k/N for k = 0 … N//2, the last one 0.5 where N, the padded length, is
    even. Two-sided: in the order of the DFT, 0 first, the negative frequencies last (−0.5 if N is even).
    """
    n = _padded_length(length, pad)
    if sided == "one":
        return torch.arange(n // 2 + 1, dtype=torch.float64) / n  # (freq,)
    bins = torch.arange(n, dtype=torch.float64)  # (freq,)
    return torch.where(bins < (n + 1) // 2, bins, bins - n) / n


def psd(signal, *, window="hann", pad=1, detrend="none", sided="one", dc="keep", check=True):
    """Return the power spectrum (..., freq) of signals (..., position), the squared windowed DFT (eq. 1).

    Non-negative, in units of the signal squared, with no normalisation by length or window; `frequencies`
    gives the axis. Differentiable everywhere. The window spans the signal, not the padding, which is to `pad`
    times the length or to the next power of two. `detrend` "mean" subtracts the mean of each signal before
    the window; a Hann window then lets a little power back into the zero-frequency bin, which `dc` "drop"
    sets to 0.

    `sided` "one" gives the bins 0 … N//2 of the real DFT, N being the padded length. Interior bins are *not*
    doubled: this is the literal reading of eq. 1, which squares the transform and says no more, and it weighs
    the zero-frequency bin twice as much as a doubled spectrum would. "two" gives all N bins, whose sum is N
    times the energy of the windowed signal (Parseval).
    """
    x = as_signal(signal, check=check)  # (..., position)
    if x.numel() == 0:
        refuse("signal", x, "at least one signal")
    n = _padded_length(x.shape[-1], pad)
    if detrend == "mean":
        x = x - x.mean(-1, keepdim=True)  # (..., position)
    x = _apply_window(x, window)  # (..., position)
    transform = torch.fft.rfft(x, n=n) if sided == "one" else torch.fft.fft(x, n=n)  # (..., freq)
    power = transform.real.square() + transform.imag.square()  # (..., freq)
    if dc == "drop":
        power[..., 0] = 0
    return power


@checked(edges=several(share, rising=True))
def band_shares(psd, *, edges=(0.25, 0.75), frequency=None):
    """Return the share of the power (..., freq) in each band, from low to high, (..., band) (eq. 2).

    Shares sum to 1; NaN where a spectrum has no power. `edges` are fractions of the Nyquist frequency,
    increasing, strictly between 0 and 1; the default gives the three bands of the paper. A bin at an edge
    belongs to the band above it, the zero-frequency bin to the lowest. `frequency` (freq,) is in
    cycles/token, its sign ignored. By default the bins are evenly spaced from 0 to 0.5, as in a one-sided
    spectrum of even length; for an odd length or a two-sided spectrum pass what `frequencies` returns.
    """
    power = as_power(psd)  # (..., freq)
    n_freq = power.shape[-1]
    edges = torch.tensor(edges, dtype=torch.float64)  # (edge,)
    if frequency is None:
        # Dividing integers puts a bin that lies at an edge exactly there; adding up a step may not.
        frequency = torch.arange(n_freq, dtype=torch.float64) / max(2 * (n_freq - 1), 1)  # (freq,)
    frequency = as_double(frequency, "frequency", device="cpu", length=n_freq)  # (freq,)
    band = torch.bucketize(frequency.abs(), 0.5 * edges, right=True)  # (freq,)
    if bool((band.diff() < 0).any()):
        order = band.argsort(stable=True)  # (freq,)
        power, band = power[..., order.to(power.device)], band[order]
    n_bins = torch.bincount(band, minlength=len(edges) + 1).tolist()
    per_band = torch.stack([part.sum(-1) for part in power.split(n_bins, -1)], -1)  # (..., band)
    return per_band / per_band.sum(-1, keepdim=True)


def frequency_selectivity(psd):
    """Return the largest power of a spectrum (..., freq) over the sum of all other power, (...) (eq. 3).

    At least ``1 / (freq − 1)``, the value of a flat spectrum. Infinite if all power is in one bin, NaN
    without power. Whether the zero-frequency bin counts is decided by whether it is passed.
    """
    power = as_power(psd)  # (..., freq)
    at = power.argmax(-1, keepdim=True)  # (..., 1)
    peak = power.gather(-1, at).squeeze(-1)  # (...)
    # The peak is cleared before the sum, not subtracted after it: a sharp spectrum would lose its digits.
    return peak / power.scatter(-1, at, 0.0).sum(-1)  # (...)


def spectral_entropy(psd, *, base=None):
    """Return the entropy (...) of normalised power spectra (..., freq), in [0, log(freq)] (eq. 7).

    NaN where a spectrum has no power.
    """
    power = as_power(psd)  # (..., freq)
    return negative_p_log_p(power / power.sum(-1, keepdim=True)).sum(-1) / log_base(base)  # (...)


@checked(n=whole(1))
def spikes(signal, n=5, *, window="hann", check=True):
    """Return which n entries of windowed signals (..., position) hold most energy, and the share they hold.

    The indices are (..., n), the largest first; the share is (...), NaN where the windowed signal is 0. An
    impulse has a flat spectrum: where a few entries hold most energy, the bands tell little else.
    """
    energy = _apply_window(as_signal(signal, check=check), window).square()
    if n > energy.shape[-1]:
        raise ValueError(f"a signal of {energy.shape[-1]} entries has no {n} largest; ask for fewer")
    largest = energy.topk(n, dim=-1)
    return largest.indices, largest.values.sum(-1) / energy.sum(-1)


def _apply_window(x, name):
    return x if name == "boxcar" else x * window(name, x.shape[-1], dtype=x.dtype, device=x.device)


def _padded_length(length, pad):
    return 1 << (length - 1).bit_length() if pad == "next_pow2" else pad * length


__all__ = [*check_all(globals())]
