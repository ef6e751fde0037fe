"""Attention with a known truth: banks of heads that are wavelets, Gabor atoms, boxes, … by construction.

What a bank is was decided by its kernels, in ``nbhelpers/data/banks.yaml``, before any rule was run on it,
blind. Its makers return kernels (head, lag) of one layer: the weight of a key so many tokens back. A row of
attention is non-negative and cannot be a wavelet; what is planted is the nearest thing.
"""

from collections import namedtuple
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
import yaml

from nbhelpers.arguments import checked, one_of
from nbhelpers.profiles import Profiles

SHORTEST = 2.2  # tokens, the shortest period of a bank
FLOOR = 1e-4  # of the largest weight of a kernel; a query without a key at its distance looks evenly
SIZES = {"n_layers": 6, "n_heads": 6, "length": 128, "noise": 0.0, "key_noise": 0.0, "seed": 0}
POOL = 2**22  # factors of noise that are drawn once; every head takes its own from a random place
# Standard deviations of log attention, (...): of its entries, and of keys for all queries.
NoiseStrength = namedtuple("NoiseStrength", ("noise", "key_noise"))


class Kind(NamedTuple):
    """A kind of bank: how its heads are made, and which claims hold for it by construction."""

    maker: object  # from (n_heads, lag, generator) and the options to kernels (head, lag)
    options: dict
    holds: tuple  # claims that are true of the bank
    why: str
    open: tuple = ()  # claims that can be argued either way, or whose null this kind is; not counted
    shortest: int = 128  # tokens, the shortest sequence that holds the bank
    key: object = None  # what tokens draw whatever the distance: a course of noise, or 1/f noise
    sink: float | None = None  # how far the logits of key 0 spread over the heads of the last layer
    spread: float = 0.0  # sd of log attention over entries, beside the noise


def _scales(n_heads, ratio, first):
    return first * ratio ** torch.arange(n_heads, dtype=torch.float64)[:, None]  # (head, 1)


def _scattered_steps(n_heads, generator):
    """One number at random in each of as many equal parts of 0 to 1 as there are heads, (head, 1)."""
    return (torch.arange(n_heads)[:, None] + torch.rand(n_heads, 1, generator=generator).double()) / n_heads


def _that_fit(made, reach, lag):
    """Heads whose kernel does not fit into half of the sequence look evenly."""
    return torch.where(reach <= len(lag) / 2 - 1, made, 1.0)


def _morlet(n_heads, lag, generator, *, ratio=2**0.5, place=4.0, period=1.0, hats=False):
    """Gaussian envelope of sd s at place · s, times 1 + cos of period · s, or `hats`; s grows by `ratio`."""
    scale = _scales(n_heads, ratio or 1.0, SHORTEST / period)
    if not ratio:
        widest = (len(lag) / 2 - 1) / (place + 2)
        scale = scale * (widest / scale) ** _scattered_steps(n_heads, generator)
    x = (lag - place * scale) / scale
    wave = 1 + torch.cos(2 * torch.pi * x / period)
    if hats:
        u = 3.4 * (torch.remainder(x / period + 0.5, 1) - 0.5)
        wave = (1 - u**2) * torch.exp(-0.5 * u**2) + 2 * torch.tensor(-1.5).exp()
    return _that_fit(torch.exp(-0.5 * x**2) * wave, (place + 2) * scale, lag)


def _gabor(n_heads, lag, generator, *, width=1 / 16, place=2.0, at_random=False):
    """One Gaussian window, modulated by frequencies in equal steps up to Nyquist, or at random."""
    frequency = 0.5 * torch.arange(1, n_heads + 1, dtype=torch.float64)[:, None] / n_heads
    if at_random:
        frequency = 0.05 + 0.45 * torch.rand(n_heads, 1, generator=generator, dtype=torch.float64)
    x = lag - place * width * len(lag)
    return torch.exp(-0.5 * (x / (width * len(lag))) ** 2) * (1 + torch.cos(2 * torch.pi * frequency * x))


def _damped(n_heads, lag, generator, *, decay, ratio=2**0.5):
    """1 + cos, falling with distance: e^-1 after `decay` of the sequence."""
    period = _scales(n_heads, ratio, SHORTEST)
    made = torch.exp(-lag / (decay * len(lag))) * (1 + torch.cos(2 * torch.pi * lag / period))
    return _that_fit(made, period, lag)


def _periodic(n_heads, lag, generator, *, ratio=2**0.5, sharpness=0.0):
    """cos over all lags, the same far and near; or a comb of its peaks."""
    wave = torch.cos(2 * torch.pi * lag / _scales(n_heads, ratio, SHORTEST))
    return (sharpness * wave).exp() if sharpness else 1 + wave


def _fading(n_heads, lag, generator, *, shape, ratio=2.0, first=1.5):
    """A shape of lag over scale; scales grow by `ratio`, or are drawn where it is 0."""
    scale = _scales(n_heads, ratio or 1.0, first)
    if not ratio:
        scale = first * (len(lag) / 8 / first) ** _scattered_steps(n_heads, generator)
    return _that_fit(SHAPES[shape](lag / scale), 2 * scale, lag)


SHAPES = {  # of x = lag / scale
    "exponential": lambda x: torch.exp(-x),
    "half Gaussian": lambda x: torch.exp(-0.5 * x**2),
    "box": lambda x: (x < 2).double(),
    "ring": lambda x: ((x >= 1) & (x < 2)).double(),
    "bump": lambda x: torch.exp(-0.5 * ((x - 1) / 0.15) ** 2),
    "peak": lambda x: torch.exp(-6 * (x - 1).abs()),
    "gamma": lambda x: x**2 * torch.exp(-3 * x),
    "power law": lambda x: (1 + x) ** -4,
}


def _power_laws(n_heads, lag, generator, *, steepest=3.0):
    return (1 + lag) ** -torch.linspace(0.5, steepest, n_heads, dtype=torch.float64)[:, None]


def _windows(n_heads, lag, generator, *, width, ratio=1.5, soft=False):
    """Windows of one width at distances that grow by `ratio`."""
    x = (lag - _scales(n_heads, ratio, width * 1.5).clamp_max(len(lag) / 3)) / width
    return torch.exp(-2 * x**2) if soft else (x.abs() < 0.5).double()


def _widening(n_heads, lag, generator, *, ratio=1.6):
    """Bumps of growing width around one distance."""
    return torch.exp(-0.5 * ((lag - len(lag) / 5) / _scales(n_heads, ratio, 1.0)) ** 2)


def _scattered(n_heads, lag, generator, *, ratio=1.8):
    """Lags drawn at random, more and more of them from head to head."""
    order = torch.rand(n_heads, len(lag), generator=generator).argsort(-1).double()
    return (order < _scales(n_heads, ratio, 3.0) * 2).double()


def _flat(n_heads, lag, generator):
    return torch.ones(n_heads, len(lag), dtype=torch.float64)


def _shuffled(n_heads, lag, generator, *, of):
    """The lags of each head in random order, within the half that all late queries see."""
    (maker, options), half = of, len(lag) // 2
    made = maker(n_heads, lag, generator, **options)
    order = torch.rand(n_heads, half, generator=generator).argsort(-1)
    return torch.cat([made[:, :half].gather(1, order), made[:, half:]], 1)


def _half(n_heads, lag, generator, *, of, other=(_flat, {})):
    """Half of the heads of one kind, half of another: each (maker, options)."""
    parts = zip((of, other), (n_heads - n_heads // 2, n_heads // 2), strict=True)
    return torch.cat([maker(n, lag, generator, **options) for (maker, options), n in parts])


def _token_weights(given, shape, generator):
    """Log weights of keys for all queries alike: 1/f noise, or noise of a strength that takes a course."""
    if given is None:
        return torch.zeros(shape)
    if isinstance(given, dict):
        return given["gain"] * _pink(shape, generator, given["exponent"])
    strength = COURSES[given](torch.linspace(0, 1, shape[0]))[:, None, None]  # (layer, 1, 1)
    return 2.5 * strength * torch.randn(shape, generator=generator)


def _sink_weights(spread, n_layers, n_heads):
    """Weight of key 0: close to a half of all in the first layer, none or nearly all in the last."""
    if spread is None:
        return torch.zeros(n_layers, n_heads)
    logit = spread * torch.linspace(0, 1, n_layers).sqrt()  # (layer,)
    side = torch.arange(n_heads) % 2 * 2 - 1  # (head,)
    return (logit[:, None] * side).exp()


def _pink(shape, generator, exponent):
    """Gaussian noise along the last axis whose power falls as 1/f^exponent, of variance 1."""
    noise = torch.fft.rfft(torch.randn(shape, generator=generator))
    frequency = torch.arange(noise.shape[-1]).clamp_min(1)
    pink = torch.fft.irfft(noise * frequency ** (-exponent / 2), n=shape[-1])
    pink = pink - pink.mean(-1, keepdim=True)
    return pink / pink.square().mean(-1, keepdim=True).sqrt()


COURSES = {  # of the strength of token noise over depth, 0 to 1
    "rising": lambda depth: depth,
    "late": lambda depth: depth**1.5,
    "a little": lambda depth: 0.2 + 0.6 * depth,
    "middle": lambda depth: 4 * depth * (1 - depth),
    "falling": lambda depth: 1 - depth,
    "early fall": lambda depth: (1 - depth).square(),
    "both ends": lambda depth: (1 - 2 * depth).square(),
}


def _made(given):
    """Return the maker that a mapping names, a function above without its underscore, and its options."""
    options = {name: _made(value) if isinstance(value, dict) else value for name, value in given.items()}
    return globals()[f"_{options.pop('maker')}"], options


def _kind(given):
    fields = {name: given.pop(name) for name in Kind._fields[2:] if name in given}
    fields |= {name: tuple(fields.get(name, ())) for name in ("holds", "open")}
    return Kind(*_made(given), **fields)


_BANKS = yaml.safe_load((resources.files("nbhelpers.data") / "banks.yaml").read_text(encoding="utf-8"))
DESIGN, TEST = ({name: _kind(of) for name, of in _BANKS[part].items()} for part in ("design", "test"))
KINDS = DESIGN | TEST


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
    by their sum; `key_noise` is the same with one z for all queries of a key.
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
    of = kind, (n_layers, n_heads, length), noise, key_noise, seed
    made = [_stationary(*layer) for sequence in range(n_sequences) for layer in _layers(*of, sequence)]
    return torch.stack(made).unflatten(0, (n_sequences, n_layers))


@lru_cache(maxsize=1)  # the sequences of a case share them
def kernels(kind, *, n_layers, n_heads, length, seed=0):
    """Return a kind's kernels (layer, head, lag), at most 1, float32; heads in any order in a layer."""
    known, generator = KINDS[kind], _generator(seed, kind, "kernels")
    lag = torch.arange(length, dtype=torch.float64)
    banks = (known.maker(n_heads, lag, generator, **known.options) for _ in range(n_layers))
    made = torch.stack([bank[torch.randperm(n_heads, generator=generator)] for bank in banks])  # by layer
    return (made / made.amax(-1, keepdim=True)).float()


def noise_strength(attn):
    """Return how strongly real attention departs from a function of the lag, in the units of planted noise.

    The logarithm of causal attention (..., query, key) is fitted by effects of the query, of the lag and of
    the key, by turns. The spread of the last around a line is `key_noise`, that of the rest is `noise`.
    """
    n, first_query = attn.shape[-1], 16
    if n < 2 * first_query:
        raise ValueError(f"attention over {n} tokens is too short; pass at least {2 * first_query}")
    key, query = torch.arange(n), torch.arange(n)[:, None]
    seen = ((key > 0) & (key <= query) & (query >= first_query)).double()  # (query, key)
    lag = (query - key).clamp_min(0)  # (query, key)
    smallest = torch.finfo(torch.float32).tiny  # what softmax has lost is as small as it can be
    rest = attn.double().clamp_min(smallest).log() * seen  # (..., query, key)
    of_key = torch.zeros_like(rest[..., 0, :])  # (..., key)
    at = lag.flatten().expand(*rest.shape[:-2], -1)
    per_lag = torch.bincount(lag.flatten(), weights=seen.flatten(), minlength=n).clamp_min(1)
    for _ in range(20):
        rest = (rest - rest.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)) * seen
        sums = rest.new_zeros(*rest.shape[:-2], n).scatter_add(-1, at, rest.flatten(-2))
        rest = (rest - (sums / per_lag)[..., lag]) * seen
        effect = rest.sum(-2) / seen.sum(-2).clamp_min(1)  # (..., key)
        of_key, rest = of_key + effect, (rest - effect[..., None, :]) * seen
    counted = (seen.sum(-2) >= first_query).double()  # (key,)
    # A line over keys could as well be lines over queries and lags, so it does not count as noise.
    place = (key - (key * counted).sum() / counted.sum()) * counted  # (key,)
    of_key = (of_key - (of_key * counted).sum(-1, keepdim=True) / counted.sum()) * counted
    of_key = of_key - (of_key @ place / place.square().sum())[..., None] * place
    key_noise = of_key.square().sum(-1) / counted.sum()
    return NoiseStrength((rest.square().sum((-2, -1)) / seen.sum()).sqrt(), key_noise.sqrt())


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
    """Yield each layer's kernels, factors of keys (head, key), of entries (pool, starts) or None, sinks."""
    n_layers, n_heads, n = shape
    known, generator = KINDS[kind], _generator(seed, kind, sequence)
    weights = kernels(kind, n_layers=n_layers, n_heads=n_heads, length=n, seed=seed) + FLOOR
    keys = _token_weights(known.key, shape, generator)
    if key_noise:
        keys = keys + key_noise * torch.randn(shape, generator=generator)
    pool = _pool(float(np.hypot(noise, known.spread)))
    places = torch.randint(POOL - n * n, shape[:2], generator=generator).tolist()
    sinks = _sink_weights(known.sink, n_layers, n_heads)
    for kernel, factors, place, sink in zip(weights, keys.exp(), places, sinks, strict=True):
        yield kernel, factors, (pool, place) if noise or known.spread else None, sink


@lru_cache(maxsize=4)
def _pool(sd):  # factors exp(sd · z), z standard normal, from one stream
    return (sd * torch.randn(POOL, generator=_generator(0, "pool"))).exp_()


def _generator(seed, *words):
    """Return a generator for one purpose; other purposes draw from other streams."""
    entropy = [seed, *(b for word in words for b in str(word).encode())]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
