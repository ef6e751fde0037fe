"""A run's table in one row per metric, beside uniform attention that is read in the same way."""

import math

import pandas as pd

from nbhelpers.analysis import Observation, measure
from nbhelpers.nulls.models import uniform_profiles
from nbhelpers.stats import position_spectrum_correlation

CORRELATION = "position_spectrum_correlation"


def summarise(table, *, null=None):
    """Return `HeadTable.summary` beside `null`, numbers by metric, with a row for eq. 9 where defined."""
    summary = table.summary(null=null).reset_index()
    try:
        rho = position_spectrum_correlation(table, over="heads of a layer")
    except ValueError:  # too few sequences, or attention that is the same everywhere: no such number
        pass
    else:
        row = {"metric": CORRELATION, "mean": rho.value, "low": rho.low, "high": rho.high}
        sizes = summary[["n_sequences", "n_heads"]].iloc[0].to_dict()
        summary = pd.concat([summary, pd.DataFrame([row | sizes])], ignore_index=True)
    return summary


def uniform_null(length, protocol, *, causal):
    """Return every metric of uniform attention (N0) over `length` tokens, a number by name.

    If `causal`, a query sees the keys up to itself. There is no correlation over heads that are all alike,
    and nothing for the signal "rows", which is not read from profiles.
    """
    if protocol.signal == "rows":
        return {}

    def uniform(n):
        return uniform_profiles(n, causal=causal, distances=[protocol.local_distance])

    # As nbhelpers.inputs.text.scaled_variant draws them: floor(α n) tokens, up to rounding of α n.
    scaled = {factor: uniform(math.floor(factor * length + 1e-9)) for factor in protocol.factors}
    table = measure(Observation(uniform(length), scaled, protocol.scaled_variant), protocol)
    return {metric: array.item() for metric, array in table.arrays.items()}


def null_of(table):
    """Return `uniform_null` for the length, the mask and the protocol that a table was measured with."""
    told = table.provenance
    causal = told["stream"] == "decoder" or (told["stream"] == "self" and told["model"]["causal"])
    return uniform_null(told["length"], table.protocol, causal=causal)
