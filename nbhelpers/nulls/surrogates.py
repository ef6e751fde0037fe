"""Signals made to share one property with given ones and nothing else; what the null models are built from.

Tensors in, float64 tensors out, any leading dimensions, every draw from a seed.
"""

import math

import numpy as np
import torch

from nbhelpers.arguments import check_all
from nbhelpers.kernels import spectra
from nbhelpers.kernels.checks import as_double, as_signal
from nbhelpers.kernels.frames import BISECTIONS

STEEPEST = 64.0  # log ratio of neighbours; e^-64 of the mass is none in float64
ITERATIONS = 50  # of IAAFT, at most
ROWS_AT_ONCE = 4096  # signals that go through the iterations of IAAFT together


def random_order(signal, *, seed=0):
    """Return the values of each signal (..., position) in random order."""
    x = as_signal(signal).double()  # (..., position)
    order = torch.rand(x.shape, generator=_generator(seed), dtype=x.dtype).argsort(-1)
    return x.gather(-1, order)


def exponential_decay(distance, length, *, causal):
    """Return the log ratio s of an exponential kernel exp(s·|i − j|) with a given mean distance, (...).

    `distance` (...) is the mean of |query − key| in tokens; s is negative where it is less than that of
    uniform attention.
    """
    target = as_double(distance, "distance")  # (...)
    farthest = float(_mean_distance(torch.tensor(STEEPEST, dtype=torch.float64), length, causal))
    # Captured lag profiles are float32: the largest distances may be passed by rounding.
    if float(target.min()) < 0 or float(target.max()) > farthest * (1 + 1e-5) + 1e-9:
        found = f"mean distances run from {float(target.min()):.6g} to {float(target.max()):.6g} tokens"
        raise ValueError(f"{found}; such attention over {length} tokens has 0 to {farthest:.6g}")
    low, high = torch.full_like(target, -STEEPEST), torch.full_like(target, STEEPEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        nearer = _mean_distance(middle, length, causal) < target
        low, high = torch.where(nearer, middle, low), torch.where(nearer, high, middle)
    return (low + high) / 2


def exponential_profiles(decay, length):
    """Return the profiles of causal :func:`exponential_attention` by name, O(length) per head.

    key_profile and last_query are (..., key), lag_profile and stationary_profile (..., lag).
    """
    s = as_double(decay, "decay")  # (...)
    n, a, far = length, s.abs()[..., None], s[..., None] > 0
    weight = (-a * torch.arange(n, dtype=torch.float64)).exp()  # (..., position from the heavy end)
    inverse = 1 / weight.cumsum(-1)  # (..., query)
    # Profile from the heavy end of every row: w_k Σ_{i≥k} 1/Z_i; from the other end: Σ_{i≥k} w_{i−k}/Z_i.
    heavy = weight * inverse.flip(-1).cumsum(-1).flip(-1) / n
    light, running, ratio = torch.empty_like(heavy), torch.zeros_like(s), (-a[..., 0]).exp()
    for k in reversed(range(n)):
        running = inverse[..., k] + ratio * running
        light[..., k] = running / n
    last = weight * inverse[..., -1:]
    # The heavy end is the query itself (lag 0), or the first key where attention grows with distance.
    return {
        "key_profile": torch.where(far, heavy, light),
        "last_query": torch.where(far, last, last.flip(-1)),
        "lag_profile": torch.where(far, light, heavy),
        "stationary_profile": _stationary(s, n),
    }


def _stationary(s, n):
    """Mean over the last n // 2 queries q of exp(s·d) / Σ_{k≤q} exp(s·k), (..., d)."""
    lag = torch.arange(n, dtype=torch.float64)
    sums = (s[..., None] * lag).logcumsumexp(-1)[..., n - n // 2 :]  # (..., query)
    inverse = (-sums).logsumexp(-1, keepdim=True) - math.log(n // 2)
    return (s[..., None] * lag[: n // 2] + inverse).exp()


def exponential_attention(decay, length, *, causal):
    """Return the matrix (..., query, key) of an exponential kernel: softmax over seen keys of s·|i − j|."""
    position = torch.arange(length, dtype=torch.float64)
    lag = position[:, None] - position  # (query, key)
    scores = as_double(decay, "decay")[..., None, None] * lag.abs()  # (..., query, key)
    return (scores.masked_fill(lag < 0, -math.inf) if causal else scores).softmax(-1)


def iaaft(signal, *, seed=0):
    """Return surrogates with the values of each signal (..., position) and nearly its power spectrum (N5).

    Iterated amplitude-adjusted Fourier transform (Schreiber and Schmitz, Phys. Rev. Lett. 77, 1996): the
    spectrum and the values are put right in turn, the values last and so exactly; amplitudes are within a few
    per cent, or within tens where a few spikes hold the mass.
    """
    x = as_signal(signal).double()  # (..., position)
    start = random_order(x, seed=seed)
    rows, orders = (each.reshape(-1, x.shape[-1]).split(ROWS_AT_ONCE) for each in (x, start))
    return torch.cat([_iterate(*some) for some in zip(rows, orders, strict=True)]).reshape(x.shape)


def power_law_exponent(psd, frequency):
    """Return the exponent χ (...) of the power law f^−χ nearest in log-log to psd (..., freq) without DC."""
    if int((frequency > 0).sum()) < 2:
        told = f"a power law needs two frequencies above 0, got {frequency.tolist()}"
        raise ValueError(f"{told}; take 4 tokens or more")
    weight = ((frequency > 0) & (psd > 0)).double()  # (..., freq)
    u = torch.where(weight > 0, frequency, 1.0).log()
    v = torch.where(weight > 0, psd, 1.0).log()
    count = weight.sum(-1)  # (...)
    centred = weight * (u - ((weight * u).sum(-1) / count)[..., None])
    return -(centred * v).sum(-1) / (centred * u).sum(-1)


def power_law_order(signal, *, seed=0):
    """Return the values of each signal (..., position) in the order of noise with its own power law (N6).

    The exponent is that of its Hann-windowed spectrum without mean. A signal has at least 4 positions.
    """
    x = as_signal(signal).double()  # (..., position)
    n = x.shape[-1]
    frequency = spectra.frequencies(n).double()  # (freq,)
    exponent = power_law_exponent(spectra.psd(x, detrend="mean"), frequency)  # (...)
    # A constant signal has no spectrum to fit; its values are equal, so any order is the same.
    chi = exponent.nan_to_num(0.0)[..., None]
    shape = (*x.shape[:-1], len(frequency))
    noise = torch.randn(shape, generator=_generator(seed), dtype=torch.complex128)  # (..., freq)
    noise = noise * torch.where(frequency > 0, frequency, 1.0) ** (-chi / 2)
    noise[..., 0] = 0
    return _in_order_of(x.sort(-1).values, torch.fft.irfft(noise, n=n))


def _iterate(values, surrogate):
    """Return the IAAFT surrogates of (row, position); rows that no longer change are left out."""
    ranked, amplitude = values.sort(-1).values, torch.fft.rfft(values).abs()
    surrogate = surrogate.clone()
    rows = torch.arange(len(values))
    for _ in range(ITERATIONS):
        spectrum = torch.fft.rfft(surrogate[rows])  # (row, freq)
        phasor = spectrum / spectrum.abs().clamp_min(torch.finfo(spectrum.real.dtype).tiny)
        smooth = torch.fft.irfft(amplitude[rows] * phasor, n=values.shape[-1])
        new = _in_order_of(ranked[rows], smooth)  # (row, position)
        changed = (new != surrogate[rows]).any(-1)
        surrogate[rows] = new
        rows = rows[changed]
        if len(rows) == 0:
            break
    return surrogate


def _in_order_of(ranked, example):
    """Return ascending values so placed that their ranks are those of `example`, (..., position)."""
    order = torch.from_numpy(np.argsort(example.numpy(), axis=-1))  # several times as fast as torch's
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def _mean_distance(s, length, causal):
    """Mean of |i − j| under softmax over the visible j of s·|i − j|, over queries i, in O(length) a head."""
    d = torch.arange(length, dtype=torch.float64)  # (distance,)
    a = s.abs()[..., None]
    weight = (-a * d).exp()
    sums, moments = weight.cumsum(-1), (d * weight).cumsum(-1)  # (..., query), distances up to the query
    far = s[..., None] > 0  # weights grow with distance: count them from the far end
    if causal:
        mean = moments / sums
        return torch.where(far, d - mean, mean).mean(-1)
    after, rest, rest_moments = d.flip(0), sums.flip(-1), moments.flip(-1)  # the same for the keys behind
    near = (moments + rest_moments) / (sums + rest - 1)  # distance 0 is in both
    top = torch.maximum(d, after)
    before_weight, after_weight = (a * (d - top)).exp(), (a * (after - top)).exp()
    total = before_weight * sums + after_weight * rest - (-a * top).exp()
    moment = before_weight * (d * sums - moments) + after_weight * (after * rest - rest_moments)
    return torch.where(far, moment / total, near).mean(-1)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


check_all(globals())
