"""One level of the wavelet transform in torch, for CUDA tensors and for gradients.

The filters are applied as weighted sums of strided slices, not by `conv1d`: on a CUDA device a float32
convolution, forward and backward, runs in TF32 by default, which leaves three digits.
"""

import torch

__all__ = ["merge", "split"]


def split(x, filters, mode):
    """Return the approximation and the detail of one level of the wavelet transform.

    Parameters
    ----------
    x : torch.Tensor, shape (..., position)
        float32 or float64.
    filters : pywt.Wavelet
        A discrete wavelet; its filters have an even number of taps.
    mode : {"symmetric", "zero", "periodization"}
        How the signal goes on beyond its ends.

    Returns
    -------
    tuple of two torch.Tensor, each of shape (..., coefficient)
        Equal to `pywt.dwt` along the last axis, to rounding.
    """
    n_taps, length = filters.dec_len, x.shape[-1]
    if mode == "periodization":
        before, after, count = n_taps // 2 - 1, n_taps // 2 - 1 + length % 2, (length + 1) // 2
    else:
        before, after, count = n_taps - 2, n_taps - 2 + length % 2, (length + n_taps - 1) // 2
    extended = _extend(x, before, after, mode)  # (..., before + position + after)
    slices = [extended[..., tap : tap + 2 * count - 1 : 2] for tap in range(n_taps)]
    return _weighted_sum(slices, filters.dec_lo[::-1]), _weighted_sum(slices, filters.dec_hi[::-1])


def merge(approximation, detail, filters, mode):
    """Return the signal of one level from its approximation and detail, the inverse of `split`.

    Parameters
    ----------
    approximation, detail : torch.Tensor, each of shape (..., coefficient)
        float32 or float64, of the same shape.
    filters, mode
        As given to `split`.

    Returns
    -------
    torch.Tensor, shape (..., position)
        Equal to `pywt.idwt` along the last axis, to rounding: always an even number of positions.
    """
    n_taps, n_coefficients = filters.rec_len, detail.shape[-1]
    if mode == "periodization":
        wrap = n_taps // 4
        start, length = 2 * wrap - n_taps // 2 + 1, 2 * n_coefficients
        at = torch.arange(-wrap, n_coefficients + wrap, device=detail.device) % n_coefficients
        approximation, detail = approximation[..., at], detail[..., at]  # (..., wrap + coefficient + wrap)
    else:
        start, length = 0, 2 * n_coefficients - n_taps + 2
    # Each coefficient reaches n_taps positions. Even and odd ones see every other tap of the filters, so no
    # zeros are put between the coefficients.
    count = detail.shape[-1] - n_taps // 2 + 1
    offsets = range(n_taps // 2 - 1, -1, -1)
    slices = [part[..., at : at + count] for part in (approximation, detail) for at in offsets]
    even = _weighted_sum(slices, filters.rec_lo[0::2] + filters.rec_hi[0::2])  # (..., position / 2)
    odd = _weighted_sum(slices, filters.rec_lo[1::2] + filters.rec_hi[1::2])  # (..., position / 2)
    return torch.stack([even, odd], -1).flatten(-2)[..., start : start + length]  # (..., position)


def _extend(x, before, after, mode):
    """Return `x` continued by `before` and `after` entries beyond its ends."""
    if mode == "zero":
        return torch.nn.functional.pad(x, (before, after))
    length = x.shape[-1]
    at = torch.arange(-before, length + after, device=x.device)  # (position,)
    if mode == "symmetric":
        at = at % (2 * length)
        at = torch.where(at < length, at, 2 * length - 1 - at)
    else:  # the circle of an odd signal holds its last value twice
        at = (at % (length + length % 2)).clamp_max(length - 1)
    return x[..., at]


def _weighted_sum(terms, weights):
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total.add_(term, alpha=weight)
    return total
