"""Entropies of attention distributions (eq. 6), the bound they obey, and what goes with them.

`attn` (..., key) is attention after softmax: non-negative, with sum 1 over the keys, which
`require_distribution` makes sure of unless ``check=False``.
"""

import math

import torch

from nbhelpers.arguments import check_all, checked, refuse, whole

from .checks import as_signal, log_base, negative_p_log_p

SUM_TOLERANCE, SUM_TOLERANCE_HALF = 1e-3, 1e-2


def require_distribution(attn, name="attn", tolerance=None):
    """Raise a ValueError unless `attn` (..., key) is finite, non-negative and sums to 1 over its keys.

    The message calls it `name` and gives the worst value and its index. A sum may be off by `tolerance`, by
    default 1e-3, or 1e-2 for half precision.
    """
    if tolerance is None:
        half = getattr(attn, "dtype", None) in (torch.float16, torch.bfloat16)
        tolerance = SUM_TOLERANCE_HALF if half else SUM_TOLERANCE
    attn = as_signal(attn, name).detach()  # (..., key)
    if attn.numel() == 0:
        return
    smallest = attn.amin()
    if smallest < 0:
        told = f"the lowest {float(smallest):.4g} at index {_index(attn.argmin(), attn)}"
        raise ValueError(f"{name} has negative entries, {told}. Pass scores through softmax first.")
    sums = attn.sum(-1)  # (...)
    off = (sums - 1).abs()  # (...)
    if off.max() > tolerance:
        worst, n_off = off.argmax(), int((off > tolerance).sum())
        found = f"{n_off} of {off.numel()} rows do not, the worst at index {_index(worst, off)} with sum"
        way_out = "Drop rows without mass (padded queries), and divide the others by their sum:"
        raise ValueError(
            f"{name} must sum to 1 along its last axis within {tolerance:g}, but {found} "
            f"{sums.flatten()[worst]:.6g}. {way_out} {name} / {name}.sum(-1, keepdim=True)."
        )


def positional_entropy(attn, *, base=None, check=True):
    """Return the Shannon entropy of attention (..., key) over positions (eq. 6), (...), in [0, log(key)]."""
    attn = _distribution(attn, check)  # (..., key)
    return negative_p_log_p(attn).sum(-1) / log_base(base)


@checked(window=whole(2))
def window_entropy(attn, window, *, check=True):
    """Return the mean entropy of attention (..., key) within windows of keys (Table 2), (...), in [0, 1].

    The paper gives no equation. The reading here: the keys are cut into consecutive windows of `window` keys,
    the attention within each is divided by its sum, its entropy taken relative to log(window), and the mean
    is over the windows that hold any mass; NaN where none does. Keys after the last window are left out.
    """
    attn = _distribution(attn, check)  # (..., key)
    n_keys = attn.shape[-1]
    if window > n_keys:
        refuse("window", window, f"at most the number of keys, {n_keys}")
    n_windows = n_keys // window
    parts = attn[..., : n_windows * window].unflatten(-1, (n_windows, window))  # (..., window, key)
    mass = parts.sum(-1, keepdim=True)  # (..., window, 1)
    holds = mass > 0  # (..., window, 1)
    entropies = negative_p_log_p(parts / torch.where(holds, mass, 1.0)).sum(-1)  # (..., window)
    # A window without mass has entropy 0 here, so it drops out of the sum as well as of the count.
    return entropies.sum(-1) / holds.squeeze(-1).sum(-1) / math.log(window)


def effective_support(attn, *, check=True):
    """Return the number of keys, (...), that attention (..., key) is spread over, 1 / Σ a².

    In tokens: 1 for all mass on one key, the number of keys for uniform attention.
    """
    return 1 / _distribution(attn, check).square().sum(-1)


def entropic_slack(signal, *, check=True):
    """Return how far signals (..., position) are above the entropic bound, H(|a|²) + H(|Fa|²) − log(length).

    For a of norm 1 and the unitary discrete Fourier transform F, H(|a|²) + H(|Fa|²) ≥ −2 log max|F_jk| =
    log(length) (Maassen and Uffink, Phys. Rev. Lett. 60, 1988): every signal obeys it, learned or not, so the
    slack, not the bound, is what a head can be compared by. It needs all frequencies and no window.

    Signals are real amplitudes, divided by their norm here: ``attn.sqrt()`` makes H(|a|²) the positional
    entropy. In nats, in [0, log(length)] up to rounding; NaN for zeros.
    """
    x = as_signal(signal, check=check)  # (..., position)
    if x.numel() == 0:
        refuse("signal", x, "at least one signal")
    energy = x.square()  # (..., position)
    transform = torch.fft.fft(x)  # (..., freq)
    power = transform.real.square() + transform.imag.square()  # (..., freq)
    entropies = [negative_p_log_p(p / p.sum(-1, keepdim=True)).sum(-1) for p in (energy, power)]  # (...) each
    return sum(entropies) - math.log(x.shape[-1])


def _distribution(attn, check):
    if check:
        require_distribution(attn)
    return as_signal(attn, "attn", check=False)


def _index(flat, x):
    return tuple(int(i) for i in torch.unravel_index(flat, x.shape))


__all__ = [*check_all(globals())]
