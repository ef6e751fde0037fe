"""Batched discrete wavelet transforms, and the numbers read from them (eqs. 4, 5, 10 and 11).

Names, list order and boundary modes are those of PyWavelets.
"""

import math

import numpy as np
import pywt
import torch

from nbhelpers.arguments import check_all, refuse

from .checks import as_real, as_signal, log_base, negative_p_log_p


def dwt_max_level(length, wavelet="db2"):
    """Return the largest useful level, floor(log2(length / (filter length − 1))), at least 0."""
    return pywt.dwt_max_level(length, _filters(wavelet))  # of a name it takes 30 times as long


def level_names(level):
    """Return the names of the levels in the order of `wavedec`: ``["a2", "d2", "d1"]`` for level 2.

    "a" is the approximation, "d" a detail; the number is the level, 1 the finest (scale 2 tokens).
    """
    return [f"a{level}", *(f"d{k}" for k in range(level, 0, -1))]


def wavedec(signal, *, wavelet="db2", mode="symmetric", level=None, check=True):
    """Return the multi-level wavelet coefficients of signals (..., position) along their last axis (eq. 4).

    A list ``[cA_n, cD_n, …, cD_1]`` as of `pywt.wavedec`: the approximation, then the details from coarse to
    fine, (..., coefficient) each, of the `level` (at most `dwt_max_level`, the default; 0 returns the
    signal). The `mode` says how the signal goes on beyond its ends: "symmetric" mirrors it, as PyWavelets
    does; "periodization" repeats it and keeps about as many coefficients as tokens, the orthogonal transform
    where every level halves an even length. CPU tensors that need no gradient go through PyWavelets, which
    releases the GIL; others through torch, the same to rounding.
    """
    x = as_signal(signal, check=check)  # (..., position)
    filters = _filters(wavelet)
    largest = dwt_max_level(x.shape[-1], filters)
    level = largest if level is None else level
    if level > largest:  # PyWavelets only warns
        told = f"level {level} is not possible for {x.shape[-1]} tokens with {filters.name}"
        raise ValueError(f"{told}; it must lie in 0 to {largest}. Pass level=None, or a longer signal.")
    if level == 0:
        return [x]
    if _goes_through_pywt(x):
        arrays = pywt.wavedec(x.detach().numpy(), filters, mode=mode, level=level, axis=-1)
        return [torch.from_numpy(array) for array in arrays]
    details = []
    for _ in range(level):
        x, detail = _split(x, filters, mode)  # (..., coefficient) each
        details.append(detail)
    return [x, *reversed(details)]


def waverec(coefficients, *, wavelet="db2", mode="symmetric", length=None):
    """Return the signal (..., position) whose wavelet coefficients are given, the inverse of `wavedec`.

    `wavelet` and `mode` are those given to `wavedec`. A signal of odd length comes back one token longer
    unless its `length` is given here.
    """
    x, *details = _as_levels(coefficients)
    filters = _filters(wavelet)
    for detail in details:
        n, n_approximation = detail.shape[-1], x.shape[-1]
        if n_approximation - n not in (0, 1):
            told = f"a level of {n} detail coefficients meets an approximation of {n_approximation}"
            way_out = f"Pass the wavelet and mode given to wavedec (here {filters.name}, {mode})."
            raise ValueError(f"{told}; they must be equal, or the approximation one longer. {way_out}")
        x = x[..., :n]  # (..., coefficient)
        if _goes_through_pywt(x, detail):
            arrays = x.detach().numpy(), detail.detach().numpy()
            x = torch.from_numpy(pywt.idwt(*arrays, filters, mode=mode, axis=-1))  # (..., position)
        else:
            x = _merge(x, detail, filters, mode)  # (..., position)
    full = x.shape[-1]
    if length not in (None, full - 1, full):
        raise ValueError(f"these coefficients give a signal of {full - 1} or {full} tokens, not {length}")
    return x[..., :length]


def wavelet_entropy(coefficients, *, normalize=False, base=None):
    """Return the entropy of each level of the coefficients of `wavedec`, in its order, (..., level) (eq. 5).

    The literal reading is −Σ_τ |W|² log |W|² with |W|² as it is: not an entropy of a distribution, it depends
    on the scale of the signal and may be negative. `normalize` divides |W|² by its sum over the level first,
    which gives a value in [0, log(count)], NaN for a level without energy.
    """
    energies = [level.square() for level in _as_levels(coefficients)]  # (..., coefficient) each
    if normalize:
        energies = [energy / energy.sum(-1, keepdim=True) for energy in energies]
    entropies = [negative_p_log_p(energy).sum(-1) for energy in energies]  # (...) each
    return torch.stack(entropies, -1) / log_base(base)  # (..., level)


def level_energies(coefficients):
    """Return the share of each level of `wavedec` in the energy of all, (..., level); NaN without energy."""
    energies = torch.stack([level.square().sum(-1) for level in _as_levels(coefficients)], -1)  # (..., level)
    return energies / energies.sum(-1, keepdim=True)


def reconstruction_error(signal, *, wavelet="db2", mode="symmetric", level=None):
    """Return the relative error (...) of taking signals (..., position) apart and together again (eq. 11).

    ‖a − W⁻¹W a‖ / ‖a‖, NaN for a signal that is zero. The transform reconstructs any signal, so what is left
    is the rounding of the dtype (near 1e-7 in float32). The options are those of `wavedec`.
    """
    x = as_real(signal, "signal")  # (..., position)
    coefficients = wavedec(x, wavelet=wavelet, mode=mode, level=level)
    back = waverec(coefficients, wavelet=wavelet, mode=mode, length=x.shape[-1])  # (..., position)
    return torch.linalg.vector_norm(x - back, dim=-1) / torch.linalg.vector_norm(x, dim=-1)


def align(coefficients, coefficients_scaled, *, alignment="concatenate-truncate"):
    """Return the coefficients of a full and a shortened signal as vectors of one length, (..., coefficient).

    The coefficients are as from `wavedec`. The paper does not say how eq. 10 compares vectors of unequal
    length. The `alignment` "concatenate-truncate" puts all levels in a row, cut to the shorter; "per-level"
    cuts each level to the shorter of the two, then puts them in a row; "interpolate" interpolates the longer
    of each pair of levels linearly, end on end, to the length of the shorter, then puts them in a row. The
    last two need as many levels of both.
    """
    full, scaled = _as_levels(coefficients), _as_levels(coefficients_scaled)
    if alignment == "concatenate-truncate":
        full, scaled = [torch.cat(full, -1)], [torch.cat(scaled, -1)]  # (..., coefficient) each
    if len(full) != len(scaled):
        told = f"alignment {alignment!r} pairs levels, but there are {len(full)} and {len(scaled)} of them"
        raise ValueError(f"{told}; pass the same level to both transforms")
    vectors = []
    for own, other in ((full, scaled), (scaled, full)):
        pairs = zip(own, other, strict=True)
        parts = [_shorten(x, min(x.shape[-1], y.shape[-1]), alignment) for x, y in pairs]
        vectors.append(parts[0] if len(parts) == 1 else torch.cat(parts, -1))  # (..., coefficient)
    return tuple(vectors)


def scale_sensitivity(coefficients, coefficients_scaled, *, alignment="concatenate-truncate"):
    """Return one minus the cosine, (...), of the coefficients of a signal and its shortened form (eq. 10).

    The arguments are those of `align`. The result is in [0, 2], exactly 0 for equal coefficients, and NaN
    where either vector is zero.
    """
    u, v = align(coefficients, coefficients_scaled, alignment=alignment)
    u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # For unit vectors 1 − cos = ‖u − v‖² / 2, which keeps its digits where the cosine rounds to 1.
    return (u - v).square().sum(-1) / 2


def weighted_sum(terms, weights, out=None):
    """Return the sum of tensors times numbers: the taps of a filter applied to strided slices of a signal.

    `conv1d` is no way to do this on a CUDA device: in float32 it runs in TF32 by default, forward and
    backward, which leaves three digits.
    """
    total = torch.mul(terms[0], weights[0], out=out)
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total.add_(term, alpha=weight)
    return total


def _filters(wavelet):
    return pywt.Wavelet(wavelet) if isinstance(wavelet, str) else wavelet


def _goes_through_pywt(*tensors):
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return not needs_grad and all(x.device.type == "cpu" for x in tensors)


def _split(x, filters, mode):
    """Return the approximation and the detail of one level, as `pywt.dwt`, (..., coefficient) each."""
    n_taps, length = filters.dec_len, x.shape[-1]
    if mode == "periodization":
        before, after, count = n_taps // 2 - 1, n_taps // 2 - 1 + length % 2, (length + 1) // 2
    else:
        before, after, count = n_taps - 2, n_taps - 2 + length % 2, (length + n_taps - 1) // 2
    if mode == "zero":
        extended = torch.nn.functional.pad(x, (before, after))  # (..., before + position + after)
    else:
        at = torch.arange(-before, length + after, device=x.device)  # (position,)
        if mode == "symmetric":
            at = at % (2 * length)
            at = torch.where(at < length, at, 2 * length - 1 - at)
        else:
            at = (at % (length + length % 2)).clamp_max(length - 1)  # an odd signal: its last value twice
        extended = x[..., at]
    slices = [extended[..., tap : tap + 2 * count - 1 : 2] for tap in range(n_taps)]
    return weighted_sum(slices, filters.dec_lo[::-1]), weighted_sum(slices, filters.dec_hi[::-1])


def _merge(approximation, detail, filters, mode):
    """Return the signal of one level, as `pywt.idwt`: always an even number of positions."""
    n_taps, n_coefficients = filters.rec_len, detail.shape[-1]
    start, length = 0, 2 * n_coefficients - n_taps + 2
    if mode == "periodization":
        wrap = n_taps // 4
        start, length = 2 * wrap - n_taps // 2 + 1, 2 * n_coefficients
        at = torch.arange(-wrap, n_coefficients + wrap, device=detail.device) % n_coefficients
        approximation, detail = approximation[..., at], detail[..., at]  # (..., wrap + coefficient + wrap)
    # Each coefficient reaches n_taps positions. Even and odd ones see every other tap of the filters, so no
    # zeros are put between the coefficients.
    count = detail.shape[-1] - n_taps // 2 + 1
    offsets = range(n_taps // 2 - 1, -1, -1)
    slices = [part[..., at : at + count] for part in (approximation, detail) for at in offsets]
    even = weighted_sum(slices, filters.rec_lo[0::2] + filters.rec_hi[0::2])  # (..., position / 2)
    odd = weighted_sum(slices, filters.rec_lo[1::2] + filters.rec_hi[1::2])  # (..., position / 2)
    return torch.stack([even, odd], -1).flatten(-2)[..., start : start + length]  # (..., position)


def _as_levels(coefficients):
    if not isinstance(coefficients, (list, tuple)) or len(coefficients) == 0:
        refuse("coefficients", coefficients, "a list of tensors, one per level, as wavedec returns")
    return [as_signal(level, "coefficients", check=None) for level in coefficients]


def _shorten(x, count, alignment):
    if alignment != "interpolate" or x.shape[-1] == count:
        return x[..., :count]
    rows = x.reshape(math.prod(x.shape[:-1]), 1, x.shape[-1])  # (row, 1, coefficient)
    short = torch.nn.functional.interpolate(rows, size=count, mode="linear", align_corners=True)
    return short.reshape(*x.shape[:-1], count)  # (..., coefficient)


__all__ = [*check_all(globals(), "weighted_sum")]


def level_image(coefficients, n, *, taps, periodic=False):
    """Return |coefficient| of each level at each of n positions: the nearest coefficient of the level.

    `coefficients` begin with the approximation, then come details from coarse to fine. Coefficient k of one
    level of pywt is the answer of a filter of L `taps` whose window has its centre at sample 2k + 1 − (L −
    1)/2 (2k + ½ in periodization), so the centre of level j is 2ʲk + (2ʲ − 1) times that offset.
    """
    depth = len(coefficients) - 1
    offset = 0.5 if periodic else 1 - (taps - 1) / 2
    image = np.zeros((depth + 1, n))  # (level, position)
    for row, values in enumerate(coefficients):
        level = depth if row == 0 else depth + 1 - row
        nearest = np.rint((np.arange(n) - offset * (2**level - 1)) / 2**level).astype(int)
        image[row] = np.abs(values)[np.clip(nearest, 0, len(values) - 1)]
    return image
