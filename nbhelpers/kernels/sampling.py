"""Random attention and random vectors: what a set of heads is compared with.

Draws are made in float64 on the CPU, from a seed.
"""

import torch

from .checks import as_real, require_finite, require_last_axis, require_option

__all__ = ["random_vectors", "softmax_of_support"]

KINDS = ("sphere", "simplex")
BISECTIONS = 60  # the inverse temperature is then known to the resolution of float64
SUPPORT_TOLERANCE = 1e-3


def random_vectors(shape, *, kind="simplex", effective_support=None, seed=0, dtype=torch.float64):
    """Return vectors drawn at random, what a set of heads is to be compared with.

    Parameters
    ----------
    shape : sequence of int
        (..., head, position).
    kind : {"simplex", "sphere"}
        "simplex": non-negative with sum 1, as attention is. Without `effective_support` they are uniform on
        the simplex (normalised exponential draws). "sphere": uniform directions, of norm 1 and any sign.
    effective_support : torch.Tensor or array_like, optional
        Shape that broadcasts to (..., head). The vectors are then the softmax of independent normal scores at
        the temperature that gives each of them this 1 / Σ a²; only for "simplex".
    seed : int
        The same seed gives the same vectors.
    dtype : torch.dtype
        float32 or float64; draws are made in float64.

    Returns
    -------
    torch.Tensor
        Of the shape asked for, on the CPU.

    Raises
    ------
    ValueError
        If the kind is unknown, the shape has fewer than two axes, or an effective support is outside
        [1, position] or asked of "sphere".
    """
    require_option("kind", kind, KINDS)
    shape = tuple(shape)
    if len(shape) < 2:
        raise ValueError(f"shape must be (..., head, position), got {shape}")
    if kind == "sphere" and effective_support is not None:
        raise ValueError("effective_support is of attention: pass kind='simplex', or no effective_support")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.empty(shape, dtype=torch.float64)  # (..., head, position)
    if kind == "sphere":
        draws.normal_(generator=generator)
        return (draws / torch.linalg.vector_norm(draws, dim=-1, keepdim=True)).to(dtype)
    if effective_support is not None:
        return softmax_of_support(draws.normal_(generator=generator), effective_support).to(dtype)
    draws.exponential_(generator=generator)
    return (draws / draws.sum(-1, keepdim=True)).to(dtype)


def softmax_of_support(scores, effective_support):
    """Return the softmax of scores at the temperature that gives a chosen effective support.

    Parameters
    ----------
    scores : torch.Tensor or array_like, shape (..., key)
        Finite, with a single largest entry in each row. Computed in float64. Not modified.
    effective_support : torch.Tensor or array_like
        1 / Σ a² wanted, in [1, key] tokens; of a shape that broadcasts to (...). A value beyond the ends by
        rounding, less than one part in a thousand, is taken as the end.

    Returns
    -------
    torch.Tensor, shape (..., key)
        float64, non-negative, sum 1; its `effective_support` is the one asked for, to about 1e-12.

    Raises
    ------
    ValueError
        If a score is not finite, a support is outside [1, key], or below what scores with equal largest
        entries can give.

    Notes
    -----
    Σ a² grows with the inverse temperature β, so β is found by bisection, for all rows at once, in
    60 softmaxes.
    """
    scores = as_real(scores, "scores").double()  # (..., key)
    n_keys = require_last_axis(scores, "scores")
    require_finite(scores, "scores")
    support = torch.as_tensor(effective_support, dtype=torch.float64, device=scores.device)
    support = support.broadcast_to(scores.shape[:-1])  # (...)
    allowed = support.clamp(1, n_keys)  # (...)
    if not bool(((support / allowed - 1).abs() <= SUPPORT_TOLERANCE).all()):  # NaN is refused too
        raise ValueError(
            f"effective_support must lie in [1, {n_keys}], the number of keys; got "
            f"{float(support.amin()):.6g} to {float(support.amax()):.6g}"
        )
    below = scores - scores.amax(-1, keepdim=True)  # (..., key), at most 0
    low = torch.full_like(support, -50.0)  # of log β: uniform to rounding
    high = _log_coldest(below)  # (...)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2  # (...)
        squares = (middle.exp()[..., None] * below).softmax(-1).square().sum(-1)  # (...)
        too_wide = 1 / squares > allowed
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    attn = (((low + high) / 2).exp()[..., None] * below).softmax(-1)  # (..., key)
    off = (1 / attn.square().sum(-1) / allowed - 1).abs()  # (...)
    if off.numel() and off.amax() > 1e-6:
        raise ValueError(
            f"{int((off > 1e-6).sum())} of {off.numel()} rows cannot have the effective support asked for: "
            "their largest scores are equal; draw scores from a continuous distribution"
        )
    return attn


def _log_coldest(below):
    """Return log β at which all but the largest entry of each row has left the range of float64."""
    if below.shape[-1] == 1:
        return torch.zeros_like(below[..., 0])
    gap = -below.topk(2, -1).values[..., 1]  # (...)
    return (800 / gap.clamp_min(1e-300)).log()
