"""Null models N0 to N9: attention that learned nothing, as profiles of the same form.

A null of profiles takes :class:`~nbhelpers.profiles.Profiles` and gives Profiles with the same arrays, shapes
and coordinates, in float64, so that whatever is measured of a model can be measured of its null:
``observation.map(nulls.permuted)``. N2, N3, N5 and N6 treat every profile as a signal of its own; N0 and N4
are the profiles of one matrix. All draws come from `seed`, another stream for each profile and length.
"""

from typing import NamedTuple

import numpy as np
import torch

from nbhelpers.profiles import Profiles, local_mass_of

from .inputs import permute_rows, random_tokens, random_weights, shuffled_tokens
from .surrogates import (
    exponential_attention,
    exponential_decay,
    exponential_profiles,
    fit_power_law,
    iaaft,
    power_law_order,
    random_order,
    softmax_of_support,
)

__all__ = [
    "NULLS",
    "Null",
    "exponential",
    "fit_power_law",
    "iid_softmax",
    "permute_rows",
    "permuted",
    "permuted_heads",
    "phase_surrogate",
    "power_law",
    "random_tokens",
    "random_weights",
    "shuffled_tokens",
    "uniform",
    "uniform_profiles",
    "without_sink",
]

SIGNALS = ("key_profile", "last_query", "lag_profile")
MATRIX_BYTES = 2**25  # of the matrices of N4 that are held at once


def uniform(profiles, *, causal=None, seed=0):
    """N0: attention that is the same for every key a query sees, in closed form.

    Parameters
    ----------
    profiles : Profiles
        Only its shapes and coordinates are used.
    causal : bool, optional
        Whether queries see only the keys up to themselves. Read from the lags if None: they start at 0 in
        causal attention and at 1 − n otherwise.
    seed : int
        Not used; taken so that all nulls are called alike.

    Returns
    -------
    Profiles

    Raises
    ------
    ValueError
        If `causal` contradicts the lags, or is None where there is no lag profile to read it from.
    """
    n = _checked(profiles)
    known = _is_causal(profiles)
    if causal is None and known is None:
        raise ValueError(
            "these profiles have no lag_profile to tell causal from bidirectional attention by; pass "
            "causal=True or causal=False, or capture lag_profile too"
        )
    if None not in (causal, known) and causal != known:
        model, null = ("causal", "bidirectional") if known else ("bidirectional", "causal")
        raise ValueError(
            f"these profiles are of {model} attention (lags from {profiles.coordinates['lag_profile'][0]} to "
            f"{n - 1}), so the {null} null is not theirs; leave causal out, or pass causal={known}"
        )
    # The matrix is the same for every head, so one row of numbers serves all, without a copy.
    values = uniform_profiles(n, causal=known if causal is None else causal)
    made = {name: values[name].expand(profiles[name].shape) for name in SIGNALS if name in profiles}
    return _null(profiles, "N0 uniform", made)


def uniform_profiles(length, *, causal):
    """Return the profiles of the uniform matrix alone, in closed form: key j receives (1/n) Σ_{i≥j} 1/(i+1).

    Parameters
    ----------
    length : int
        n, queries and keys.
    causal : bool
        Whether A[i, j] is 1/(i+1) for j ≤ i, or 1/n everywhere.

    Returns
    -------
    dict of str to torch.Tensor
        key_profile and last_query, shape (key,), and lag_profile, shape (lag,), as of
        :meth:`nbhelpers.Profiles.from_attention`; float64.

    Raises
    ------
    ValueError
        For a length below 1.
    """
    if length < 1:
        raise ValueError(f"a sequence has at least 1 token, got length {length}")
    flat = torch.full((length,), 1 / length, dtype=torch.float64)  # (key,)
    if not causal:
        lags = torch.arange(1 - length, length, dtype=torch.float64)
        return {"key_profile": flat, "last_query": flat, "lag_profile": (length - lags.abs()) / length**2}
    seen = 1 / torch.arange(1, length + 1, dtype=torch.float64)  # (query,)
    profile = seen.flip(0).cumsum(0).flip(0) / length  # (key,), and the same over lags
    return {"key_profile": profile, "last_query": flat, "lag_profile": profile}


def permuted(profiles, *, seed=0):
    """N2: the values of each profile in random order. Keeps H_p and N_eff exactly.

    Parameters
    ----------
    profiles : Profiles
    seed : int

    Returns
    -------
    Profiles
    """
    return _each_signal(profiles, "N2 permuted", random_order, seed)


def iid_softmax(profiles, *, seed=0):
    """N3: softmax of independent normal scores, tempered so that every profile keeps its N_eff.

    Parameters
    ----------
    profiles : Profiles
    seed : int

    Returns
    -------
    Profiles
    """

    def of_equal_support(signal, *, seed):
        support = 1 / (signal / signal.sum(-1, keepdim=True)).square().sum(-1)
        return softmax_of_support(support, signal.shape[-1], seed=seed)

    return _each_signal(profiles, "N3 iid softmax", of_equal_support, seed)


def exponential(profiles, *, seed=0):
    """N4: exponential attention exp(s·|lag|) over the visible keys, of the head's own mean distance.

    The mean distance is that of the lag profile; s is negative for heads that look nearer than uniform
    attention and positive for those that look farther, so a head that looks at the first token is met too.
    Everything but this one number is lost.

    Parameters
    ----------
    profiles : Profiles
        With lag_profile.
    seed : int
        Not used; taken so that all nulls are called alike.

    Returns
    -------
    Profiles

    Raises
    ------
    ValueError
        If there is no lag_profile.
    """
    n = _checked(profiles, needs=("lag_profile",))
    causal = _is_causal(profiles)
    lag_profile = profiles.lag_profile.double()  # (sequence, layer, head, lag)
    lags = torch.tensor(profiles.coordinates["lag_profile"], dtype=torch.float64)
    distance = (lag_profile * lags.abs()).sum(-1) / lag_profile.sum(-1)  # (sequence, layer, head)
    decay = exponential_decay(distance, n, causal=causal)  # (sequence, layer, head)
    made = exponential_profiles(decay, n) if causal else _two_sided_profiles(decay, n)
    return _null(profiles, "N4 exponential", {name: made[name] for name in SIGNALS if name in profiles})


def phase_surrogate(profiles, *, seed=0):
    """N5: the values of each profile exactly and its power spectrum closely, in random phase (IAAFT).

    Parameters
    ----------
    profiles : Profiles
    seed : int

    Returns
    -------
    Profiles
    """
    return _each_signal(profiles, "N5 phase surrogate", iaaft, seed)


def power_law(profiles, *, seed=0):
    """N6: the values of each profile in the order of 1/f^χ noise, χ fitted to its own spectrum.

    Parameters
    ----------
    profiles : Profiles
        Of at least 4 tokens.
    seed : int

    Returns
    -------
    Profiles
    """
    return _each_signal(profiles, "N6 power law", power_law_order, seed)


def permuted_heads(profiles, *, seed=0):
    """N8: head labels exchanged within each layer, in the same way for all sequences, arrays and lengths.

    Parameters
    ----------
    profiles : Profiles
        Whatever arrays it holds.
    seed : int

    Returns
    -------
    Profiles
        The labels (`kv_groups` and places) stay, what stands under them moves.
    """
    first = next(iter(profiles.arrays.values()))  # (sequence, layer, head, ...)
    n_layers, n_heads = first.shape[1:3]
    if n_heads < 2:
        raise ValueError("a layer of 1 head has no labels to exchange")
    order = torch.rand(n_layers, n_heads, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    layer = torch.arange(n_layers)[:, None]
    made = {name: array[:, layer, order].double() for name, array in profiles.arrays.items()}
    return _replaced(profiles, "N8 permuted heads", made)


def without_sink(profiles, *, seed=0):
    """N9: nothing on key 0, the rest divided by its sum. The lag profile is left as it is.

    A lag profile mixes key 0 into all lags and cannot be cleared of it; nor can the local mass.

    Parameters
    ----------
    profiles : Profiles
        With key_profile or last_query.
    seed : int
        Not used; taken so that all nulls are called alike.

    Returns
    -------
    Profiles

    Raises
    ------
    ValueError
        If a head has everything on key 0, or there is no profile over keys.
    """
    _checked(profiles)
    made = {name: profiles[name].double().clone() for name in SIGNALS if name in profiles}
    keyed = [name for name in ("key_profile", "last_query") if name in made]
    if not keyed:
        raise ValueError(f"without_sink needs key_profile or last_query; there is {', '.join(made)}")
    for name in keyed:
        made[name][..., 0] = 0
        rest = made[name].sum(-1, keepdim=True)  # (sequence, layer, head, 1)
        if bool((rest <= 0).any()):
            raise ValueError(
                f"{int((rest <= 0).sum())} of {rest.numel()} {name}s have everything on key 0; nothing is "
                "left to divide. Leave these heads out."
            )
        made[name] /= rest
    return _null(profiles, "N9 without sink", made)


class Null(NamedTuple):
    """A null model: its number, name, function, what it is made of, what it keeps and what it destroys."""

    number: str
    name: str
    function: object
    made_of: str
    keeps: str
    destroys: str


NULLS = (
    Null("N0", "uniform", uniform, "profiles", "length and mask", "everything else"),
    Null("N1", "random weights", random_weights, "models", "architecture, mask, position encoding, text",
         "training"),
    Null("N2", "permuted", permuted, "profiles", "values, so H_p and N_eff exactly", "where they stand"),
    Null("N3", "iid softmax", iid_softmax, "profiles", "N_eff", "values and where they stand"),
    Null("N4", "exponential", exponential, "profiles", "mean distance of attention",
         "everything but a monotone kernel"),
    Null("N5", "phase surrogate", phase_surrogate, "profiles", "values exactly, power spectrum closely",
         "phase: where events stand"),
    Null("N6", "power law", power_law, "profiles", "values exactly, exponent of the spectrum roughly",
         "peaks of the spectrum, phase"),
    Null("N7", "shuffled tokens", shuffled_tokens, "tokens", "model, words of the text", "their order"),
    Null("N7", "random tokens", random_tokens, "tokens", "model", "the text"),
    Null("N8", "permuted heads", permuted_heads, "profiles", "profiles of each layer", "which head is which"),
    Null("N9", "without sink", without_sink, "profiles", "proportions among the other keys",
         "attention to key 0"),
)  # fmt: skip


def _checked(profiles, needs=()):
    """Return the number of tokens; refuse what no null can be made of."""
    known = {*SIGNALS, "local_mass"}
    foreign = [name for name in profiles.arrays if name not in known]
    if foreign or not profiles.arrays:
        raise ValueError(
            f"nulls are made of {', '.join(sorted(known))}; these profiles hold "
            f"{', '.join(profiles.arrays)}. Capture without the others."
        )
    missing = [name for name in needs if name not in profiles]
    if "local_mass" in profiles and "lag_profile" not in profiles:
        missing.append("lag_profile")  # local_mass is computed from it
    if missing:
        raise ValueError(
            f"this null needs {missing[0]}, which was not captured (there is {', '.join(profiles.arrays)}); "
            f"capture(model, ids, [..., {missing[0]!r}])"
        )
    lengths = {name: profiles.coordinates[name][-1] + 1 for name in SIGNALS if name in profiles}
    n = next(iter(lengths.values()))
    if set(lengths.values()) != {n} or bool((profiles.n_real != n).any()):
        raise ValueError(
            f"a null needs sequences of one length without padding; the profiles have {lengths} tokens, the "
            f"sequences {sorted(set(profiles.n_real.tolist()))}"
        )
    if n < 2:
        raise ValueError(
            "profiles of 1 token can be nothing but 1, so they have no null; take at least 2 tokens"
        )
    return n


def _is_causal(profiles):
    """Return whether attention is causal by its lags, None if there are none."""
    return profiles.coordinates["lag_profile"][0] == 0 if "lag_profile" in profiles else None


def _each_signal(profiles, name, function, seed):
    """Apply a function of signals to every profile, each with a stream of its own."""
    n = _checked(profiles)
    made = {}
    for place, signal in enumerate(SIGNALS):
        if signal in profiles:
            stream = int(np.random.SeedSequence([seed, place, n]).generate_state(1)[0])
            made[signal] = function(profiles[signal].double(), seed=stream)
    return _null(profiles, name, made, seed=seed)


def _two_sided_profiles(decay, n):
    """Return the profiles of two-sided exponential attention, from a few matrices at a time."""
    parts = []
    for some in decay.flatten().split(max(1, MATRIX_BYTES // (8 * n * n))):
        attn = exponential_attention(some, n, causal=False)  # (head, query, key)
        parts.append(Profiles.from_attention(attn[None, None], causal=False))
    return {name: torch.cat([p[name][0, 0] for p in parts]).view(*decay.shape, -1) for name in SIGNALS}


def _null(profiles, name, made, *, seed=None):
    """Return profiles with the arrays of a null, its local mass computed from its lag profile."""
    if "local_mass" in profiles:
        mass = local_mass_of(
            made["lag_profile"], profiles.coordinates["lag_profile"], profiles.coordinates["local_mass"]
        )
        made["local_mass"] = mass.expand(profiles["local_mass"].shape)
    return _replaced(profiles, name, made, seed=seed)


def _replaced(profiles, name, made, *, seed=None):
    return Profiles(
        arrays={array: made[array] for array in profiles.arrays},
        axes=profiles.axes,
        coordinates=profiles.coordinates,
        n_real=profiles.n_real,
        kv_groups=profiles.kv_groups,
        provenance=profiles.provenance | {"null": {"name": name, "seed": seed}},
    )
