"""Position encodings: rotary (eq. 12), ALiBi, T5 and sinusoidal, and the kernels over the lag they imply.

Angular frequencies θ_k are in radians/token, wavelengths and lags in tokens.
"""

import math

import torch

from nbhelpers.arguments import check_all, checked, real, refuse, such_that, token_ids, whole

from .checks import as_double, as_real, as_signal


@checked(fraction=real(0, 1))
def inverse_frequencies(head_dim, *, theta=10000.0, fraction=1.0):
    """Return the angular frequencies (pair,) of the rotary pairs, θ^(−2k/d) (eq. 12; arXiv:2104.09864).

    float64 on the CPU, in radians/token, from 1 downwards. d = int(head_dim · fraction) dimensions are
    rotated, a quarter in GPT-NeoX and Pythia; `theta` is `rope_theta` of model configurations.
    """
    n_rotated = int(head_dim * fraction)
    if n_rotated < 2 or n_rotated % 2:
        told = f"head_dim {head_dim} with fraction {fraction} rotates {n_rotated} dimensions"
        raise ValueError(f"{told}; rotation pairs them, so the number must be even and at least 2")
    exponents = torch.arange(0, n_rotated, 2, dtype=torch.float64) / n_rotated  # (pair,)
    return theta**-exponents


def wavelengths(inverse_frequencies):
    """Return the wavelength of each rotary pair, 2π/θ_k tokens, (pair,)."""
    return 2 * math.pi / as_signal(inverse_frequencies, "inverse_frequencies", check=None)


@checked(x=None)
def rotate(x, positions, inverse_frequencies, *, interleaved=False):
    """Return `x` (..., position, head_dim) with its pairs rotated by position times frequency (eq. 12).

    `positions`, in tokens, broadcast to (..., position); fractions are allowed (position interpolation). The
    `inverse_frequencies` (pair,) are in radians/token: the first ``2 * pair`` dimensions are rotated, the
    others pass through. Angles are computed in float64, so distant positions keep their phase. Dimension k is
    paired with k + pair, the layout of Llama and GPT-NeoX in transformers; if `interleaved`, 2k with 2k + 1
    (GPT-J).
    """
    x = as_real(x, "x")  # (..., position, head_dim)
    frequency = as_double(inverse_frequencies, "inverse_frequencies", device=x.device, length=-1)  # (pair,)
    positions = as_double(positions, "positions", device=x.device)  # (..., position)
    n_pairs = frequency.shape[-1]
    if x.ndim < 2 or (positions.ndim and positions.shape[-1] not in (1, x.shape[-2])):
        refuse("positions", positions, f"one for each position of x {tuple(x.shape)}")
    if 2 * n_pairs > x.shape[-1]:
        raise ValueError(f"{n_pairs} pairs need a head_dim of {2 * n_pairs} or more, got {x.shape[-1]}")
    angle = positions[..., None] * frequency  # (..., position, pair)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # (..., position, pair) each
    rotated, rest = x[..., : 2 * n_pairs], x[..., 2 * n_pairs :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]  # (..., position, pair) each
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    else:
        first, second = rotated[..., :n_pairs], rotated[..., n_pairs:]  # (..., position, pair) each
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned, rest], -1)  # (..., position, head_dim)


def lag_kernel(inverse_frequencies, lags):
    """Return the score (...) that rotation alone gives to lags (...), the mean of cos(θ_k · lag) over pairs.

    It is the scaled dot product of a rotated query and key that are equal before and have the same energy in
    each pair. Frequencies (pair,) are in radians/token, lags in tokens; float64, in [−1, 1], 1 at lag 0.
    """
    frequency = as_double(inverse_frequencies, "inverse_frequencies", length=-1)  # (pair,)
    lags = as_double(lags, "lags", device=frequency.device)  # (...)
    return torch.cos(lags[..., None] * frequency).mean(-1)  # (...)


def alibi_slopes(n_heads):
    """Return the slopes of ALiBi, (head,), in score units per token (Press et al., arXiv:2108.12409).

    For a power of two 2^(−8h/n), h = 1 … n; for any other number those of the power of two below, then every
    other slope of the power of two above. float64 on the CPU.
    """
    power = 1 << (n_heads.bit_length() - 1)
    exponents = [8 * head / power for head in range(1, power + 1)]
    exponents += [4 * head / power for head in range(1, 2 * (n_heads - power), 2)]
    return 2.0 ** -torch.tensor(exponents, dtype=torch.float64)  # (head,)


@checked(dtype=such_that(lambda dtype: isinstance(dtype, torch.dtype), "a torch.dtype"))
def alibi_bias(n_heads, length, *, dtype=torch.float32):
    """Return what causal ALiBi adds to the scores, −slope · lag, −∞ for later keys, (head, query, key)."""
    lag = torch.arange(length)[:, None] - torch.arange(length)  # (query, key)
    return (-alibi_slopes(n_heads)[:, None, None] * lag).to(dtype).masked_fill_(lag < 0, -math.inf)


@checked(n_buckets=whole(2), relative_position=token_ids)
def t5_bucket(relative_position, *, bidirectional=True, n_buckets=32, max_distance=128):
    """Return the buckets (...), int64, of relative positions (...) in T5 (Raffel et al., arXiv:1910.10683).

    A relative position is key minus query, in tokens. If `bidirectional`, half of the buckets are for keys
    after the query; else every later key is in bucket 0. Half of the buckets of a side hold one distance
    each, the others grow logarithmically; from `max_distance` on, all share the last.
    """
    n_side = n_buckets // 2 if bidirectional else n_buckets
    n_exact = n_side // 2
    if n_exact < 1 or max_distance <= n_exact:
        told = f"n_buckets {n_buckets} gives {n_side} a side, {n_exact} of them for single distances"
        raise ValueError(f"{told}; that needs to be 1 or more and below max_distance, {max_distance}")
    if bidirectional:
        offset, distance = (relative_position > 0).long() * n_side, relative_position.abs()  # (...) each
    else:
        offset, distance = 0, (-relative_position).clamp_min(0)  # (...)
    # float32 and this order of operations are T5's, for distances at the border of a bucket.
    log_ratio = torch.log(distance.clamp_min(1).float() / n_exact) / math.log(max_distance / n_exact)  # (...)
    coarse = (n_exact + (log_ratio * (n_side - n_exact)).long()).clamp_max(n_side - 1)  # (...)
    return offset + torch.where(distance < n_exact, distance, coarse).long()


def t5_bias(table, length, **options):
    """Return what T5 adds to the scores, (head, query, key): a learned bias for each bucket of `t5_bucket`.

    `table` (bucket, head) is the model's `relative_attention_bias.weight`, in which the result is
    differentiable; `options` are `bidirectional` and `max_distance` of `t5_bucket`. As in T5 no causal mask
    is applied: with ``bidirectional=False`` later keys get the bias of bucket 0.
    """
    table = as_real(table, "table")  # (bucket, head)
    if table.ndim != 2:
        refuse("table", table, "of shape (bucket, head)")
    position = torch.arange(length, device=table.device)  # (position,)
    bucket = t5_bucket(position - position[:, None], n_buckets=len(table), **options)  # (query, key)
    return table[bucket].permute(2, 0, 1)  # (head, query, key)


def sinusoidal_embedding(length, dim, *, theta=10000.0):
    """Return the fixed sinusoidal embedding (position, dim), float64, on the CPU (arXiv:1706.03762).

    Sines in the even dimensions, cosines in the odd; `theta` is the base of the frequencies. The dot product
    of two positions is ``dim / 2`` times `lag_kernel`.
    """
    angle = torch.arange(length, dtype=torch.float64)[:, None] * inverse_frequencies(dim, theta=theta)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)  # (position, dim)


__all__ = [*check_all(globals())]
