"""What stands beside a model: what learned nothing, an encoder that sees both ways, uniform attention."""

import math
from functools import partial

import pandas as pd
import torch
from tqdm.auto import tqdm

from nbhelpers.analysis import Observation, measure, observe
from nbhelpers.arguments import checked, path
from nbhelpers.inputs.devices import return_freed_memory
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.kernels import wavelets
from nbhelpers.protocol import PAPER
from nbhelpers.stats import position_spectrum_correlation
from nbhelpers.table import HeadTable

from .models import random_tokens, shuffled_tokens, uniform_profiles

CONTROL_SEQUENCES = 4  # untrained attention hardly differs between passages
SHUFFLED, RANDOM = "shuffled tokens", "random tokens"
CORRELATION = "position_spectrum_correlation"


def control_label(seed):
    """Return the label of the untrained control of a seed."""
    return f"random weights, seed {seed}"


def bare_label(encoder):
    """Return the label of an encoder that reads no special tokens."""
    return f"{encoder}, no special tokens"


def white_noise(uniform, *, protocol=PAPER, seed=0):
    """Return uniform attention, a pair (table, profiles), with the reconstruction error of white noise."""
    table, profiles = uniform
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(profiles.key_profile.shape, generator=generator, dtype=torch.float64).float()
    level = wavelets.dwt_max_level(protocol.shortest(noise.shape[-1]), protocol.wavelet)
    error = wavelets.reconstruction_error(noise, wavelet=protocol.wavelet, mode=protocol.mode, level=level)
    arrays = table.arrays | {"reconstruction_error": error.double().numpy()}
    return HeadTable(arrays, table.kv_groups), profiles


@checked(model=path, text=path)
def panel(
    model, text, *, n_sequences, length, bos="tokenizer", seed=0, control_seeds=5, encoder=None, cache=None
):
    """Observe a model beside what learned nothing and beside a bidirectional encoder, by label, in order.

    The model by its own name, shuffled tokens, random tokens and "random weights, seed k" (these of 4
    sequences at most), the encoder by its name, and without special tokens; none if it is None or the model.
    """
    encoder = None if encoder == model else encoder
    rows = _rows(model, text, bos, control_seeds, encoder, n_sequences=n_sequences, length=length, seed=seed)
    n_rows = 3 + control_seeds + 2 * (encoder is not None)
    observations, options = {}, {"corpus": text, "seed": seed, "cache": cache, "progress": False}
    with tqdm(total=n_rows, desc="panel", unit="row", disable=None) as bar:  # around rows it would hold one
        for label, network, ids in rows:
            observations[label] = observe(network, ids, **options)
            bar.update()
            del network  # or it would stay while the next one is loaded
    return_freed_memory()  # of the last one
    return observations


def _rows(model, text, bos, control_seeds, encoder, *, seed, **sizes):
    """Yield label, model and sequences of each row; one model is held at a time."""
    loaded = load_model(model)
    ids = load_text(text, loaded, bos=bos, seed=seed, **sizes)  # (sequence, position)
    keep = loaded.tokenizer.all_special_ids
    yield model, loaded, ids
    few = ids[:CONTROL_SEQUENCES]
    yield SHUFFLED, loaded, shuffled_tokens(few, seed=seed, keep=keep)
    yield RANDOM, loaded, random_tokens(few, len(loaded.tokenizer), seed=seed, keep=keep)
    del loaded
    for control_seed in range(seed, seed + control_seeds):
        control = load_model(f"random:{model.removeprefix('random:')}", seed=control_seed)
        yield control_label(control_seed), control, few
        del control
    if encoder is not None:
        loaded = load_model(encoder)
        yield encoder, loaded, load_text(text, loaded, bos="tokenizer", seed=seed, **sizes)
        yield bare_label(encoder), loaded, load_text(text, loaded, bos="none", seed=seed, **sizes)


def summarise(table, *, null=None):
    """Return `HeadTable.summary` beside `null`, numbers by metric, with a row for eq. 9 where defined."""
    summary = table.summary(null=null).reset_index()
    try:
        rho = position_spectrum_correlation(table, over="heads of a layer")
    except ValueError:  # too few sequences, or attention that is the same everywhere: no such number
        return summary
    row = {"metric": CORRELATION, "mean": rho.value, "low": rho.low, "high": rho.high}
    sizes = summary[["n_sequences", "n_heads"]].iloc[0].to_dict()
    return pd.concat([summary, pd.DataFrame([row | sizes])], ignore_index=True)


def uniform_null(length, protocol, *, causal):
    """Return every metric of uniform attention (N0) over `length` tokens by name; none for the signal "rows".

    If `causal`, a query sees the keys up to itself. Heads that are all alike have no correlation.
    """
    if protocol.signal == "rows":
        return {}
    uniform = partial(uniform_profiles, causal=causal, distances=[protocol.local_distance])
    # As nbhelpers.inputs.text.scaled_variant draws them: floor(α n) tokens, up to rounding of α n.
    scaled = {factor: uniform(math.floor(factor * length + 1e-9)) for factor in protocol.factors}
    table = measure(Observation(uniform(length), scaled, protocol.scaled_variant), protocol)
    return {metric: array.item() for metric, array in table.arrays.items()}


def null_of(table):
    """Return `uniform_null` for the length, the mask and the protocol that a table was measured with."""
    told = table.provenance
    causal = told["stream"] == "decoder" or (told["stream"] == "self" and told["model"]["causal"])
    return uniform_null(told["length"], table.protocol, causal=causal)
