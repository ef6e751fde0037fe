"""Which reading can have made a row of printed numbers? Readings of an untrained network, scored against it.

Table 5 of the paper begins at step 0, before any training, so that its row needs no weights: only the shape
of the network and how its weights are drawn.
"""

import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from nbhelpers.arguments import checked, whole
from nbhelpers.kernels.wavelets import dwt_max_level, scale_sensitivity, wavedec
from nbhelpers.sweeps.grid import read_small_yaml

from .curve import CHOICES, OF_ALL, STATISTICS, load_choices, observe_variants, specification_curve

SHIPPED = resources.files("nbhelpers.data").joinpath("pipelines.yaml")
HEAD_WIDTH, PYTHIA_WIDTH, PYTHIA_LAYERS = 128, 4096, 32  # of Pythia-6.9B
SHARED = ("length", *OF_ALL)  # what the numbers of spectra and of wavelets have in common
PRINTED = {  # number → column of Table 5
    "spectral entropy": "spectral_entropy", "selectivity": "frequency_selectivity",
    "low band": "low_band_power", "S(0.5)": "scale_sensitivity_0.5", "S(0.25)": "scale_sensitivity_0.25",
}  # fmt: skip


@checked(width=whole(HEAD_WIDTH, PYTHIA_WIDTH), layers=whole(1, 64))
def untrained_pythia(width=512, *, layers=PYTHIA_LAYERS, seed=0):
    """Return a GPT-NeoX of Pythia-6.9B's depth, head width and initialisation, narrower: fewer heads a layer.

    Weights are normal with sd √(2/(5·width)) (Nguyen & Salazar, arXiv:1910.05895) and 2/(layers·√width) for
    what writes into the residual stream (Wang & Komatsuzaki's GPT-J), the embedding as at full width.
    """
    from transformers import GPTNeoXConfig, GPTNeoXModel

    heads = width // HEAD_WIDTH
    config = GPTNeoXConfig(
        hidden_size=heads * HEAD_WIDTH,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=4 * heads * HEAD_WIDTH,
        vocab_size=50432,
        rotary_pct=0.25,
        max_position_embeddings=2048,
    )
    model = GPTNeoXModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    writers = ("attention.dense.weight", "dense_4h_to_h.weight")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2:
                sd = math.sqrt(2 / (5 * (PYTHIA_WIDTH if "embed" in name else width)))
                sd = 2 / (layers * math.sqrt(width)) if name.endswith(writers) else sd
                weights.normal_(0, sd, generator=generator)
    return model


@dataclass(frozen=True)
class Search:
    """Readings to look among, how near is near, and what they gave.

    Attributes
    ----------
    tolerance : float
        Standard deviation of the log of a printed number about its reading.
    readings : dict of str to pandas.DataFrame
        By kind, spectra and wavelets: a row per length and specification, a column per number.
    """

    tolerance: float
    readings: dict

    def distances(self, target):
        """Return how far each reading is from printed numbers: the largest |log ratio|, by kind."""
        return {kind: self._logs(kind, target).abs().max(axis=1) for kind in self.readings}

    def posterior(self, target):
        """Return the share of belief in each option of each choice, choice → Series, falling.

        Readings have one prior for each; those of spectra and of wavelets must share length, signal, sink and
        order. Belief that the zero-frequency line is out is added as the choice "DC line".
        """
        fit = {k: -0.5 * (self._logs(k, target) ** 2).sum(axis=1) / self.tolerance**2 for k in self.readings}
        evidence = {k: np.exp(part).groupby(level=list(SHARED)).mean() for k, part in fit.items()}
        joint = evidence["spectra"] * evidence["wavelets"]
        if not joint.sum() > 0:
            raise ValueError("no reading comes near the printed numbers; raise the tolerance")
        shares = {}
        for kind, part in fit.items():
            weight = np.exp(part)
            group = weight.groupby(level=list(SHARED)).transform("sum")
            keys = pd.MultiIndex.from_frame(weight.index.to_frame(index=False)[list(SHARED)])
            belief = (
                weight / group.where(group > 0, 1) * (joint / joint.sum()).reindex(keys).fillna(0).to_numpy()
            )
            if kind == "spectra":
                rows = belief.index.to_frame(index=False)
                out = np.where((rows.dc == "drop") | (rows.detrend == "mean"), "out", "in")
                shares["DC line"] = belief.groupby(out).sum()
            shares |= {name: belief.groupby(level=name).sum() for name in belief.index.names}
        return {name: share.sort_values(ascending=False) for name, share in shares.items()}

    def better_targets(self, target, *, n_draws=300, seed=0):
        """Return, by kind, the share of random targets that a reading comes nearer to than one to `target`.

        They are uniform between the 5 % and 95 % quantiles of the readings. A large share means that so many
        readings come near anything.
        """
        generator, shares = np.random.default_rng(seed), {}
        for kind in self.readings:
            known = self._logs(kind, target).to_numpy()  # (reading, number)
            low, high = np.quantile(np.exp(known), [0.05, 0.95], axis=0)
            draws = np.log(generator.uniform(low, high, (n_draws, len(low))))
            best = np.array([np.abs(known - draw).max(1).min() for draw in draws])
            shares[kind] = float((best < np.abs(known).max(1).min()).mean())
        return shares

    def _logs(self, kind, target):
        numbers = [name for name in PRINTED if name in self.readings[kind]]
        given = np.log([float(target[PRINTED[name]]) for name in numbers])
        return np.log(self.readings[kind][numbers].clip(lower=1e-9)) - given


def search_readings(model, token_ids, *, grid=None, lengths=None, progress=True):
    """Measure a model's attention under every reading of `nbhelpers/data/pipelines.yaml`: a :class:`Search`.

    `token_ids`, (sequence, position), are cut to `lengths`, or those of `grid`, a dict as that file holds.
    """
    raw = grid or read_small_yaml(SHIPPED)
    choices, found = load_choices(raw["choices"]), {kind: [] for kind in CHOICES}
    for n in tqdm(lengths or raw["lengths"], desc="lengths", disable=None if progress else True):
        if n > token_ids.shape[1]:
            raise ValueError(f"a reading takes {n} tokens, the sequences have {token_ids.shape[1]}")
        world = observe_variants(model, token_ids[:, :n], choices, progress=False)
        for kind, parts in found.items():
            printed = {name: f for name, f in STATISTICS[kind].items() if name in PRINTED}
            curve = specification_curve(world, choices, kind, printed)
            parts.append(pd.concat({n: curve}, names=["length"]))
    return Search(float(raw["tolerance"]), {kind: pd.concat(parts) for kind, parts in found.items()})


@torch.no_grad()
def sensitivities_by_length(model, token_ids, lengths):
    """Return S(0.5) and S(0.25) of the literal reading at many lengths, a row each, from one pass.

    A causal model's attention to the first n tokens is a corner of its attention to all. `model` is one of
    transformers, `token_ids` (sequence, position); means are over sequences, layers and heads.
    """
    model.set_attn_implementation("eager")
    found = []
    for ids in token_ids:
        sums = torch.cat(model(input_ids=ids[None], output_attentions=True, use_cache=False).attentions)
        sums = sums.cumsum_(-2)  # (layer, head, query, key)
        for n in lengths:
            profiles, level = (sums[..., m - 1, :m] / m for m in (n, n // 2, n // 4)), dwt_max_level(n // 4)
            full, *parts = (wavedec(profile, level=level) for profile in profiles)
            found.append((n, *(float(scale_sensitivity(full, part).mean()) for part in parts)))
    return pd.DataFrame(found, columns=["length", "S(0.5)", "S(0.25)"]).groupby("length").mean()
