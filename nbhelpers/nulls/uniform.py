"""A run's table in one row per metric, beside uniform attention that is read in the same way."""

import math

import pandas as pd
import torch

from nbhelpers.metrics import STREAMED, Observation, measure
from nbhelpers.nulls.nulls import uniform_profiles
from nbhelpers.profiles import Profiles, local_mass_of
from nbhelpers.protocol import Protocol
from nbhelpers.stats import position_spectrum_correlation

CORRELATION = "position_spectrum_correlation"


def summarise(table, *, null=None, seed=0):
    """Return one row per metric, and the position-spectrum correlation (eq. 9) where it is defined.

    Parameters
    ----------
    table : HeadTable
    null : mapping of str to float, optional
        What uniform attention gives, by metric, from `uniform_null`. Metrics that it lacks get NaN.
    seed : int
        Of the bootstrap over sequences.

    Returns
    -------
    pandas.DataFrame
        Columns metric, mean, low, high (of the mean, over sequences), sd, iqr, q25, q75 (over heads),
        n_sequences, n_heads, and null if one was given.
    """
    summary = table.summary(seed=seed).reset_index()
    try:
        rho = position_spectrum_correlation(table, over="heads of a layer", seed=seed)
    except ValueError:  # too few sequences, or attention that is the same everywhere: no such number
        pass
    else:
        row = {"metric": CORRELATION, "mean": rho.value, "low": rho.low, "high": rho.high}
        sizes = summary[["n_sequences", "n_heads"]].iloc[0].to_dict()
        summary = pd.concat([summary, pd.DataFrame([row | sizes])], ignore_index=True)
    return summary if null is None else summary.assign(null=summary.metric.map(dict(null)).astype(float))


def uniform_null(length, protocol, *, causal):
    """Return every metric of attention that is uniform over what each query sees (N0), in closed form.

    Parameters
    ----------
    length : int
        Tokens of a sequence.
    protocol : Protocol
    causal : bool
        Whether a query sees the keys up to itself only, or all of them. A window that a layer may have
        besides is not taken into account.

    Returns
    -------
    dict of str to float
        By metric. The correlation over heads is not among them, since uniform heads are all alike. Empty for
        the signals "rows" and "flattened", which are not read from profiles.

    Raises
    ------
    ValueError
        If the sequences are too short for the protocol.
    """
    if protocol.signal in STREAMED:
        return {}
    # As nbhelpers.inputs.text.scaled_variant draws them: floor(α n) tokens, up to rounding of α n.
    kept = {factor: math.floor(factor * length + 1e-9) for factor in protocol.factors}
    scaled = {factor: _uniform(n, causal, protocol) for factor, n in kept.items()}
    observation = Observation(_uniform(length, causal, protocol), scaled, protocol.scaled_variant)
    frame = measure(observation, protocol).frame
    return dict(zip(frame.metric, frame.value, strict=True))


def null_of(table):
    """Return `uniform_null` for the length, the mask and the protocol of a table from `analyze`.

    Parameters
    ----------
    table : HeadTable
        With the provenance that `nbhelpers.analyze` and `nbhelpers.measure` give it.

    Returns
    -------
    dict of str to float
    """
    told = table.provenance
    causal = told["stream"] == "decoder" or (told["stream"] == "self" and told["model"]["causal"])
    return uniform_null(told["length"], Protocol(**told["protocol"]), causal=causal)


def _uniform(length, causal, protocol):
    """Return uniform attention as the Profiles of one sequence, one layer and one head."""
    arrays = {
        name: values[None, None, None]  # (sequence, layer, head, key or lag)
        for name, values in uniform_profiles(length, causal=causal).items()
    }
    keys, lags = list(range(length)), list(range(0 if causal else 1 - length, length))
    distances = [protocol.local_distance]
    arrays["local_mass"] = local_mass_of(arrays["lag_profile"], lags, distances)
    own = {
        "key_profile": ("key", keys),
        "last_query": ("key", keys),
        "lag_profile": ("lag", lags),
        "local_mass": ("distance", distances),
    }
    axes = {name: ("sequence", "layer", "head", axis) for name, (axis, _) in own.items()}
    coordinates = {name: values for name, (_, values) in own.items()}
    return Profiles(arrays, axes, coordinates, torch.tensor([length]), [0])
