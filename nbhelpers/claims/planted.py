"""Attention with a known truth: banks of heads that are wavelets, Gabor atoms, boxes, … by construction.

A rule that judges a model is first run on these, without being told which it is given. What a bank is was
decided by its kernels and written down in ``nbhelpers/data/banks.yaml`` before any rule was run.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from nbhelpers.arguments import checked, one_of
from nbhelpers.profiles import Profiles

from .banks import KINDS

FLOOR = 1e-4  # of the largest weight of a kernel; a query without a key at its distance looks evenly
SIZES = {"n_layers": 6, "n_heads": 6, "length": 128, "noise": 0.0, "key_noise": 0.0, "seed": 0}
POOL = 2**22  # factors of noise that are drawn once; every head takes its own from a random place


class NoiseStrength(NamedTuple):
    """Standard deviations of log attention, shape (...): of its entries, and of keys for all queries."""

    noise: torch.Tensor
    key_noise: torch.Tensor


@checked(kind=one_of(*KINDS))
def planted_profiles(kind, *, n_sequences=4, heads_per_group=3, factors=(0.5, 0.25), **options):
    """Return the profiles of sequences of `planted_attention`, and those of their prefixes, by `factors`."""
    options = SIZES | options
    groups = [head // heads_per_group for head in range(options["n_heads"])]
    truth = {"kind": kind, "n_sequences": n_sequences} | options
    attn = torch.stack([planted_attention(kind, sequence=k, **options) for k in range(n_sequences)])
    made = {}
    for factor in (1.0, *factors):
        n = int(factor * options["length"] + 1e-9)
        known = {"kv_groups": groups, "provenance": {"planted": truth | {"prefix": n}}}
        made[factor] = Profiles.from_attention(attn[..., :n, :n], causal=True, **known)
    return made.pop(1.0), made


@checked(kind=one_of(*KINDS))
def planted_attention(kind, *, n_layers, n_heads, length, noise=0.0, key_noise=0.0, seed=0, sequence=0):
    """Return causal attention (layer, head, query, key), float32, of one sequence of a kind of known truth.

    Every entry of the kernels' attention is multiplied by exp(noise · z), z standard normal, and rows divided
    by their sum; `key_noise` is the same with one z for all queries of a key: tokens that draw attention
    whatever the lag. Its first t rows and columns are the attention of the prefix of t tokens, as in any
    causal model.
    """
    shape = (n_layers, n_heads, length)
    made = []
    for kernel, keys, entries, sink in _layers(kind, shape, noise, key_noise, seed, sequence):
        # Window r of the flipped kernel holds the weights of query n − 1 − r, zeros where no key is.
        reach = torch.cat([kernel.flip(-1), kernel.new_zeros(n_heads, length - 1)], -1)
        attn = reach.unfold(-1, length, 1).flip(1) * keys[:, None]  # (head, query, key)
        if entries is not None:
            pool, places = entries
            for own, place in zip(attn, places, strict=True):
                own *= pool[place : place + length**2].view(length, length)
        attn[..., 0] += sink[:, None] * attn.sum(-1)
        made.append(attn.div_(attn.sum(-1, keepdim=True)))
    return torch.stack(made)


@checked(kind=one_of(*KINDS))
def planted_stationary(
    kind, *, n_sequences=6, n_layers=6, n_heads=6, length=128, noise=0.0, key_noise=0.0, seed=0
):
    """Return the stationary profiles (sequence, layer, head, lag) of `planted_attention`."""
    made, of = [], (kind, (n_layers, n_heads, length), noise, key_noise, seed)
    for sequence in range(n_sequences):
        made += [_stationary(*layer) for layer in _layers(*of, sequence)]
    return torch.stack(made).unflatten(0, (n_sequences, n_layers))


@lru_cache(maxsize=1)  # the sequences of a case share them
def kernels(kind, *, n_layers, n_heads, length, seed=0):
    """Return a kind's kernels (layer, head, lag), at most 1, float32; heads in any order in a layer."""
    known, generator = KINDS[kind], _generator(seed, kind, "kernels")
    lag = torch.arange(length, dtype=torch.float64)
    layers = []
    for _ in range(n_layers):
        bank = known.maker(n_heads, lag, generator, **known.options)  # (head, lag)
        layers.append(bank[torch.randperm(n_heads, generator=generator)])
    made = torch.stack(layers)
    return (made / made.amax(-1, keepdim=True)).float()


def noise_strength(attn, *, first_query=16, sweeps=20):
    """Return how strongly real attention departs from a function of the lag, in the units of planted noise.

    The logarithm of causal attention (..., query, key) is fitted by a sum of effects of the query, of the lag
    and of the key, by turns, without key 0 and where few keys or queries are. The spread of the effect of the
    key around a line is `key_noise`, that of what is left over is `noise`.
    """
    n = attn.shape[-1]
    if n < 2 * first_query:
        raise ValueError(f"attention over {n} tokens is too short; pass at least {2 * first_query}")
    query = torch.arange(n)[:, None]
    key = torch.arange(n)
    seen = ((key > 0) & (key <= query) & (query >= first_query)).double()  # (query, key)
    lag = (query - key).clamp_min(0)  # (query, key)
    smallest = torch.finfo(torch.float32).tiny  # what softmax has lost is as small as it can be
    rest = attn.double().clamp_min(smallest).log() * seen  # (..., query, key)
    of_key = torch.zeros_like(rest[..., 0, :])  # (..., key)
    for _ in range(sweeps):
        rest = (rest - rest.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)) * seen
        rest = (rest - _mean_per_lag(rest, lag, seen)) * seen
        effect = rest.sum(-2) / seen.sum(-2).clamp_min(1)  # (..., key)
        of_key, rest = of_key + effect, (rest - effect[..., None, :]) * seen
    counted = (seen.sum(-2) >= first_query).double()  # (key,)
    # A line over keys could as well be lines over queries and lags, so it does not count as noise.
    place = (key - (key * counted).sum() / counted.sum()) * counted  # (key,)
    of_key = (of_key - (of_key * counted).sum(-1, keepdim=True) / counted.sum()) * counted
    of_key = of_key - (of_key @ place / place.square().sum())[..., None] * place
    key_noise = of_key.square().sum(-1) / counted.sum()
    return NoiseStrength((rest.square().sum((-2, -1)) / seen.sum()).sqrt(), key_noise.sqrt())


def _mean_per_lag(values, lag, seen):
    """Mean over the entries seen of each lag, put back in place; (..., query, key)."""
    flat = values.flatten(-2)
    index = lag.flatten().expand(flat.shape)
    sums = torch.zeros(*flat.shape[:-1], lag.shape[-1], dtype=values.dtype).scatter_add(-1, index, flat)
    count = torch.bincount(lag.flatten(), weights=seen.flatten(), minlength=lag.shape[-1]).clamp_min(1)
    return (sums / count)[..., lag]


def _stationary(kernel, keys, entries, sink):
    """Return a layer's mean attention (head, lag) over the last n // 2 queries, at lags that all see."""
    n_heads, n = kernel.shape
    kernel, first, n_lags = kernel.flip(-1), n - n // 2, n // 2
    noise = torch.cat([keys.new_zeros(n_heads, n - 1), keys], -1).unfold(-1, n, 1)[:, first:]
    if entries is not None:
        pool, places = entries
        # The next query has the same lag n + 1 entries on.
        at = [place + first * (n + 1) - (n - 1) for place in places]
        noise = torch.stack([pool.as_strided((n_lags, n), (n + 1, 1), start) for start in at]).mul_(noise)
    total = (noise * kernel[:, None]).sum(-1) * (1 + sink[:, None])  # (head, query)
    mean = (1 / total)[:, None] @ noise[..., -n_lags:] / n_lags  # (head, 1, n − 1 − lag)
    return (mean[:, 0] * kernel[:, -n_lags:]).flip(-1)


def _layers(kind, shape, noise, key_noise, seed, sequence):
    """Yield of each layer kernels (head, lag), factors of keys (head, key) and entries, key 0's weights.

    The factors of entries are a pool and where each head begins in it, or None; weights are relative to all
    else.
    """
    n_layers, n_heads, n = shape
    known, generator = KINDS[kind], _generator(seed, kind, sequence)
    weights = kernels(kind, n_layers=n_layers, n_heads=n_heads, length=n, seed=seed) + FLOOR
    keys = torch.zeros(shape)
    if known.key is not None:
        keys = known.key(shape, generator)
    if key_noise:
        keys = keys + key_noise * torch.randn(shape, generator=generator)
    pool = _pool(float(np.hypot(noise, known.spread)))
    places = torch.randint(POOL - n * n, shape[:2], generator=generator).tolist()
    sinks = torch.zeros(shape[:2]) if known.sink is None else known.sink(n_layers, n_heads)
    for kernel, factors, place, sink in zip(weights, keys.exp(), places, sinks, strict=True):
        yield kernel, factors, (pool, place) if noise or known.spread else None, sink


@lru_cache(maxsize=4)
def _pool(sd):
    """Factors exp(sd · z), z standard normal, from one stream."""
    return (sd * torch.randn(POOL, generator=_generator(0, "pool"))).exp_()


def _generator(seed, *words):
    """Return a generator for one purpose; other purposes draw from other streams."""
    entropy = [seed, *(b for word in words for b in str(word).encode())]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
