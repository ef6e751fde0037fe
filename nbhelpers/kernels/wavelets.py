"""Batched discrete wavelet transforms, and the numbers read from them (eqs. 4, 5, 10 and 11).

Names, list order and boundary modes are those of PyWavelets. Equation numbers refer to Ruscio et al.,
arXiv:2410.18067.
"""

import math

import pywt
import torch

from .checks import as_real, log_base, negative_p_log_p, require_finite, require_last_axis, require_option
from .filterbank import merge, split

__all__ = [
    "align",
    "dwt_max_level",
    "level_energies",
    "reconstruction_error",
    "scale_sensitivity",
    "wavedec",
    "wavelet_entropy",
    "waverec",
]

MODES = ("symmetric", "zero", "periodization")
ALIGNMENTS = ("concatenate-truncate", "per-level", "interpolate")


def dwt_max_level(length, wavelet="db2"):
    """Return the largest useful decomposition level, `pywt.dwt_max_level`.

    Parameters
    ----------
    length : int
        Number of tokens, at least 1.
    wavelet : str or pywt.Wavelet
        A discrete wavelet.

    Returns
    -------
    int
        floor(log2(length / (filter length − 1))), or 0 for a signal shorter than the filter allows.

    Raises
    ------
    ValueError
        If the length is below 1 or the wavelet is unknown.
    """
    if length < 1:
        raise ValueError(f"a signal needs at least 1 token, got length {length}")
    return pywt.dwt_max_level(length, pywt.Wavelet(wavelet) if isinstance(wavelet, str) else wavelet)


def wavedec(signal, *, wavelet="db2", mode="symmetric", level=None, check=True):
    """Return the multi-level wavelet coefficients of a signal along its last axis (eq. 4).

    Parameters
    ----------
    signal : torch.Tensor or array_like, shape (..., position)
        Real signal. Not modified.
    wavelet : str or pywt.Wavelet
        A discrete wavelet; db2 in the paper.
    mode : {"symmetric", "zero", "periodization"}
        How the signal goes on beyond its ends. "symmetric" mirrors it (the default of PyWavelets),
        "periodization" repeats it and keeps about as many coefficients as tokens: it is the orthogonal
        transform where every level halves an even length.
    level : int, optional
        Number of times the approximation is split; `dwt_max_level` if None. 0 returns the signal.
    check : bool
        Look for NaN and infinity first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    list of torch.Tensor, each of shape (..., coefficient)
        ``[cA_n, cD_n, …, cD_1]`` as `pywt.wavedec`: the approximation, then the details from coarse to fine.
        float32, or float64 for a float64 signal, on the device of the signal.

    Raises
    ------
    ValueError
        If the signal is empty, complex or not finite, an option is unknown, or the level is above
        `dwt_max_level` (where PyWavelets only warns).

    Notes
    -----
    Costs O(length) per signal. CPU tensors that need no gradient go through PyWavelets, which releases the
    GIL; CUDA tensors and tensors that need a gradient through strided sums in torch. The two agree to
    rounding.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eq. 4.
    """
    require_option("mode", mode, MODES)
    x = as_real(signal, "signal")  # (..., position)
    length = require_last_axis(x, "signal")
    filters = pywt.Wavelet(wavelet) if isinstance(wavelet, str) else wavelet
    level = _resolve_level(length, level, filters)
    if check:
        require_finite(x, "signal")
    if level == 0:
        return [x]
    if _goes_through_pywt(x):
        arrays = pywt.wavedec(x.detach().numpy(), filters, mode=mode, level=level, axis=-1)
        return [torch.from_numpy(array) for array in arrays]
    details = []
    for _ in range(level):
        x, detail = split(x, filters, mode)  # (..., coefficient) each
        details.append(detail)
    return [x, *reversed(details)]


def waverec(coefficients, *, wavelet="db2", mode="symmetric", length=None):
    """Return the signal whose wavelet coefficients are given, the inverse of `wavedec`.

    Parameters
    ----------
    coefficients : sequence of torch.Tensor or array_like, each of shape (..., coefficient)
        ``[cA_n, cD_n, …, cD_1]``. Not modified.
    wavelet, mode
        As given to `wavedec`.
    length : int, optional
        Number of tokens of the signal. An odd length comes back one token longer unless it is given here.

    Returns
    -------
    torch.Tensor, shape (..., position)

    Raises
    ------
    ValueError
        If the list is empty, an option is unknown, the lengths of two levels do not fit each other, or
        `length` is not what these coefficients can give.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eq. 11.
    """
    require_option("mode", mode, MODES)
    levels = _as_levels(coefficients)
    filters = pywt.Wavelet(wavelet) if isinstance(wavelet, str) else wavelet
    x = levels[0]  # (..., coefficient)
    for detail in levels[1:]:
        surplus = x.shape[-1] - detail.shape[-1]
        if surplus not in (0, 1):
            raise ValueError(
                f"a level of {detail.shape[-1]} detail coefficients meets an approximation of {x.shape[-1]}; "
                "they must be equal, or the approximation one longer. Pass the wavelet and mode given to "
                f"wavedec (here {filters.name}, {mode})."
            )
        x = _join(x[..., : detail.shape[-1]], detail, filters, mode)  # (..., position)
    full = x.shape[-1]
    if length is None or length == full:
        return x
    if len(levels) == 1 or length != full - 1:
        allowed = full if len(levels) == 1 else f"{full - 1} or {full}"
        raise ValueError(f"these coefficients give a signal of {allowed} tokens, not {length}")
    return x[..., :length]


def wavelet_entropy(coefficients, *, normalize=False, base=None):
    """Return the entropy of the wavelet coefficients of each level (eq. 5).

    Parameters
    ----------
    coefficients : sequence of torch.Tensor or array_like, each of shape (..., coefficient)
        As from `wavedec`.
    normalize : bool
        False is the literal reading, −Σ_τ |W|² log |W|² with |W|² as it is: not an entropy of a distribution,
        it depends on the scale of the signal and may be negative. True divides |W|² by its sum over the
        level first, which gives a value in [0, log(count)].
    base : float, optional
        Logarithm base; natural (nats) if None.

    Returns
    -------
    torch.Tensor, shape (..., level)
        In the order of the list. With `normalize`, NaN for a level without energy.

    Raises
    ------
    ValueError
        If the list is empty, or the base is not positive or is 1.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eq. 5.
    """
    entropies = []
    for level in _as_levels(coefficients):
        energy = level.square()  # (..., coefficient)
        if normalize:
            energy = energy / energy.sum(-1, keepdim=True)  # (..., coefficient)
        entropies.append(negative_p_log_p(energy).sum(-1))  # (...)
    return torch.stack(entropies, -1) / log_base(base)  # (..., level)


def level_energies(coefficients, *, normalize=True):
    """Return the energy of each level, as a share of the total unless `normalize` is False.

    Parameters
    ----------
    coefficients : sequence of torch.Tensor or array_like, each of shape (..., coefficient)
        As from `wavedec`.
    normalize : bool
        Divide by the energy of all levels.

    Returns
    -------
    torch.Tensor, shape (..., level)
        In the order of the list. Shares are NaN where there is no energy.

    Raises
    ------
    ValueError
        If the list is empty.
    """
    energies = torch.stack([level.square().sum(-1) for level in _as_levels(coefficients)], -1)  # (..., level)
    return energies / energies.sum(-1, keepdim=True) if normalize else energies


def reconstruction_error(signal, *, wavelet="db2", mode="symmetric", level=None, check=True):
    """Return the relative error of taking a signal apart and putting it together again (eq. 11).

    Parameters
    ----------
    signal : torch.Tensor or array_like, shape (..., position)
        Real signal. Not modified.
    wavelet, mode, level, check
        As in `wavedec`.

    Returns
    -------
    torch.Tensor, shape (...)
        ‖a − W⁻¹W a‖ / ‖a‖, both norms over the last axis. NaN for a signal that is zero. The transform
        reconstructs any signal, so what is left is the rounding of the dtype (near 1e-7 in float32).

    Raises
    ------
    ValueError
        As `wavedec`.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eq. 11.
    """
    x = as_real(signal, "signal")  # (..., position)
    coefficients = wavedec(x, wavelet=wavelet, mode=mode, level=level, check=check)
    back = waverec(coefficients, wavelet=wavelet, mode=mode, length=x.shape[-1])  # (..., position)
    return torch.linalg.vector_norm(x - back, dim=-1) / torch.linalg.vector_norm(x, dim=-1)


def align(coefficients, coefficients_scaled, *, alignment="concatenate-truncate"):
    """Return the coefficients of two signals of different length as two vectors of equal length.

    Parameters
    ----------
    coefficients, coefficients_scaled : sequence of torch.Tensor, each of shape (..., coefficient)
        As from `wavedec`, of the full and of the shortened signal.
    alignment : {"concatenate-truncate", "per-level", "interpolate"}
        The paper does not say how eq. 10 compares vectors of unequal length. "concatenate-truncate": all
        levels in a row, cut to the shorter. "per-level": each level cut to the shorter of the two, then in a
        row. "interpolate": the longer of each pair of levels interpolated linearly, end on end, to the length
        of the shorter, then in a row.

    Returns
    -------
    tuple of two torch.Tensor, each of shape (..., coefficient)

    Raises
    ------
    ValueError
        If the option is unknown, or the two have different numbers of levels where levels are paired.
    """
    require_option("alignment", alignment, ALIGNMENTS)
    full, scaled = _as_levels(coefficients), _as_levels(coefficients_scaled)
    if alignment == "concatenate-truncate":
        u, v = torch.cat(full, -1), torch.cat(scaled, -1)  # (..., coefficient) each
        count = min(u.shape[-1], v.shape[-1])
        return u[..., :count], v[..., :count]
    if len(full) != len(scaled):
        raise ValueError(
            f"alignment {alignment!r} pairs levels, but there are {len(full)} and {len(scaled)} of them; "
            "pass the same level to both transforms"
        )
    shorten = _interpolate if alignment == "interpolate" else _truncate
    pairs = []
    for a, b in zip(full, scaled, strict=True):
        count = min(a.shape[-1], b.shape[-1])
        pairs.append((shorten(a, count), shorten(b, count)))  # (..., coefficient) each
    u, v = (torch.cat(levels, -1) for levels in zip(*pairs, strict=True))  # (..., coefficient) each
    return u, v


def scale_sensitivity(coefficients, coefficients_scaled, *, alignment="concatenate-truncate"):
    """Return one minus the cosine between the coefficients of a signal and of its shortened form (eq. 10).

    Parameters
    ----------
    coefficients, coefficients_scaled : sequence of torch.Tensor, each of shape (..., coefficient)
        As from `wavedec`, of the full and of the shortened signal.
    alignment : {"concatenate-truncate", "per-level", "interpolate"}
        See `align`.

    Returns
    -------
    torch.Tensor, shape (...)
        In [0, 2], exactly 0 for equal coefficients. NaN where either vector is zero.

    Raises
    ------
    ValueError
        As `align`.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eq. 10.
    """
    u, v = align(coefficients, coefficients_scaled, alignment=alignment)  # (..., coefficient) each
    u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # For unit vectors 1 − cos = ‖u − v‖² / 2, which keeps its digits where the cosine rounds to 1.
    return (u - v).square().sum(-1) / 2


def _join(approximation, detail, filters, mode):
    if approximation.shape[:-1] != detail.shape[:-1]:
        raise ValueError(
            f"levels have leading shapes {tuple(approximation.shape[:-1])} and {tuple(detail.shape[:-1])}; "
            "they must be equal"
        )
    if _goes_through_pywt(approximation, detail):
        arrays = (approximation.detach().numpy(), detail.detach().numpy())
        return torch.from_numpy(pywt.idwt(*arrays, filters, mode=mode, axis=-1))
    return merge(approximation, detail, filters, mode)


def _goes_through_pywt(*tensors):
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return not needs_grad and all(x.device.type == "cpu" for x in tensors)


def _resolve_level(length, level, filters):
    largest = dwt_max_level(length, filters)
    if level is None:
        return largest
    if not 0 <= level <= largest:
        needed = (filters.dec_len - 1) * 2 ** max(level, 0)
        way_out = f"a signal of {needed} tokens or more" if level > 0 else "a level of 0 or more"
        raise ValueError(
            f"level {level} is not possible for {length} tokens with {filters.name}: the largest is "
            f"{largest}. Pass {way_out}, or level=None for the largest."
        )
    return level


def _as_levels(coefficients):
    if isinstance(coefficients, torch.Tensor):
        raise ValueError("expected a list of coefficient tensors as wavedec returns, got a single tensor")
    levels = [as_real(level, "coefficients") for level in coefficients]
    if not levels:
        raise ValueError("expected a list of coefficient tensors as wavedec returns, got an empty list")
    return levels


def _truncate(x, count):
    return x[..., :count]


def _interpolate(x, count):
    if x.shape[-1] == count:
        return x
    rows = x.reshape(math.prod(x.shape[:-1]), 1, x.shape[-1])  # (row, 1, coefficient)
    short = torch.nn.functional.interpolate(rows, size=count, mode="linear", align_corners=True)
    return short.reshape(*x.shape[:-1], count)  # (..., coefficient)


def level_names(level):
    """Return the names of the levels in the order of `wavedec`: ``["a2", "d2", "d1"]`` for level 2.

    "a" is the approximation, "d" a detail; the number is the level, 1 the finest (scale 2 tokens).
    """
    return [f"a{level}", *(f"d{k}" for k in range(level, 0, -1))]
