"""Null models N0 to N9, attention that learned nothing, as profiles of the same form; their random signals.

A null has the arrays, shapes and coordinates of its profiles, in float64, and is measured like a model:
``observation.map(nulls.permuted)``. N2, N3, N5 and N6 treat every profile as a signal of its own, drawn from
`seed` in a stream for each profile and length; N0 and N4 are the profiles of one matrix, and take a seed too.
"""

import csv
import math
from collections import namedtuple
from dataclasses import replace
from importlib import resources

import numpy as np
import torch

from nbhelpers.arguments import check_all, checked, whole
from nbhelpers.kernels import spectra
from nbhelpers.kernels.checks import as_double, as_signal
from nbhelpers.kernels.frames import BISECTIONS, softmax_of_support
from nbhelpers.profiles import Profiles, local_mass_of
from nbhelpers.protocol import SIGNALS

DRAWN = (*SIGNALS, "stationary_profile")  # profiles that are drawn or computed each for itself
MATRIX_BYTES = 2**25  # of the matrices of N4 that are held at once
STEEPEST = 64.0  # log ratio of neighbours; e^-64 of the mass is none in float64
ITERATIONS = 50  # of IAAFT, at most
ROWS_AT_ONCE = 4096  # signals that go through the iterations of IAAFT together


def uniform(profiles, *, seed=0):
    """N0: attention that is the same for every key a query sees, in closed form; two-sided if lags are."""
    n = _checked(profiles, needs="lag_profile")
    distances, lags = profiles.coordinates.get("local_mass", ()), profiles.coordinates["lag_profile"]
    values = uniform_profiles(n, causal=lags[0] == 0, distances=distances)
    # The matrix is the same for every head, so one row of numbers serves all, without a copy.
    made = {name: values[name].expand(array.shape) for name, array in profiles.arrays.items()}
    return _null(profiles, "N0 uniform", made)


@checked(length=whole(1, 2**24))
def uniform_profiles(length, *, causal, distances=()):
    """Return the profiles of the uniform matrix over n tokens, of one sequence, layer and head, float64.

    If `causal`, A[i, j] is 1/(i+1) for j ≤ i; else 1/n everywhere. `distances` in tokens are those of the
    local mass; none is made without.
    """
    lags = torch.arange(0 if causal else 1 - length, length)
    flat = torch.full((length,), 1 / length, dtype=torch.float64)  # (key,)
    if causal:
        seen = 1 / torch.arange(1, length + 1, dtype=torch.float64)  # (query,)
        key_profile = lag_profile = seen.flip(0).cumsum(0).flip(0) / length  # (key,), and the same over lags
        stationary = seen[length - length // 2 :].mean().expand(length // 2)
    else:
        key_profile, lag_profile = flat, (length - lags.abs().double()) / length**2
        stationary = flat[: length // 2]
    made = dict(zip(DRAWN, (key_profile, flat, lag_profile, stationary), strict=True))
    if distances:
        made["local_mass"] = local_mass_of(lag_profile, lags, distances)
    arrays = {name: values[None, None, None] for name, values in made.items()}
    return Profiles.of_length(length, arrays, lags.tolist(), list(distances), [0], {})


def permuted(profiles, *, seed=0):
    """N2: the values of each profile in random order. Keeps H_p and N_eff exactly."""
    return _each_signal(profiles, "N2 permuted", random_order, seed)


def iid_softmax(profiles, *, seed=0):
    """N3: softmax of independent normal scores, tempered so that every profile keeps its N_eff."""

    def of_equal_support(signal, *, seed):
        support = 1 / (signal / signal.sum(-1, keepdim=True)).square().sum(-1)
        scores = torch.randn(signal.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return softmax_of_support(scores, support) * signal.sum(-1, keepdim=True)

    return _each_signal(profiles, "N3 iid softmax", of_equal_support, seed)


def exponential(profiles, *, seed=0):
    """N4: attention exp(s·|lag|) over the visible keys with the head's own mean distance; s of any sign."""
    n = _checked(profiles, needs="lag_profile")
    lag_profile = profiles.lag_profile.double()  # (sequence, layer, head, lag)
    lags = torch.tensor(profiles.coordinates["lag_profile"], dtype=torch.float64)
    causal = bool(lags[0] == 0)
    distance = (lag_profile * lags.abs()).sum(-1) / lag_profile.sum(-1)  # (sequence, layer, head)
    decay = exponential_decay(distance, n, causal=causal)  # (sequence, layer, head)
    if causal:
        made = exponential_profiles(decay, n)
    else:  # from a few matrices at a time
        position = torch.arange(n, dtype=torch.float64)
        apart = (position[:, None] - position).abs()  # (query, key)
        some = decay.flatten().split(max(1, MATRIX_BYTES // (8 * n * n)))
        matrices = ((s[:, None, None] * apart).softmax(-1)[None, None] for s in some)
        parts = [Profiles.from_attention(attn, causal=False) for attn in matrices]
        made = {name: torch.cat([p[name][0, 0] for p in parts]).view(*decay.shape, -1) for name in DRAWN}
    return _null(profiles, "N4 exponential", {name: made[name] for name in DRAWN if name in profiles})


def phase_surrogate(profiles, *, seed=0):
    """N5: the values of each profile exactly and its power spectrum closely, in random phase (IAAFT)."""
    return _each_signal(profiles, "N5 phase surrogate", iaaft, seed)


def power_law(profiles, *, seed=0):
    """N6: the values of each profile in the order of 1/f^χ noise, χ fitted to its own spectrum."""
    return _each_signal(profiles, "N6 power law", power_law_order, seed)


def shuffled_tokens(token_ids, *, seed=0, keep=()):
    """N7: the tokens of each sequence (sequence, position) in random order; ids of `keep` stay in place."""
    ids, free = _free_positions(token_ids, keep)
    generator = torch.Generator().manual_seed(seed)
    for row, movable in zip(ids, free, strict=True):
        own = row[movable]
        row[movable] = own[torch.randperm(len(own), generator=generator)]
    return ids


def random_tokens(token_ids, vocab_size, *, seed=0, keep=()):
    """N7: every token replaced by one drawn from the ids 0 to vocab_size − 1 that are not in `keep`."""
    ids, free = _free_positions(token_ids, keep)
    drawn_from = torch.tensor(sorted(set(range(vocab_size)) - {int(token) for token in keep}))
    if len(drawn_from) == 0:
        raise ValueError(f"a vocabulary of {vocab_size} ids has none outside keep={list(keep)}")
    picks = torch.randint(len(drawn_from), ids.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(free, drawn_from[picks], ids)


def permuted_heads(profiles, *, seed=0):
    """N8: head labels exchanged within each layer, alike for all sequences, arrays and lengths."""
    n_layers, n_heads = next(iter(profiles.arrays.values())).shape[1:3]
    if n_heads < 2:
        raise ValueError("a layer of 1 head has no labels to exchange")
    order = torch.rand(n_layers, n_heads, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    layer = torch.arange(n_layers)[:, None]
    made = {name: array[:, layer, order].double() for name, array in profiles.arrays.items()}
    return _null(profiles, "N8 permuted heads", made)


def without_sink(profiles, *, seed=0):
    """N9: nothing on key 0, the rest divided by its sum; what key 0 is mixed into or not part of stays."""
    _checked(profiles)
    made = {name: profiles[name].double().clone() for name in DRAWN if name in profiles}
    keyed = [name for name in ("key_profile", "last_query") if name in made]
    if not keyed:
        raise ValueError(f"without_sink needs key_profile or last_query; there is {', '.join(made)}")
    for name in keyed:
        made[name][..., 0] = 0
        rest = made[name].sum(-1, keepdim=True)  # (sequence, layer, head, 1)
        if lost := int((rest <= 0).sum()):
            raise ValueError(f"{lost} of {rest.numel()} {name}s have everything on key 0; leave them out")
        made[name] /= rest
    return _null(profiles, "N9 without sink", made)


# The signals that nulls are made of: (..., position) in, float64 of any leading dimensions out.


def random_order(signal, *, seed=0):
    """Return the values of each signal (..., position) in random order."""
    x = as_signal(signal).double()  # (..., position)
    order = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).argsort(-1)
    return x.gather(-1, order)


def exponential_decay(distance, length, *, causal):
    """Return s, (...), of the kernel exp(s·|i − j|) whose mean |i − j| is a `distance` (...) in tokens."""
    target = as_double(distance, "distance")  # (...)
    farthest = float(_mean_distance(torch.tensor(STEEPEST, dtype=torch.float64), length, causal))
    # Captured lag profiles are float32: the largest distances may be passed by rounding.
    if float(target.min()) < 0 or float(target.max()) > farthest * (1 + 1e-5) + 1e-9:
        found = f"mean distances run from {float(target.min()):.6g} to {float(target.max()):.6g} tokens"
        raise ValueError(f"{found}; such attention over {length} tokens has 0 to {farthest:.6g}")
    low, high = torch.full_like(target, -STEEPEST), torch.full_like(target, STEEPEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        nearer = _mean_distance(middle, length, causal) < target
        low, high = torch.where(nearer, middle, low), torch.where(nearer, high, middle)
    return (low + high) / 2


def exponential_profiles(decay, length):
    """Return profiles of causal attention ∝ exp(s·|i − j|) by name, (..., key or lag), O(length) a head."""
    s = as_double(decay, "decay")  # (...)
    n, a, far = length, s.abs()[..., None], s[..., None] > 0
    weight = (-a * torch.arange(n, dtype=torch.float64)).exp()  # (..., position from the heavy end)
    inverse = 1 / weight.cumsum(-1)  # (..., query)
    # Profile from the heavy end of every row: w_k Σ_{i≥k} 1/Z_i; from the other end: Σ_{i≥k} w_{i−k}/Z_i.
    heavy = weight * inverse.flip(-1).cumsum(-1).flip(-1) / n
    light, running, ratio = torch.empty_like(heavy), torch.zeros_like(s), (-a[..., 0]).exp()
    for k in reversed(range(n)):
        running = inverse[..., k] + ratio * running
        light[..., k] = running / n
    last = weight * inverse[..., -1:]
    # Mean over the last n // 2 queries q of exp(s·d) / Σ_{k≤q} exp(s·k), in logarithms.
    lag = torch.arange(n, dtype=torch.float64)
    sums = (s[..., None] * lag).logcumsumexp(-1)[..., n - n // 2 :]  # (..., query)
    late = (-sums).logsumexp(-1, keepdim=True) - math.log(n // 2)
    # The heavy end is the query itself (lag 0), or the first key where attention grows with distance.
    return {
        "key_profile": torch.where(far, heavy, light),
        "last_query": torch.where(far, last, last.flip(-1)),
        "lag_profile": torch.where(far, light, heavy),
        "stationary_profile": (s[..., None] * lag[: n // 2] + late).exp(),
    }


def iaaft(signal, *, seed=0):
    """Return surrogates with the values of each signal (..., position) and nearly its power spectrum (N5).

    Iterated amplitude-adjusted Fourier transform (Schreiber and Schmitz, Phys. Rev. Lett. 77, 1996): the
    spectrum and the values in turn, the values last.
    """
    x = as_signal(signal).double()  # (..., position)
    made = random_order(x, seed=seed)
    parts = (each.view(-1, x.shape[-1]).split(ROWS_AT_ONCE) for each in (x.contiguous(), made))
    for values, surrogate in zip(*parts, strict=True):  # (row, position) each, the surrogate a part of `made`
        ranked, amplitude = values.sort(-1).values, torch.fft.rfft(values).abs()
        rows = torch.arange(len(values))  # those that still change
        for _ in range(ITERATIONS):
            spectrum = torch.fft.rfft(surrogate[rows])  # (row, freq)
            phasor = spectrum / spectrum.abs().clamp_min(torch.finfo(spectrum.real.dtype).tiny)
            smooth = torch.fft.irfft(amplitude[rows] * phasor, n=x.shape[-1])
            new = _in_order_of(ranked[rows], smooth)  # (row, position)
            changed = (new != surrogate[rows]).any(-1)
            surrogate[rows] = new
            rows = rows[changed]
            if len(rows) == 0:
                break
    return made


def power_law_exponent(psd, frequency):
    """Return the exponent χ (...) of the power law f^−χ nearest in log-log to psd (..., freq) without DC."""
    if int((frequency > 0).sum()) < 2:
        told = f"a power law needs two frequencies above 0, got {frequency.tolist()}"
        raise ValueError(f"{told}; take 4 tokens or more")
    weight = ((frequency > 0) & (psd > 0)).double()  # (..., freq)
    u = torch.where(weight > 0, frequency, 1.0).log()
    v = torch.where(weight > 0, psd, 1.0).log()
    centred = weight * (u - ((weight * u).sum(-1) / weight.sum(-1))[..., None])
    return -(centred * v).sum(-1) / (centred * u).sum(-1)


def power_law_order(signal, *, seed=0):
    """Return the values of each signal in the order of noise with the power law of its Hann spectrum (N6)."""
    x = as_signal(signal).double()  # (..., position)
    n = x.shape[-1]
    frequency = spectra.frequencies(n).double()  # (freq,)
    # A constant signal has no spectrum to fit; its values are equal, so any order is the same.
    chi = power_law_exponent(spectra.psd(x, detrend="mean"), frequency).nan_to_num(0.0)[..., None]
    shape = (*x.shape[:-1], len(frequency))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    noise = noise * torch.where(frequency > 0, frequency, 1.0) ** (-chi / 2)
    noise[..., 0] = 0
    return _in_order_of(x.sort(-1).values, torch.fft.irfft(noise, n=n))


def _in_order_of(ranked, example):
    """Return ascending values so placed that their ranks are those of `example`, (..., position)."""
    order = torch.from_numpy(np.argsort(example.numpy(), axis=-1))  # several times as fast as torch's
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def _mean_distance(s, length, causal):
    """Mean of |i − j| under softmax over the visible j of s·|i − j|, over queries i, in O(length) a head."""
    d = torch.arange(length, dtype=torch.float64)  # (distance,)
    a = s.abs()[..., None]
    weight = (-a * d).exp()
    sums, moments = weight.cumsum(-1), (d * weight).cumsum(-1)  # (..., query), distances up to the query
    far = s[..., None] > 0  # weights grow with distance: count them from the far end
    if causal:
        mean = moments / sums
        return torch.where(far, d - mean, mean).mean(-1)
    after, rest, rest_moments = d.flip(0), sums.flip(-1), moments.flip(-1)  # the same for the keys behind
    near = (moments + rest_moments) / (sums + rest - 1)  # distance 0 is in both
    top = torch.maximum(d, after)
    before_weight, after_weight = (a * (d - top)).exp(), (a * (after - top)).exp()
    total = before_weight * sums + after_weight * rest - (-a * top).exp()
    moment = before_weight * (d * sums - moments) + after_weight * (after * rest - rest_moments)
    return torch.where(far, moment / total, near).mean(-1)


# A `function` of what a null is `made_of` and ``seed=``, None of models; `drawn` says whether a seed counts.
Null = namedtuple("Null", ("number", "name", "made_of", "drawn", "keeps", "destroys", "function"))
check_all(globals())
with resources.files("nbhelpers.data").joinpath("nulls.csv").open(encoding="utf-8") as file:
    NULLS = tuple(
        Null(number, name, made_of, drawn == "yes", *rest, globals().get(name.replace(" ", "_")))
        for number, name, made_of, drawn, *rest in list(csv.reader(file))[1:]
    )
__all__ = ["NULLS", "Null", "uniform_profiles", *(null.function.__name__ for null in NULLS if null.function)]


def _checked(profiles, needs=None):
    """Return the number of tokens; refuse what no null can be made of."""
    known, given = {*DRAWN, "local_mass"}, ", ".join(profiles.arrays)
    if not profiles.arrays or not known.issuperset(profiles.arrays):
        raise ValueError(f"nulls are made of {', '.join(sorted(known))}; the profiles hold {given}")
    needs = "lag_profile" if "local_mass" in profiles else needs  # it is computed from the lag profile
    if needs and needs not in profiles:
        raise ValueError(f"this null needs {needs}, which was not captured; there is {given}")
    lengths = {name: profiles.coordinates[name][-1] + 1 for name in SIGNALS if name in profiles}
    n, n_real = next(iter(lengths.values())), sorted(set(profiles.n_real.tolist()))
    if {*lengths.values(), *n_real} != {n}:
        told = f"the profiles have {lengths} tokens, the sequences {n_real}"
        raise ValueError(f"a null needs sequences of one length without padding; {told}")
    if n < 2:
        raise ValueError("profiles of 1 token can be nothing but 1, so they have no null; take 2 or more")
    return n


def _each_signal(profiles, name, function, seed):
    """Apply a function of signals to every profile, each with a stream of its own."""
    n, made = _checked(profiles), {}
    for place, signal in enumerate(DRAWN):
        if signal in profiles:
            stream = int(np.random.SeedSequence([seed, place, n]).generate_state(1)[0])
            made[signal] = function(profiles[signal].double(), seed=stream)
    return _null(profiles, name, made, seed=seed)


def _free_positions(token_ids, keep):
    """Return a copy of the ids (sequence, position) and where a token may be exchanged."""
    ids = torch.as_tensor(token_ids).clone()
    if ids.ndim != 2:
        raise ValueError(f"token_ids must be (sequence, position), got the shape {tuple(ids.shape)}")
    return ids, ~torch.isin(ids, torch.tensor(list(keep), dtype=ids.dtype))


def _null(profiles, name, made, *, seed=None):
    """Return profiles with the arrays of a null, in their order, and its name in the provenance."""
    if "local_mass" in profiles and "local_mass" not in made:
        lags, distances = (profiles.coordinates[own] for own in ("lag_profile", "local_mass"))
        made["local_mass"] = local_mass_of(made["lag_profile"], lags, distances)
    provenance = profiles.provenance | {"null": {"name": name, "seed": seed}}
    return replace(profiles, arrays={array: made[array] for array in profiles.arrays}, provenance=provenance)
