"""Attention with a known truth: banks of heads that are wavelets, Gabor atoms, ALiBi slopes, … by
construction.

A rule that judges a model is first run on these, without being told which it is given. What a bank is, is
decided by its kernels and written down in :data:`TRUTH`, before any rule is run.
"""

from typing import NamedTuple

import numpy as np
import torch

from nbhelpers.arguments import checked, one_of
from nbhelpers.profiles import Profiles

BANKS = ("wavelet", "gabor", "alibi", "sink_local", "one_over_f", "iid")
PLANTED_CLAIMS = ("C1", "C2", "C4", "C5", "C6", "C14")
NEAREST = 4.0  # tokens, distance of the nearest kernel of the wavelet bank
VOICES = 2**0.5  # ratio of its neighbours: two heads per octave
LOCAL_DECAY = 4.0  # tokens, of the local part of "sink_local"
PINK_EXPONENT, PINK_GAIN = 0.2, 0.9  # of "one_over_f": power falls as f^-0.2, sd of log attention 1.1
IID_TEMPERATURE = 1.0  # sd of the scores of "iid"


class Truth(NamedTuple):
    """Whether a claim holds for a bank by construction, and why."""

    holds: bool
    why: str


class NoiseStrength(NamedTuple):
    """Standard deviations of log attention, shape (...): of its entries, and of keys for all queries."""

    noise: torch.Tensor
    key_noise: torch.Tensor


@checked
def planted_profiles(
    bank,
    *,
    n_sequences=4,
    n_layers=6,
    n_heads=9,
    length=256,
    noise=0.0,
    key_noise=0.0,
    heads_per_group=3,
    factors=(0.5, 0.25),
    seed=0,
):
    """Return the profiles of several sequences of `planted_attention`, and those of its prefixes by factor.

    KV groups hold `heads_per_group` neighbouring heads; `factors` are lengths of prefixes as parts of
    `length`.
    """
    options = {"n_layers": n_layers, "n_heads": n_heads, "length": length}
    options |= {"noise": noise, "key_noise": key_noise, "seed": seed}
    groups = [head // heads_per_group for head in range(n_heads)]
    truth = {"bank": bank, "n_sequences": n_sequences} | options
    lengths = {1.0: length} | {factor: int(factor * length + 1e-9) for factor in factors}
    parts = {factor: [] for factor in lengths}
    for sequence in range(n_sequences):
        attn = planted_attention(bank, sequence=sequence, **options)
        for factor, n in lengths.items():
            prefix = attn[None, ..., :n, :n]  # (1, layer, head, query, key)
            known = {"kv_groups": groups, "provenance": {"planted": truth | {"prefix": n}}}
            parts[factor].append(Profiles.from_attention(prefix, causal=True, **known))
    joined = {factor: Profiles.concatenate(part) for factor, part in parts.items()}
    return joined.pop(1.0), joined


@checked(bank=one_of(*BANKS))
def planted_attention(bank, *, n_layers, n_heads, length, noise=0.0, key_noise=0.0, seed=0, sequence=0):
    """Return causal attention (layer, head, query, key) of one sequence from a bank whose truth is known.

    The banks are "wavelet": dilated copies by powers of two of one band-pass kernel on the lag axis, and
    copies of it further back where there are more heads than octaves; "gabor": one window, modulated by
    frequencies on a linear grid; "alibi": exponential kernels with slopes 2^-1, 2^-2, …; "sink_local": every
    head a mixture of the first token and of near tokens, even in the first layer and one-sided in the last;
    "one_over_f": tokens that draw attention from all queries, as 1/f noise over keys; "iid": every entry of
    the scores an independent normal draw.

    Every entry is multiplied by exp(noise · z), z standard normal, and rows divided by their sum; `key_noise`
    is the same with one z for all queries of a key: tokens that draw attention whatever the lag. The same
    pair of `seed` and `sequence` gives the same attention, in float32. Its first t rows and columns are the
    attention of the prefix of t tokens, as in any causal model.
    """
    generator = _generator(seed, bank, sequence)
    shape = (n_layers, n_heads, length, length)
    log_attn = _log_attention(bank, shape, seed, generator)  # broadcasts to shape
    if key_noise:
        log_attn = log_attn + key_noise * torch.randn(*shape[:2], 1, length, generator=generator)
    if noise:
        log_attn = log_attn + noise * torch.randn(shape, generator=generator)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    return log_attn.expand(shape).masked_fill(hidden, -torch.inf).softmax(-1)


def kernels(bank, *, n_layers, n_heads, length, seed=0):
    """Return the kernels of "wavelet", "gabor" or "alibi": weight of a key `lag` tokens back.

    Non-negative and not normalised, float64, (layer, head, lag). In every layer the heads stand in another
    order.
    """
    makers = {"wavelet": _wavelet, "gabor": _gabor, "alibi": _alibi}
    lag = torch.arange(length, dtype=torch.float64)
    bank_of_layer = torch.stack([makers[bank](head, n_heads, lag) for head in range(n_heads)])
    generator = _generator(seed, "order of heads")
    order = torch.rand(n_layers, n_heads, generator=generator).argsort(-1)  # (layer, head)
    return bank_of_layer[order]


def noise_strength(attn, *, first_query=16, sweeps=20):
    """Return how strongly real attention departs from a function of the lag, in the units of planted noise.

    The logarithm of causal attention (..., query, key) is fitted by a sum of effects of the query, of the lag
    and of the key, by turns, in `sweeps` rounds. The spread of the effect of the key around a line is
    `key_noise`, that of what is left over is `noise`. Key 0, the sink, and the first queries, which see few
    keys, are left out, and keys that fewer than `first_query` queries see.
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


def _wavelet(head, n_heads, lag):
    """Envelope times 1 + cos, so that it is non-negative; distance, width and period grow together."""
    centre = NEAREST * VOICES**head
    width = centre / 10
    wave = 1 + torch.cos(2 * torch.pi * (lag - centre) / (4 * width))
    return torch.exp(-0.5 * ((lag - centre) / width) ** 2) * wave


def _gabor(head, n_heads, lag):
    """One Gaussian window; only the frequency differs, in equal steps up to Nyquist."""
    width = len(lag) / 16
    frequency = 0.5 * (head + 1) / n_heads
    centre = 2 * width
    wave = 1 + torch.cos(2 * torch.pi * frequency * (lag - centre))
    return torch.exp(-0.5 * ((lag - centre) / width) ** 2) * wave


def _alibi(head, n_heads, lag):
    return torch.exp(-lag * 2.0 ** -(head + 1))


def _log_attention(bank, shape, seed, generator):
    """Return the logarithm of attention without noise, up to a constant per row."""
    n_layers, n_heads, length, _ = shape
    if bank == "iid":
        return IID_TEMPERATURE * torch.randn(shape, generator=generator)
    if bank == "one_over_f":
        return PINK_GAIN * _pink((n_layers, n_heads, 1, length), generator)
    apart = torch.arange(length)[:, None] - torch.arange(length)  # (query, key)
    if bank == "sink_local":
        local = torch.exp(-apart.clamp_min(0) / LOCAL_DECAY).tril()
        local = local / local.sum(-1, keepdim=True)  # (query, key)
        sink = torch.zeros(length, length).index_fill_(1, torch.tensor(0), 1.0)
        share = _local_shares(n_layers, n_heads, seed)[..., None, None]  # (layer, head, 1, 1)
        return (share * local + (1 - share) * sink).log()
    kernel = kernels(bank, n_layers=n_layers, n_heads=n_heads, length=length, seed=seed)
    # A query that sees no key at its kernel's distance looks evenly at what there is.
    kernel = kernel / kernel.amax(-1, keepdim=True) + 1e-4
    return kernel.log().float()[..., apart.clamp_min(0)]


def _local_shares(n_layers, n_heads, seed):
    """Share of near tokens of each head: close to a half in the first layer, to 0 or 1 in the last."""
    logit = 6 * torch.linspace(0, 1, n_layers).sqrt()  # (layer,)
    side = torch.arange(n_heads) % 2 * 2 - 1  # (head,)
    order = torch.rand(n_layers, n_heads, generator=_generator(seed, "order of heads")).argsort(-1)
    return (logit[:, None] * side[order]).sigmoid()


def _pink(shape, generator):
    """Gaussian noise along the last axis whose power falls as 1/f^PINK_EXPONENT, of variance 1."""
    n = shape[-1]
    noise = torch.fft.rfft(torch.randn(shape, generator=generator))
    frequency = torch.arange(noise.shape[-1]).clamp_min(1)
    pink = torch.fft.irfft(noise * frequency ** (-PINK_EXPONENT / 2), n=n)
    pink = pink - pink.mean(-1, keepdim=True)
    return pink / pink.square().mean(-1, keepdim=True).sqrt()


def _generator(seed, *words):
    """Return a generator for one purpose; other purposes draw from other streams."""
    entropy = [seed, *(b for word in words for b in str(word).encode())]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


_NO_TREND = "every layer has the same heads, so nothing changes with depth"
_SMOOTH = "a mean over queries smears kernels of the lag out: the low band has nearly all power"
_NO_TUNING = "no kernel oscillates"
_ONE_WIDTH = "all heads are spread alike, so there is nothing to trade"
_ONE_SHAPE = "heads do not differ in shape, so they are nearly parallel"

TRUTH = {
    "wavelet": {
        "C1": Truth(False, _NO_TREND),
        "C2": Truth(False, _SMOOTH),
        "C4": Truth(True, "each head has a period of its own, from 1.6 to 26 tokens"),
        "C5": Truth(True, "dilation by 2 carries every head into the next but one"),
        "C6": Truth(True, "width times bandwidth is the same for all heads, wide or narrow"),
        "C14": Truth(True, "dilated copies of one band-pass shape that hardly overlap"),
    },
    "gabor": {
        "C1": Truth(False, _NO_TREND),
        "C2": Truth(False, _SMOOTH),
        "C4": Truth(True, "each head has a frequency of its own, in equal steps up to Nyquist"),
        "C5": Truth(False, "a dilated window is wider than any head's"),
        "C6": Truth(False, "one window, so one width, at every frequency"),
        "C14": Truth(False, "not dilated copies, and all in one place"),
    },
    "alibi": {
        "C1": Truth(False, _NO_TREND),
        "C2": Truth(False, _SMOOTH),
        "C4": Truth(False, _NO_TUNING),
        "C5": Truth(True, "slopes are powers of 2: dilation by 2 carries every head into the next"),
        "C6": Truth(True, "width times bandwidth is the same for all heads, wide or narrow"),
        "C14": Truth(False, "dilated copies, but low-pass and far from orthogonal"),
    },
    "sink_local": {
        "C1": Truth(True, "half and half in the first layer, first token or near tokens in the last"),
        "C2": Truth(False, _SMOOTH),
        "C4": Truth(False, _NO_TUNING),
        "C5": Truth(False, "one decay length, which no dilation keeps"),
        "C6": Truth(False, "heads differ in how much of two parts they hold, not along a bound"),
        "C14": Truth(False, "mixtures of the same two shapes"),
    },
    "one_over_f": {
        "C1": Truth(False, "no head prefers near or far tokens"),
        "C2": Truth(True, "exponent and strength of the noise over keys are set to give these shares"),
        "C4": Truth(False, "noise of one exponent, no head has a frequency of its own"),
        "C5": Truth(False, "another draw in every head: no head is the dilation of another"),
        "C6": Truth(False, _ONE_WIDTH),
        "C14": Truth(False, _ONE_SHAPE),
    },
    "iid": {
        "C1": Truth(False, "no head prefers near or far tokens"),
        "C2": Truth(False, "a mean over queries smooths independent rows: the low band has nearly all power"),
        "C4": Truth(False, "no head has a frequency of its own"),
        "C5": Truth(False, "no head is the dilation of another"),
        "C6": Truth(False, _ONE_WIDTH),
        "C14": Truth(False, _ONE_SHAPE),
    },
}
