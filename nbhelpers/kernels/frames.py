"""Frame bounds, constant-Q slope and similarity of the heads: are they a bank of wavelets (eqs. 13 to 16)?

The vectors of a set are the second last axis, `head`, and their entries the last.
"""

import math
from typing import NamedTuple

import torch

from nbhelpers.arguments import check_all, refuse

from .checks import as_double, as_power, as_real, as_signal

BISECTIONS = 64  # halvings of a bracket: beyond the digits of float64
SPREAD_FLOOR = 1e-6  # of log frequency: centroids closer than this do not define a slope


class FrameBounds(NamedTuple):
    """The largest A and smallest B of eq. 16 on the span of a set of vectors, and its rank, (...) each.

    A set of rank below the length of its vectors is a frame of its span only: on the whole space A is 0.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    rank: torch.Tensor

    @property
    def ratio(self):
        """B / A: 1 for a tight frame, and for any orthonormal set."""
        return self.upper / self.lower


class ConstantQ(NamedTuple):
    """The slope (...) of log bandwidth on log centroid over heads, and what it was fitted to, (..., head)."""

    slope: torch.Tensor
    centroid: torch.Tensor  # cycles/token
    bandwidth: torch.Tensor

    @property
    def quality(self):
        """Centroid over bandwidth of each head: above 1 for a band-pass, about 1 or below for a low-pass."""
        return self.centroid / self.bandwidth


def frame_bounds(vectors, *, normalize=False, rtol=None, check=True):
    """Return the :class:`FrameBounds` of sets of vectors (..., head, position) on their span (eq. 16).

    They are the smallest and largest eigenvalue of the frame operator Σ_h v_h v_hᵀ on the span, and its rank;
    NaN, NaN and 0 where all vectors are zero. Any finite set has 0 < A ≤ B < ∞ on its span, so that the
    bounds exist says nothing; B / A beside that of a random set does. They are squared singular values.

    `normalize` divides each vector by its norm first; a zero vector stays zero. Singular values above `rtol`
    times the largest one span, by default as in `numpy.linalg.matrix_rank`; pass about 1e-6 for vectors that
    were computed in float32, whatever their dtype now.
    """
    x = _as_set(vectors, check=check)  # (..., head, position)
    if rtol is None:
        rtol = max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    if normalize:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., head, 1)
        x = x / torch.where(norm > 0, norm, 1.0)  # (..., head, position)
    singular = torch.linalg.svdvals(x)  # (..., value), falling
    spans = (singular > rtol * singular[..., :1]) & (singular > 0)  # (..., value)
    rank = spans.sum(-1)  # (...)
    smallest = torch.where(spans, singular, math.inf).amin(-1)  # (...)
    lower, upper = (torch.where(rank > 0, s.square(), math.nan) for s in (smallest, singular[..., 0]))
    return FrameBounds(lower, upper, rank)


def random_frame_bounds(n_vectors, length, *, effective_support, n_draws=100, normalize=True, seed=0):
    """Return the frame bounds (draw,) of random sets of attention vectors, the null of `frame_bounds`.

    The vectors of a set have `length` entries, made by `softmax_of_support` of independent normal scores,
    with an `effective_support` (in tokens) that broadcasts to (draw, head); normalised by default, as the
    norm of attention is a matter of its support. float64.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_draws, n_vectors, length, dtype=torch.float64, generator=generator)
    return frame_bounds(softmax_of_support(scores, effective_support), normalize=normalize)


def softmax_of_support(scores, effective_support):
    """Return the softmax, float64, of scores (..., key) at the temperature of an effective support (...).

    The support, 1 / Σ a² in tokens, is met to about 1e-12: the inverse temperature β is found by bisection,
    for all rows at once. Scores have a single largest one in each row. The support is from 1 to key; beyond
    the ends by less than one part in a thousand, it is taken as the end.
    """
    z = as_signal(scores, "scores").double()  # (..., key)
    n_keys = z.shape[-1]
    wanted = as_double(effective_support, "effective_support", device=z.device)
    try:
        wanted = wanted.broadcast_to(z.shape[:-1])  # (...)
    except RuntimeError:
        refuse("effective_support", wanted, f"of a shape that broadcasts to {tuple(z.shape[:-1])}")
    if not bool(((wanted / wanted.clamp(1, n_keys) - 1).abs() <= 1e-3).all()):  # NaN is refused too
        found = f"{float(wanted.amin()):.6g} to {float(wanted.amax()):.6g}"
        raise ValueError(f"effective_support must lie in [1, {n_keys}], the number of keys; got {found}")

    def support(beta):  # (...), falls from key to 1 as β grows
        return 1 / (beta[..., None] * z).softmax(-1).square().sum(-1)

    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)  # of β
    while bool((far := support(high) > wanted * (1 + 1e-12)).any()) and float(high.max()) < 2.0**60:
        high = torch.where(far, 2 * high, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2  # (...)
        too_wide = support(middle) > wanted
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    return (((low + high) / 2)[..., None] * z).softmax(-1)


def constant_q_slope(psd, frequency):
    """Return how the bandwidth of the heads grows with their centre frequency, a :class:`ConstantQ`.

    Each spectrum of `psd` (..., head, freq), over frequencies (freq,) in cycles/token, has the centroid f = Σ
    |f| P / Σ P and as bandwidth the standard deviation of |f| under P, without the zero-frequency line. The
    slope is that of log bandwidth on log centroid over the heads: 1 for dilated copies of one shape (constant
    Q), 0 for one window at many frequencies; NaN for fewer than 3 heads with power at two frequencies or
    centroids that differ by rounding. Dilated low-pass shapes have 1 as well; `ConstantQ.quality` tells them.
    """
    power = as_power(_as_set(psd, "psd", "freq", check=False))  # (..., head, freq)
    frequency = as_double(frequency, "frequency", length=power.shape[-1]).abs()  # (freq,)
    bins = frequency.nonzero().squeeze(-1)  # (freq,)
    power, frequency = power[..., bins.to(power.device)], frequency[bins].to(power)
    share = power / power.sum(-1, keepdim=True)  # (..., head, freq)
    centroid = share @ frequency  # (..., head)
    away = frequency - centroid[..., None]  # (..., head, freq)
    bandwidth = (share * away.square()).sum(-1).sqrt()  # (..., head)
    pair = centroid.log(), bandwidth.log()
    known = pair[0].isfinite() & pair[1].isfinite()  # (..., head)
    count = known.sum(-1)  # (...)
    means = (torch.where(known, v, 0.0).sum(-1, keepdim=True) / count.clamp_min(1)[..., None] for v in pair)
    x, y = (torch.where(known, v - mean, 0.0) for v, mean in zip(pair, means, strict=True))  # (..., head)
    variation = x.square().sum(-1)  # (...)
    defined = (count >= 3) & ((variation / (count - 1).clamp_min(1)).sqrt() > SPREAD_FLOOR)  # (...)
    return ConstantQ(torch.where(defined, (x * y).sum(-1) / variation, math.nan), centroid, bandwidth)


def head_similarity(vectors, *, center=False, check=True):
    """Return the cosine between every two vectors of a set (..., head, position), (..., head, head).

    With `center`, the mean over positions is subtracted from each vector first: the cosine is then Pearson's
    correlation. Non-negative vectors have non-negative cosines; centred ones, as wavelets are, can be
    orthogonal. NaN in the row and column of a zero vector.
    """
    x = _as_set(vectors, check=check)  # (..., head, position)
    if center:  # exact zeros where what is left of a constant vector is rounding
        centred = x - x.mean(-1, keepdim=True)  # (..., head, position)
        rounding = x.shape[-1] * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)  # (..., head, 1)
        x = torch.where(centred.abs().amax(-1, keepdim=True) > rounding, centred, 0.0)
    # First by the largest entry: squares of attention far from its keys leave the range of float32.
    x = x / x.abs().amax(-1, keepdim=True)  # (..., head, position)
    x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., head, position)
    return x @ x.mT  # (..., head, head)


def mean_off_diagonal(similarity, *, absolute=False):
    """Return the mean of a matrix (..., head, head) over pairs of different heads, (...).

    `absolute` takes absolute values first: 0 then means that every pair is orthogonal, not that signs cancel.
    """
    x = as_real(similarity, "similarity")  # (..., head, head)
    if x.ndim < 2 or x.shape[-2] != x.shape[-1] or x.shape[-1] < 2:
        refuse("similarity", x, "of shape (..., head, head) of 2 or more heads")
    x = x.abs() if absolute else x
    return x[..., ~torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)].mean(-1)  # (...)


def _as_set(x, name="vectors", entry="position", *, check):
    x = as_real(x, name)  # (..., head, entry)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        refuse(name, x, f"of shape (..., head, {entry}) with at least 1 of each")
    return as_signal(x, name, check=check)


__all__ = ["ConstantQ", "FrameBounds", *check_all(globals())]
