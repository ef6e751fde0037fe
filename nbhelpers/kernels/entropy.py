"""Entropies of attention distributions (eq. 6), the bound they obey, and what goes with them.

`attn` is attention after softmax: non-negative, with sum 1 along its last axis, the keys. Equation numbers
refer to Ruscio et al., arXiv:2410.18067.
"""

import math

import torch

from .checks import as_real, log_base, negative_p_log_p, require_finite, require_last_axis

__all__ = [
    "effective_support",
    "entropic_bound",
    "entropic_slack",
    "local_global_ratio",
    "local_mass",
    "positional_entropy",
    "require_distribution",
    "window_entropy",
]

SUM_TOLERANCE = 1e-3
SUM_TOLERANCE_HALF = 1e-2


def require_distribution(attn, name="attn", tolerance=None):
    """Raise a ValueError unless `attn` is non-negative and sums to 1 along its last axis.

    Parameters
    ----------
    attn : torch.Tensor or array_like, shape (..., key)
        What is to be checked. Not modified.
    name : str, optional
        What to call it in the error.
    tolerance : float, optional
        How far a sum may be from 1. By default 1e-3, or 1e-2 for half precision.

    Raises
    ------
    ValueError
        If there are no keys, an entry is NaN, infinite or negative, or a sum is off. The message gives the
        worst value and its index.

    Notes
    -----
    Reading the answer makes the host wait for a CUDA device. The functions that call this take
    ``check=False`` to skip it.
    """
    attn = torch.as_tensor(attn).detach()
    if tolerance is None:
        tolerance = SUM_TOLERANCE_HALF if attn.dtype in (torch.float16, torch.bfloat16) else SUM_TOLERANCE
    attn = as_real(attn, name)  # (..., key)
    require_last_axis(attn, name)
    if attn.numel() == 0:
        return
    require_finite(attn, name)
    smallest = attn.amin()
    if smallest < 0:
        raise ValueError(
            f"{name} has negative entries, the lowest {float(smallest):.4g} at index "
            f"{_index(attn.argmin(), attn)}. Attention after softmax is expected; pass "
            "scores through softmax first."
        )
    sums = attn.sum(-1)  # (...)
    off = (sums - 1).abs()  # (...)
    if off.max() > tolerance:
        worst = off.argmax()
        raise ValueError(
            f"{name} must sum to 1 along its last axis within {tolerance:g}, but "
            f"{int((off > tolerance).sum())} of {off.numel()} rows do not, the worst at index "
            f"{_index(worst, off)} with sum {float(sums.flatten()[worst]):.6g}. Drop rows without mass "
            f"(padded queries), and divide the others by their sum: {name} / {name}.sum(-1, keepdim=True)."
        )


def positional_entropy(attn, *, base=None, check=True):
    """Return the Shannon entropy of attention over positions (eq. 6).

    Parameters
    ----------
    attn : torch.Tensor or array_like, shape (..., key)
        Attention after softmax. Not modified.
    base : float, optional
        Logarithm base; natural (nats) if None.
    check : bool
        Call `require_distribution` first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    torch.Tensor, shape (...)
        In [0, log(key)]. float32, or float64 for float64 input.

    Raises
    ------
    ValueError
        If `attn` is not a distribution, or the base is not positive or is 1.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, eq. 6.
    """
    attn = _distribution(attn, check)  # (..., key)
    return negative_p_log_p(attn).sum(-1) / log_base(base)


def window_entropy(attn, window, *, base=None, check=True):
    """Return the mean entropy of attention within consecutive windows of keys (Table 2).

    The paper prints window entropies but gives no equation. The reading here is ours: the keys are cut into
    consecutive windows that do not overlap, the attention within each is divided by its sum, the entropy of
    each is taken relative to its largest value log(window), and the mean is over the windows that hold any
    mass. Keys after the last complete window are left out.

    Parameters
    ----------
    attn : torch.Tensor or array_like, shape (..., key)
        Attention after softmax. Not modified.
    window : int
        Keys per window, from 2 to the number of keys.
    base : float, optional
        Logarithm base. None takes the base `window`, which is the division by log(window); any other base
        gives the entropy itself, in [0, log(window)], for example in nats with ``math.e``.
    check : bool
        Call `require_distribution` first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    torch.Tensor, shape (...)
        In [0, 1] for ``base=None``. NaN where no complete window holds any mass.

    Raises
    ------
    ValueError
        If `attn` is not a distribution, the window is below 2 or longer than the keys, or the base is not
        positive or is 1.

    References
    ----------
    .. [1] Ruscio et al., arXiv:2410.18067, Table 2.
    """
    attn = _distribution(attn, check)  # (..., key)
    n_keys = attn.shape[-1]
    if not 2 <= window <= n_keys:
        raise ValueError(f"window must be from 2 to the number of keys, {n_keys}; got {window}")
    n_windows = n_keys // window
    parts = attn[..., : n_windows * window].unflatten(-1, (n_windows, window))  # (..., window, key)
    mass = parts.sum(-1, keepdim=True)  # (..., window, 1)
    holds = mass > 0  # (..., window, 1)
    share = parts / torch.where(holds, mass, 1.0)  # (..., window, key)
    entropies = negative_p_log_p(share).sum(-1)  # (..., window)
    # A window without mass has entropy 0 here, so it drops out of the sum as well as of the count.
    return entropies.sum(-1) / holds.squeeze(-1).sum(-1) / log_base(window if base is None else base)


def effective_support(attn, *, check=True):
    """Return the number of keys that attention is spread over, 1 / Σ a².

    Parameters
    ----------
    attn : torch.Tensor or array_like, shape (..., key)
        Attention after softmax. Not modified.
    check : bool
        Call `require_distribution` first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    torch.Tensor, shape (...)
        In [1, key], in tokens: 1 for all mass on one key, the number of keys for uniform attention.

    Raises
    ------
    ValueError
        If `attn` is not a distribution.
    """
    return 1 / _distribution(attn, check).square().sum(-1)


def local_mass(attn, query, distances, *, check=True):
    """Return the attention mass within given distances of the query.

    Parameters
    ----------
    attn : torch.Tensor or array_like, shape (..., query, key)
        Attention after softmax. Not modified.
    query : torch.Tensor or array_like of int, shape (query,)
        Position of each query among the keys, so that a block of rows can be passed.
    distances : sequence of int
        Distances in tokens, 0 or more; 0 is the query itself.
    check : bool
        Call `require_distribution` first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    torch.Tensor, shape (..., query, distance)
        Mass on the keys with ``|query − key| <= distance``, in [0, 1].

    Raises
    ------
    ValueError
        If `attn` is not a distribution, `query` does not hold one position per row, or a distance is
        negative.
    """
    attn = _distribution(attn, check)  # (..., query, key)
    query = torch.as_tensor(query, device=attn.device)  # (query,)
    if attn.ndim < 2 or query.shape != attn.shape[-2:-1]:
        raise ValueError(
            f"attn has shape {tuple(attn.shape)} and query {tuple(query.shape)}; expected (..., query, key) "
            "and (query,)"
        )
    if min(distances, default=0) < 0:
        raise ValueError(f"distances must be 0 or more, got {list(distances)}")
    key = torch.arange(attn.shape[-1], device=attn.device)  # (key,)
    apart = (query[:, None] - key).abs()  # (query, key)
    within = [torch.where(apart <= distance, attn, 0.0).sum(-1) for distance in distances]
    return torch.stack(within, -1) if within else attn[..., :0]  # (..., query, distance)


def local_global_ratio(lag_profile, distance, *, lags=None, check=True):
    """Return the attention within a distance over the attention beyond it (Figure 1).

    The paper draws a "local versus global attention ratio" and gives no equation; this is our reading.

    Parameters
    ----------
    lag_profile : torch.Tensor or array_like, shape (..., lag)
        Mean attention at each distance, with sum 1. Not modified.
    distance : int
        In tokens, 0 or more; ``|lag| <= distance`` is local.
    lags : torch.Tensor or array_like of int, shape (lag,), optional
        Distance of each entry in tokens; 0, 1, 2, … if None. Bidirectional attention has lags on both sides.
    check : bool
        Call `require_distribution` first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    torch.Tensor, shape (...)
        From 0 to infinity, infinite where nothing lies beyond the distance. Its logarithm is symmetric in
        near and far and is what should be averaged.

    Raises
    ------
    ValueError
        If the profile is not a distribution, the distance is negative, or `lags` has another length.
    """
    profile = _distribution(lag_profile, check, "lag_profile")  # (..., lag)
    n_lags = profile.shape[-1]
    lags = torch.arange(n_lags) if lags is None else torch.as_tensor(lags)  # (lag,)
    if lags.shape != (n_lags,):
        raise ValueError(f"lag_profile has {n_lags} lags but lags has shape {tuple(lags.shape)}")
    if distance < 0:
        raise ValueError(f"distance must be 0 or more tokens, got {distance}")
    near = (lags.abs() <= distance).to(profile.device)  # (lag,)
    # Both are summed: 1 minus the near part would leave only rounding of a small far part.
    return profile[..., near].sum(-1) / profile[..., ~near].sum(-1)


def entropic_bound(length, *, base=None):
    """Return the least sum of the entropies of a signal and of its Fourier transform, log(length).

    Parameters
    ----------
    length : int
        Samples of the signal, at least 1.
    base : float, optional
        Logarithm base; natural (nats) if None.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the length is below 1, or the base is not positive or is 1.

    Notes
    -----
    For a of norm 1 and the unitary discrete Fourier transform F, H(|a|²) + H(|Fa|²) ≥ −2 log max|F_jk| =
    log(length): every signal obeys it, learned or not. A comb of k teeth at distance length / k meets it
    exactly, a single spike and a constant included.

    References
    ----------
    .. [1] H. Maassen, J. Uffink, "Generalized entropic uncertainty relations", Phys. Rev. Lett. 60 (1988).
    """
    if length < 1:
        raise ValueError(f"a signal needs at least 1 token, got length {length}")
    return math.log(length) / log_base(base)


def entropic_slack(signal, *, base=None, check=True):
    """Return how far a signal is above the entropic bound, H(|a|²) + H(|Fa|²) − log(length).

    Parameters
    ----------
    signal : torch.Tensor or array_like, shape (..., position)
        Real amplitudes; divided by their norm here. Pass ``attn.sqrt()`` to have |a|² the attention itself,
        so that H(|a|²) is the positional entropy; pass `attn` to take attention as the amplitude, whose
        spectrum is then the power spectrum of eq. 1 without window (two-sided). Not modified.
    base : float, optional
        Logarithm base; natural (nats) if None.
    check : bool
        Look for NaN and infinity first. On CUDA this waits for the device; False skips it.

    Returns
    -------
    torch.Tensor, shape (...)
        In [0, log(length)] up to rounding; 0 where position and frequency are known together as well as can
        be. NaN for a signal that is zero.

    Raises
    ------
    ValueError
        If the signal is empty, complex or not finite, or the base is not positive or is 1.

    Notes
    -----
    The bound holds for every signal, so the slack, not the bound, is what a head can be compared by. It needs
    all frequencies, two-sided, and no window or padding: half of the bins do not obey it.
    """
    x = as_real(signal, "signal")  # (..., position)
    length = require_last_axis(x, "signal")
    if check:
        require_finite(x, "signal")
    energy = x.square()  # (..., position)
    transform = torch.fft.fft(x)  # (..., freq)
    power = transform.real.square() + transform.imag.square()  # (..., freq)
    entropies = [negative_p_log_p(p / p.sum(-1, keepdim=True)).sum(-1) for p in (energy, power)]  # (...) each
    return sum(entropies) / log_base(base) - entropic_bound(length, base=base)


def _distribution(attn, check, name="attn"):
    if check:
        require_distribution(attn, name)
    attn = as_real(attn, name)
    require_last_axis(attn, name)
    return attn


def _index(flat, x):
    return tuple(int(i) for i in torch.unravel_index(flat, x.shape))
